//! HTTP/1.1 by hand: requests exactly as written, answers exactly as sent.

use std::io::Read;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body, chunks joined, still compressed if it was.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of a name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body as text, unpacked where it says gzip.
    pub fn text(&self) -> String {
        let mut body = Vec::new();
        match self.header("content-encoding") {
            Some("gzip") => {
                let mut unpacked = flate2::read::GzDecoder::new(&self.body[..]);
                unpacked.read_to_end(&mut body).expect("a gzip stream");
            }
            None => body.clone_from(&self.body),
            Some(other) => panic!("content-encoding {other}"),
        }
        String::from_utf8(body).expect("UTF-8 text")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in: {text}"))
    }

    /// The ULIDs of a page, in its order.
    pub fn ulids(&self) -> Vec<String> {
        let page = self.json();
        let ops = page.as_array().expect("a page is an array");
        let ulid = |op: &serde_json::Value| op["ulid"].as_str().expect("a ulid").to_owned();
        ops.iter().map(ulid).collect()
    }
}

/// The first header of a name, in any case.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// GET with extra headers, each `Name: value`.
pub async fn get(address: SocketAddr, target: &str, headers: &[&str]) -> Response {
    request("GET", address, target, headers).await
}

/// Any method, without a body.
pub async fn request(method: &str, address: SocketAddr, target: &str, headers: &[&str]) -> Response {
    try_request(method, address, target, headers)
        .await
        .unwrap_or_else(|e| panic!("{method} http://{address}{target}: {e}"))
}

/// As [`request`], where no answer is an answer.
pub async fn try_request(
    method: &str,
    address: SocketAddr,
    target: &str,
    headers: &[&str],
) -> Result<Response, String> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for line in headers {
        head.push_str(line);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    let bytes = raw(address, head.as_bytes()).await.map_err(|e| e.to_string())?;
    parse(&bytes, method == "HEAD").ok_or_else(|| {
        let seen = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
        format!("no whole answer: {seen:?}")
    })
}

/// Sends bytes and reads to the end of the connection.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Reads one answer; `None` when it is cut off or none.
pub fn parse(bytes: &[u8], is_head: bool) -> Option<Response> {
    let (start, headers, rest) = split_head(bytes)?;
    let status = start.split(' ').nth(1)?.parse().ok()?;
    let body = if is_head || status == 204 || status == 304 {
        Vec::new()
    } else if header(&headers, "transfer-encoding") == Some("chunked") {
        join_chunks(rest)?
    } else if let Some(length) = header(&headers, "content-length") {
        rest.get(..length.parse().ok()?)?.to_vec()
    } else {
        rest.to_vec()
    };
    Some(Response { status, headers, body })
}

/// Start line, headers in lower case, and what follows.
pub type Head<'a> = (String, Vec<(String, String)>, &'a [u8]);

/// Splits a head off; `None` while it is not all there.
pub fn split_head(bytes: &[u8]) -> Option<Head<'_>> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let start = lines.next()?.to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    Some((start, headers, &bytes[end + 4..]))
}

fn join_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = memchr::memmem::find(rest, b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
