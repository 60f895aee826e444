//! A TCP line of our own between two real ends, which fails on purpose.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the line does. Counts are of bytes from the server to the client,
/// from each connection's beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Passes everything on.
    None,
    /// Holds each chunk back, either way.
    Delay(Duration),
    /// Resets the connection after so many bytes.
    CutAfter(u64),
    /// Ends the connection in order (FIN) after so many bytes.
    EndAfter(u64),
    /// Flips every bit of the byte at this offset.
    Corrupt(u64),
    /// Accepts, and swallows everything either way.
    BlackHole,
    /// Does not listen: connections are refused. Those that are open live on.
    Refuse,
}

/// A line to one address; ends with its connections when dropped.
pub struct Proxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    line: Arc<Line>,
    stop: CancellationToken,
}

struct Line {
    upstream: SocketAddr,
    accepted: watch::Sender<u64>,
    downstream_bytes: AtomicU64,
    /// Ends all connections of now; replaced by each cut.
    connections: std::sync::Mutex<CancellationToken>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 for connections to `upstream`.
    pub async fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        let stop = CancellationToken::new();
        let line = Arc::new(Line {
            upstream,
            accepted: watch::Sender::new(0),
            downstream_bytes: AtomicU64::new(0),
            connections: std::sync::Mutex::new(stop.child_token()),
        });
        tokio::spawn(listen(listener, line.clone(), faults, stop.clone()));
        Self { address, fault, line, stop }
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the line does, for open connections too.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Ends every open connection.
    pub fn cut_all(&self) {
        let mut connections = self.line.connections.lock().unwrap();
        connections.cancel();
        *connections = self.stop.child_token();
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        *self.line.accepted.borrow()
    }

    /// Waits until so many connections were accepted.
    pub async fn wait_accepted(&self, count: u64) {
        let mut accepted = self.line.accepted.subscribe();
        accepted.wait_for(|n| *n >= count).await.unwrap();
    }

    /// Bytes passed from the server to clients, over all connections.
    pub fn downstream_bytes(&self) -> u64 {
        self.line.downstream_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn listen(
    listener: TcpListener,
    line: Arc<Line>,
    mut faults: watch::Receiver<Fault>,
    stop: CancellationToken,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    loop {
        let refuse = *faults.borrow_and_update() == Fault::Refuse;
        if refuse {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.unwrap());
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = faults.changed() => if changed.is_err() { return },
            accepted = accept => if let Ok((client, _)) = accepted {
                line.accepted.send_modify(|n| *n += 1);
                let end = line.connections.lock().unwrap().clone();
                let (line, faults) = (line.clone(), faults.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = end.cancelled() => {}
                        () = carry(client, line, faults) => {}
                    }
                });
            },
        }
    }
}

async fn carry(client: TcpStream, line: Arc<Line>, faults: watch::Receiver<Fault>) {
    if *faults.borrow() == Fault::BlackHole {
        return swallow(client).await;
    }
    let Ok(server) = TcpStream::connect(line.upstream).await else {
        return reset(client);
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            let fault = *faults.borrow();
            match fault {
                Fault::BlackHole => continue,
                Fault::Delay(by) => tokio::time::sleep(by).await,
                _ => {}
            }
            if to_server.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        let mut passed = 0u64;
        loop {
            // A cut at 0 bytes comes before the server has said anything.
            let fault = *faults.borrow();
            if let Some(end) = bound(fault)
                && passed >= end
            {
                return fault;
            }
            let Ok(n @ 1..) = from_server.read(&mut buffer).await else {
                return Fault::None;
            };
            let fault = *faults.borrow();
            let mut chunk = &mut buffer[..n];
            match fault {
                Fault::BlackHole => continue,
                Fault::Delay(by) => tokio::time::sleep(by).await,
                Fault::Corrupt(at) if (passed..passed + n as u64).contains(&at) => {
                    chunk[(at - passed) as usize] ^= 0xff;
                }
                _ => {}
            }
            if let Some(end) = bound(fault) {
                let left = end.saturating_sub(passed).min(n as u64) as usize;
                chunk = &mut chunk[..left];
            }
            if to_client.write_all(chunk).await.is_err() {
                return Fault::None;
            }
            passed += chunk.len() as u64;
            line.downstream_bytes.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
    };
    // The way up may end first (a half-closed client): the answer still comes.
    let ended = tokio::select! {
        fault = down => fault,
        fault = async { up.await; std::future::pending().await } => fault,
    };
    if matches!(ended, Fault::CutAfter(_)) {
        if let Ok(client) = to_client.reunite(from_client) {
            reset(client);
        }
    } else {
        let _ = to_client.shutdown().await;
    }
}

fn bound(fault: Fault) -> Option<u64> {
    match fault {
        Fault::CutAfter(n) | Fault::EndAfter(n) => Some(n),
        _ => None,
    }
}

async fn swallow(mut client: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = client.read(&mut buffer).await {}
}

/// Closes without a farewell: the other end reads a reset, not an end.
fn reset(client: TcpStream) {
    let _ = client.set_zero_linger();
}
