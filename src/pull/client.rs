//! Asks a peer for a page, and reads it in bounded pieces.

use crate::settings::{Env, Settings};
use crate::tls::{self, Verify};
use crate::values::{Host, OpUlid, SweepHeaders};
use crate::wire::body::{BodyError, Element, Scanner, Unzip};
use bytes::{Buf, Bytes};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, DATE, USER_AGENT};
use reqwest::redirect::{Attempt, Policy};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Total time to wait for a page; the time to apply it does not count.
const PAGE_TIME: Duration = Duration::from_secs(60);
/// Most compressed bytes of a page. The unpacked size has its own bound, but a stream may unpack
/// to nothing.
const PACKED_BYTES: u64 = 64 << 20;
/// How long a peer may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Redirects followed on the same host.
const MAX_REDIRECTS: usize = 3;

/// A client for peers as the settings say: a developer's network may have certificates that
/// nobody signed.
///
/// # Errors
/// TLS cannot be set up; says why.
pub fn of_settings(settings: &Settings) -> Result<reqwest::Client, String> {
    let is_lax = settings.env == Env::Dev && settings.tls_self_signed;
    http_client(if is_lax { Verify::Nothing } else { Verify::Full })
}

/// What every client is: HTTP/1.1 without a proxy.
pub(super) fn builder(verify: Verify) -> Result<reqwest::ClientBuilder, String> {
    let tls = tls::client_config(verify, None, None)?;
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().http1_only())
}

/// An HTTP client for peers: redirects on the same host only.
///
/// # Errors
/// TLS cannot be set up; says why.
pub fn http_client(verify: Verify) -> Result<reqwest::Client, String> {
    builder(verify)?
        .redirect(Policy::custom(same_host))
        .connect_timeout(CONNECT_TIME)
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(30))
        .build()
        .map_err(|e| cause(&e))
}

fn same_host(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let first = attempt.previous().first();
    let stays = first.is_some_and(|f| {
        f.host_str() == attempt.url().host_str()
            && !(f.scheme() == "https" && attempt.url().scheme() == "http")
    });
    match stays {
        false => attempt.error("it redirects to another host"),
        true if attempt.previous().len() > MAX_REDIRECTS => attempt.error("it redirects too often"),
        true => attempt.follow(),
    }
}

/// A page that is being read.
pub struct Page {
    /// What the headers said.
    pub headers: SweepHeaders,
    response: reqwest::Response,
    unzip: Option<Unzip>,
    packed: u64,
    chunk: Bytes,
    left: Duration,
}

impl Page {
    /// Asks `peer` for what follows `after`, as `own` host.
    ///
    /// # Errors
    /// The peer could not be reached, or answered anything but 200.
    pub async fn ask(
        client: &reqwest::Client,
        peer: &Host,
        after: Option<OpUlid>,
        own: &Host,
    ) -> Result<Self, String> {
        let after = after.as_ref().map_or("", OpUlid::as_str);
        let request = client
            .get(format!("{peer}/internal/crud/sweep?after={after}"))
            .header(USER_AGENT, format!("mediorum {own}"))
            .header(ACCEPT_ENCODING, "gzip");
        let began = Instant::now();
        let response = match timeout(PAGE_TIME, request.send()).await {
            Ok(sent) => sent.map_err(|e| cause(&e))?,
            Err(_) => return Err(late()),
        };
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("it answered {}", response.status()));
        }
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let gzip = text(CONTENT_ENCODING.as_str()).is_some_and(|v| v.trim().eq_ignore_ascii_case("gzip"));
        Ok(Self {
            headers: SweepHeaders::read(text),
            unzip: gzip.then(Unzip::default),
            packed: 0,
            chunk: Bytes::new(),
            left: PAGE_TIME.saturating_sub(began.elapsed()),
            response,
        })
    }

    /// The peer's clock, as its `Date` header says it.
    pub fn date(&self) -> Option<&str> {
        self.response.headers().get(DATE).and_then(|v| v.to_str().ok())
    }

    /// Reads on by at most 64 KiB of unpacked text; completed elements are
    /// appended. `false` when there is nothing more to read.
    ///
    /// # Errors
    /// The connection broke, was too slow, or what came is no page.
    pub async fn read_on(
        &mut self,
        scanner: &mut Scanner,
        out: &mut Vec<Element>,
    ) -> Result<bool, PageError> {
        if scanner.is_done() {
            return Ok(false);
        }
        let Self { chunk, unzip, .. } = self;
        let step = match unzip {
            Some(unzip) => {
                let (used, bytes) = unzip.step(chunk).map_err(PageError::Peer)?;
                let idle = used == 0 && bytes.is_empty();
                scanner.feed(bytes, out)?;
                chunk.advance(used);
                !idle
            }
            None => {
                let piece = chunk.split_to(chunk.len().min(64 * 1024));
                scanner.feed(&piece, out)?;
                !piece.is_empty()
            }
        };
        Ok(step || self.next_chunk().await?)
    }

    async fn next_chunk(&mut self) -> Result<bool, PageError> {
        let began = Instant::now();
        let read = timeout(self.left, self.response.chunk()).await;
        self.left = self.left.saturating_sub(began.elapsed());
        match read {
            Err(_) => Err(PageError::Peer(late())),
            Ok(Err(e)) => Err(PageError::Peer(cause(&e))),
            Ok(Ok(None)) => Ok(false),
            Ok(Ok(Some(chunk))) => {
                self.packed += chunk.len() as u64;
                if self.unzip.is_some() && self.packed > PACKED_BYTES {
                    return Err(BodyError::TooLong(PACKED_BYTES).into());
                }
                // Less than one gzip code is left of the last chunk.
                self.chunk = match self.chunk.is_empty() {
                    true => chunk,
                    false => [self.chunk.clone(), chunk].concat().into(),
                };
                Ok(true)
            }
        }
    }
}

/// Why reading a page ended early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageError {
    /// The connection or its encoding.
    #[error("{0}")]
    Peer(String),
    /// What it carried.
    #[error(transparent)]
    Body(#[from] BodyError),
}

fn late() -> String {
    format!("it did not answer within {} s", PAGE_TIME.as_secs())
}

/// reqwest's error with what is behind it, which it leaves out, and without
/// the URL, which is known.
pub fn cause(error: &reqwest::Error) -> String {
    let mut words = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        words.push(inner.to_string());
        source = inner.source();
    }
    match words.last() {
        Some(last) => last.clone(),
        None => error.to_string(),
    }
}
