//! Half of a log deleted by opsward's batches at full pace, against one DELETE
//! of the same rows: equal databases, one run, reported as ratios; with and
//! without an old snapshot held by another session. Then the log's minimum, as
//! serving asks for it, against MIN(ulid). `cargo bench --bench prune`, with a
//! number of rows as its argument (300,000 unless told).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

mod bed;
#[path = "../examples/demo/history.rs"]
#[allow(dead_code, reason = "shared with the demo")]
mod history;

use bed::cluster::{self, Cluster};
use bed::{TABLES, median, ms, target};
use opsward::bound::delete::{self, Ended, Order, Report};
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::ops::Lent;
use opsward::db::prune::TableCut;
use opsward::db::{Db, migrate};
use opsward::values::OpUlid;
use opsward::work::Pacer;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const ROUNDS: usize = 3;
/// Rows of a batch of the naive contender.
const NAIVE_ROWS: u64 = 10_000;
const DAY_MS: u64 = 86_400_000;
/// Three and a half years, as the measured log has.
const SPAN_DAYS: u64 = 1_277;
const APPEND_ONLY: &str = "storage_and_db_sizes";

/// A log to clone, and where its half ends.
struct Log {
    name: &'static str,
    half: OpUlid,
}

/// Whether another session holds a snapshot older than the deletion.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Yes,
    No,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    if bed::is_test() {
        return;
    }
    let rows = bed::rows(300_000);
    let cluster = bed::server("").await;
    let mixed = fill(&cluster, "mixed", rows, |_| true).await;
    let creates = fill(&cluster, "creates", rows, |table| table == APPEND_ONLY).await;
    println!("half of {rows} rows deleted at full pace; {ROUNDS} rounds, medians");

    let (mut one, mut ours, mut held) = (vec![], vec![], vec![]);
    let (mut one_create, mut our_create) = (vec![], vec![]);
    let (mut looked, mut min) = (vec![], vec![]);
    for round in 0..ROUNDS {
        one.push(one_delete(&cluster, &mixed).await);
        ours.push(batches(&cluster, &mixed, Held::No).await.0);
        let (took, our_look, sql_min) = batches(&cluster, &mixed, Held::Yes).await;
        held.push(took);
        looked.push(our_look);
        min.push(sql_min);
        one_create.push(one_delete(&cluster, &creates).await);
        our_create.push(batches(&cluster, &creates, Held::No).await.0);
        println!(
            "  round {}: one DELETE {:.0} ms, batches {:.0}, held {:.0}; creates {:.0}, {:.0}",
            round + 1,
            ms(one[round]),
            ms(ours[round]),
            ms(held[round]),
            ms(one_create[round]),
            ms(our_create[round])
        );
    }
    let naive = naive(&cluster, &mixed).await;
    let (one, one_create) = (median(one), median(one_create));
    let line = |what: &str, took: Duration, of: Duration, goal: &str| {
        println!("{what:<42} {:>8.0} ms  ratio {:.2}{goal}", ms(took), took.as_secs_f64() / of.as_secs_f64());
    };
    line("one DELETE", one, one, "");
    line("opsward, with traces", median(ours), one, " (goal: at most 2.0)");
    line("the same under a held snapshot", median(held), one, " (goal: at most 2.0)");
    line("batches from the left edge, held snapshot", naive, one, "");
    line("one DELETE, creates only", one_create, one_create, "");
    line("opsward, creates only (append-only table)", median(our_create), one_create, " (goal: at most 1.5)");
    println!("the log's minimum, dead entries below it: {:.1} ms (goal: at most 5)", ms(median(looked)));
    println!("MIN(ulid) of the same                   : {:.1} ms", ms(median(min)));
}

/// A log of the measured proportions, or those ops of it that pass.
async fn fill(cluster: &Cluster, name: &'static str, rows: u64, passes: fn(&str) -> bool) -> Log {
    cluster.create_database(name, cluster::TEMPLATE).await;
    let hosts = (1..=4).map(|n| format!("https://node{n}.example")).collect();
    let mut writer = history::Writer::new(hosts, "bench", 7);
    let to = Clock::System.now_ms() - DAY_MS;
    let mut at = to - SPAN_DAYS * DAY_MS;
    let step = (to - at) / rows;
    let (mut written, mut half) = (0, None);
    while written < rows {
        let mut copy = String::from("COPY ops (ulid, host, action, \"table\", data) FROM STDIN;\n");
        for _ in 0..20_000.min(rows - written) {
            // A writer of one op at a time: those that do not pass take no time.
            let op = loop {
                let op = writer.ops(1, at, at + 1).remove(0);
                if passes(&op.table) {
                    break op;
                }
            };
            if written == rows / 2 {
                half = Some(op.ulid);
            }
            let data = op.data.replace('\\', "\\\\");
            writeln!(copy, "{}\t{}\t{}\t{}\t{data}", op.ulid, op.host, op.action.word(), op.table).unwrap();
            at += step;
            written += 1;
        }
        copy.push_str("\\.\n");
        cluster.psql(name, &copy);
    }
    cluster.psql(name, "VACUUM (ANALYZE, FREEZE) ops");
    Log { name, half: half.unwrap() }
}

