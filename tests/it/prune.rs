//! Contract 5, deleting: what goes, what stays, and what is left of it, in one
//! transaction, whatever happens in the middle.

use crate::harness::{Database, MadeOp, Ops, ops};
use crate::work;
use opsward::bound::delete::{self, Ended, Order, Report};
use opsward::bound::guard;
use opsward::bound::index::{self, Ensured};
use opsward::bound::recent;
use opsward::bound::vacuum::Vacuumed;
use opsward::db::Db;
use opsward::db::lease::Lease;
use opsward::db::prune::TableCut;
use opsward::settings::Settings;
use opsward::values::{OpUlid, Progress};
use opsward::work::{Pacer, Stop, Work};
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(600);
const START: u64 = 1_767_225_600_000;
const MODELS: [&str; 4] = ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"];

struct Bench {
    database: Database,
    db: Db,
    client: Client,
    work: Work,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|settings| settings.bounding.batch_limit = 300).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let database = Database::new().await;
        let (db, client) = (database.migrated().await, database.client().await);
        let work = work::on(&db, |settings| {
            settings.db = database.target();
            change(settings);
        });
        Self { database, db, client, work }
    }

    /// A log, twice: what was there is compared with what is left.
    async fn log(&self, made: &[MadeOp]) {
        ops::insert(&self.client, made).await;
        self.run("CREATE TABLE IF NOT EXISTS before (LIKE ops)").await;
        self.run("INSERT INTO before SELECT * FROM ops WHERE ulid NOT IN (SELECT ulid FROM before)").await;
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    async fn text(&self, sql: &str) -> Option<String> {
        self.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    /// Servers before 15 tell some time later what was read.
    async fn counts_reads_at_once(&self) -> bool {
        self.number("SELECT current_setting('server_version_num')::bigint").await >= 150_000
    }

    async fn lease(&self) -> Lease {
        loop {
            // A killed session's lock takes a moment to go.
            if let Ok(lease) = Lease::take(&self.db).await.unwrap() {
                return lease;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn delete(&self, order: &Order) -> Result<Report, Stop> {
        let mut lease = self.lease().await;
        self.delete_with(&mut lease, order).await
    }

    async fn delete_with(&self, lease: &mut Lease, order: &Order) -> Result<Report, Stop> {
        let mut pacer = Pacer::new(&self.work, Some(100));
        delete::run(&self.work, lease, &mut pacer, order, LONG).await
    }

    /// What went left its traces, floors and history, no more and no less.
    async fn holds_together(&self, below: OpUlid) {
        let gone = self
            .number(
                "SELECT count(*) FROM before b WHERE NOT EXISTS (SELECT FROM ops o WHERE o.ulid = b.ulid)",
            )
            .await;
        assert_eq!(gone, self.number("SELECT coalesce(sum(rows), 0)::bigint FROM opsward.history").await);
        let traces = "SELECT opsward.trace_key(b.\"table\", r) AS key, max(b.ulid COLLATE \"C\") AS ulid
             FROM before b, opsward.records(b.data) r
             WHERE NOT EXISTS (SELECT FROM ops o WHERE o.ulid = b.ulid)
               AND b.\"table\" IN ('uploads', 'qm_audio_analyses', 'audio_previews')
             GROUP BY 1";
        for sql in [
            format!("SELECT count(*) FROM (({traces}) EXCEPT SELECT key, ulid FROM opsward.traces) x"),
            format!("SELECT count(*) FROM (SELECT key, ulid FROM opsward.traces EXCEPT ({traces})) x"),
        ] {
            assert_eq!(self.number(&sql).await, 0, "{sql}");
        }
        let kept = "SELECT count(*) - (SELECT coalesce(sum(traces), 0)::bigint FROM opsward.history) FROM opsward.traces";
        assert_eq!(self.number(kept).await, 0);
        let wrong = format!(
            "SELECT count(*) FROM (SELECT \"table\" AS name, max(ulid COLLATE \"C\") AS highest FROM before b
                 WHERE NOT EXISTS (SELECT FROM ops o WHERE o.ulid = b.ulid) GROUP BY 1) gone
             FULL JOIN (SELECT * FROM opsward.floors WHERE floor IS NOT NULL) f ON f.table_name = gone.name
             WHERE f.floor IS NULL OR gone.name IS NULL OR f.floor <= gone.highest OR f.floor > '{below}'"
        );
        assert_eq!(self.number(&wrong).await, 0, "floors");
        let above = "SELECT count(*) FROM ops, opsward.watermark w
                     WHERE ops.ulid < w.ulid AND ops.ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' AND ops.ulid >= '01GNN'";
        assert_eq!(self.number(above).await, 0, "the watermark passed a row");
    }
}

fn order(below: OpUlid) -> Order {
    order_of(below, &MODELS)
}

fn order_of(below: OpUlid, tables: &[&str]) -> Order {
    let cut = |table: &&str| TableCut { table: (*table).to_owned(), below, bound_by: "age".to_owned() };
    Order {
        run: format!("r{}", fastrand::u64(..)),
        task: "retention",
        cuts: tables.iter().map(cut).collect(),
        active_since: None,
        expected: None,
    }
}

fn middle(made: &[MadeOp]) -> OpUlid {
    made[made.len() / 2].ulid
}

/// A row as nothing but an integrator of the node could have put it there.
async fn raw(bench: &Bench, ulid: &str, table: &str, data: &str) {
    let sql = "INSERT INTO ops (ulid, host, action, \"table\", data) VALUES ($1, 'h', 'update', $2, $3::text::jsonb)";
    bench.client.execute(sql, &[&ulid, &table, &data]).await.unwrap();
}

#[tokio::test]
async fn all_below_the_cut_goes_and_leaves_its_traces() {
    let bench = Bench::new().await;
    let made = Ops::new(1).every(40_000).take(3_000);
    bench.log(&made).await;
    bench
        .run(
            "INSERT INTO opsward.census SELECT \"table\", date_trunc('day', timestamptz '2026-01-01'), count(*), 0,
                    min(ulid), max(ulid), 0, false, now() FROM ops GROUP BY 1",
        )
        .await;
    let below = middle(&made);
    let report = bench.delete(&order(below)).await.unwrap();
    assert_eq!(report.ended, Ended::Done { locked: 0 });
    assert_eq!(report.rows(), 1_500);
    assert!(report.batches >= 5, "{report:?}");
    assert_eq!(report.vacuum, Some(Vacuumed::Done));
    assert_eq!(bench.number(&format!("SELECT count(*) FROM ops WHERE ulid < '{below}'")).await, 0);
    assert_eq!(bench.number("SELECT count(*) FROM ops").await, 1_500);
    bench.holds_together(below).await;
    assert_eq!(bench.text("SELECT ulid FROM opsward.watermark").await, Some(below.to_string()));
    assert_eq!(
        bench.text("SELECT string_agg(DISTINCT outcome, ',') FROM opsward.history").await,
        Some("done".into())
    );
    assert_eq!(bench.number("SELECT sum(rows)::bigint FROM opsward.census").await, 1_500);

    // Again: nothing is left to do, and nothing changes.
    let report = bench.delete(&order(below)).await.unwrap();
    assert_eq!((report.rows(), report.scanned, report.ended), (0, 0, Ended::Done { locked: 0 }));
    bench.holds_together(below).await;
}

#[tokio::test]
async fn what_must_never_go_stays() {
    let bench = Bench::new().await;
    bench.run("ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_hash text, ADD COLUMN IF NOT EXISTS core_tx_status text").await;
    let made = Ops::new(2).take(400);
    bench.run("CREATE TABLE before (LIKE ops)").await;
    ops::insert(&bench.client, &made).await;
    let at = |n: u64| OpUlid::from_parts(START + n * 977, u128::from(n));
    let mut stays: Vec<String> = Vec::new();
    for (n, status) in [(1, "pending"), (2, "error")] {
        raw(&bench, at(n).as_str(), "uploads", "[{\"id\":\"owed\"}]").await;
        bench.run(&format!("UPDATE ops SET core_tx_status = '{status}' WHERE ulid = '{}'", at(n))).await;
        stays.push(at(n).to_string());
    }
    raw(&bench, at(3).as_str(), "uploads", "[{\"id\":\"confirmed\"}]").await;
    bench.run(&format!("UPDATE ops SET core_tx_status = 'confirmed' WHERE ulid = '{}'", at(3))).await;
    for (ulid, table) in [
        (at(4).to_string(), "a_table_of_tomorrow"),
        (at(5).to_string(), "blobs"),
        (at(6).to_string().to_lowercase(), "uploads"),
        (format!("{}U", &at(7).as_str()[..25]), "uploads"),
        (at(8).as_str()[..25].to_owned(), "uploads"),
        (OpUlid::from_parts(1_500_000_000_000, 1).to_string(), "uploads"),
        (String::new(), "uploads"),
    ] {
        raw(&bench, &ulid, table, "[{\"id\":\"x\"}]").await;
        stays.push(ulid);
    }
    bench.run("INSERT INTO before SELECT * FROM ops").await;
    let below = OpUlid::first_of_ms(START + 10_000_000);
    let report = bench.delete(&order(below)).await.unwrap();
    assert_eq!(report.rows(), 401);
    let left: Vec<String> =
        bench.client.query("SELECT ulid FROM ops", &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
    let (mut left, mut stays) = (left, stays);
    left.sort();
    stays.sort();
    assert_eq!(left, stays);
    // What is owed is remembered as well: the node's own pruner spares nothing.
    let forget = "WITH gone AS (DELETE FROM opsward.traces
        WHERE key = opsward.trace_key('uploads', '{\"id\": \"owed\"}') RETURNING ulid)
        SELECT count(*) FROM gone WHERE ulid = ";
    assert_eq!(bench.number(&format!("{forget} '{}'", at(2))).await, 1);
    bench.holds_together(below).await;

    // `blobs` goes when a cut names it; a table without a model never does.
    let report = bench.delete(&order_of(below, &["blobs"])).await.unwrap();
    assert_eq!(report.rows(), 1);
    bench.holds_together(below).await;
    for (table, below) in [
        ("a_table_of_tomorrow", below),
        ("uploads", OpUlid::first_of_ms(bench.work.clock.now_ms() - 2 * 3_600_000 + 60_000)),
    ] {
        let error = bench.delete(&order_of(below, &[table])).await.unwrap_err().to_string();
        assert!(error.contains(table), "{error}");
    }
    assert_eq!(bench.number("SELECT count(*) FROM ops").await, stays.len() as i64 - 1);
}

#[tokio::test]
async fn traces_are_those_of_every_record_however_it_is_spelled() {
    let bench = Bench::new().await;
    for (n, table, data) in [
        (1, "uploads", "[{\"ID\":\"a\"},{\"id\":\"b\",\"Id\":\"c\"}]"),
        (2, "uploads", "[{\"id\":7}]"),
        (3, "qm_audio_analyses", "[{\"CID\":\"a\"}]"),
        (4, "audio_previews", "[{\"cid\":\"a\"}, 5, {\"CID\":\"b\"}]"),
        (5, "uploads", "{}"),
        (6, "uploads", "[]"),
        (7, "uploads", "null"),
        (8, "uploads", "[[{\"id\":\"nested\"}]]"),
        (9, "uploads", "[{\"id\":\"b\"}, {\"id\":\"b\"}]"),
        (10, "storage_and_db_sizes", "[{\"Host\":\"h\",\"LoggedAt\":\"2026-01-01T00:00:00Z\"}]"),
        (11, "uploads", "[{\"id\":null,\"ID\":\"d\"}]"),
        (12, "uploads", "[{\"none\":1}]"),
    ] {
        raw(&bench, OpUlid::from_parts(START + n, 0).as_str(), table, data).await;
    }
    // Records without a key leave none: `holds_together` compares the others.
    bench.log(&[]).await;
    let below = OpUlid::first_of_ms(START + 100);
    bench.delete(&order(below)).await.unwrap();
    assert_eq!(bench.number("SELECT count(*) FROM ops").await, 0);
    bench.run("DELETE FROM before WHERE data = '[{\"none\":1}]'").await;
    bench.run("UPDATE opsward.history SET rows = rows - 1 WHERE table_name = 'uploads'").await;
    bench.holds_together(below).await;
    assert_eq!(bench.number("SELECT count(*) FROM opsward.traces").await, 7);
}

#[tokio::test]
async fn a_lost_session_ends_the_run_and_leaves_nothing_half() {
    let bench = Bench::with(|settings| settings.bounding.batch_limit = 40).await;
    let made = Ops::new(3).take(2_000);
    bench.log(&made).await;
    let below = middle(&made);
    let mut lost = 0;
    loop {
        let mut lease = bench.lease().await;
        let pid = lease.pid();
        let killer = bench.database.client().await;
        // Ended somewhere in the batches that follow.
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<Progress>();
        let mut work = bench.work.clone();
        work.tell = Arc::new(move |progress| drop(tell.send(progress)));
        let batches = 1 + lost % 4;
        let kill = async {
            for _ in 0..batches {
                if told.recv().await.is_none() {
                    return;
                }
            }
            killer.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
        };
        let order = order(below);
        let (result, ()) = tokio::join!(
            async {
                // Whoever tells goes with it: the killer waits no longer.
                let work = work;
                let mut pacer = Pacer::new(&work, Some(100));
                delete::run(&work, &mut lease, &mut pacer, &order, LONG).await
            },
            kill
        );
        bench.holds_together(below).await;
        match result {
            Ok(report) => {
                assert_eq!(report.ended, Ended::Done { locked: 0 });
                break;
            }
            Err(Stop::Db(error)) => assert!(error.is_away(), "{error}"),
            Err(other) => panic!("{other}"),
        }
        lost += 1;
    }
    assert!(lost >= 5, "only {lost} sessions were lost");
    assert_eq!(bench.number(&format!("SELECT count(*) FROM ops WHERE ulid < '{below}'")).await, 0);
    assert_eq!(bench.number("SELECT count(*) FROM ops").await, 1_000);
}

#[tokio::test]
async fn a_second_run_finds_the_lease_held() {
    let bench = Bench::new().await;
    let lease = bench.lease().await;
    let holder = Lease::take(&bench.db).await.unwrap().err().unwrap().unwrap();
    assert_eq!(holder.pid, lease.pid());
}

#[tokio::test]
async fn a_locked_row_is_passed_over_and_goes_later() {
    let mut bench = Bench::new().await;
    let waited = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = waited.clone();
    bench.work.tell = Arc::new(move |progress: Progress| told.lock().unwrap().extend(progress.waiting));
    let made = Ops::new(4).take(1_200);
    bench.log(&made).await;
    let (below, held) = (middle(&made), made[100].ulid);
    let mut node = bench.database.client().await;
    let tx = node.transaction().await.unwrap();
    tx.execute("SELECT FROM ops WHERE ulid = $1 FOR UPDATE", &[&held.as_str()]).await.unwrap();
    let pid: i32 = tx.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let report = bench.delete(&order(below)).await.unwrap();
    // Who holds it is told while the run goes on, in its report and in the history.
    let name = format!("process {pid} (");
    assert!(waited.lock().unwrap().iter().any(|what| what.contains(&name)), "{waited:?}");
    assert!(report.locked_by.join("").contains(&name), "{report:?}");
    let outcome = bench.text("SELECT string_agg(DISTINCT outcome, '') FROM opsward.history").await.unwrap();
    assert!(outcome.contains("1 rows were locked") && outcome.contains(&name), "{outcome}");
    assert_eq!(bench.number("SELECT count(*) FROM opsward.waiting").await, 0, "it waits no more");
    assert_eq!((report.rows(), report.ended), (599, Ended::Done { locked: 1 }));
    assert_eq!(bench.text("SELECT ulid FROM opsward.watermark").await, Some(held.to_string()));
    bench.holds_together(below).await;
    tx.batch_execute("ROLLBACK").await.unwrap();
    let report = bench.delete(&order(below)).await.unwrap();
    assert_eq!((report.rows(), report.ended), (1, Ended::Done { locked: 0 }));
    assert_eq!(bench.text("SELECT ulid FROM opsward.watermark").await, Some(below.to_string()));
    bench.holds_together(below).await;
}

#[tokio::test]
async fn an_old_snapshot_holds_nothing_up() {
    let bench = Bench::new().await;
    let made = Ops::new(5).take(1_000);
    bench.log(&made).await;
    let tx = bench.database.old_snapshot().await;
    let count = |r: tokio_postgres::Row| r.get::<_, i64>(0);
    assert_eq!(tx.query_one("SELECT count(*) FROM ops", &[]).await.map(count).unwrap(), 1_000);
    let below = middle(&made);
    assert_eq!(bench.delete(&order(below)).await.unwrap().rows(), 500);
    assert_eq!(tx.query_one("SELECT count(*) FROM ops", &[]).await.map(count).unwrap(), 1_000);
    bench.holds_together(below).await;
}

#[tokio::test]
async fn it_stops_at_the_next_batch_and_goes_on_from_there() {
    let mut bench = Bench::with(|settings| settings.bounding.batch_limit = 50).await;
    let made = Ops::new(6).take(1_000);
    bench.log(&made).await;
    let below = middle(&made);
    let stop = bench.work.stop.clone();
    bench.work.tell = Arc::new(move |_| stop.cancel());
    let report = bench.delete(&order(below)).await.unwrap();
    assert_eq!((report.batches, report.rows()), (1, 50));
    assert!(matches!(report.ended, Ended::Halted(_)), "{report:?}");
    bench.holds_together(below).await;
    bench.work.stop = CancellationToken::new();
    let report = bench.delete(&order(below)).await.unwrap();
    assert_eq!((report.scanned, report.rows()), (450, 450));
    bench.holds_together(below).await;
}

#[tokio::test]
async fn a_pause_ends_it_and_is_said() {
    let bench = Bench::new().await;
    let made = Ops::new(7).take(100);
    bench.log(&made).await;
    bench.run("INSERT INTO opsward.pace (percent, paused_at, set_at) VALUES (25, now(), now())").await;
    let report = bench.delete(&order(middle(&made))).await.unwrap();
    assert_eq!(report.rows(), 0);
    assert!(matches!(&report.ended, Ended::Halted(why) if why.contains("opsward resume")), "{report:?}");
    // The history outlives the pause.
    assert!(!report.ended.words().contains("opsward resume"), "{report:?}");
}

#[tokio::test]
async fn a_table_that_wakes_up_keeps_the_rest() {
    let bench = Bench::new().await;
    let made = Ops::new(8).take(300);
    bench.log(&made).await;
    let now = bench.work.clock.now_ms();
    let recent = OpUlid::from_parts(now - 60_000, 1);
    raw(&bench, recent.as_str(), "audio_previews", "[{\"cid\":\"new\"}]").await;
    bench.log(&[]).await;
    let below = middle(&made);
    let order = Order {
        task: "dormant",
        active_since: Some(OpUlid::first_of_ms(now - 90 * 86_400_000)),
        ..order_of(below, &["audio_previews", "qm_audio_analyses"])
    };
    let report = bench.delete(&order).await.unwrap();
    assert_eq!(report.active, ["audio_previews"]);
    assert_eq!(report.tables.keys().collect::<Vec<_>>(), ["qm_audio_analyses"]);
    bench.holds_together(below).await;
}

#[tokio::test]
async fn the_index_is_made_once_and_uninstall_takes_it_away() {
    let bench = Bench::new().await;
    ops::insert(&bench.client, &Ops::new(9).take(200)).await;
    let mut lease = bench.lease().await;
    let mut pacer = Pacer::new(&bench.work, Some(100));
    // What a failed build left: a unique index that its rows forbid.
    let failed = "CREATE UNIQUE INDEX CONCURRENTLY opsward_ops_table_ulid ON ops (\"table\")";
    assert!(bench.client.batch_execute(failed).await.is_err());
    assert_eq!(index::ensure(&bench.work, &mut lease, &mut pacer).await.unwrap(), Ensured::Made);
    let valid = "SELECT count(*) FROM pg_index WHERE indrelid = 'ops'::regclass AND indisvalid
        AND indexrelid IS DISTINCT FROM to_regclass('ops_core_pending_idx')";
    assert_eq!(bench.number(valid).await, 2);
    assert_eq!(
        index::ensure(&bench.work, &mut lease, &mut pacer).await.unwrap(),
        Ensured::There("opsward_ops_table_ulid".into())
    );
    let client = bench.db.client().await.unwrap();
    let opsward::db::uninstall::Found::Ours(owned) = opsward::db::uninstall::find(&client).await.unwrap()
    else {
        panic!("nothing of ours");
    };
    opsward::db::uninstall::remove(&mut lease, &owned).await.unwrap();
    assert_eq!(bench.number(valid).await, 1);
}

#[tokio::test]
async fn an_index_that_does_not_fit_is_refused_with_the_figures() {
    let bench = Bench::with(|settings| settings.bounding.min_free_disk = 1 << 60).await;
    let mut lease = bench.lease().await;
    let mut pacer = Pacer::new(&bench.work, Some(100)).with_floor(0);
    let Ensured::Refused(why) = index::ensure(&bench.work, &mut lease, &mut pacer).await.unwrap() else {
        panic!("it was made");
    };
    assert!(why.contains("MIN_FREE_DISK"), "{why}");
    assert_eq!(bench.number("SELECT count(*) FROM opsward.owned").await, 0);
}

#[tokio::test]
async fn a_batch_whose_statements_take_too_long_together_is_made_smaller() {
    let bench = Bench::new().await;
    let made = Ops::new(11).take(1_200);
    bench.log(&made).await;
    // Each of them is in time; a transaction of both is not, for many rows.
    bench
        .run(
            "CREATE TABLE batches (xid xid8, rows bigint);
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF TG_TABLE_NAME = 'ops' THEN
                     INSERT INTO public.batches SELECT pg_current_xact_id(), count(*) FROM gone;
                 END IF;
                 IF EXISTS (SELECT FROM public.batches WHERE xid = pg_current_xact_id() AND rows > 200) THEN
                     PERFORM pg_sleep(2.5);
                 END IF;
                 RETURN NULL; END $$;
             CREATE TRIGGER slow AFTER DELETE ON ops REFERENCING OLD TABLE AS gone
                 FOR EACH STATEMENT EXECUTE FUNCTION slow();
             CREATE TRIGGER slow AFTER INSERT OR UPDATE ON opsward.floors FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        )
        .await;
    let below = middle(&made);
    let report = bench.delete(&order(below)).await.unwrap();
    assert_eq!((report.rows(), report.ended), (600, Ended::Done { locked: 0 }));
    let most = bench.number("SELECT max(rows) FROM batches").await;
    assert!(most <= 200, "a batch of {most} rows lived for five seconds");
    bench.holds_together(below).await;
}

/// A VACUUM reads all of the index: a few rows are not worth it before a day.
#[tokio::test]
async fn a_few_rows_are_vacuumed_once_a_day() {
    let bench = Bench::new().await;
    let made = Ops::new(12).take(1_000);
    bench.log(&made).await;
    bench.run("ANALYZE ops").await;
    let report = bench.delete(&order(made[5].ulid)).await.unwrap();
    assert_eq!((report.rows(), report.vacuum), (5, None));
    bench.run("UPDATE opsward.unvacuumed SET vacuumed_at = now() - interval '25 hours'").await;
    let report = bench.delete(&order(made[5].ulid)).await.unwrap();
    assert_eq!((report.rows(), report.vacuum), (0, Some(Vacuumed::Done)));
    let report = bench.delete(&order(made[50].ulid)).await.unwrap();
    assert_eq!((report.rows(), report.vacuum), (45, Some(Vacuumed::Done)), "a hundredth");
}

/// What was read is not read again, however often the look is stopped.
#[tokio::test]
async fn a_look_for_recent_ops_goes_on_where_it_was_stopped() {
    let mut bench = Bench::new().await;
    let now = bench.work.clock.now_ms();
    let made = Ops::new(13).starting_at(now - 6_000_000).every(1_000).take(5_000);
    let made: Vec<MadeOp> = made.into_iter().filter(|op| op.table != "audio_previews").collect();
    bench.log(&made).await;
    let since = OpUlid::first_of_ms(now - 90 * 86_400_000);
    let mut lease = bench.lease().await;
    let (mut read, mut looks) = (0, 0);
    loop {
        looks += 1;
        assert!(looks < 10, "it begins anew each time");
        let stop = CancellationToken::new();
        let seen = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (told, after_one) = (seen.clone(), stop.clone());
        bench.work.stop = stop;
        bench.work.tell = Arc::new(move |progress: Progress| {
            told.store(progress.done, std::sync::atomic::Ordering::Relaxed);
            after_one.cancel();
        });
        let mut pacer = Pacer::new(&bench.work, Some(100));
        let ends = tokio::time::Instant::now() + LONG;
        let looked =
            recent::look(&bench.work, &mut lease, &mut pacer, (&["audio_previews"], since), ends).await;
        read += seen.load(std::sync::atomic::Ordering::Relaxed);
        match looked {
            Ok(looked) => break assert!(looked.is_over && looked.active.is_empty(), "{looked:?}"),
            Err(Stop::Halt(_)) => {}
            Err(Stop::Db(error)) => panic!("{error}"),
        }
    }
    assert_eq!(read, made.len() as u64);
    assert!(looks > 1);
    recent::done(&mut lease).await.unwrap();
    assert_eq!(bench.number("SELECT count(*) FROM opsward.dormancy").await, 0);
}

/// What somebody else deleted before is dead and stays in the index as long as a snapshot needs
/// it: it is crossed in parts, and what was crossed stays crossed whatever happens.
#[tokio::test]
async fn a_dead_region_is_crossed_in_parts_each_for_good() {
    let mut bench = Bench::with(|settings| settings.bounding.batch_limit = 10_000).await;
    if !bench.counts_reads_at_once().await {
        return;
    }
    // 200,000 ops of 139 days, which the node deletes while somebody looks on.
    bench
        .run(&format!(
            "INSERT INTO ops SELECT (
                 SELECT string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ',
                     ((({START} + n * 60000) >> (45 - 5 * i)) & 31)::int + 1, 1), '' ORDER BY i)
                 FROM generate_series(0, 9) i) || '0000000000000000', 'h', 'create', 'uploads', '[]'
             FROM generate_series(1::bigint, 200000) n"
        ))
        .await;
    let made = Ops::new(13).starting_at(START + 200_001 * 60_000).take(1_000);
    bench.log(&made).await;
    let _held = bench.database.old_snapshot().await;
    bench.run(&format!("DELETE FROM ops WHERE ulid < '{}'; ANALYZE ops", made[0].ulid)).await;
    let order = order(middle(&made));
    bench.run(&format!("UPDATE opsward.watermark SET ulid = '{}'", OpUlid::first_of_ms(START))).await;
    let (told, batches) = (Arc::new(tokio::sync::Notify::new()), std::sync::atomic::AtomicU64::new(0));
    let second = told.clone();
    bench.work.tell = Arc::new(move |_| {
        if batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
            second.notify_one();
        }
    });
    let came = tokio::select! {
        report = bench.delete(&order) => Some(report.unwrap()),
        () = told.notified() => None,
    };
    assert_eq!(came, None, "it was all one batch");
    let crossed = bench.text("SELECT ulid FROM opsward.watermark").await.unwrap();
    assert!(
        *crossed > *OpUlid::first_of_ms(START).to_string() && *crossed < *made[0].ulid.as_str(),
        "{crossed}"
    );
    // The next run goes on from there.
    let before = blocks(&bench).await["public.ops"];
    let mut lease = bench.lease().await;
    let report = bench.delete_with(&mut lease, &order).await.unwrap();
    assert_eq!((report.rows(), report.scanned), (500, 500));
    lease.client().unwrap().batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    println!("{} batches, {} blocks", report.batches, blocks(&bench).await["public.ops"] - before);
    assert_eq!(
        bench.text("SELECT ulid FROM opsward.watermark").await.unwrap(),
        order.cuts[0].below.to_string()
    );
}

