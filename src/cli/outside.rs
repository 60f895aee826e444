//! Requests that commands (mostly `doctor`) send over the network: to the registry, to this
//! validator's public URL, and to a few peers for their time.

use crate::clock::Clock;
use crate::pull::client::cause;
use crate::show::doctor::{self, Check};
use crate::values::{Host, OpUlid, names};
use futures_util::future::join_all;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::Client;
use reqwest::header::DATE;
use std::time::Duration;

/// Timeout of each request.
pub(super) const WITHIN: Duration = Duration::from_secs(10);
/// How many peers are asked for the time; a median needs three answers (contract 5).
const CLOCKS: usize = 5;
/// The daemon notes only clients that call themselves mediorum, so `doctor` is not noted as a reader.
const USER_AGENT: &str = concat!("opsward-doctor/", env!("CARGO_PKG_VERSION"));

/// The version of the opsward that answers at a public URL; `None` when something else answers.
/// The request asks for ops after now, so the answer is small. A 5xx answer without a version
/// is an error: a proxy that cannot reach opsward says nothing about the route.
pub(super) async fn version(
    http: &Client,
    own: &Host,
    clock: &Clock,
    within: Duration,
) -> Result<Option<String>, String> {
    let after = OpUlid::first_of_ms(clock.now_ms());
    let request = http
        .get(format!("{own}/internal/crud/sweep?after={after}"))
        .header("User-Agent", USER_AGENT)
        .timeout(within);
    let response = request.send().await.map_err(|e| cause(&e))?;
    let version = response.headers().get(names::VERSION).and_then(|v| v.to_str().ok());
    match version {
        None if response.status().is_server_error() => Err(format!("it answers {}", response.status())),
        version => Ok(version.map(str::to_owned)),
    }
}

/// Compares the median of a few peers' clocks with ours; `None` when fewer than three answer.
pub(super) async fn clock(http: &Client, peers: &[Host], clock: &Clock) -> Option<Check> {
    let asked = peers.iter().take(CLOCKS).map(|peer| date(http, peer));
    let mut dates: Vec<Timestamp> = join_all(asked).await.into_iter().flatten().collect();
    if dates.len() < 3 {
        return None;
    }
    dates.sort();
    let median = dates[dates.len() / 2];
    Some(doctor::clock("peers_clock", "the peers'", median, clock.now()))
}

async fn date(http: &Client, peer: &Host) -> Option<Timestamp> {
    let request = http.head(format!("{peer}/health_check")).header("User-Agent", USER_AGENT).timeout(WITHIN);
    let response = request.send().await.ok()?;
    let date = response.headers().get(DATE)?.to_str().ok()?;
    rfc2822::parse(date).ok().map(|zoned| zoned.timestamp())
}