/// A copy of the log, with nothing of it waiting to be written.
async fn clone(cluster: &Cluster, log: &Log) -> Client {
    let admin = cluster.connect("postgres").await;
    admin.batch_execute("DROP DATABASE IF EXISTS contender WITH (FORCE)").await.unwrap();
    let sql = format!("CREATE DATABASE contender TEMPLATE \"{}\" STRATEGY FILE_COPY", log.name);
    admin.batch_execute(&sql).await.unwrap();
    let client = cluster.connect("contender").await;
    // Read once, so that nobody waits for the disk to read.
    client.batch_execute("SELECT count(data) FROM ops; CHECKPOINT").await.unwrap();
    client
}

async fn one_delete(cluster: &Cluster, log: &Log) -> Duration {
    let client = clone(cluster, log).await;
    let began = Instant::now();
    client.execute(&format!("DELETE FROM ops WHERE ulid < '{}'", log.half), &[]).await.unwrap();
    began.elapsed()
}

/// Batches that begin at the left edge each, under a held snapshot.
async fn naive(cluster: &Cluster, log: &Log) -> Duration {
    let client = clone(cluster, log).await;
    let _holder = hold(cluster).await;
    let sql = format!(
        "DELETE FROM ops WHERE ulid IN
             (SELECT ulid FROM ops WHERE ulid < '{}' ORDER BY ulid LIMIT {NAIVE_ROWS})",
        log.half
    );
    let began = Instant::now();
    while client.execute(&sql, &[]).await.unwrap() > 0 {}
    began.elapsed()
}

/// How long opsward took to delete, VACUUM left out as it is of the others; to
/// look for the minimum then; and how long MIN(ulid) took.
async fn batches(cluster: &Cluster, log: &Log, held: Held) -> (Duration, Duration, Duration) {
    let client = clone(cluster, log).await;
    let db = Db::open(&target::local(cluster.port(), "contender"), "bench", 4).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let holder = match held {
        Held::Yes => Some(hold(cluster).await),
        Held::No => None,
    };
    client.batch_execute("CHECKPOINT").await.unwrap();
    let (report, took) = delete_half(&db, log).await;
    assert_eq!(report.ended, Ended::Done { locked: 0 });
    let left: i64 = client
        .query_one(&format!("SELECT count(*) FROM ops WHERE ulid < '{}'", log.half), &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);

    let mut lent = Lent::new(db.client().await.unwrap());
    let (mut looked, mut min) = (vec![], vec![]);
    for _ in 0..5 {
        let snapshot = lent.snapshot(Duration::from_secs(1), Duration::from_secs(5)).await.unwrap();
        let began = Instant::now();
        let minimum = snapshot.minimum(Clock::System.now_ms()).await.unwrap();
        looked.push(began.elapsed());
        assert_eq!(minimum, Some(log.half));
        snapshot.close().await.unwrap();
        let began = Instant::now();
        client.query_one("SELECT MIN(ulid) FROM ops", &[]).await.unwrap();
        min.push(began.elapsed());
    }
    drop(holder);
    (took, median(looked), median(min))
}

async fn delete_half(db: &Db, log: &Log) -> (Report, Duration) {
    let deleted_at = Arc::new(Mutex::new(Instant::now()));
    let last = Arc::clone(&deleted_at);
    let work = bed::work(db, move |progress| {
        if progress.phase.starts_with("deleting") {
            *last.lock().unwrap() = Instant::now();
        }
    });
    let mut lease = Lease::take(db).await.unwrap().ok().unwrap();
    let mut pacer = Pacer::new(&work, Some(100));
    let cut = |table: &&str| TableCut { table: (*table).into(), below: log.half, bound_by: "age".into() };
    let cuts = TABLES.iter().map(cut).collect();
    let order = Order { run: "bench".into(), task: "retention", cuts, active_since: None, expected: None };
    let began = Instant::now();
    let report =
        delete::run(&work, &mut lease, &mut pacer, &order, Duration::from_secs(3_600)).await.unwrap();
    let took = *deleted_at.lock().unwrap() - began;
    (report, took)
}

/// A session with a snapshot, held until the client is dropped.
async fn hold(cluster: &Cluster) -> Client {
    let client = cluster.connect("contender").await;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM ops LIMIT 1").await.unwrap();
    client
}
