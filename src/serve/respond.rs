//! Answers: status and headers.

use super::build::Built;
use crate::http::{self, Body};
use crate::values::{format_table_floors, names};
use crate::wire::page::Encoding;
use hyper::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY,
};
use hyper::{Response, StatusCode};

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

/// 503, and when to ask again.
pub fn later(words: &str, seconds: u16) -> Response<Body> {
    let mut response = http::error(StatusCode::SERVICE_UNAVAILABLE, words);
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response
}

/// Sets a header whose value is printable; one that is not is left out.
fn put(response: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        let name = HeaderName::from_static(name);
        response.headers_mut().insert(name, value);
    }
}
