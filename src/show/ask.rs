//! Asks a daemon's admin port on this machine: one request, no TLS, no proxy.

use super::status::Status;
use crate::values::Finding;
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a daemon may take to answer.
pub const WITHIN: Duration = Duration::from_secs(2);
/// Most bytes of an answer; a status of 1,000 peers has some 1 MiB.
const MOST: u64 = 16 << 20;

/// GETs `path` from the daemon whose admin listener is set to `listen`:
/// the status code and the body.
///
/// # Errors
/// Nobody answers in time, or the answer is no HTTP.
pub async fn get(listen: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    timeout(WITHIN, exchange(reachable(listen), path))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The parts of the daemon's envelope that are used.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// What an operator should know.
    pub warnings: Vec<Finding>,
    /// The daemon's own status.
    pub result: Status,
}

/// The daemon's own status.
///
/// # Errors
/// As [`get`], or the answer is no status.
pub async fn status(listen: SocketAddr) -> io::Result<Answer> {
    let (code, body) = get(listen, "/status").await?;
    if code != 200 {
        return Err(io::Error::other(format!("it answered {code}")));
    }
    Ok(serde_json::from_slice(&body)?)
}

async fn exchange(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    parse(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Parses an answer of our own listener, which is never chunked and always has its length.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let code = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let length = lines
        .filter_map(|l| l.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?
        .1;
    let body = answer.get(end + 4..)?;
    let whole = length.trim().parse::<usize>() == Ok(body.len());
    whole.then_some((code.parse().ok()?, body.to_vec()))
}

/// Where a listener on all addresses is reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_answers_only() {
        let whole = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(whole), Some((503, b"{}".to_vec())));
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None);
        }
        assert_eq!(reachable(([0, 0, 0, 0], 9).into()), ([127, 0, 0, 1], 9).into());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
