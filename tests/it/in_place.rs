//! Contract 6, mode in-place: the log shrinks where it is, while the node runs
//! and whatever stands in the way.
//!
//! Ordinary runs use small logs. On a volume of its own, nearly full, as root:
//! `cargo test --test it in_place::a_full_volume -- --ignored`.

use crate::harness::node::{Generation, Load, Writer, node_starts};
use crate::harness::{Cluster, Database, Ops, Start, Stop, cluster, ops};
use crate::work;
use futures_util::FutureExt;
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::{self, Db, in_place};
use opsward::reclaim::compact::{Bounds, Chain, Compactor, LogOp, Pass, Verdict};
use opsward::reclaim::decide::{Checkpoint, Mode, Survivors};
use opsward::reclaim::{self, Action, Error, Gate, Outcome, Report, Request};
use opsward::settings::{Policy, Settings};
use opsward::values::{OpUlid, Progress};
use opsward::work::{Halt, Pacer, Stop as Stops, Work};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// 2024-01-01, and a day later for each thousandth of the log.
const START: u64 = 1_704_067_200_000;
const DAY: u64 = 86_400_000;

/// Ops of about 1 kB, four tables, a day for each thousandth; some are stored
/// out of line. `ROWS` of them.
const FILL: &str = r#"
    CREATE FUNCTION pg_temp.crock(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
        SELECT string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', ((n >> (5 * i)) & 31)::int + 1, 1), '' ORDER BY i DESC)
        FROM generate_series(0, 9) i $$;
    INSERT INTO ops (ulid, host, action, "table", data)
    SELECT pg_temp.crock(1704067200000 + i * 31536000000 / ROWS) || lpad(i::text, 16, '0'),
           'https://node' || i % 20 || '.example', 'update',
           CASE WHEN i % 100 < 62 THEN 'uploads' WHEN i % 100 < 90 THEN 'storage_and_db_sizes'
                WHEN i % 100 < 98 THEN 'qm_audio_analyses' ELSE 'unknown' END,
           jsonb_build_array(jsonb_build_object('id', md5(i::text), 'cid', md5(i::text), 'x', (
               SELECT string_agg(md5((i * 31 + j)::text), '') FROM generate_series(1, LONG) j)))
    FROM generate_series(1, ROWS) i"#;

struct Bench {
    database: Database,
    db: Db,
    client: Client,
    work: Work,
    told: watch::Receiver<Progress>,
}

impl Bench {
    /// A log of so many rows, 800 bytes of noise in each but in every so
    /// manieth, which has 8 kB.
    async fn new(rows: u64, toasted: u64) -> Self {
        Self::filled(Database::new().await, rows, toasted).await
    }

    async fn filled(database: Database, rows: u64, toasted: u64) -> Self {
        let db = database.migrated().await;
        let bench = Self::on(database, db, |_| {}).await;
        let long = format!("CASE WHEN i % {toasted} = 0 THEN 256 ELSE 25 END");
        bench.run(&FILL.replace("ROWS", &rows.to_string()).replace("LONG", &long)).await;
        bench.run("VACUUM ANALYZE ops").await;
        bench.run("CREATE TABLE before AS SELECT * FROM ops").await;
        bench
    }

    async fn on(database: Database, db: Db, change: impl FnOnce(&mut Settings)) -> Self {
        let client = database.client().await;
        let (tell, told) = watch::channel(Progress::default());
        let tell = Arc::new(move |progress| drop(tell.send_replace(progress)));
        let work = Work {
            tell,
            ..work::on(&db, |settings| {
                settings.db = database.target();
                change(settings);
            })
        };
        Self { database, db, client, work, told }
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    /// Goes on until a phase begins, and is told to stop then.
    async fn until(&self, phase: &'static str) -> Result<Report, Error> {
        let stop = CancellationToken::new();
        let (seen, told) = (stop.clone(), self.work.tell.clone());
        let tell = move |progress: Progress| {
            if progress.phase == phase {
                seen.cancel();
            }
            told(progress);
        };
        let work = Work { stop, tell: Arc::new(tell), ..self.work.clone() };
        self.asked(Action::Resume, &work).await
    }

    fn schema(&self) -> String {
        let output = Command::new(cluster::binary("pg_dump"))
            .args(["--schema-only", &self.database.url()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().filter(|l| !l.contains("restrict ")).collect()
    }

    async fn lease(&self) -> Lease {
        loop {
            if let Ok(lease) = Lease::take(&self.db).await.unwrap() {
                return lease;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn size(&self) -> in_place::Size {
        in_place::size(&self.client_of_pool().await).await.unwrap()
    }

    /// A reclaim of this policy is under way: three quarters of the log go.
    async fn begun(&self, survivors: Survivors) {
        let figures = db::stats::figures(&self.db.client().await.unwrap()).await.unwrap();
        let at = Checkpoint {
            pace: Some(100),
            bytes_before: figures.ops_bytes + figures.index_bytes,
            began_ms: Clock::System.now().as_millisecond(),
            ..Checkpoint::begin("reclaim-test".into(), Mode::InPlace, Policy::Window, survivors)
        };
        db::reclaim::save(&self.client_of_pool().await, &at.json()).await.unwrap();
    }

    async fn client_of_pool(&self) -> db::Client {
        self.db.client().await.unwrap()
    }

    async fn go_on(&self) -> Result<Report, Error> {
        self.asked(Action::Resume, &self.work).await
    }

    async fn asked(&self, action: Action, work: &Work) -> Result<Report, Error> {
        self.paced(action, work, 100).await
    }

    async fn paced(&self, action: Action, work: &Work, pace: u8) -> Result<Report, Error> {
        let mut lease = self.lease().await;
        let late = OpUlid::first_of_ms(Clock::System.now_ms() - DAY);
        let cuts =
            ["uploads", "storage_and_db_sizes", "qm_audio_analyses"].map(|t| (t.to_owned(), late)).into();
        let gate = Gate { cuts, ceiling: Some(late), ..Gate::default() };
        let request = Request { action, pace: Some(pace), gate: gate.clone(), ..Request::default() };
        let ask = || std::future::ready(Ok(gate.clone())).boxed();
        reclaim::run(work, &mut lease, &request, &ask).await
    }

    /// What survives is what was there, less what the window drops; nothing is
    /// left of the work.
    async fn survivors_are_right(&self, below: OpUlid) {
        let wrong = format!(
            "SELECT count(*) FROM (
                 SELECT * FROM before
                 WHERE \"table\" NOT IN ('uploads', 'storage_and_db_sizes', 'qm_audio_analyses') OR ulid >= '{below}'
             ) b FULL JOIN (SELECT * FROM ops WHERE ulid IN (SELECT ulid FROM before)) o USING (ulid)
             WHERE (b.host, b.action, b.\"table\", b.data) IS DISTINCT FROM (o.host, o.action, o.\"table\", o.data)"
        );
        assert_eq!(self.number(&wrong).await, 0, "survivors differ");
        assert_eq!(self.number("SELECT count(*) FROM opsward.reclaim").await, 0);
        let invalid = "SELECT count(*) FROM pg_index WHERE indrelid = 'ops'::regclass AND NOT indisvalid";
        assert_eq!(self.number(invalid).await, 0);
    }

    /// Pages that the survivors take when they are written anew.
    async fn ideal(&self) -> in_place::Size {
        self.run("CREATE TABLE ideal (LIKE ops INCLUDING ALL); INSERT INTO ideal SELECT * FROM ops").await;
        let row = self
            .client
            .query_one(
                "SELECT pg_relation_size(c.oid) / 8192, pg_total_relation_size(c.reltoastrelid), pg_indexes_size(c.oid)
                 FROM pg_class c WHERE oid = 'ideal'::regclass",
                &[],
            )
            .await
            .unwrap();
        let n = |i: usize| u64::try_from(row.get::<_, i64>(i)).unwrap();
        let ideal = in_place::Size { pages: n(0), heap: n(0) * 8192, toast: n(1), index: n(2) };
        self.run("DROP TABLE ideal").await;
        ideal
    }
}

/// Three quarters of the log's time.
fn cut() -> OpUlid {
    OpUlid::first_of_ms(START + 365 * DAY * 3 / 4)
}

fn window() -> Survivors {
    let tables = ["uploads", "storage_and_db_sizes", "qm_audio_analyses"];
    Survivors { cuts: tables.map(|t| (t.to_owned(), cut())).into(), ..Survivors::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_shrinks_to_what_survives() {
    let bench = Bench::new(20_000, 40).await;
    let before = bench.size().await;
    bench.begun(window()).await;
    let report = bench.go_on().await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    bench.survivors_are_right(cut()).await;
    let (after, ideal) = (bench.size().await, bench.ideal().await);
    assert!(after.pages * 100 <= ideal.pages * 110, "{before:?} became {after:?}, could be {ideal:?}");
    assert!(after.toast * 100 <= ideal.toast * 130, "{before:?} became {after:?}, could be {ideal:?}");
    assert!(report.bytes_after < report.bytes_before / 2, "{report:?}");
    let rows: u64 = report.dropped.values().sum();
    assert_eq!(
        i64::try_from(rows).unwrap(),
        bench.number("SELECT count(*) FROM before").await - bench.number("SELECT count(*) FROM ops").await
    );
    let told = "SELECT count(*) FROM opsward.history WHERE task = 'reclaim' AND outcome = 'done'";
    assert_eq!(bench.number(told).await, 3);
}

/// Values that are stored out of line although they are short, or compressed:
/// they move, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_out_of_line_moves() {
    let database = Database::new().await;
    let db = database.migrated().await;
    let bench = Bench::on(database, db, |_| {}).await;
    let noise = "(SELECT string_agg(md5((i * 131 + j)::text), '') FROM generate_series(1, 124) j)";
    let (start, end) = FILL.split_once("'x', (").unwrap();
    let (_, end) = end.split_once("j)))").unwrap();
    let short = format!("left({noise}, 1815 + (i / 10)::int % 60)");
    let x =
        format!("CASE i % 10 WHEN 0 THEN {short} WHEN 5 THEN {short} || repeat('a', 3000) ELSE {noise} END");
    bench.run(&format!("{start}'x', {x})) {end}").replace("ROWS", "8000")).await;
    bench.run("VACUUM ANALYZE ops; ").await;
    bench.run("CREATE TABLE before AS SELECT * FROM ops").await;
    let out = "SELECT count(*) FROM ops WHERE pg_column_size(ROW(data)) - pg_column_size(data) <> 24";
    assert!(bench.number(&format!("{out} AND pg_column_size(data) < 2000")).await > 300);
    let compressed = "AND pg_column_size(data) * 2 < octet_length(data::text)";
    assert!(bench.number(&format!("{out} {compressed}")).await > 200);
    bench.begun(window()).await;
    assert_eq!(bench.go_on().await.unwrap().outcome, Outcome::Done);
    bench.survivors_are_right(cut()).await;
    let (after, ideal) = (bench.size().await, bench.ideal().await);
    assert!(after.toast * 100 <= ideal.toast * 130, "{after:?}, could be {ideal:?}");
}

/// The node pruned the log itself: nothing is deleted, few VACUUMs are enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_pruned_is_only_moved() {
    let bench = Bench::new(20_000, 1_000_000).await;
    let pruned = format!("DELETE FROM ops WHERE ulid < '{}' AND \"table\" <> 'unknown'", cut());
    bench.run(&pruned).await;
    bench.run("VACUUM ops").await;
    let vacuums = "SELECT vacuum_count FROM pg_stat_user_tables WHERE relid = 'ops'::regclass";
    let before = bench.number(vacuums).await;
    bench.begun(Survivors::default()).await;
    let report = bench.go_on().await.unwrap();
    assert!(report.outcome == Outcome::Done && report.dropped.is_empty(), "{report:?}");
    bench.survivors_are_right(cut()).await;
    let (after, ideal) = (bench.size().await, bench.ideal().await);
    assert!(after.pages * 100 <= ideal.pages * 110, "{after:?}, could be {ideal:?}");
    let vacuums = bench.number(vacuums).await - before;
    assert!(vacuums <= 4, "{vacuums} VACUUMs");
}

/// What this session deleted itself, and the server counts a second later, while VACUUM is at
/// work, is nothing that VACUUM left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deleted_rows_are_vacuumed_once() {
    let database = Database::new().await;
    let slow = format!("ALTER DATABASE {} SET vacuum_cost_limit = 1", database.name());
    database.client().await.batch_execute(&slow).await.unwrap();
    let bench = Bench::filled(database, 2_000, 1_000_000).await;
    bench.begun(window()).await;
    // A VACUUM takes over a second at this pace.
    bench.paced(Action::Resume, &bench.work, 50).await.unwrap();
    let vacuums = "SELECT vacuum_count FROM pg_stat_user_tables WHERE relid = 'ops'::regclass";
    // The harness' own, of the deleted rows, of the moved ones. A server before 15 counts what was
    // deleted later still: there a VACUUM is made again.
    let is_old = bench.number("SELECT current_setting('server_version_num')::bigint").await < 150_000;
    assert!(is_old || bench.number(vacuums).await == 3, "{}", bench.number(vacuums).await);
}

/// The node writes all the time: the end of the table is given back all the
/// same, however often a row lands there or a short transaction is in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tables_end_is_not_given_up_beside_a_writer() {
    let bench = Bench::new(20_000, 1_000_000).await;
    let config = bench.database.cluster().config(bench.database.name());
    let writer = Writer::start(&config, &Load { rate: 120, ..Load::default() }, 5).await;
    bench.begun(window()).await;
    let report = bench.go_on().await.unwrap();
    let written = writer.stop().await;
    assert_eq!(report.outcome, Outcome::Done);
    assert!(written.errors.is_empty(), "{}", written.summary());
    let (after, ideal) = (bench.size().await, bench.ideal().await);
    println!("{after:?}, could be {ideal:?}; {}", written.summary());
    // A round is done for a hundredth of the table, or 32 pages: some of either may stay, and
    // what the writer wrote to the end after the last of them.
    assert!(after.pages * 100 <= ideal.pages * 103 + 9_600, "{after:?}, could be {ideal:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_converges_while_the_node_writes() {
    let bench = Bench::new(12_000, 40).await;
    let config = bench.database.cluster().config(bench.database.name());
    let load = Load { rate: 200, ..Load::default() };
    let writer = Writer::start(&config, &load, 7).await;
    bench.begun(window()).await;
    let report = bench.go_on().await.unwrap();
    let written = writer.stop().await;
    println!("{report:?}; {}", written.summary());
    assert_eq!(report.outcome, Outcome::Done);
    assert!(written.errors.is_empty(), "{}", written.summary());
    let complaints = written.verify(&bench.client, |_| false).await;
    assert!(complaints.is_empty(), "{complaints:?}");
    bench.survivors_are_right(cut()).await;
    let (after, ideal) = (bench.size().await, bench.ideal().await);
    // Its own rows at the end leave some room.
    assert!(after.pages * 100 <= ideal.pages * 140, "{after:?}, could be {ideal:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_snapshot_is_named_and_waited_for() {
    let bench = Bench::new(3_000, 1_000_000).await;
    let holder = bench.database.client().await;
    holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ops").await.unwrap();
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    bench.begun(window()).await;
    let mut told = bench.told.clone();
    let before = bench.size().await;
    let released = async {
        let name = format!("process {pid} (postgres, ");
        let told = told.wait_for(|p| p.waiting.is_some()).await.unwrap().clone();
        let waiting = told.waiting.unwrap();
        assert!(waiting.contains(&name) && waiting.contains("UTC"), "{waiting}");
        assert_eq!(told.phase, "vacuum");
        assert_eq!(bench.size().await.pages, before.pages, "nothing moves under it");
        holder.batch_execute("COMMIT").await.unwrap();
        std::future::pending::<()>().await;
    };
    let report = tokio::select! {
        report = bench.go_on() => report.unwrap(),
        () = released => unreachable!(),
    };
    assert_eq!(report.outcome, Outcome::Done);
    bench.survivors_are_right(cut()).await;
    assert!(bench.size().await.pages * 2 < before.pages);
}

/// It came after the deletes, and sees rows where they were before they moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_the_moment_before_the_move_is_waited_for() {
    // Alone: transactions of other databases make a snapshot older.
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::private()));
    let bench = Bench::filled(Database::on(cluster, "settled").await, 3_000, 1_000_000).await;
    bench.begun(window()).await;
    assert!(matches!(bench.until("move").await, Err(Error::Halted(_))));
    let holder = bench.database.client().await;
    holder
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM cursors")
        .await
        .unwrap();
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let (before, mut told) = (bench.size().await, bench.told.clone());
    let released = async {
        let told = told.wait_for(|p| p.waiting.is_some()).await.unwrap().clone();
        let (waiting, name) = (told.waiting.unwrap(), format!("process {pid} (postgres, "));
        assert!(waiting.contains(&name), "{waiting}");
        assert_eq!(told.phase, "truncate");
        assert_eq!(bench.size().await.pages, before.pages);
        holder.batch_execute("COMMIT").await.unwrap();
        std::future::pending::<()>().await;
    };
    let report = tokio::select! {
        report = bench.go_on() => report.unwrap(),
        () = released => unreachable!(),
    };
    assert_eq!(report.outcome, Outcome::Done);
    bench.survivors_are_right(cut()).await;
    assert!(bench.size().await.pages * 2 < before.pages);
    cluster.stop(Stop::Fast);
}

/// What is told to be empty is, from its first page on.
#[tokio::test]
async fn a_range_is_emptied_to_its_first_page() {
    let bench = Bench::new(3_000, 1_000_000).await;
    bench.run("DELETE FROM ops WHERE ulid < (SELECT max(ulid) FROM ops) AND right(ulid, 1) <> '7'").await;
    bench.run("VACUUM (TRUNCATE off, INDEX_CLEANUP on) ops").await;
    let pages = bench.size().await.pages;
    let mut client = bench.client_of_pool().await;
    let tx = opsward::db::begin(&mut client, opsward::db::Isolation::Write).await.unwrap();
    // It ends early where it takes long.
    let mut to = pages;
    while to > pages / 3 {
        let moved = in_place::empty_pages(&tx, pages / 3, to).await.unwrap();
        assert!(moved.stuck == 0 && moved.locked == 0 && moved.from < to, "{moved:?}");
        to = moved.from;
    }
    tx.commit().await.unwrap();
    let left = format!("SELECT count(*) FROM ops WHERE ctid >= '({},0)'", pages / 3);
    assert_eq!(bench.number(&left).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_in_every_phase_it_goes_on_and_the_catalog_stays() {
    let bench = Bench::new(12_000, 40).await;
    let schema = bench.schema();
    bench.begun(window()).await;
    for phase in ["delete", "vacuum", "rewrite", "move", "truncate", "reindex"] {
        match bench.until(phase).await {
            Err(Error::Halted(_)) => {}
            other => panic!("{phase}: {other:?}"),
        }
        let left = format!("SELECT count(*) FROM opsward.reclaim WHERE checkpoint ->> 'phase' = '{phase}'");
        assert_eq!(bench.number(&left).await, 1, "{phase}");
        let mut node = bench.database.client().await;
        node_starts(&mut node, Generation::Recorded).await.unwrap();
    }
    assert_eq!(bench.go_on().await.unwrap().outcome, Outcome::Done);
    bench.survivors_are_right(cut()).await;
    assert_eq!(bench.schema(), schema);
}

#[tokio::test]
async fn an_abort_leaves_the_table_as_it_is() {
    let bench = Bench::new(2_000, 1_000_000).await;
    bench.begun(window()).await;
    assert!(matches!(bench.until("move").await, Err(Error::Halted(_))));
    let report = bench.asked(Action::Abort, &bench.work).await.unwrap();
    assert_eq!(report.outcome, Outcome::Aborted("by the operator".into()));
    bench.survivors_are_right(cut()).await;
    let told = "SELECT count(*) FROM opsward.history WHERE outcome = 'ended early: by the operator; what was deleted stays deleted'";
    assert_eq!(bench.number(told).await, 3);
    assert_eq!(bench.number("SELECT count(*) FROM opsward.history WHERE outcome = 'unfinished'").await, 0);
}

/// Rows move by updates that change nothing: somebody's trigger would change them.
#[tokio::test]
async fn a_trigger_of_somebody_elses_is_never_fired() {
    let bench = Bench::new(2_000, 1_000_000).await;
    bench.begun(window()).await;
    assert!(matches!(bench.until("move").await, Err(Error::Halted(_))));
    bench
        .run(
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN NEW.host := ''touched''; RETURN NEW; END';
             CREATE TRIGGER touch BEFORE UPDATE ON ops FOR EACH ROW EXECUTE FUNCTION touch()",
        )
        .await;
    let report = bench.go_on().await.unwrap();
    assert!(matches!(&report.outcome, Outcome::Aborted(why) if why.contains("trigger touch")), "{report:?}");
    bench.survivors_are_right(cut()).await;
}

/// What a REINDEX CONCURRENTLY leaves that is cut off: here an invalid index of
/// such a name.
const LEFTOVER: &str = "CREATE UNIQUE INDEX CONCURRENTLY ops_pkey_ccnew ON ops (host)";

#[tokio::test]
async fn an_abort_in_reindex_leaves_no_half_made_index() {
    let bench = Bench::new(2_000, 1_000_000).await;
    let schema = bench.schema();
    bench.begun(window()).await;
    assert!(matches!(bench.until("reindex").await, Err(Error::Halted(_))));
    assert!(bench.client.batch_execute(LEFTOVER).await.is_err());
    let report = bench.asked(Action::Abort, &bench.work).await.unwrap();
    assert_eq!(report.outcome, Outcome::Aborted("by the operator".into()));
    bench.survivors_are_right(cut()).await;
    assert_eq!(bench.schema(), schema);
}

/// An index that another session builds is no leftover: it is waited for and named.
#[tokio::test]
async fn an_index_that_the_operator_builds_is_waited_for() {
    let bench = Bench::new(2_000, 1_000_000).await;
    bench.begun(window()).await;
    assert!(matches!(bench.until("reindex").await, Err(Error::Halted(_))));
    // The rebuild waits for this snapshot before it puts the new index in place.
    let (held, operator) = (bench.database.old_snapshot().await, bench.database.client().await);
    let rebuilt = operator.batch_execute("REINDEX INDEX CONCURRENTLY ops_pkey");
    let mut told = bench.told.clone();
    let released = async {
        let under_way = "SELECT count(*) FROM pg_class WHERE relname = 'ops_pkey_ccnew'";
        while bench.number(under_way).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let waits = |p: &Progress| p.waiting.as_ref().is_some_and(|w| w.contains("index build of process"));
        let aborted = bench.asked(Action::Abort, &bench.work);
        let named = async {
            told.wait_for(waits).await.unwrap();
            held.batch_execute("ROLLBACK").await.unwrap();
        };
        tokio::join!(aborted, named).0
    };
    let (rebuilt, report) = tokio::join!(rebuilt, released);
    rebuilt.unwrap();
    assert_eq!(report.unwrap().outcome, Outcome::Aborted("by the operator".into()));
    let valid = "SELECT count(*) FROM pg_index WHERE indrelid = 'ops'::regclass AND indisvalid";
    assert_eq!(
        bench.number(valid).await,
        bench.number("SELECT count(*) FROM pg_index WHERE indrelid = 'ops'::regclass").await
    );
}

#[tokio::test]
async fn nor_does_uninstall_in_the_middle_of_it() {
    let bench = Bench::new(2_000, 1_000_000).await;
    bench.begun(window()).await;
    assert!(matches!(bench.until("reindex").await, Err(Error::Halted(_))));
    assert!(bench.client.batch_execute(LEFTOVER).await.is_err());
    // The last session's lease may still be ending.
    drop(bench.lease().await);
    let uninstalled = async {
        loop {
            let url = bench.database.url();
            let uninstall = Start::new(&["uninstall", "--yes"]).env("OPENAUDIO_DB_URL", url);
            let ran = uninstall.env("OPENAUDIO_NODE_ENDPOINT", "http://n1.example").output().await;
            if ran.code != Some(4) {
                return ran;
            }
        }
    };
    let ran = uninstalled.await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let left = "SELECT (SELECT count(*) FROM pg_index WHERE indrelid = 'ops'::regclass AND NOT indisvalid)
                     + (SELECT count(*) FROM pg_namespace WHERE nspname = 'opsward')";
    assert_eq!(bench.number(left).await, 0);
}

/// One that does not come to its end is told by where it is, not by its rows'
/// locks: a row of the last pages takes longer than a transaction may.
#[tokio::test]
async fn a_transaction_that_moves_rows_ends_though_its_range_does_not() {
    let bench = Bench::new(3_000, 1_000_000).await;
    bench.run("DELETE FROM ops WHERE ulid < (SELECT max(ulid) FROM ops) AND right(ulid, 1) <> '7'").await;
    bench.run("VACUUM (TRUNCATE off, INDEX_CLEANUP on) ops").await;
    bench
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN PERFORM pg_sleep(0.11); RETURN NEW; END';
             CREATE TRIGGER slow BEFORE UPDATE ON ops FOR EACH ROW
                 WHEN (OLD.ulid LIKE '%0000003000') EXECUTE FUNCTION slow()",
        )
        .await;
    let pages = bench.size().await.pages;
    let mut client = bench.client_of_pool().await;
    let tx = opsward::db::begin(&mut client, opsward::db::Isolation::Write).await.unwrap();
    let moved = in_place::empty_pages(&tx, pages / 3, pages).await.unwrap();
    tx.commit().await.unwrap();
    assert!(moved.from < pages && moved.from > pages / 3, "{moved:?} of {pages}");
    let left = format!("SELECT count(*) FROM ops WHERE ctid >= '({},0)'", moved.from);
    assert_eq!((bench.number(&left).await, moved.stuck, moved.locked), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_rows_are_returned_to() {
    let bench = Bench::new(3_000, 1_000_000).await;
    let node = bench.database.client().await;
    let doomed = "(SELECT ulid FROM ops WHERE \"table\" = 'uploads' ORDER BY ulid LIMIT 1 OFFSET 500)";
    node.batch_execute(&format!("BEGIN; UPDATE ops SET host = host WHERE ulid = {doomed}")).await.unwrap();
    bench.begun(window()).await;
    let mut told = bench.told.clone();
    let released = async {
        told.wait_for(|p| p.waiting.as_ref().is_some_and(|w| w.contains("a lock on the row"))).await.unwrap();
        node.batch_execute("COMMIT").await.unwrap();
    };
    let (report, ()) = tokio::join!(bench.go_on(), released);
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    bench.survivors_are_right(cut()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_in_every_phase() {
    let bench = Bench::new(12_000, 40).await;
    bench.begun(window()).await;
    let (mut told, over) = (bench.told.clone(), CancellationToken::new());
    let starts = async {
        let (mut node, mut seen, mut longest) = (bench.database.client().await, String::new(), Vec::new());
        loop {
            let next = told.wait_for(|p| p.phase != seen);
            tokio::select! {
                next = next => seen = next.unwrap().phase.clone(),
                () = over.cancelled() => return longest,
            }
            // As on its first start: the index is not there yet.
            node.batch_execute("DROP INDEX IF EXISTS idx_ops_host_ulid").await.unwrap();
            let start = node_starts(&mut node, Generation::Newer).await;
            let start = start.unwrap_or_else(|why| panic!("in {seen}: {why}"));
            longest.push((seen.clone(), start.longest().clone()));
        }
    };
    let reclaim = async {
        // Slow enough for a node to start in most of its phases.
        let report = bench.paced(Action::Resume, &bench.work, 25).await;
        over.cancel();
        report
    };
    let (report, longest) = tokio::join!(reclaim, starts);
    println!("{longest:#?}");
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    assert!(longest.len() > 3, "{longest:?}");
    // Two looks of the watch and the build itself; a machine has bad moments.
    let waited = longest.iter().find(|(_, (_, took))| *took > Duration::from_secs(2));
    assert!(waited.is_none(), "{waited:?}");
    bench.survivors_are_right(cut()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_drops_what_the_compactor_says() {
    let database = Database::new().await;
    let db = database.migrated().await;
    let bench = Bench::on(database, db, |settings| settings.bounding.batch_limit = 700).await;
    let made = Ops::new(11).take(4_000);
    ops::insert(&bench.client, &made).await;
    bench.run("CREATE TABLE before AS SELECT * FROM ops").await;
    let below = made[3_500].ulid;
    let survivors = Survivors {
        compact: ["uploads", "qm_audio_analyses", "audio_previews"].map(|t| (t.to_owned(), below)).into(),
        ..Survivors::default()
    };
    bench.begun(survivors).await;
    assert!(matches!(bench.until("compact").await, Err(Error::Halted(_))));
    assert_eq!(bench.go_on().await.unwrap().outcome, Outcome::Done);

    let memory_bytes = 1 << 20;
    let bounds = Bounds { memory_bytes, self_host: bench.work.own.clone(), below, now: Clock::System.now() };
    let mut compactor = Compactor::new(&bounds, Pass { number: 0, of: 1 });
    let log = "SELECT ulid, action, \"table\", data::text FROM before ORDER BY ulid DESC";
    let mut needless = Vec::new();
    for row in bench.client.query(log, &[]).await.unwrap() {
        let (ulid, data): (&str, Option<&str>) = (row.get(0), row.get(3));
        let op = LogOp { ulid, action: row.get(1), table: row.get(2), data, chain: Chain::Settled };
        if compactor.judge(&op) == Verdict::Drop {
            needless.push(ulid.to_owned());
        }
    }
    let gone = "SELECT ulid FROM before b WHERE NOT EXISTS (SELECT FROM ops o WHERE o.ulid = b.ulid) ORDER BY ulid DESC";
    let gone: Vec<String> = bench.client.query(gone, &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
    assert!(needless.len() > 500);
    assert_eq!(gone, needless);
    let horizons = "SELECT count(*) FROM opsward.floors WHERE horizon IS NOT NULL AND floor IS NULL";
    assert!(bench.number(horizons).await > 0);
}

/// The log lies on another volume than the database: both are guarded.
#[tokio::test]
async fn a_tablespace_elsewhere_is_guarded_too() {
    let bench = Bench::new(100, 1_000_000).await;
    // Made by the server, which has to own it.
    bench.run("CREATE TEMP TABLE made (path text)").await;
    let make = "COPY made FROM PROGRAM 'mktemp -d -p /dev/shm opsward-XXXXXX'";
    if bench.client.batch_execute(make).await.is_err() {
        println!("skipped: there is no /dev/shm");
        return;
    }
    let path: String = bench.client.query_one("SELECT path FROM made", &[]).await.unwrap().get(0);
    let name = bench.database.name();
    bench.run(&format!("CREATE TABLESPACE {name} LOCATION '{path}'")).await;
    bench.run(&format!("ALTER TABLE ops SET TABLESPACE {name}")).await;
    let signs = db::pace::signs(&bench.client_of_pool().await).await.unwrap();
    assert_eq!(signs.places.tablespaces, [("ops".to_owned(), path.clone())]);
    let volumes = db::stats::volumes(None, &bench.database.target(), &signs.places);
    let [main, there] = &volumes.known[..] else { panic!("{volumes:?}") };
    assert!(volumes.unknown.is_empty() && there.what.contains(&path), "{volumes:?}");
    if there.free < main.free {
        let mut settings = (*bench.work.settings).clone();
        settings.bounding.min_free_disk = there.free.midpoint(main.free);
        let work = Work { settings: Arc::new(settings), ..bench.work.clone() };
        let turned = Pacer::new(&work, Some(100)).turn(&mut bench.lease().await).await;
        let Err(Stops::Halt(Halt::LittleDisk { volume, .. })) = turned else { panic!("{turned:?}") };
        assert!(volume.contains(&path), "{volume}");
    }
    bench.run("ALTER TABLE ops SET TABLESPACE pg_default").await;
    bench.run(&format!("DROP TABLESPACE {name}")).await;
    bench.run(&format!("COPY made TO PROGRAM 'rmdir {path}'")).await;
}

/// A tmpfs, gone when this is.
struct Volume(std::path::PathBuf);

impl Volume {
    fn mounted(megabytes: u32) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("opsward-volume-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=1777"), "tmpfs"]).arg(&path);
        let is_there = mount.status().is_ok_and(|status| status.success());
        is_there.then_some(Self(path))
    }

    fn free(&self) -> u64 {
        let volume = rustix::fs::statvfs(&self.0).unwrap();
        volume.f_bavail * volume.f_frsize
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "mounts a tmpfs of 900 MB: needs root"]
async fn a_full_volume_gets_most_of_itself_back() {
    let Some(volume) = Volume::mounted(900) else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::private_in(&volume.0)));
    cluster.configure(
        "max_wal_size = '64MB'\nmin_wal_size = '32MB'\nfull_page_writes = on\nsynchronous_commit = on",
    );
    cluster.stop(Stop::Fast);
    cluster.start();
    let database = Database::on(cluster, "full").await;
    let db = database.migrated().await;
    let bench = Bench::on(database, db, |settings| settings.bounding.min_free_disk = 16 << 20).await;
    // Four ops a record, in the order of time, as a node writes.
    let fill = FILL
        .replace("md5(i::text)", "md5((i / 4)::text)")
        .replace("LONG", "25")
        .replace("1, ROWS", "FROM, TO");
    let mut rows = 0;
    while volume.free() > 72 << 20 {
        let part = if volume.free() > 200 << 20 { 20_000 } else { 2_000 };
        let sql = fill.replace("ROWS", "800000").replace("FROM,", &format!("{},", rows + 1));
        let sql = sql
            .replace("TO)", &format!("{})", rows + part))
            .replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION");
        bench.run(&sql).await;
        bench.run("CHECKPOINT").await;
        rows += part;
    }
    let (free, size) = (volume.free(), bench.size().await);
    println!("begins with {free} bytes free");
    let below = OpUlid::first_of_ms(START + 365 * DAY * rows / 800_000 * 85 / 100);
    let config = cluster.config("full");
    let writer = Writer::start(&config, &Load::default(), 3).await;
    let survivors = Survivors { cuts: window().cuts.into_keys().map(|t| (t, below)).collect(), ..window() };
    bench.begun(survivors).await;
    let began = std::time::Instant::now();
    let report = match bench.go_on().await {
        Ok(report) => report,
        Err(error) => {
            let sql = "SELECT checkpoint::text || ' traces ' || pg_total_relation_size('opsward.traces') || ' ops ' || pg_total_relation_size('ops') || ' wal ' || (SELECT count(*) || ' ' || sum(size) FROM pg_ls_waldir()) FROM opsward.reclaim";
            let row = bench.client.query_one(sql, &[]).await.unwrap();
            panic!(
                "{error}: {} free {}, began with {free} free, before {size:?}",
                row.get::<_, String>(0),
                volume.free()
            );
        }
    };
    let (took, written) = (began.elapsed(), writer.stop().await);
    bench.run("CHECKPOINT").await;
    println!(
        "{rows} rows: {} MB free became {} MB in {took:.1?}; {size:?} became {:?}; {report:?}; {}",
        free >> 20,
        volume.free() >> 20,
        bench.size().await,
        written.summary()
    );
    assert_eq!(report.outcome, Outcome::Done);
    assert!(written.errors.is_empty(), "{}", written.summary());
    assert!(written.verify(&bench.client, |_| false).await.is_empty());
    assert!(volume.free() > 500 << 20);
    assert!(!cluster.log().contains("PANIC"), "{}", cluster.log());
}
