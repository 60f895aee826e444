//! A census of a log at full pace against one GROUP BY of the same figures by
//! the server, in one run, as a ratio. `cargo bench --bench census`, with a
//! number of rows as its argument (300,000 unless told).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

#[path = "../tests/it/harness/cluster.rs"]
#[allow(dead_code, unreachable_pub, clippy::panic, clippy::unwrap_used, reason = "shared with the tests")]
mod cluster;
#[path = "../tests/it/harness/target.rs"]
mod target;

use cluster::{Cluster, Stop};
use opsward::bound::census::{Finished, Scope, run_once};
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::{Db, migrate};
use opsward::metrics::Metrics;
use opsward::settings::{Source, load};
use opsward::values::Host;
use opsward::work::{Pacer, Patience, Work};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 5;
/// The log that the node that set the bar has.
const REAL_ROWS: f64 = 250e6;
const REAL_MIB: f64 = 90e9 / 1_048_576.0;

/// Three and a half years of ops of about 1 kB, evenly, of four tables.
const FILL: &str = r#"
    CREATE FUNCTION pg_temp.crock(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
        SELECT string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', ((n >> (5 * i)) & 31)::int + 1, 1), '' ORDER BY i DESC)
        FROM generate_series(0, 9) i $$;
    INSERT INTO ops
    SELECT pg_temp.crock(1672531200000 + (i * 110376000000 / ROWS)) || lpad(i::text, 16, '0'),
           'https://node' || i % 20 || '.example', 'update',
           CASE WHEN i % 100 < 62 THEN 'uploads' WHEN i % 100 < 90 THEN 'storage_and_db_sizes'
                WHEN i % 100 < 98 THEN 'qm_audio_analyses' ELSE 'audio_previews' END,
           jsonb_build_array(jsonb_build_object('id', md5(i::text), 'x', (
               SELECT string_agg(md5((i * 31 + j)::text), '') FROM generate_series(1, 26) j)))
    FROM generate_series(1, ROWS) i"#;

const GROUP_BY: &str = r#"
    SELECT "table", left(ulid, 4), count(*), sum(pg_column_size(data)), min(ulid COLLATE "C"), max(ulid COLLATE "C")
    FROM ops GROUP BY 1, 2"#;

#[tokio::main(worker_threads = 2)]
async fn main() {
    // `cargo test --benches` passes flags; there is nothing to test here.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let rows: u64 = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(300_000);
    let cluster = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::private();
        cluster.configure("shared_buffers = '256MB'\nmax_wal_size = '4GB'");
        cluster.stop(Stop::Fast);
        cluster.start();
        cluster
    })
    .await
    .unwrap();
    cluster.create_database("log", cluster::TEMPLATE).await;
    let db = Db::open(&target::local(cluster.port(), "log"), "bench", 4).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let client = cluster.connect("log").await;
    client.batch_execute(&FILL.replace("ROWS", &rows.to_string())).await.unwrap();
    client.batch_execute("VACUUM ANALYZE ops").await.unwrap();
    let size: i64 = client.query_one("SELECT pg_table_size('ops')", &[]).await.unwrap().get(0);
    println!("{rows} rows, {:.0} MB; {ROUNDS} rounds, medians", size as f64 / 1e6);

    let (mut ours, mut theirs, mut counted) = (vec![], vec![], 0);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        client.query(GROUP_BY, &[]).await.unwrap();
        theirs.push(began.elapsed());
        let began = Instant::now();
        counted = census(&db).await;
        ours.push(began.elapsed());
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("GROUP BY              {:>8.0} ms", theirs * 1e3);
    println!("census at full pace   {:>8.0} ms  ratio {:.2} (goal: at most 2)", ours * 1e3, ours / theirs);
    let worked = ours / rows as f64 * REAL_ROWS;
    let mib = counted as f64 / 1_048_576.0;
    println!("{:.2} µs a row, {:.1} MB/s", ours / rows as f64 * 1e6, mib * 1.048_576 / ours);
    let by_rate = REAL_MIB / 8.0;
    println!(
        "250,000,000 rows, 90 GB at gentle pace: {:.1} h (by its 8 MiB/s {:.1} h, by a quarter of the time {:.1} h)",
        by_rate.max(worked * 4.0) / 3_600.0,
        by_rate / 3_600.0,
        worked * 4.0 / 3_600.0
    );
    println!("peak memory of this process: {} kB", peak_kb());
}

async fn census(db: &Db) -> u64 {
    let mut settings = load(&Source::process()).unwrap().settings;
    settings.bounding.min_free_disk = 0;
    let work = Work {
        db: db.clone(),
        settings: Arc::new(settings),
        own: Host::parse("http://127.0.0.1:9").unwrap(),
        clock: Clock::System,
        metrics: Metrics::new().unwrap(),
        stop: CancellationToken::new(),
        tell: Arc::new(|_| {}),
    };
    let mut lease = loop {
        if let Ok(lease) = Lease::take(db).await.unwrap() {
            break lease;
        }
    };
    let mut pacer = Pacer::new(&work, Some(100), Patience::End);
    let budget = Duration::from_secs(3_600);
    let report = run_once(&work, &mut lease, &mut pacer, Scope::Full, budget).await.unwrap();
    assert_eq!(report.finished, Finished::All);
    report.bytes
}

fn peak_kb() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim_end_matches("kB").trim().to_owned()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
