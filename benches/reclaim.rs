//! Giving the disk back: ways to leave a quarter of a log, each over a fresh
//! clone of one database, while a writer inserts 50 ops a second. Time, peak
//! of extra disk (sampled), WAL, the longest transaction (sampled), the longest
//! that a lock kept writers out (sampled) and the writer's stalls, in one run.
//! `pruned-…` work on a log whose three quarters the node deleted and vacuumed:
//! all is to be kept, and a quarter of the file is in use.
//!
//! `cargo bench --bench reclaim -- [ROWS] [runs=N] [CONTENDER]...`: 2,000,000 rows
//! and one run of all but the slow ones, unless told. Ratios are of medians. A
//! single contender with one run works on the log itself, without a clone:
//! `cargo bench --bench reclaim -- 20000000 swap`. `benches/slow-disk.sh` runs it
//! with little memory and slow reads.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

mod bed;

use bed::cluster::{self, Cluster, binary};
use bed::{SPAN, START, TABLES, target};
use futures_util::FutureExt;
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::{self, Db, in_place, maintain, migrate};
use opsward::reclaim::decide::{Checkpoint, Mode, Survivors};
use opsward::reclaim::{self, Action, Gate, Outcome, Request};
use opsward::settings::Policy;
use opsward::values::OpUlid;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const CONTENDERS: [&str; 9] = [
    "idle",
    "create-table-as",
    "vacuum-full",
    "pg_repack",
    "swap",
    "by-hand",
    "in-place",
    "pruned-create-table-as",
    "pruned-swap",
];
/// Only where they are asked for: they rest three quarters of the time.
const GENTLE: [&str; 2] = ["gentle-swap", "gentle-in-place"];

/// Where a contender works.
struct Place<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    db: Db,
}

/// What was seen meanwhile.
#[derive(Default)]
struct Seen {
    extra_disk: AtomicU64,
    longest_us: AtomicU64,
    locked_us: AtomicU64,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    if bed::is_test() {
        return;
    }
    let rows = bed::rows(2_000_000);
    let args: Vec<String> = std::env::args().collect();
    let runs = args.iter().find_map(|a| a.strip_prefix("runs=")?.parse().ok()).unwrap_or(1_usize);
    let all = CONTENDERS.into_iter().chain(GENTLE);
    let asked: Vec<&str> = all.filter(|c| args.iter().any(|a| a == c)).collect();
    let contenders = if asked.is_empty() { CONTENDERS.to_vec() } else { asked };
    let cluster = bed::server("").await;
    cluster.create_database("log", cluster::TEMPLATE).await;
    let db = Db::open(&target::local(cluster.port(), "log"), "bench", 2).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    drop(db);
    bed::fill(&cluster, "log", rows);
    if contenders.iter().any(|c| c.starts_with("pruned-")) {
        prune_as_the_node(&cluster).await;
    }
    println!("{rows} rows, three quarters go; a writer at 50 inserts a second; runs: {runs}");
    println!(
        "{:<22} {:>8} {:>9} {:>9} {:>9} {:>8} {:>10} {:>10} {:>10}",
        "", "seconds", "MB before", "MB after", "extra MB", "WAL MB", "longest ms", "locked ms", "p99.9 ms"
    );
    let mut took: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for title in (0..runs).flat_map(|_| &contenders) {
        let (from, way) = match title.strip_prefix("pruned-") {
            Some(way) => ("pruned", way),
            None => ("log", *title),
        };
        let name = match contenders.len() * runs {
            1 => from.to_owned(),
            _ => cloned(&cluster, from).await,
        };
        let seconds = match way {
            "idle" => contend(&cluster, &name, title, idle).await,
            "create-table-as" => contend(&cluster, &name, title, create_table_as).await,
            "vacuum-full" => contend(&cluster, &name, title, vacuum_full).await,
            "pg_repack" => contend(&cluster, &name, title, pg_repack).await,
            "by-hand" => contend(&cluster, &name, title, by_hand).await,
            _ => {
                let mode = if way.ends_with("swap") { Mode::Swap } else { Mode::InPlace };
                let pace = if way.starts_with("gentle") { 25 } else { 100 };
                let cuts = if from == "log" {
                    TABLES.map(|t| (t.to_owned(), cut())).into()
                } else {
                    BTreeMap::new()
                };
                contend(&cluster, &name, title, async |place| run(place, mode, pace, &cuts).await).await
            }
        };
        took.entry(title).or_default().push(seconds);
        if name != from {
            let sql = format!("DROP DATABASE {name} WITH (FORCE)");
            cluster.connect("postgres").await.batch_execute(&sql).await.unwrap();
        }
    }
    let slow = std::env::var("SLOW_DISK").is_ok();
    let ratio = |ours: &str, theirs: &str, goal: &str| {
        if let (Some(ours_s), Some(theirs_s)) = (took.get(ours), took.get(theirs)) {
            let ratio = bed::ms(bed::median(ours_s.clone())) / bed::ms(bed::median(theirs_s.clone()));
            println!("{ours} / {theirs}: {ratio:.2} (goal: at most {goal})");
        }
    };
    ratio("swap", "create-table-as", "2.0");
    ratio("swap", "pg_repack", if slow { "0.65" } else { "0.9" });
    ratio("pruned-swap", "pruned-create-table-as", "1.3");
    ratio("in-place", "by-hand", if slow { "0.8" } else { "1.1" });
}

