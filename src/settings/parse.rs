//! Parsers of single values. An error says what is wrong and does not repeat the text, because
//! the problem shows it.

use super::{Env, LogFormat, bounding, duration};
use crate::values::Host;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Log levels, from the quietest.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Where libraries stay when only opsward's own level is named: `warn`.
const LIBRARIES_AT_MOST: usize = 2;

type Parsed<T> = Result<T, String>;

/// Go's ParseBool.
pub fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("it is no boolean".into()),
    }
}

/// An address and a port to listen on.
pub fn listen(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| "it is no IP address with a port".into())
}

/// A node's own URL.
pub fn host(text: &str) -> Parsed<Host> {
    Host::parse(text).ok_or_else(|| "it is no URL of a node".into())
}

/// `none`, or nodes' URLs with commas between them. Empty parts and
/// repetitions are left out.
pub fn peers(text: &str) -> Parsed<Vec<Host>> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let mut peers = Vec::new();
    let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    for (number, part) in (1..).zip(parts) {
        let peer = Host::parse(part).ok_or_else(|| format!("its part {number} is no URL"))?;
        if !peers.contains(&peer) {
            peers.push(peer);
        }
    }
    if peers.is_empty() {
        return Err("it names no peer".into());
    }
    Ok(peers)
}

/// A URL of http or https to send requests to.
pub fn base_url(text: &str) -> Parsed<url::Url> {
    if Host::parse(text).is_none() {
        return Err("it is no plain URL of http or https".into());
    }
    url::Url::parse(text).map_err(|_| "it is no URL".into())
}

/// Rows a batch.
pub fn batch_limit(text: &str) -> Parsed<u32> {
    match text.parse() {
        Ok(rows) if (100..=100_000).contains(&rows) => Ok(rows),
        Ok(_) => Err("it is out of bounds".into()),
        Err(_) => Err("it is no whole number".into()),
    }
}

/// A duration of at least so many seconds; `named` says how long that is.
pub fn at_least(text: &str, seconds: u64, named: &str) -> Parsed<Duration> {
    match duration::parse(text)? {
        given if given >= Duration::from_secs(seconds) => Ok(given),
        _ => Err(format!("it is shorter than {named}")),
    }
}

/// How far behind a peer may be; 0 is off. A day at least: less would drop
/// peers that are being restarted.
pub fn max_peer_lag(text: &str) -> Parsed<Duration> {
    if duration::parse(text)?.is_zero() { Ok(Duration::ZERO) } else { at_least(text, 86_400, "24h") }
}

pub fn reclaim_memory(text: &str) -> Parsed<u64> {
    match bounding::size(text)? {
        bytes if bytes >= 32 << 20 => Ok(bytes),
        _ => Err("it is less than 32MiB".into()),
    }
}

/// A directory by its absolute path.
pub fn directory(text: &str) -> Parsed<PathBuf> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("it is no absolute path".into());
    }
    Ok(path)
}

/// Text or JSON.
pub fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("there is no such format".into()),
    }
}

/// The network, by any of the names that nodes know it by.
pub fn env(text: &str) -> Parsed<Env> {
    match text {
        "prod" | "production" | "mainnet" => Ok(Env::Prod),
        "stage" | "staging" | "testnet" => Ok(Env::Stage),
        "dev" | "development" | "devnet" | "local" | "sandbox" => Ok(Env::Dev),
        _ => Err("there is no such network".into()),
    }
}

/// A log filter, as it is written.
pub fn log_level(text: &str) -> Parsed<String> {
    log_filter(text).map(|_| text.to_owned())
}

/// Parses a log filter into a level for each target; the empty target stands for all others. A
/// bare level sets opsward's own level: libraries stay at `warn` or quieter unless named.
///
/// # Errors
/// What is wrong with it.
pub fn log_filter(text: &str) -> Parsed<Vec<(String, &'static str)>> {
    let mut targets = Vec::new();
    for part in text.split(',').map(str::trim) {
        if let Some((target, level)) = part.split_once('=') {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            if target.is_empty() || !target.chars().all(fits) {
                return Err("it names a target that is no path such as opsward::pull".into());
            }
            targets.push((target.to_owned(), LEVELS[level_of(level)?]));
        } else {
            let level = level_of(part)?;
            targets.push((String::new(), LEVELS[level.min(LIBRARIES_AT_MOST)]));
            targets.push(("opsward".to_owned(), LEVELS[level]));
        }
    }
    Ok(targets)
}

fn level_of(text: &str) -> Parsed<usize> {
    LEVELS
        .iter()
        .position(|level| level.eq_ignore_ascii_case(text))
        .ok_or_else(|| "it names a level that there is not".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(boolean(text), Ok(true));
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(boolean(text), Ok(false));
        }
        for text in ["", "yes", "on", "tRUE", "2"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn peers_are_urls_or_none() {
        assert_eq!(peers("none"), Ok(vec![]));
        let some = peers(" https://A.example/, ,https://b.example,https://a.example").unwrap();
        let texts: Vec<&str> = some.iter().map(Host::as_str).collect();
        assert_eq!(texts, ["https://a.example", "https://b.example"]);
        assert_eq!(peers("https://a.example,none"), Err("its part 2 is no URL".into()));
        assert_eq!(peers(" , "), Err("it names no peer".into()));
    }

    #[test]
    fn filters() {
        let filter = log_filter("DEBUG, hyper=trace").unwrap();
        let filter: Vec<(&str, &str)> = filter.iter().map(|(t, l)| (t.as_str(), *l)).collect();
        assert_eq!(filter, [("", "warn"), ("opsward", "debug"), ("hyper", "trace")]);
        assert_eq!(log_filter("off").unwrap()[0], (String::new(), "off"));
        for text in ["", "loud", "a=loud", "=info", "a b=info", "info,,warn"] {
            assert!(log_filter(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls_and_paths() {
        assert_eq!(base_url("http://localhost:80").unwrap().as_str(), "http://localhost/");
        for text in ["localhost:80", "http://u:p@h", "unix:///x", "http://h/?q"] {
            assert!(base_url(text).is_err(), "{text}");
        }
        assert!(directory("relative/path").is_err());
        assert!(listen("localhost:80").is_err());
        assert!(listen("[::]:80").is_ok());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = (boolean(&text), listen(&text), host(&text), peers(&text));
            let _ = (base_url(&text), at_least(&text, 10, "10s"), log_filter(&text));
        }
    }
}
