//! What is asked: from a request to an `Ask`. Pure.

use crate::values::{Host, OpUlid};
use crate::wire::page::Encoding;
use hyper::header::{ACCEPT_ENCODING, HeaderMap, USER_AGENT};
use hyper::{Method, Request};
use std::net::IpAddr;

/// The one path of the public port.
const PATH: &str = "/internal/crud/sweep";
/// What nodes, and opsward, call themselves before their host.
const AGENT: &str = "mediorum ";
/// How much of a bad value an error repeats.
const SHOWN: usize = 64;

/// A sweep that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Ops after this one; `None` is a first contact.
    pub after: Option<OpUlid>,
    /// How the page is to be encoded.
    pub encoding: Encoding,
    /// Whether the page itself is wanted.
    pub wants: Wants,
    /// Who asks, where it says so as nodes do.
    pub agent: Option<Host>,
    /// The asker's address, where a proxy names one.
    pub forwarded: Option<IpAddr>,
}

/// What of an answer is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    /// GET.
    Page,
    /// HEAD: the headers.
    Headers,
}

/// Why a request is none for a sweep.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Another path.
    NotFound,
    /// Another method.
    Method,
    /// `after` is no `OpUlid`: a sentence for the asker.
    After(String),
}

/// Reads a request.
///
/// # Errors
/// The refusal to answer with.
pub fn read<B>(request: &Request<B>) -> Result<Ask, Refusal> {
    if request.uri().path() != PATH {
        return Err(Refusal::NotFound);
    }
    let wants = match *request.method() {
        Method::GET => Wants::Page,
        Method::HEAD => Wants::Headers,
        _ => return Err(Refusal::Method),
    };
    Ok(Ask {
        after: after(request.uri().query().unwrap_or_default())?,
        encoding: encoding(request.headers()),
        wants,
        agent: agent(request.headers()),
        forwarded: forwarded(request.headers()),
    })
}

/// The first `after` counts, as with a node.
fn after(query: &str) -> Result<Option<OpUlid>, Refusal> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let text = match pairs.find(|(key, _)| key == "after") {
        Some((_, text)) if !text.is_empty() => text,
        _ => return Ok(None),
    };
    let ulid = OpUlid::parse(&text).ok_or_else(|| {
        let shown: String = text.chars().take(SHOWN).collect();
        Refusal::After(format!(
            "after is {shown:?}: it must be empty or a ULID, 26 characters of upper-case \
             Crockford base32 (0-9 and A-Z without I, L, O, U), the first at most 7"
        ))
    })?;
    Ok(Some(ulid))
}

/// Gzip where it is accepted with any weight above 0; a name counts before `*`.
fn encoding(headers: &HeaderMap) -> Encoding {
    let (mut named, mut any) = (None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        for part in value.to_str().unwrap_or_default().split(',') {
            let (coding, parameters) = part.split_once(';').unwrap_or((part, ""));
            let accepted = weight(parameters) > 0.0;
            match coding.trim().to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => named = Some(named.unwrap_or(false) || accepted),
                "*" => any = Some(accepted),
                _ => {}
            }
        }
    }
    match named.or(any) {
        Some(true) => Encoding::Gzip,
        _ => Encoding::Identity,
    }
}

/// The weight among a coding's parameters: 1 where there is none, 0 where it
/// cannot be read.
fn weight(parameters: &str) -> f32 {
    let mut pairs = parameters.split(';').filter_map(|p| p.split_once('='));
    match pairs.find(|(key, _)| key.trim().eq_ignore_ascii_case("q")) {
        Some((_, weight)) => weight.trim().parse().unwrap_or(0.0),
        None => 1.0,
    }
}

fn agent(headers: &HeaderMap) -> Option<Host> {
    let text = headers.get(USER_AGENT)?.to_str().ok()?;
    Host::parse(text.strip_prefix(AGENT)?)
}