/// A database whose log the node's own pruner has shortened: the rows are gone,
/// the file is as large as it was.
async fn prune_as_the_node(cluster: &Cluster) {
    let admin = cluster.connect("postgres").await;
    admin.batch_execute("CREATE DATABASE pruned TEMPLATE log STRATEGY FILE_COPY").await.unwrap();
    let client = cluster.connect("pruned").await;
    client.execute("DELETE FROM ops WHERE ulid < $1", &[&cut().as_str()]).await.unwrap();
    client.batch_execute("VACUUM (TRUNCATE false, ANALYZE) ops").await.unwrap();
}

/// A copy of the log, once the sessions in it are gone.
async fn cloned(cluster: &Cluster, from: &str) -> String {
    let name = cluster::unique("clone");
    loop {
        let sql = format!("CREATE DATABASE {name} TEMPLATE {from} STRATEGY FILE_COPY");
        if cluster.connect("postgres").await.batch_execute(&sql).await.is_ok() {
            return name;
        }
    }
}

/// The lowest ULID that stays.
fn cut() -> OpUlid {
    OpUlid::first_of_ms(START + SPAN * 3 / 4)
}

async fn contend(
    cluster: &Cluster,
    name: &str,
    title: &str,
    contender: impl AsyncFn(&Place<'_>) -> String,
) -> Duration {
    let admin = cluster.connect(name).await;
    // Read once, so that nobody waits for the disk to read.
    admin.batch_execute("SELECT count(data) FROM ops; CHECKPOINT").await.unwrap();
    let db = Db::open(&target::local(cluster.port(), name), "bench", 6).await.unwrap();
    let place = Place { cluster, name, db };
    let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
    let sampler = tokio::spawn(sample(cluster.config(name), cluster.data_dir(), seen.clone(), stop.clone()));
    let writer = tokio::spawn(write(cluster.config(name), stop.clone()));
    let number = async |sql: &str| admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    let total = "SELECT pg_total_relation_size('ops')";
    let (before, lsn) = (number(total).await, number("SELECT (pg_current_wal_lsn() - '0/0')::bigint").await);
    let begun = Instant::now();
    let notes = contender(&place).await;
    let took = begun.elapsed();
    let wal = number("SELECT (pg_current_wal_lsn() - '0/0')::bigint").await - lsn;
    let after = number(total).await;
    stop.cancel();
    sampler.await.unwrap();
    let (written, mut stalls) = writer.await.unwrap();
    stalls.sort();
    let p999 = stalls.get((stalls.len() * 999 / 1000).min(stalls.len().saturating_sub(1))).copied();
    let there = number("SELECT count(*) FROM ops WHERE host = 'https://writer.example'").await;
    let mb = |bytes: i64| bytes as f64 / 1e6;
    println!(
        "{title:<22} {:>8.1} {:>9.0} {:>9.0} {:>9.0} {:>8.0} {:>10.0} {:>10.0} {:>10.1}",
        took.as_secs_f64(),
        mb(before),
        mb(after),
        seen.extra_disk.load(Ordering::Relaxed) as f64 / 1e6,
        mb(wal),
        seen.longest_us.load(Ordering::Relaxed) as f64 / 1e3,
        seen.locked_us.load(Ordering::Relaxed) as f64 / 1e3,
        p999.unwrap_or_default().as_secs_f64() * 1e3,
    );
    println!("    {notes}; {written} written meanwhile, {there} there");
    took
}

/// The writer and nobody else.
async fn idle(_: &Place<'_>) -> String {
    tokio::time::sleep(Duration::from_secs(10)).await;
    "the writer alone".into()
}

/// The least that a copy costs: no trace, no check, nothing of what is written
/// meanwhile, and no swap.
async fn create_table_as(place: &Place<'_>) -> String {
    let client = place.cluster.connect(place.name).await;
    let sql = format!("CREATE TABLE ops_copy AS SELECT * FROM ops WHERE ulid >= '{}'", cut());
    client.batch_execute(&sql).await.unwrap();
    client.batch_execute("ALTER TABLE ops_copy ADD PRIMARY KEY (ulid)").await.unwrap();
    "a copy beside the log, which stays as it is".into()
}

async fn delete(place: &Place<'_>) -> tokio_postgres::Client {
    let client = place.cluster.connect(place.name).await;
    client.execute("DELETE FROM ops WHERE ulid < $1", &[&cut().as_str()]).await.unwrap();
    client
}

async fn vacuum_full(place: &Place<'_>) -> String {
    let client = delete(place).await;
    client.batch_execute("VACUUM FULL ops").await.unwrap();
    "DELETE, VACUUM FULL".into()
}

/// Debian's package postgresql-15-repack.
async fn pg_repack(place: &Place<'_>) -> String {
    let client = delete(place).await;
    if let Err(error) = client.batch_execute("CREATE EXTENSION pg_repack").await {
        return format!("DELETE alone: {error}");
    }
    let (port, name) = (place.cluster.port().to_string(), place.name.to_owned());
    let repack = move || {
        let options = ["-h", "127.0.0.1", "-U", "postgres", "--table", "public.ops", "--no-order"];
        Command::new(binary("pg_repack")).args(options).args(["-p", &port, "-d", &name]).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(repack).await.unwrap();
    match output.status.success() {
        true => "DELETE, pg_repack --no-order".into(),
        false => format!("DELETE, pg_repack failed: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// As by hand: one DELETE, VACUUM, ranges of 100 pages, VACUUM, REINDEX.
async fn by_hand(place: &Place<'_>) -> String {
    let client = place.cluster.connect(place.name).await;
    let mut phases = Vec::new();
    let mut begun = Instant::now();
    let mut lap = |what: &str| {
        phases.push(format!("{what} {:.1} s", begun.elapsed().as_secs_f64()));
        begun = Instant::now();
    };
    client.execute("DELETE FROM ops WHERE ulid < $1", &[&cut().as_str()]).await.unwrap();
    lap("DELETE");
    client.batch_execute(maintain::VACUUM).await.unwrap();
    lap("VACUUM");
    let mut pooled = place.db.client().await.unwrap();
    let mut to = in_place::size(&pooled).await.unwrap().pages;
    while to > 0 {
        let from = to.saturating_sub(100);
        let tx = opsward::db::begin(&mut pooled, opsward::db::Isolation::Write).await.unwrap();
        let moved = in_place::empty_pages(&tx, from, to).await.unwrap();
        tx.commit().await.unwrap();
        if moved.stuck > 0 {
            break;
        }
        to = from;
    }
    lap("move");
    client.batch_execute(maintain::VACUUM_AND_TRUNCATE).await.unwrap();
    lap("truncating VACUUM");
    client.batch_execute("REINDEX INDEX CONCURRENTLY ops_pkey").await.unwrap();
    lap("REINDEX");
    phases.join(", ")
}

/// A reclaim that leaves what is not below its table's cut; where its time went,
/// by phase.
async fn run(place: &Place<'_>, mode: Mode, pace: u8, cuts: &BTreeMap<String, OpUlid>) -> String {
    let laps: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
    let noted = laps.clone();
    let work = bed::work(&place.db, move |told| {
        let mut laps = noted.lock().unwrap();
        if laps.last().is_none_or(|(phase, _)| *phase != told.phase) {
            laps.push((told.phase, Instant::now()));
        }
    });
    let client = place.db.client().await.unwrap();
    let figures = db::stats::figures(&client).await.unwrap();
    let rows: i64 = client
        .query_one("SELECT reltuples::bigint FROM pg_class WHERE oid = 'ops'::regclass", &[])
        .await
        .unwrap()
        .get(0);
    let survivors = Survivors { cuts: cuts.clone(), ..Survivors::default() };
    let at = Checkpoint {
        pace: Some(pace),
        total: u64::try_from(rows).ok(),
        bytes_before: figures.ops_bytes + figures.index_bytes,
        began_ms: Clock::System.now().as_millisecond(),
        ..Checkpoint::begin("bench".into(), mode, Policy::Window, survivors)
    };
    db::reclaim::save(&client, &at.json()).await.unwrap();
    let mut lease = Lease::take(&place.db).await.unwrap().ok().unwrap();
    let gate = Gate { cuts: cuts.clone(), ceiling: Some(cut()), ..Gate::default() };
    let request =
        Request { action: Action::Resume, pace: Some(pace), gate: gate.clone(), ..Request::default() };
    let ask = || std::future::ready(Ok(gate.clone())).boxed();
    let report = reclaim::run(&work, &mut lease, &request, &ask).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    let traces: i64 =
        client.query_one("SELECT pg_total_relation_size('opsward.traces')", &[]).await.unwrap().get(0);
    let mut laps = laps.lock().unwrap().clone();
    laps.push((String::new(), Instant::now()));
    let words: Vec<String> =
        laps.windows(2).map(|w| format!("{} {:.1} s", w[0].0, (w[1].1 - w[0].1).as_secs_f64())).collect();
    format!("{}; traces {:.0} MB", words.join(", "), traces as f64 / 1e6)
}

/// The peak of what the data directory takes, and of what a transaction takes
/// that is no maintenance.
async fn sample(
    config: tokio_postgres::Config,
    directory: std::path::PathBuf,
    seen: Arc<Seen>,
    stop: CancellationToken,
) {
    const LONGEST: &str = "
        SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 * 1e6
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
          AND query !~* '^(VACUUM|REINDEX|DROP INDEX|CREATE DATABASE|BEGIN|CHECKPOINT)'
          AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)";
    const LOCKED: &str = "
        SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8 * 1e6
        FROM pg_locks WHERE NOT granted AND waitstart IS NOT NULL AND mode = 'RowExclusiveLock'";
    let client = cluster::connect(&config).await;
    let (longest, locked) = (client.prepare(LONGEST).await.unwrap(), client.prepare(LOCKED).await.unwrap());
    let (before, mut looked) = (taken(&directory), Instant::now());
    while !stop.is_cancelled() {
        let us: f64 = client.query_one(&longest, &[]).await.unwrap().get(0);
        seen.longest_us.fetch_max(us as u64, Ordering::Relaxed);
        let us: f64 = client.query_one(&locked, &[]).await.unwrap().get(0);
        seen.locked_us.fetch_max(us as u64, Ordering::Relaxed);
        if looked.elapsed() > Duration::from_millis(100) {
            looked = Instant::now();
            let extra = taken(&directory).saturating_sub(before);
            seen.extra_disk.fetch_max(extra, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn taken(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => taken(&entry.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Fifty inserts a second, each from when it was due to its acknowledgement.
async fn write(config: tokio_postgres::Config, stop: CancellationToken) -> (u64, Vec<Duration>) {
    const INSERT: &str = r#"INSERT INTO ops (ulid, host, action, "table", data)
        VALUES ($1, 'https://writer.example', 'create', 'audio_previews', jsonb_build_array(jsonb_build_object('cid', $1::text, 'x', repeat('x', 700))))"#;
    let client = cluster::connect(&config).await;
    let insert = client.prepare(INSERT).await.unwrap();
    let (mut written, mut stalls) = (0, Vec::new());
    let mut due = tokio::time::interval(Duration::from_millis(20));
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    while !stop.is_cancelled() {
        let due = due.tick().await;
        let ulid = OpUlid::from_parts(Clock::System.now_ms(), u128::from(written));
        written += client.execute(&insert, &[&ulid.as_str()]).await.unwrap();
        stalls.push(due.elapsed());
    }
    (written, stalls)
}
