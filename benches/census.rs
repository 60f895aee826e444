//! A census of a log at full pace against one GROUP BY of the same figures by
//! the server, in one run, as a ratio. `cargo bench --bench census`, with a
//! number of rows as its argument (300,000 unless told).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

mod bed;

use bed::{cluster, median, ms, target};
use opsward::bound::census::{Finished, Scope, run_once};
use opsward::db::lease::Lease;
use opsward::db::{Db, migrate};
use opsward::work::Pacer;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// The log that the node that set the bar has.
const REAL_ROWS: f64 = 250e6;
const REAL_MIB: f64 = 90e9 / 1_048_576.0;

const GROUP_BY: &str = r#"
    SELECT "table", left(ulid, 4), count(*), sum(pg_column_size(data)), min(ulid COLLATE "C"), max(ulid COLLATE "C")
    FROM ops GROUP BY 1, 2"#;

#[tokio::main(worker_threads = 2)]
async fn main() {
    if bed::is_test() {
        return;
    }
    let rows = bed::rows(300_000);
    let cluster = bed::server("fsync = off").await;
    cluster.create_database("log", cluster::TEMPLATE).await;
    let db = Db::open(&target::local(cluster.port(), "log"), "bench", 4).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let client = cluster.connect("log").await;
    bed::fill(&cluster, "log", rows);
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
    println!("GROUP BY              {:>8.0} ms", ms(theirs));
    let (ours, theirs) = (ours.as_secs_f64(), theirs.as_secs_f64());
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
    let work = bed::work(db, |_| {});
    let mut lease = loop {
        if let Ok(lease) = Lease::take(db).await.unwrap() {
            break lease;
        }
    };
    let mut pacer = Pacer::new(&work, Some(100));
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