/// The last address that `X-Forwarded-For` names: the nearest proxy wrote it.
fn forwarded(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next()?.trim().trim_matches(['[', ']']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(uri: &str, headers: &[(&str, &str)]) -> Result<Ask, Refusal> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(&request.body(()).unwrap())
    }

    #[test]
    fn after_as_nodes_write_it() {
        let ulid = "01HKFACTS00000000000000001";
        let at = |uri: &str| get(uri, &[]).unwrap().after;
        let base = "/internal/crud/sweep";
        assert_eq!(at(base), None);
        assert_eq!(at(&format!("{base}?after=")), None);
        assert_eq!(at(&format!("{base}?after")), None);
        assert_eq!(at(&format!("{base}?before=x")), None);
        assert_eq!(at(&format!("{base}?after={ulid}")), OpUlid::parse(ulid));
        assert_eq!(at(&format!("{base}?x=1&after={ulid}&after=zzz")), OpUlid::parse(ulid));
        assert_eq!(at(&format!("{base}?after=%3{}", &format!("0{}", &ulid[1..]))), OpUlid::parse(ulid));
    }

    #[test]
    fn a_bad_after_is_told_what_it_must_be() {
        for bad in ["zzz", "%F0%9F%98%80", "01hkfacts00000000000000001", "%00"] {
            let refusal = get(&format!("/internal/crud/sweep?after={bad}"), &[]).unwrap_err();
            assert!(matches!(refusal, Refusal::After(words) if words.contains("26 characters")));
        }
    }

    #[test]
    fn paths_and_methods() {
        assert_eq!(get("/", &[]), Err(Refusal::NotFound));
        assert_eq!(get("/internal/crud/sweep/", &[]), Err(Refusal::NotFound));
        let with = |method: &str| {
            let request = Request::builder().method(method).uri(PATH);
            read(&request.body(()).unwrap()).map(|ask| ask.wants)
        };
        assert_eq!(with("GET"), Ok(Wants::Page));
        assert_eq!(with("HEAD"), Ok(Wants::Headers));
        for other in ["POST", "PUT", "OPTIONS", "get"] {
            assert_eq!(with(other), Err(Refusal::Method));
        }
    }

    #[test]
    fn accepted_encodings() {
        let with = |value: &str| {
            let headers = [("accept-encoding", value)];
            get(PATH, &headers).unwrap().encoding
        };
        for yes in
            ["gzip", "GZIP", "br, gzip", "gzip;q=0.1", "gzip ; q=1", "x-gzip", "*", "deflate;q=0, *;q=0.5"]
        {
            assert_eq!(with(yes), Encoding::Gzip, "{yes}");
        }
        for no in ["", "br", "gzip;q=0", "gzip;q=0.000", "*;q=0", "gzip;q=0, *", "gzip;q=x", "gzipped"] {
            assert_eq!(with(no), Encoding::Identity, "{no}");
        }
        assert_eq!(get(PATH, &[]).unwrap().encoding, Encoding::Identity);
    }

    #[test]
    fn the_nearest_proxys_word_counts() {
        let with = |value: &str| get(PATH, &[("x-forwarded-for", value)]).unwrap().forwarded;
        assert_eq!(with("198.51.100.1, 203.0.113.9"), "203.0.113.9".parse().ok());
        assert_eq!(with("[2001:db8::1]"), "2001:db8::1".parse().ok());
        assert_eq!(with("unknown"), None);
    }

    #[test]
    fn who_asks() {
        let with = |value: &str| get(PATH, &[("user-agent", value)]).unwrap().agent;
        assert_eq!(with("mediorum https://N1.example/"), Host::parse("https://n1.example"));
        assert_eq!(with("curl/8"), None);
        assert_eq!(with("mediorum x"), None);
    }

    proptest! {
        #[test]
        fn never_panics(query: String, accept: String) {
            let _ = after(&query);
            let mut headers = HeaderMap::new();
            if let Ok(value) = accept.parse() {
                headers.insert(ACCEPT_ENCODING, value);
            }
            encoding(&headers);
        }
    }
}
