//! What benches stand on: a server that keeps what it acknowledged, a log of
//! the measured proportions, and what bulk work is handed.
#![allow(dead_code, unreachable_pub, reason = "each bench uses a part of it")]

#[path = "../../tests/it/harness/cluster.rs"]
#[allow(clippy::panic, clippy::unwrap_used, reason = "shared with the tests")]
pub mod cluster;
#[path = "../../tests/it/harness/target.rs"]
pub mod target;

use cluster::{Cluster, Stop};
use opsward::clock::Clock;
use opsward::db::Db;
use opsward::metrics::Metrics;
use opsward::settings::{Source, load};
use opsward::values::{Host, Progress};
use opsward::work::Work;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Tables of the log, in no order.
pub const TABLES: [&str; 4] = ["uploads", "storage_and_db_sizes", "qm_audio_analyses", "audio_previews"];
/// The log's first op and how long it goes on, milliseconds: three and a half years.
pub const START: u64 = 1_672_531_200_000;
pub const SPAN: u64 = 110_376_000_000;

/// Durable, unlike the harness'; nothing but what is measured is at work.
const DURABLE: &str = "fsync = on\nsynchronous_commit = on\nfull_page_writes = on\nshared_buffers = '256MB'\n\
    max_wal_size = '4GB'\nautovacuum = off";

/// Ops of about 1 kB, evenly over the span, of four tables; of uploads and
/// analyses, 22 % are creates, the others updates of recent records.
const FILL: &str = r#"
    CREATE FUNCTION pg_temp.crock(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
        SELECT string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', ((n >> (5 * i)) & 31)::int + 1, 1), '' ORDER BY i DESC)
        FROM generate_series(0, 9) i $$;
    INSERT INTO ops
    SELECT pg_temp.crock(START + (i * SPAN / ROWS)) || lpad(i::text, 16, '0'),
           'https://node' || i % 20 || '.example', CASE WHEN i % 100 < 14 THEN 'create' ELSE 'update' END,
           CASE WHEN i % 100 < 62 THEN 'uploads' WHEN i % 100 < 90 THEN 'storage_and_db_sizes'
                WHEN i % 100 < 98 THEN 'qm_audio_analyses' ELSE 'audio_previews' END,
           jsonb_build_array(jsonb_build_object(
               CASE WHEN i % 100 < 90 THEN 'id' WHEN i % 100 < 98 THEN 'cid' ELSE 'CID' END, md5((i * 22 / 100)::text),
               'x', repeat(md5(i::text), 26)))
    FROM generate_series(1, ROWS) i"#;

/// A server of its own, with more settings where some are given.
pub async fn server(settings: &'static str) -> Cluster {
    let start = move || {
        let cluster = Cluster::private();
        cluster.configure(&format!("{DURABLE}\n{settings}"));
        cluster.stop(Stop::Fast);
        cluster.start();
        cluster
    };
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// Fills `ops` of a database with so many rows.
pub fn fill(cluster: &Cluster, database: &str, rows: u64) {
    let number = |text: &str, name: &str, n: u64| text.replace(name, &n.to_string());
    let sql = number(&number(&number(FILL, "START", START), "SPAN", SPAN), "ROWS", rows);
    cluster.psql(database, &format!("{sql}; VACUUM ANALYZE ops"));
}

/// What bulk work is handed, with no floor under the free disk.
pub fn work(db: &Db, tell: impl Fn(Progress) + Send + Sync + 'static) -> Work {
    let mut settings = load(&Source::process()).unwrap().settings;
    settings.bounding.min_free_disk = 0;
    Work {
        db: db.clone(),
        settings: Arc::new(settings),
        own: Host::parse("http://127.0.0.1:9").unwrap(),
        clock: Clock::System,
        metrics: Metrics::new().unwrap(),
        stop: CancellationToken::new(),
        tell: Arc::new(tell),
    }
}

/// The number of rows that was asked for.
pub fn rows(unless_told: u64) -> u64 {
    std::env::args().find_map(|a| a.replace('_', "").parse().ok()).unwrap_or(unless_told)
}

/// `cargo test --benches` passes flags; there is nothing to test here.
pub fn is_test() -> bool {
    std::env::args().any(|a| a == "--test")
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// CPU time of a session so far, which Linux tells in nanoseconds.
pub async fn cpu(client: &tokio_postgres::Client) -> Duration {
    let sql = "SELECT split_part(pg_read_file('/proc/self/schedstat', 0, 100), ' ', 1)::bigint";
    let nanos: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    Duration::from_nanos(nanos.unsigned_abs())
}
