//! A peer that says whatever a test wants it to say, byte by byte, and
//! remembers what it was asked.

use super::http::{header, split_head};
use flate2::{Compression, write::GzEncoder};
use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// When to give up waiting for a request. No test should ever get there.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the peer was asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The head as it came over the wire.
    pub head: String,
}

impl Request {
    /// The first header of a name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The value of `after=`, as sent.
    pub fn after(&self) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|part| part.strip_prefix("after="))
    }
}

/// What the peer says. The connection ends with the answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These bytes, head included, and the end.
    Bytes(Vec<u8>),
    /// These bytes, then a reset instead of an end.
    Cut(Vec<u8>),
    /// These bytes, and then nothing while the connection stays open.
    Hang(Vec<u8>),
    /// A head, then a chunk again and again until the other end is gone.
    Endless {
        /// Sent once.
        head: Vec<u8>,
        /// Sent for ever.
        chunk: Vec<u8>,
    },
    /// These bytes, so many at a time, with a pause after each.
    Drip {
        /// All of them, head included.
        bytes: Vec<u8>,
        /// How many at a time.
        at_once: usize,
        /// The pause.
        pause: Duration,
    },
}

impl Answer {
    /// An answer of a status, header lines (`Name: value`) and a body, with
    /// its length and `Connection: close`.
    pub fn new(status: u16, headers: &[&str], body: &[u8]) -> Self {
        let mut bytes = head(status, headers);
        let length = format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        bytes.extend_from_slice(length.as_bytes());
        bytes.extend_from_slice(body);
        Self::Bytes(bytes)
    }

    /// 200 and a JSON body.
    pub fn json(body: &str) -> Self {
        Self::page(&[], body)
    }

    /// 200, header lines and a JSON body.
    pub fn page(headers: &[&str], body: &str) -> Self {
        let headers = [&["Content-Type: application/json"], headers].concat();
        Self::new(200, &headers, body.as_bytes())
    }

    /// As [`Self::page`], compressed.
    pub fn gzip(headers: &[&str], body: &str) -> Self {
        let headers = [&["Content-Type: application/json", "Content-Encoding: gzip"], headers].concat();
        Self::new(200, &headers, &gzip(body.as_bytes()))
    }

    /// All bytes of an answer that ends.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(b) | Self::Cut(b) | Self::Hang(b) | Self::Drip { bytes: b, .. } => b,
            Self::Endless { head, .. } => head,
        }
    }
}

/// A start line and header lines, the blank line still to come.
pub fn head(status: u16, headers: &[&str]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Said\r\n");
    for line in headers {
        head.push_str(line);
        head.push_str("\r\n");
    }
    head.into_bytes()
}

/// Compressed as nodes compress.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// An HTTP server that answers from a script, and by a function where the
/// script is at its end. Ends with its connections when dropped.
pub struct Peer {
    address: SocketAddr,
    said: Arc<Said>,
    stop: CancellationToken,
}

struct Said {
    script: Mutex<VecDeque<Answer>>,
    handler: Box<Handler>,
    requests: Mutex<Vec<Request>>,
    count: watch::Sender<usize>,
}

impl Peer {
    /// Answers each request by a function.
    pub async fn serving(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::new(Said {
            script: Mutex::default(),
            handler: Box::new(handler),
            requests: Mutex::default(),
            count: watch::Sender::new(0),
        });
        let stop = CancellationToken::new();
        tokio::spawn(listen(listener, said.clone(), stop.clone()));
        Self { address, said, stop }
    }

    /// Answers from a script, then with empty pages.
    pub async fn scripted(script: impl IntoIterator<Item = Answer>) -> Self {
        let peer = Self::serving(|_| Answer::json("[]")).await;
        for answer in script {
            peer.then(answer);
        }
        peer
    }

    /// Adds an answer to the script.
    pub fn then(&self, answer: Answer) {
        self.said.script.lock().unwrap().push_back(answer);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its host as peers are named.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.said.requests.lock().unwrap().clone()
    }

    /// Waits until it was asked so many times, and tells what.
    pub async fn asked(&self, times: usize) -> Vec<Request> {
        let mut count = self.said.count.subscribe();
        let asked = tokio::time::timeout(PATIENCE, count.wait_for(|n| *n >= times)).await;
        asked.unwrap_or_else(|_| panic!("it was never asked {times} times")).unwrap();
        self.requests()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn listen(listener: TcpListener, said: Arc<Said>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let (said, stop) = (said.clone(), stop.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        _ = answer(stream, said) => {}
                    }
                });
            },
        }
    }
}

async fn answer(mut stream: TcpStream, said: Arc<Said>) -> std::io::Result<()> {
    let Some(request) = read_request(&mut stream).await? else {
        return Ok(());
    };
    let next = said.script.lock().unwrap().pop_front();
    let answer = next.unwrap_or_else(|| (said.handler)(&request));
    let asked = {
        let mut requests = said.requests.lock().unwrap();
        requests.push(request);
        requests.len()
    };
    said.count.send_replace(asked);
    match answer {
        Answer::Bytes(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
            // Closing with unread input would turn the end into a reset.
            drain(&mut stream).await;
        }
        Answer::Cut(bytes) => {
            stream.write_all(&bytes).await?;
            stream.set_zero_linger()?;
        }
        Answer::Hang(bytes) => {
            stream.write_all(&bytes).await?;
            drain(&mut stream).await;
        }
        Answer::Endless { head, chunk } => {
            stream.write_all(&head).await?;
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        Answer::Drip { bytes, at_once, pause } => {
            for part in bytes.chunks(at_once) {
                stream.write_all(part).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(())
}

async fn drain(stream: &mut TcpStream) {
    let mut buffer = [0; 1024];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    loop {
        if let Some((start, headers, rest)) = split_head(&bytes) {
            let length = header(&headers, "content-length").and_then(|v| v.parse().ok());
            if rest.len() >= length.unwrap_or(0) {
                let mut words = start.split(' ').map(str::to_owned);
                return Ok(Some(Request {
                    method: words.next().unwrap_or_default(),
                    target: words.next().unwrap_or_default(),
                    body: rest.to_vec(),
                    head: String::from_utf8_lossy(&bytes[..bytes.len() - rest.len()]).into_owned(),
                    headers,
                }));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}
