//! A pulled page against one transaction an op by the same driver, and against
//! INSERT … SELECT of the same rows: three ways into three equal databases, in
//! one run, reported as ratios. `cargo bench --bench pull`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

#[path = "../tests/it/harness/cluster.rs"]
#[allow(dead_code, unreachable_pub, clippy::panic, clippy::unwrap_used, reason = "shared with the tests")]
mod cluster;
#[path = "../examples/demo/history.rs"]
#[allow(dead_code, reason = "shared with the demo")]
mod history;
#[path = "../tests/it/harness/target.rs"]
mod target;

use cluster::{Cluster, Stop};
use opsward::clock::Clock;
use opsward::db::{Db, migrate};
use opsward::metrics::Metrics;
use opsward::pull::Puller;
use opsward::pull::client::http_client;
use opsward::records;
use opsward::values::{Action, Host, Op};
use std::borrow::Cow;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The page that the reference figures were measured with.
const OPS: usize = 5_590;
const ROUNDS: usize = 5;

#[tokio::main(worker_threads = 2)]
async fn main() {
    // `cargo test --benches` passes flags; there is nothing to test here.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::private();
        // As a server that keeps what it acknowledged: the harness' does not.
        cluster.configure(
            "fsync = on\nsynchronous_commit = on\nfull_page_writes = on\nshared_buffers = '256MB'",
        );
        cluster.stop(Stop::Fast);
        cluster.start();
        cluster
    })
    .await
    .unwrap();
    let now = Clock::System.now_ms();
    let hosts = vec!["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
    let ops = history::Writer::new(hosts, "bench", 7).ops(OPS, now - 86_400_000, now - 3_600_000);
    let body = page(&ops);
    println!("a page of {OPS} ops, {:.1} MB; {ROUNDS} rounds, medians", body.len() as f64 / 1e6);

    let (mut pulled, mut single, mut selected) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        pulled.push(pull(&cluster, &format!("pull{round}"), &body).await);
        single.push(one_by_one(&cluster, &format!("single{round}"), &ops).await);
        selected.push(insert_select(&cluster, &format!("select{round}"), &format!("pull{round}")).await);
    }
    let (pulled, single, selected) = (median(pulled), median(single), median(selected));
    println!("pulled page                     {:>8.1} ms", ms(pulled));
    println!(
        "one transaction an op           {:>8.1} ms  ratio {:.3} (goal: at most 0.050)",
        ms(single),
        ratio(pulled, single)
    );
    println!(
        "INSERT … SELECT of its rows     {:>8.1} ms  ratio {:.2} (goal: at most 3)",
        ms(selected),
        ratio(pulled, selected)
    );
}

fn page(ops: &[Op]) -> String {
    let line = |op: &Op| {
        format!(
            r#"{{"ulid":"{}","host":"{}","action":"{}","table":"{}","data":{},"transient":false}}"#,
            op.ulid,
            op.host,
            op.action.word(),
            op.table,
            &*op.data
        )
    };
    format!("[{}]", ops.iter().map(line).collect::<Vec<_>>().join(","))
}

async fn open(cluster: &Cluster, name: &str) -> Db {
    cluster.create_database(name, cluster::TEMPLATE).await;
    let target = target::local(cluster.port(), name);
    let db = Db::open(&target, "bench", 4).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    db
}

async fn pull(cluster: &Cluster, name: &str, body: &str) -> Duration {
    let db = open(cluster, name).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Host::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 4096]).await;
        let _ = socket.write_all(answer.as_bytes()).await;
    });
    let own = Host::parse("http://127.0.0.1:9").unwrap();
    let puller = Puller::new(
        db,
        own,
        http_client(opsward::tls::Verify::Full).unwrap(),
        Clock::System,
        Metrics::new().unwrap(),
    );
    let began = Instant::now();
    let got = puller.run_once(&peer, &CancellationToken::new()).await.unwrap();
    let took = began.elapsed();
    assert_eq!(got.sums.applied as usize, OPS);
    server.await.unwrap();
    took
}

/// As a node does it: insert the op, act on its records, commit.
async fn one_by_one(cluster: &Cluster, name: &str, ops: &[Op]) -> Duration {
    let mut client = open(cluster, name).await.client().await.unwrap();
    let now = Clock::System.now();
    let began = Instant::now();
    for op in ops {
        let model = records::models().get(&op.table).unwrap();
        let rows = records::convert(model, op.action, &op.data, now).unwrap();
        let tx = opsward::db::begin(&mut client, opsward::db::Isolation::Write).await.unwrap();
        opsward::db::apply::insert_ops(&tx, &[op]).await.unwrap();
        assert_ne!(op.action, Action::Delete);
        opsward::db::apply::act(
            &tx,
            model,
            op.action,
            &rows.iter().map(Cow::Borrowed).collect::<Vec<_>>(),
            &now.to_string(),
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }
    began.elapsed()
}

/// The rows that a pull left, the log's and the records', from tables beside.
async fn insert_select(cluster: &Cluster, name: &str, source: &str) -> Duration {
    cluster.create_database(name, source).await;
    let client = cluster.connect(name).await;
    const TABLES: [&str; 5] =
        ["ops", "uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"];
    for table in TABLES {
        let sql = format!("CREATE TABLE source_{table} AS TABLE public.{table}; TRUNCATE public.{table}");
        client.batch_execute(&sql).await.unwrap();
    }
    let began = Instant::now();
    for table in TABLES {
        client
            .batch_execute(&format!("INSERT INTO public.{table} SELECT * FROM source_{table}"))
            .await
            .unwrap();
    }
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