/// What a batch reads does not grow with the batches before it, though a snapshot from before
/// the first keeps all that they deleted and all versions of our own rows.
#[tokio::test]
async fn a_batch_reads_no_more_than_the_first_under_an_old_snapshot() {
    let mut bench = Bench::with(|settings| {
        (settings.bounding.batch_limit, settings.bounding.replay_guard) = (5, true);
    })
    .await;
    if !bench.counts_reads_at_once().await {
        return;
    }
    let made = Ops::new(12).take(4_000);
    bench.log(&made).await;
    bench.run("ANALYZE").await;
    // What an autovacuum reads of them would be counted, too.
    let of_all = "DO $$ DECLARE t regclass; BEGIN
        FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r'
            AND (relnamespace = 'opsward'::regnamespace OR oid = 'public.ops'::regclass) LOOP
            EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t);
        END LOOP; END $$";
    bench.run(of_all).await;
    assert!(guard::first(&bench.work, &mut bench.lease().await).await.unwrap().is_none());
    let reader = bench.database.client().await;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ops").await.unwrap();
    let (order, mut read, mut small) = (order(middle(&made)), Vec::new(), Vec::new());
    let mut remembered = Vec::new();
    for _ in 0..8 {
        // So many batches, then it is stopped.
        let (stop, batches) = (CancellationToken::new(), std::sync::atomic::AtomicU64::new(0));
        (bench.work.stop, bench.work.tell) = (stop.clone(), {
            Arc::new(move |_| {
                if batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 49 {
                    stop.cancel();
                }
            })
        });
        let before = blocks(&bench).await;
        let mut lease = bench.lease().await;
        let report = bench.delete_with(&mut lease, &order).await.unwrap();
        lease.client().unwrap().batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
        drop(lease);
        let after = blocks(&bench).await;
        let of = |name: &String| after[name].saturating_sub(before.get(name).copied().unwrap_or(0));
        let by: std::collections::BTreeMap<&String, i64> = after
            .keys()
            .map(|name| (name, of(name) / report.batches as i64))
            .filter(|(_, n)| *n > 0)
            .collect();
        println!("{} batches: {by:?}", report.batches);
        read.push(by.values().sum::<i64>());
        let rows = of(&"opsward.watermark".into()) + of(&"opsward.unvacuumed".into());
        small.push(50 * rows / report.batches as i64);
        let rows = of(&"opsward.floors".into()) + of(&"opsward.history".into());
        remembered.push(50 * rows / report.batches as i64);
    }
    println!("blocks a batch: {read:?}");
    assert!(read[7] < read[1] * 2, "{read:?}");
    println!("blocks of watermark and unvacuumed, 50 batches each: {small:?}");
    assert!(small[7] < small[0] * 5 / 4, "{small:?}");
    println!("blocks of floors and history, 50 batches each: {remembered:?}");
    // The key's index still meets the page of each version that is not beside the one before.
    assert!(remembered[4..].iter().all(|n| *n < remembered[1] * 5 / 2), "{remembered:?}");
    reader.batch_execute("COMMIT").await.unwrap();
}

/// Blocks read of each relation of ours and of the log, its indexes included.
async fn blocks(bench: &Bench) -> std::collections::BTreeMap<String, i64> {
    let sql = "SELECT schemaname || '.' || relname, coalesce(heap_blks_read + heap_blks_hit, 0)
                      + coalesce(idx_blks_read + idx_blks_hit, 0)
               FROM pg_statio_user_tables WHERE schemaname = 'opsward' OR relname = 'ops'";
    let rows = bench.database.client().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|r| (r.get(0), r.get::<_, i64>(1))).collect()
}
