//! The listener itself: panics, idle connections, an ordered end.

use crate::harness::http;
use futures_util::FutureExt;
use hyper::StatusCode;
use opsward::http::{Body, Handler, Limits, respond, serve};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

async fn listen(handler: Handler, limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, handler, limits, stop.clone()));
    (address, stop, serving)
}

fn text(text: &'static str) -> hyper::Response<Body> {
    respond(StatusCode::OK, "text/plain", text)
}

#[tokio::test]
async fn a_panic_is_a_500_and_no_more() {
    let handler: Handler = Arc::new(|request, _| {
        async move {
            assert!(request.uri().path() != "/panic", "on purpose");
            text("fine")
        }
        .boxed()
    });
    let (address, _stop, serving) = listen(handler, Limits::default()).await;
    let answer = http::get(address, "/panic", &[]).await;
    assert_eq!(answer.status, 500);
    assert!(answer.json()["error"].is_string());
    assert_eq!(http::get(address, "/", &[]).await.text(), "fine");
    assert!(!serving.is_finished());
}

#[tokio::test]
async fn an_idle_connection_ends() {
    let handler: Handler = Arc::new(|_, _| async { text("fine") }.boxed());
    let limits = Limits { header_read: Duration::from_millis(100), ..Limits::default() };
    let (address, _stop, _serving) = listen(handler, limits).await;
    for sent in ["", "GET / HTTP/1.1\r\nHo", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        // Ends only when the listener closes it.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let handler: Handler = Arc::new(|_, _| async { text("fine") }.boxed());
    let limits = Limits { connections: 2, ..Limits::default() };
    let (address, _stop, _serving) = listen(handler, limits).await;
    let held = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let mut waiting = std::pin::pin!(http::get(address, "/", &[]));
    assert!((&mut waiting).now_or_never().is_none());
    drop(held);
    assert_eq!(waiting.await.text(), "fine");
}

#[tokio::test]
async fn a_stop_lets_responses_end() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (b, g) = (begun.clone(), go.clone());
    let handler: Handler = Arc::new(move |_, _| {
        let (begun, go) = (b.clone(), g.clone());
        async move {
            begun.notify_one();
            go.notified().await;
            text("late")
        }
        .boxed()
    });
    let (address, stop, serving) = listen(handler, Limits::default()).await;
    let idle = TcpStream::connect(address).await.unwrap();
    let asking = tokio::spawn(async move { http::get(address, "/", &[]).await });
    begun.notified().await;
    stop.cancel();
    go.notify_one();
    assert_eq!(asking.await.unwrap().text(), "late");
    serving.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    drop(idle);
}

#[tokio::test]
async fn a_stop_waits_for_nobody_for_ever() {
    let handler: Handler = Arc::new(|_, _| async { std::future::pending().await }.boxed());
    let limits = Limits { stop: Duration::from_millis(100), ..Limits::default() };
    let (address, stop, serving) = listen(handler, limits).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    asked.unwrap();
    stop.cancel();
    serving.await.unwrap();
}
