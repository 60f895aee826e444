//! HTTP/1.1 listeners, for the public and the admin port alike.
//!
//! Each connection is a task. It ends when it stays idle, when a response passes its deadline,
//! when a handler asks for that, and when the listener stops, whatever its socket does: hyper
//! does not poll the body of a stuck socket, so the whole task is dropped.

mod body;
mod conn;
mod slots;

pub use body::Body;
pub use conn::Conn;

use bytes::Bytes;
use conn::Ending;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use slots::{Slot, Slots};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Answers a request. A panic in it becomes a 500.
pub type Handler = Arc<dyn Fn(Request<Incoming>, Conn) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. One more ends one that asks nothing; where all
    /// ask, the rest wait in the listen queue.
    pub connections: usize,
    /// How long a request's head may take, from the connection's or the last
    /// response's end on: also how long a connection may stay idle.
    pub header_read: Duration,
    /// How long a response may take to be sent once it is made.
    pub response: Duration,
    /// How long responses under way may still take once the listener stops.
    pub stop: Duration,
}

impl Default for Limits {
    /// Contract 3's 75 s a response, and an end well within 30 s.
    fn default() -> Self {
        Self {
            connections: 512,
            header_read: Duration::from_secs(20),
            response: Duration::from_secs(75),
            stop: Duration::from_secs(10),
        }
    }
}

/// hyper's buffers a connection, each way: a slow connection costs little.
const BUFFER: usize = 64 * 1024;
/// Pause after an `accept` that failed, e.g. for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop`, then lets responses under way finish for a while.
pub async fn serve(listener: TcpListener, handler: Handler, limits: Limits, stop: CancellationToken) {
    let slots = Slots::new(limits.connections);
    let shared =
        Shared { handler, limits, tracker: TaskTracker::new(), killed: CancellationToken::new(), stop };
    while let Some((stream, from, slot)) = shared.accept(&listener, &slots).await {
        let connection = shared.clone().connection(stream, from, slot);
        shared.tracker.spawn(connection);
    }
    drop(listener);
    shared.tracker.close();
    let ended = tokio::time::timeout(limits.stop, shared.tracker.wait()).await;
    if ended.is_err() {
        shared.killed.cancel();
        shared.tracker.wait().await;
    }
}

/// What every connection of a listener knows.
#[derive(Clone)]
struct Shared {
    handler: Handler,
    limits: Limits,
    tracker: TaskTracker,
    killed: CancellationToken,
    stop: CancellationToken,
}

impl Shared {
    /// The next connection; `None` once stopped.
    async fn accept(&self, listener: &TcpListener, slots: &Slots) -> Option<(TcpStream, IpAddr, Slot)> {
        let next = async {
            loop {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let slot = slots.take(from.ip(), self.killed.child_token()).await;
                        return Some((stream, from.ip(), slot));
                    }
                    Err(e) if is_of_connection(&e) => {}
                    Err(e) => {
                        tracing::warn!(error = %e, "cannot accept connections; trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            next = next => next,
        }
    }

    async fn connection(self, stream: TcpStream, from: IpAddr, slot: Slot) {
        // Best effort: without it a page's last bytes may wait for an ACK.
        let _ = stream.set_nodelay(true);
        let (conn, ending) = Conn::new(from, slot.end.clone(), &self.tracker);
        let service = service_fn(|request| {
            slot.asks.store(true, Ordering::Relaxed);
            self.answer(request, &conn, (&ending, &slot))
        });
        let mut serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_read)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let mut stopping = false;
        loop {
            tokio::select! {
                // An error of a connection concerns its client only.
                ended = &mut serving => return if let Err(e) = ended {
                    tracing::debug!(error = %e, "a connection ended early");
                },
                () = conn.killed() => break,
                () = ending.overdue() => break conn.set_overdue(),
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    Pin::new(&mut serving).graceful_shutdown();
                }
            }
        }
        // Closed hard: the kernel drops what it still holds for the client.
        let _ = serving.into_parts().io.inner().set_zero_linger();
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        conn: &Conn,
        (ending, slot): (&Ending, &Slot),
    ) -> Result<Response<Body>, Infallible> {
        ending.lift();
        let answering = AssertUnwindSafe((self.handler)(request, conn.clone())).catch_unwind();
        let response = answering.await.unwrap_or_else(|_| {
            tracing::error!("answering a request panicked; the asker got a 500");
            error(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        });
        Ok(response.map(|body| body.guarded(ending.begin(self.limits.response, slot.asks.clone()))))
    }
}

/// Whether an error of `accept` is about the one connection.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// A response of one content type.
pub fn respond(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// 405: GET and HEAD only.
pub fn read_only(words: &str) -> Response<Body> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, words);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// A JSON error: `{"error":"…"}`.
pub fn error(status: StatusCode, words: &str) -> Response<Body> {
    let text = serde_json::json!({ "error": words }).to_string();
    respond(status, "application/json", text)
}
