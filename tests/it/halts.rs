//! Contract 5, Pace: what is under way when it may not go on ends, and is made
//! up for later.

use crate::harness::{Database, MadeOp, Ops, ops};
use crate::work;
use opsward::bound::delete::{self, Ended, Order, Report};
use opsward::bound::index::{self, Ensured};
use opsward::bound::vacuum::Vacuumed;
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::prune::TableCut;
use opsward::settings::{Settings, Window};
use opsward::work::{Halt, Pacer, Stop, Work};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_postgres::Client;

const LONG: Duration = Duration::from_secs(600);
/// What no test should ever wait for.
const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-06-30, 12:00: half a year after the harness' ops.
const NOON_MS: i64 = 1_782_820_800_000;
const AT_VACUUM: &str = "SELECT count(*) > 0 FROM pg_stat_progress_vacuum WHERE datname = current_database()";
const AT_INDEX: &str =
    "SELECT count(*) > 0 FROM pg_stat_progress_create_index WHERE datname = current_database()";
const PAUSE: &str = "INSERT INTO opsward.pace (percent, paused_at, set_at) VALUES (100, now(), now())";

struct Bench {
    database: Database,
    client: Client,
    work: Work,
    made: Vec<MadeOp>,
}

impl Bench {
    /// A log of 400 ops, half of them to go. A VACUUM of it takes many seconds,
    /// but at full pace.
    async fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let database = Database::new().await;
        drop(database.migrated().await);
        let client = database.client().await;
        let made = Ops::new(1).take(400);
        ops::insert(&client, &made).await;
        // Dead rows on some two thousand pages, each of which costs a pause.
        let dead = format!(
            "ALTER TABLE ops SET (autovacuum_enabled = off);
             INSERT INTO ops SELECT 'dead' || g, 'h', 'create', 'x', to_jsonb(repeat(md5(g::text), 20))
             FROM generate_series(1, 20000) g; DELETE FROM ops WHERE ulid LIKE 'dead%';
             ALTER DATABASE {} SET vacuum_cost_limit = 1",
            database.name()
        );
        client.batch_execute(&dead).await.unwrap();
        let mut work = work::on(&database.db().await, |settings| {
            settings.db = database.target();
            settings.bounding.min_free_disk = 0;
            change(settings);
        });
        work.clock = Clock::fixed(NOON_MS);
        Self { database, client, work, made }
    }

    async fn lease(&self) -> Lease {
        loop {
            // A session that ended leaves it in a moment.
            if let Ok(lease) = Lease::take(&self.work.db).await.unwrap() {
                return lease;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Deletes at a pace, and VACUUMs.
    async fn delete(&self, lease: &mut Lease, percent: u8) -> Report {
        let below = self.made[200].ulid;
        let cut = |table: &str| TableCut { table: table.to_owned(), below, bound_by: "age".to_owned() };
        let tables = ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"];
        let order = Order {
            run: format!("r{}", fastrand::u64(..)),
            task: "retention",
            cuts: tables.map(cut).to_vec(),
            active_since: None,
            expected: None,
        };
        let mut pacer = Pacer::new(&self.work, Some(percent));
        let run = delete::run(&self.work, lease, &mut pacer, &order, LONG);
        tokio::time::timeout(PATIENCE, run).await.expect("it ends").unwrap()
    }

    /// Makes the index, while something happens.
    async fn index(&self, meanwhile: impl Future<Output = ()>) -> Result<Ensured, Stop> {
        let mut lease = self.lease().await;
        let mut pacer = Pacer::new(&self.work, Some(100));
        let ensure = index::ensure(&self.work, &mut lease, &mut pacer);
        let (ended, ()) = tokio::join!(tokio::time::timeout(PATIENCE, ensure), meanwhile);
        assert!(!self.is(AT_INDEX).await);
        ended.expect("it ends")
    }

    async fn is(&self, sql: &str) -> bool {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn until(&self, sql: &str) {
        let look = async {
            while !self.is(sql).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("it never came to: {sql}"));
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }
}

#[tokio::test]
async fn a_pause_ends_a_vacuum_and_a_later_run_makes_up_for_it() {
    let bench = Bench::new(|_| {}).await;
    let mut lease = bench.lease().await;
    let pause = async {
        bench.until(AT_VACUUM).await;
        bench.run(PAUSE).await;
    };
    let (report, ()) = tokio::join!(bench.delete(&mut lease, 30), pause);
    assert_eq!((report.rows(), report.vacuum), (200, Some(Vacuumed::Stopped)));
    assert!(!bench.is(AT_VACUUM).await);
    // Still paused: not even tried.
    let report = bench.delete(&mut lease, 100).await;
    assert_eq!((report.rows(), report.vacuum), (0, Some(Vacuumed::Stopped)));
    bench.run("UPDATE opsward.pace SET paused_at = NULL").await;
    // Another process, another session: nothing is to delete, but it is due.
    drop(lease);
    let mut lease = bench.lease().await;
    let report = bench.delete(&mut lease, 100).await;
    assert_eq!((report.rows(), report.vacuum), (0, Some(Vacuumed::Done)));
    let report = bench.delete(&mut lease, 100).await;
    assert_eq!((report.rows(), report.vacuum), (0, None));
}

#[tokio::test]
async fn the_end_of_the_window_ends_a_vacuum() {
    let bench = Bench::new(|s| s.bounding.window = Some(Window::parse("11:00-13:00").unwrap())).await;
    let mut lease = bench.lease().await;
    let close = async {
        bench.until(AT_VACUUM).await;
        let Clock::Fixed(at) = &bench.work.clock else { panic!() };
        at.fetch_add(3_600_000, Ordering::Relaxed);
    };
    let (report, ()) = tokio::join!(bench.delete(&mut lease, 30), close);
    assert_eq!((report.rows(), report.vacuum), (200, Some(Vacuumed::Stopped)));
    assert!(!bench.is(AT_VACUUM).await);
}

#[tokio::test]
async fn ten_million_deletions_are_counted_over_runs() {
    let bench = Bench::new(|_| {}).await;
    let mut lease = bench.lease().await;
    bench.run("UPDATE opsward.unvacuumed SET rows = 10000000").await;
    let report = bench.delete(&mut lease, 100).await;
    assert_eq!(
        (report.rows(), report.ended, report.vacuum),
        (200, Ended::Done { locked: 0 }, Some(Vacuumed::Done))
    );
    // One before the first batch, one after the last.
    assert_eq!(bench.work.metrics.vacuums.with_label_values(&["done"]).get(), 2);
    assert!(bench.is("SELECT rows = 0 FROM opsward.unvacuumed").await);
}

#[tokio::test]
async fn a_pause_ends_an_index_build_and_is_told() {
    let bench = Bench::new(|_| {}).await;
    // An index waits for it for ever.
    let held = bench.database.old_snapshot().await;
    let pause = async {
        bench.until(AT_INDEX).await;
        bench.run(PAUSE).await;
    };
    let ended = bench.index(pause).await;
    assert!(matches!(ended, Err(Stop::Halt(Halt::Paused(_)))), "{ended:?}");
    held.batch_execute("ROLLBACK").await.unwrap();
    bench.run("UPDATE opsward.pace SET paused_at = NULL").await;
    assert_eq!(bench.index(async {}).await.unwrap(), Ensured::Made);
}

#[tokio::test]
async fn little_disk_ends_an_index_build() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    let lies_on = |target: &str| {
        let next = dir.path().join("next");
        std::os::unix::fs::symlink(Path::new(target), &next).unwrap();
        std::fs::rename(&next, &volume).unwrap();
    };
    lies_on("/");
    let bench = Bench::new(|s| s.pgdata_path = Some(volume.clone())).await;
    // An index waits for it for ever.
    let held = bench.database.old_snapshot().await;
    let fills_up = async {
        bench.until(AT_INDEX).await;
        // Nothing is ever free there.
        lies_on("/proc");
    };
    let ended = bench.index(fills_up).await;
    assert!(matches!(ended, Err(Stop::Halt(Halt::LittleDisk { free: 0, .. }))), "{ended:?}");
    held.batch_execute("ROLLBACK").await.unwrap();
}
