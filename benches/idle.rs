//! What an idle daemon costs: resident memory, and processor time over a
//! minute, with peers that are up and have nothing new. `cargo bench --bench idle`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

#[path = "../tests/it/harness/cluster.rs"]
#[allow(dead_code, unreachable_pub, clippy::panic, clippy::unwrap_used, reason = "shared with the tests")]
mod cluster;

use cluster::Cluster;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Peers of a network such as the real one.
const PEERS: usize = 40;
/// How long is measured, after the first sweeps.
const MEASURED: Duration = Duration::from_secs(60);

#[tokio::main(worker_threads = 2)]
async fn main() {
    // `cargo test --benches` passes flags; there is nothing to test here.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let cluster = tokio::task::spawn_blocking(Cluster::private).await.unwrap();
    cluster.create_database("idle", cluster::TEMPLATE).await;
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        peers.push(peer_with_nothing_new().await);
    }
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_opsward"))
        .arg("run")
        .env_clear()
        .env("OPENAUDIO_DB_URL", cluster.url("idle"))
        .env("OPENAUDIO_NODE_ENDPOINT", "http://self.example")
        .env("OPENAUDIO_MEDIORUM_PEERS", peers.join(","))
        .env("OPENAUDIO_MEDIORUM_SIDECAR_LISTEN", format!("127.0.0.1:{}", cluster::free_port()))
        .env("OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN", format!("127.0.0.1:{}", cluster::free_port()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = ticks(daemon.id());
    tokio::time::sleep(MEASURED).await;
    let spent = (ticks(daemon.id()) - before) as f64 / 100.0;
    let resident = resident_kib(daemon.id()) as f64 / 1024.0;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    println!("an idle daemon with {PEERS} peers, over {} s", MEASURED.as_secs());
    println!("resident                        {resident:>8.1} MiB  (goal: at most 20)");
    println!(
        "of a core                       {:>8.2} %    (goal: at most 0.5)",
        100.0 * spent / MEASURED.as_secs_f64()
    );
}

async fn peer_with_nothing_new() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
                .await;
        }
    });
    url
}

/// Processor time in hundredths of a second, user's and system's.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
