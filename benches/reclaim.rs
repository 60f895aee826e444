//! Giving the disk back: ways to leave a quarter of a log, each over a fresh
//! clone of one database, while a writer inserts 50 ops a second. Time, peak
//! of extra disk (sampled), WAL, the longest transaction (sampled) and the
//! writer's stalls, in one run. `cargo bench --bench reclaim`, with a number of
//! rows as its argument (500,000 unless told).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

#[path = "../tests/it/harness/cluster.rs"]
#[allow(dead_code, unreachable_pub, clippy::panic, clippy::unwrap_used, reason = "shared with the tests")]
mod cluster;
#[path = "../tests/it/harness/target.rs"]
mod target;

use cluster::{Cluster, Stop};
use futures_util::FutureExt;
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::{self, Db, in_place, maintain, migrate};
use opsward::metrics::Metrics;
use opsward::reclaim::decide::{Checkpoint, Mode, Phase, Survivors};
use opsward::reclaim::{self, Action, Gate, Request};
use opsward::settings::{Policy, Source, load};
use opsward::values::{Host, OpUlid};
use opsward::work::Work;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const TABLES: [&str; 4] = ["uploads", "storage_and_db_sizes", "qm_audio_analyses", "audio_previews"];
const START: u64 = 1_672_531_200_000;
const SPAN: u64 = 110_376_000_000;
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
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    // `cargo test --benches` passes flags; there is nothing to test here.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    let rows: u64 = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(500_000);
    let cluster = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::private();
        // As a server that keeps what it acknowledged: the harness' does not.
        cluster.configure(
            "fsync = on\nsynchronous_commit = on\nfull_page_writes = on\nshared_buffers = '256MB'\nautovacuum = off",
        );
        cluster.stop(Stop::Fast);
        cluster.start();
        cluster
    })
    .await
    .unwrap();
    cluster.create_database("log", cluster::TEMPLATE).await;
    let db = Db::open(&target::local(cluster.port(), "log"), "bench", 2).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    cluster.psql("log", &format!("{}; VACUUM ANALYZE ops", FILL.replace("ROWS", &rows.to_string())));
    drop(db);
    println!("{rows} rows, three quarters go; a writer at 50 inserts a second");
    println!(
        "{:<22} {:>8} {:>9} {:>9} {:>10} {:>8} {:>9} {:>9}",
        "", "seconds", "MB before", "MB after", "extra MB", "WAL MB", "longest", "p99.9"
    );
    // Each contender is a function over a fresh clone; others are added here.
    contend(&cluster, "by hand", by_hand).await;
    contend(&cluster, "reclaim in-place", reclaim_in_place).await;
}

/// The lowest ULID that stays.
fn cut() -> OpUlid {
    OpUlid::first_of_ms(START + SPAN * 3 / 4)
}

async fn contend(cluster: &Cluster, title: &str, contender: impl AsyncFn(&Place<'_>) -> String) {
    let name = cluster::unique("clone");
    let template = async {
        // The pool's sessions take a moment to go.
        loop {
            let sql = format!("CREATE DATABASE {name} TEMPLATE log");
            if cluster.connect("postgres").await.batch_execute(&sql).await.is_ok() {
                break;
            }
        }
    };
    template.await;
    let admin = cluster.connect(&name).await;
    admin.batch_execute("CHECKPOINT").await.unwrap();
    let db = Db::open(&target::local(cluster.port(), &name), "bench", 6).await.unwrap();
    let place = Place { cluster, name: &name, db };
    let (seen, stop) = (Arc::new(Seen::default()), CancellationToken::new());
    let sampler = tokio::spawn(sample(cluster.config(&name), cluster.data_dir(), seen.clone(), stop.clone()));
    let writer = tokio::spawn(write(cluster.config(&name), stop.clone()));
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
        "{title:<22} {:>8.1} {:>9.0} {:>9.0} {:>10.0} {:>8.0} {:>6.0} ms {:>6.1} ms",
        took.as_secs_f64(),
        mb(before),
        mb(after),
        seen.extra_disk.load(Ordering::Relaxed) as f64 / 1e6,
        mb(wal),
        seen.longest_us.load(Ordering::Relaxed) as f64 / 1e3,
        p999.unwrap_or_default().as_secs_f64() * 1e3,
    );
    println!("    {notes}; {written} written meanwhile, {there} there");
    drop(place);
    drop(admin);
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
        let tx = pooled.transaction().await.unwrap();
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

async fn reclaim_in_place(place: &Place<'_>) -> String {
    run(place, Mode::InPlace).await
}

/// A reclaim at full pace; where its time went, by phase.
async fn run(place: &Place<'_>, mode: Mode) -> String {
    let mut settings = load(&Source::process()).unwrap().settings;
    settings.bounding.min_free_disk = 0;
    let laps: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
    let noted = laps.clone();
    let work = Work {
        db: place.db.clone(),
        settings: Arc::new(settings),
        own: Host::parse("http://127.0.0.1:9").unwrap(),
        clock: Clock::System,
        metrics: Metrics::new().unwrap(),
        stop: CancellationToken::new(),
        tell: Arc::new(move |told| {
            let mut laps = noted.lock().unwrap();
            if laps.last().is_none_or(|(phase, _)| *phase != told.phase) {
                laps.push((told.phase, Instant::now()));
            }
        }),
    };
    let client = place.db.client().await.unwrap();
    let figures = db::stats::figures(&client).await.unwrap();
    let at = Checkpoint {
        run: "bench".into(),
        mode,
        policy: Policy::Window,
        survivors: Survivors { cuts: TABLES.map(|t| (t.to_owned(), cut())).into(), ..Survivors::default() },
        pace: Some(100),
        hold: false,
        phase: Phase::first(mode),
        position: String::new(),
        pass: 0,
        passes: 1,
        done: 0,
        total: None,
        gone: BTreeMap::new(),
        fingerprint: None,
        capture: None,
        locked: Vec::new(),
        settled: None,
        starts: 1,
        aborting: None,
        bytes_before: figures.ops_bytes + figures.index_bytes,
        began_ms: Clock::System.now().as_millisecond(),
    };
    db::reclaim::save(&client, &at.json()).await.unwrap();
    let mut lease = Lease::take(&place.db).await.unwrap().ok().unwrap();
    let cuts = TABLES.map(|t| (t.to_owned(), cut())).into();
    let gate = Gate { cuts, ceiling: Some(cut()), ..Gate::default() };
    let request =
        Request { action: Action::Resume, pace: Some(100), gate: gate.clone(), ..Request::default() };
    let ask = || std::future::ready(Ok(gate.clone())).boxed();
    reclaim::run(&work, &mut lease, &request, &ask).await.unwrap();
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
          AND query !~* '^(VACUUM|REINDEX|DROP INDEX|CREATE DATABASE|BEGIN|CHECKPOINT)'";
    let client = cluster::connect(&config).await;
    let longest = client.prepare(LONGEST).await.unwrap();
    let (before, mut looked) = (taken(&directory), Instant::now());
    while !stop.is_cancelled() {
        let us: f64 = client.query_one(&longest, &[]).await.unwrap().get(0);
        seen.longest_us.fetch_max(us as u64, Ordering::Relaxed);
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
