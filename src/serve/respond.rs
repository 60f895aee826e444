//! Answers: status and headers.

use super::build::Built;
use crate::http::{self, Body};
use crate::values::{format_table_floors, names};
use crate::wire::page::Encoding;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, VARY,
};
use hyper::{Response, StatusCode};

/// Seconds after which to ask again: the database takes some to come back,
/// a queue of pages is shorter by then.
const RETRY_AWAY: &str = "30";
const RETRY_OVERLOADED: &str = "5";

/// The headers of a page, without its length.
pub fn page_headers(built: &Built, encoding: Encoding) -> Response<Body> {
    let mut response = Response::new(Body::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if encoding == Encoding::Gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(ulid) = built.last_scanned {
        put(&mut response, names::LAST_SCANNED, ulid.as_str());
    }
    if built.limit.is_some() {
        put(&mut response, names::LIMITED, "true");
    }
    if let Some(minimum) = built.gap {
        put(&mut response, names::GAP, "true");
        put(&mut response, names::GAP_MIN, minimum.as_str());
    }
    let floors = format_table_floors(&built.floors);
    if !floors.is_empty() {
        put(&mut response, names::TABLE_FLOORS, &floors);
    }
    response
}

/// Says how long the page is, for HEAD too.
pub fn set_length(response: &mut Response<Body>, bytes: usize) {
    response.headers_mut().insert(CONTENT_LENGTH, bytes.into());
}

/// Names the version that answered.
pub fn versioned(mut response: Response<Body>) -> Response<Body> {
    put(&mut response, names::VERSION, env!("CARGO_PKG_VERSION"));
    response
}

/// 404.
pub fn not_found() -> Response<Body> {
    http::error(StatusCode::NOT_FOUND, "not found")
}

/// 405.
pub fn method() -> Response<Body> {
    let mut response = http::error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    let allowed = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

/// 400.
pub fn bad_request(words: &str) -> Response<Body> {
    http::error(StatusCode::BAD_REQUEST, words)
}

/// 503: the database.
pub fn away() -> Response<Body> {
    later("the database is away", RETRY_AWAY)
}

/// 503: too much at once.
pub fn overloaded() -> Response<Body> {
    later("overloaded", RETRY_OVERLOADED)
}

/// 500.
pub fn failed() -> Response<Body> {
    http::error(StatusCode::INTERNAL_SERVER_ERROR, "the log could not be read")
}

fn later(words: &str, seconds: &'static str) -> Response<Body> {
    let mut response = http::error(StatusCode::SERVICE_UNAVAILABLE, words);
    let seconds = HeaderValue::from_static(seconds);
    response.headers_mut().insert(RETRY_AFTER, seconds);
    response
}

/// Sets a header whose value is printable; one that is not is left out.
fn put(response: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        let name = HeaderName::from_static(name);
        response.headers_mut().insert(name, value);
    }
}
