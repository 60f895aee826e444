//! Contract 3: serving.

mod answers;
mod gaps;
mod limits;
mod listener;
mod load;
mod readers;
mod strangers;

use crate::harness::{Database, http};
use opsward::clock::Clock;
use opsward::db::Db;
use opsward::http::{Limits, serve};
use opsward::metrics::Metrics;
use opsward::serve::Serve;
use opsward::values::{Host, Peer, PeerSet, PeerSource};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SELF: &str = "https://self.example";
const PATH: &str = "/internal/crud/sweep";
/// 2026-11-23T12:00:00Z.
const NOW_MS: i64 = 1_795_435_200_000;

/// A public port on a database.
struct Port {
    address: SocketAddr,
    metrics: Metrics,
    peers: watch::Sender<Option<Arc<PeerSet>>>,
    stop: CancellationToken,
}

impl Port {
    async fn on(database: &Database) -> Self {
        Self::with(database.migrated().await, Limits::default()).await
    }

    async fn with(db: Db, limits: Limits) -> Self {
        let metrics = Metrics::new().unwrap();
        let (peers, known) = watch::channel(None);
        let own = Host::parse(SELF).unwrap();
        let clock = Clock::fixed(NOW_MS);
        let handler = Serve::new(db, own, clock, metrics.clone(), known).handler();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, handler, limits, stop.clone()));
        Self { address, metrics, peers, stop }
    }

    fn register(&self, hosts: &[&str]) {
        let peer = |host: &&str| Peer { host: Host::parse(host).unwrap(), wallet: String::new() };
        let peers = hosts.iter().map(peer).collect();
        let set = PeerSet::new(PeerSource::Static, peers, None);
        self.peers.send_replace(Some(Arc::new(set)));
    }

    async fn after(&self, after: &str) -> http::Response {
        self.ask(after, &[]).await
    }

    async fn ask(&self, after: &str, headers: &[&str]) -> http::Response {
        http::get(self.address, &format!("{PATH}?after={after}"), headers).await
    }

    fn served(&self, outcome: &str) -> u64 {
        self.metrics.sweeps_served.with_label_values(&[outcome]).get()
    }

    fn left_out(&self, why: &str) -> u64 {
        self.metrics.rows_left_out.with_label_values(&[why]).get()
    }

    fn dropped(&self, why: &str) -> u64 {
        self.metrics.responses_dropped.with_label_values(&[why]).get()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits for what has to come about, and fails where it does not.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(came.is_ok(), "never came about: {what}");
}

async fn run(database: &Database, sql: &str) {
    let client = database.client().await;
    let ran = client.batch_execute(sql).await;
    ran.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// The ULID of number `n`, in 2024.
fn ulid(n: u64) -> String {
    format!("01HKFACTS0{n:016}")
}

/// Rows from `first` to `last`, as [`ulid`] numbers them; `data` is SQL that
/// may use `n`.
async fn fill(database: &Database, range: std::ops::RangeInclusive<u64>, table: &str, data: &str) {
    let (first, last) = range.into_inner();
    let sql = format!(
        "INSERT INTO ops SELECT '01HKFACTS0' || lpad(n::text, 16, '0'), 'https://n1.example',
             'create', '{table}', ({data})::jsonb FROM generate_series({first}, {last}) n"
    );
    run(database, &sql).await;
}

/// Data of an op that anybody may have.
const ONE: &str = "jsonb_build_array(jsonb_build_object('cid', n::text))";
