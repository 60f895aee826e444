//! What stands in a reclaim's way after it began: the gate, the disk, a pause,
//! locks, and what somebody did to its tables.

use super::*;
use crate::work;
use opsward::bound::tick::{self, Which};
use opsward::db::{self, maintain, uninstall};
use opsward::work::{Halt, Pacer, Room, Stop};
use tokio::sync::watch;
use tokio_postgres::Client;

/// Longer than anything here takes: what never comes fails, and does not hang.
pub(super) const NEVER: Duration = Duration::from_secs(60);

pub(super) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, what).await.expect("it never came")
}

/// What comes of it while something happens beside it, which has to.
pub(super) async fn while_<T: std::fmt::Debug>(
    what: impl Future<Output = T>,
    beside: impl Future<Output = ()>,
) -> T {
    let happened = std::cell::Cell::new(false);
    let beside = async {
        beside.await;
        happened.set(true);
        std::future::pending().await
    };
    let came = in_time(async {
        tokio::select! {
            came = what => came,
            never = beside => never,
        }
    });
    let came = came.await;
    assert!(happened.get(), "it ended before: {came:?}");
    came
}

/// Looks until a query says so.
pub(super) async fn until(client: &Client, sql: &str) {
    let looks = async {
        while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(NEVER, looks).await.unwrap_or_else(|_| panic!("it never came to: {sql}"));
}

impl Bed {
    /// The same work, with other settings.
    fn with(&self, change: impl FnOnce(&mut Settings)) -> Work {
        let mut settings = (*self.work.settings).clone();
        change(&mut settings);
        Work { settings: Arc::new(settings), ..self.work.clone() }
    }

    /// The same work, and what it tells.
    pub(super) fn told(&self) -> (Work, watch::Receiver<Progress>) {
        let (tell, told) = watch::channel(Progress::default());
        (
            Work { tell: Arc::new(move |progress| drop(tell.send_replace(progress))), ..self.work.clone() },
            told,
        )
    }

    pub(super) async fn held(&self) {
        let request = Request { hold: true, ..self.request(Policy::Window) };
        assert_eq!(self.run(&request).await.unwrap().outcome, Outcome::Held);
    }

    pub(super) async fn number(&self, sql: &str) -> i64 {
        self.database.client().await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// The old table is what fills the disk: nothing keeps it from going.
#[tokio::test]
async fn a_full_disk_and_a_pause_do_not_keep_the_old_table() {
    let bed = Bed::new(400).await;
    bed.run_until(&bed.request(Policy::Window), "drop").await;
    let client = bed.database.client().await;
    client
        .batch_execute("INSERT INTO opsward.pace (percent, paused_at, set_at) VALUES (25, now(), now())")
        .await
        .unwrap();
    let full = bed.with(|settings| settings.bounding.min_free_disk = 1 << 60);
    let report = in_time(bed.work_on(&full, &bed.again(Action::Resume))).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn little_disk_keeps_everything_else_and_says_which_floor() {
    let bed = Bed::new(400).await;
    bed.run_until(&bed.request(Policy::Window), "copy").await;
    let full = bed.with(|settings| settings.bounding.min_free_disk = 1 << 60);
    let halted = bed.work_on(&full, &bed.again(Action::Resume)).await.unwrap_err();
    assert!(halted.to_string().contains("OPENAUDIO_MEDIORUM_MIN_FREE_DISK asks for 1024.0 PiB"), "{halted}");
    // A file system without a single free byte.
    let none = bed.with(|settings| settings.pgdata_path = Some("/proc".into()));
    let mut lease = bed.lease().await;
    let mut pacer = Pacer::new(&none, Some(100)).with_floor(256 << 20);
    let Err(Stop::Halt(halt @ Halt::LittleDisk { .. })) = pacer.turn(&mut lease).await else {
        panic!("it went on")
    };
    assert!(halt.to_string().contains("the server's WAL asks for 16.0 MiB"), "{halt}");
}

/// The copy is finished: its swap is what frees the disk. And one that was
/// halted there takes the same word as one that was held.
#[tokio::test]
async fn a_full_disk_does_not_keep_a_finished_copy() {
    for hold in [true, false] {
        let bed = Bed::new(400).await;
        match hold {
            true => bed.held().await,
            false => drop(bed.run_until(&bed.request(Policy::Window), "swap").await),
        }
        let full = bed.with(|settings| settings.bounding.min_free_disk = 1 << 60);
        let report = in_time(bed.work_on(&full, &bed.again(Action::Swap))).await.unwrap();
        assert_eq!(report.outcome, Outcome::Done);
        bed.nothing_is_left().await;
    }
}

/// A statement of its own length is ended when there is no room left.
#[tokio::test]
async fn a_long_statement_ends_on_a_full_disk() {
    let bed = Bed::new(10).await;
    let none = bed.with(|settings| settings.pgdata_path = Some("/proc".into()));
    let mut lease = bed.lease().await;
    let mut pacer = Pacer::new(&none, Some(100));
    let statement = pacer.watch(&mut lease, "SELECT pg_sleep(600)", &[], Room::Makes);
    let ended = in_time(statement).await.unwrap();
    assert_eq!(ended, maintain::Ended::Stopped);
}

/// The swap is what gives the disk back: a copy that is whole needs no leave.
#[tokio::test]
async fn a_whole_copy_is_swapped_on_a_full_disk() {
    for phase in ["replay", "analyze", "verify", "swap"] {
        let bed = Bed::new(400).await;
        bed.run_until(&bed.request(Policy::Window), phase).await;
        let full = bed.with(|settings| settings.bounding.min_free_disk = 1 << 60);
        let report = in_time(bed.work_on(&full, &bed.again(Action::Resume))).await.unwrap();
        assert_eq!(report.outcome, Outcome::Done, "{phase}");
        bed.nothing_is_left().await;
    }
}

/// The word to swap was given: it is taken again after a stop.
#[tokio::test]
async fn a_swap_that_was_stopped_is_told_to_swap_again() {
    let bed = Bed::new(400).await;
    bed.held().await;
    let stopped = Work { stop: CancellationToken::new(), ..bed.work.clone() };
    stopped.stop.cancel();
    let halted = bed.work_on(&stopped, &bed.again(Action::Swap)).await.unwrap_err();
    assert!(matches!(halted, Error::Halted(_)), "{halted}");
    assert_eq!(in_time(bed.run(&bed.again(Action::Swap))).await.unwrap().outcome, Outcome::Done);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_gate_that_closed_meanwhile_is_obeyed() {
    let bed = Bed::new(400).await;
    bed.held().await;
    let all = bed.ulids().await;
    let closed = Gate { blockers: vec!["the peer p has no cursor".into()], ..bed.gate() };
    let back = OpUlid::first_of_ms(bed.cut.ms() - 1);
    let lower = Gate { cuts: bed.gate().cuts.into_keys().map(|table| (table, back)).collect(), ..bed.gate() };
    for action in [Action::Resume, Action::Swap] {
        for (gate, word) in [(&closed, "the peer p"), (&lower, back.as_str())] {
            let request = Request { gate: gate.clone(), ..bed.again(action) };
            let refused = bed.run(&request).await.unwrap_err();
            assert!(
                matches!(&refused, Error::Refused { why, fix } if why.contains(word) && fix.contains("--abort")),
                "{refused}"
            );
        }
    }
    // It closes while what was written is replayed.
    let mut lease = bed.lease().await;
    let refused =
        reclaim::run(&bed.work, &mut lease, &bed.again(Action::Swap), &asked(closed)).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    drop(lease);
    assert_eq!(bed.ulids().await, all);

    let read_only = bed.with(|settings| settings.read_only = true);
    for action in [Action::Start, Action::Resume, Action::Swap] {
        let refused = bed.work_on(&read_only, &bed.again(action)).await.unwrap_err();
        assert!(matches!(&refused, Error::Refused { why, .. } if why.contains("READ_ONLY")), "{refused}");
    }
    let undone = bed.work_on(&read_only, &bed.again(Action::Abort)).await.unwrap();
    assert!(matches!(undone.outcome, Outcome::Aborted(_)));
    assert_eq!(bed.ulids().await, all);
    bed.nothing_is_left().await;
}

/// Noted writes do not pile up while it is paused.
#[tokio::test]
async fn a_paused_swap_goes_on_replaying() {
    let bed = Bed::new(400).await;
    bed.run_until(&bed.request(Policy::Window), "copy").await;
    let client = bed.database.client().await;
    client
        .batch_execute(
            "INSERT INTO opsward.pace (percent, paused_at, set_at) VALUES (100, now(), now());
             UPDATE ops SET host = 'written' WHERE ulid IN (SELECT ulid FROM ops ORDER BY 1 LIMIT 50);
             UPDATE opsward.reclaim SET updated_at = now() - interval '20 hours'",
        )
        .await
        .unwrap();
    assert_eq!(bed.number("SELECT count(*) FROM opsward.captured").await, 50);
    let request = bed.again(Action::Resume);
    let resumed = bed.run(&request);
    let watched = async {
        until(&client, "SELECT NOT EXISTS (SELECT FROM opsward.captured)").await;
        let attended = "SELECT updated_at > now() - interval '1 hour' FROM opsward.reclaim";
        until(&client, attended).await;
        client.batch_execute("UPDATE opsward.pace SET paused_at = NULL").await.unwrap();
    };
    let report = while_(resumed, watched).await;
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    assert_eq!(bed.number("SELECT count(*) FROM ops WHERE host = 'written'").await, 50);
    bed.nothing_is_left().await;
}

/// What the tasks would delete, the copy leaves out itself.
#[tokio::test]
async fn the_log_of_an_unfinished_swap_is_its_own() {
    let bed = Bed::new(400).await;
    bed.held().await;
    let set = work::on(&bed.work.db, |settings| {
        settings.peers = Some(Vec::new());
        settings.bounding.retention_days = 30;
        settings.bounding.min_free_disk = 0;
    });
    let ticked = async |work: &Work| {
        let (mut lease, mut pacer) = (bed.lease().await, Pacer::new(work, Some(100)));
        let ticked = tick::tick(work, &mut lease, &mut pacer, &[Which::Retention], Duration::from_secs(3600))
            .await
            .unwrap();
        (ticked[0].deleted.is_some(), serde_json::to_string(&ticked).unwrap())
    };
    let (deleted, text) = ticked(&set).await;
    assert!(!deleted && text.contains("mode swap is held") && text.contains("--abort"), "{text}");
    assert_eq!(bed.number("SELECT count(*) FROM opsward.captured").await, 0);
    bed.run(&bed.again(Action::Abort)).await.unwrap();
    let (deleted, text) = ticked(&set).await;
    assert!(deleted, "{text}");
}

/// A dump of our schema reads our tables all the time.
#[tokio::test]
async fn a_reader_of_our_tables_is_not_in_the_way() {
    let bed = Bed::new(400).await;
    let dump = bed.database.client().await;
    let sql = "BEGIN; LOCK TABLE opsward.captured, opsward.reclaim_kept, opsward.reclaim_drops IN ACCESS SHARE MODE";
    dump.batch_execute(sql).await.unwrap();
    let report = in_time(bed.run(&bed.request(Policy::Window))).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(bed.number("SELECT count(*) FROM opsward.history WHERE table_name = '(disk)'").await, 1);
    dump.batch_execute("COMMIT").await.unwrap();
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn an_abort_after_the_swap_does_not_call_it_undone() {
    let bed = Bed::new(400).await;
    bed.run_until(&bed.request(Policy::Window), "drop").await;
    bed.database.client().await.batch_execute("DROP TABLE opsward.ops_old").await.unwrap();
    assert_eq!(bed.run(&bed.again(Action::Abort)).await.unwrap().outcome, Outcome::Done);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn what_takes_the_place_of_its_tables_undoes_it() {
    for (phase, sql, word, after) in [
        ("copy", "GRANT SELECT ON ALL TABLES IN SCHEMA opsward TO PUBLIC", "ops_next", "SELECT 1"),
        ("swap", "CREATE INDEX theirs ON opsward.ops_next (host)", "ops_next", "SELECT 1"),
        ("swap", "CREATE TABLE opsward.ops_old ()", "ops_old", "DROP TABLE opsward.ops_old"),
    ] {
        let bed = Bed::new(400).await;
        let (all, client) = (bed.ulids().await, bed.database.client().await);
        bed.run_until(&bed.request(Policy::Window), phase).await;
        client.batch_execute(sql).await.unwrap();
        let report = in_time(bed.run(&bed.again(Action::Resume))).await.unwrap();
        assert!(matches!(&report.outcome, Outcome::Aborted(why) if why.contains(word)), "{sql}: {report:?}");
        assert_eq!(bed.ulids().await, all);
        client.batch_execute(after).await.unwrap();
        bed.nothing_is_left().await;
    }
}

impl Bed {
    /// Goes on to the end, at first behind a lock that ends once it is told.
    async fn resumed_behind_a_lock(&self, table: &str) {
        let other = self.database.client().await;
        let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        other.batch_execute(&lock).await.unwrap();
        let (work, mut told) = self.told();
        let released = async {
            told.wait_for(|p| p.waiting.as_ref().is_some_and(|w| w.contains("a lock on public.ops")))
                .await
                .unwrap();
            other.batch_execute("COMMIT").await.unwrap();
        };
        let request = self.again(Action::Resume);
        let report = while_(self.work_on(&work, &request), released).await;
        assert_eq!(report.unwrap().outcome, Outcome::Done);
    }
}

/// A lock that comes in the middle of the copy is waited for.
#[tokio::test]
async fn a_lock_in_the_middle_of_the_copy_ends_nothing() {
    let bed = Bed::new(400).await;
    bed.run_until(&bed.request(Policy::Window), "copy").await;
    bed.resumed_behind_a_lock("ops").await;
    bed.nothing_is_left().await;
}

/// A compaction that was cut off in the middle of a part judges it anew.
#[tokio::test]
async fn a_lock_in_the_middle_of_compaction_loses_no_verdict() {
    let (bed, calm) = (Bed::new(2_000).await, Bed::new(1).await);
    let client = calm.database.client().await;
    client.batch_execute("DELETE FROM ops; DELETE FROM opsward.census").await.unwrap();
    ops::insert(&client, &bed.ops).await;
    client.batch_execute(CENSUS).await.unwrap();
    assert_eq!(calm.run(&calm.request(Policy::Compact)).await.unwrap().outcome, Outcome::Done);

    bed.run_until(&bed.request(Policy::Compact), "judge").await;
    bed.resumed_behind_a_lock("opsward.reclaim_drops").await;
    let node = |ulids: Vec<String>| {
        ulids.into_iter().filter(|u| bed.ops.iter().any(|op| op.ulid.as_str() == u)).count()
    };
    assert_eq!(node(bed.ulids().await), node(calm.ulids().await));
}

/// What the server is told of the moment under the lock: one statement changes
/// all, its commit waits for no disk, and an idle session does not keep it.
#[tokio::test]
async fn under_the_lock_the_server_keeps_the_time() {
    let bed = Bed::new(400).await;
    let client = bed.database.client().await;
    client
        .batch_execute(
            "CREATE TABLE seen AS SELECT ''::text AS tag, now() AS at, ''::text AS sync, ''::text AS idle LIMIT 0;
             CREATE FUNCTION seen() RETURNS event_trigger LANGUAGE plpgsql AS $$
                 BEGIN INSERT INTO public.seen VALUES (tg_tag, statement_timestamp(), current_setting('synchronous_commit'),
                     current_setting('idle_in_transaction_session_timeout')); END $$;
             CREATE EVENT TRIGGER seen ON ddl_command_end
                 WHEN TAG IN ('ALTER TABLE', 'ALTER INDEX', 'CREATE TRIGGER') EXECUTE FUNCTION seen()",
        )
        .await
        .unwrap();
    bed.run_until(&bed.request(Policy::Window), "capture").await;
    client.batch_execute("TRUNCATE seen").await.unwrap();
    assert_eq!(bed.run(&bed.again(Action::Resume)).await.unwrap().outcome, Outcome::Done);
    let row = client
        .query_one(
            "SELECT count(*), count(DISTINCT at), array_agg(DISTINCT sync || ' ' || idle) FROM seen",
            &[],
        )
        .await
        .unwrap();
    let (changes, statements, settings): (i64, i64, Vec<String>) = (row.get(0), row.get(1), row.get(2));
    // The triggers that note writes, and the swap.
    assert!(changes > 8, "{changes}");
    assert_eq!(statements, 2);
    // Of the 200 ms in any second, what the locks before it left.
    let ms = |s: &String| s.strip_prefix("off ").and_then(|s| s.strip_suffix("ms")?.parse::<u32>().ok());
    assert!(settings.iter().all(|s| ms(s).is_some_and(|ms| (1..=200).contains(&ms))), "{settings:?}");
}

/// The server's own words for it, as another session's last statement.
#[tokio::test]
async fn a_vacuum_against_wraparound_is_not_queued_behind() {
    let bed = Bed::new(400).await;
    let vacuum = bed.database.client().await;
    assert!(vacuum.batch_execute("autovacuum: VACUUM public.ops (to prevent wraparound)").await.is_err());
    let (work, mut told) = bed.told();
    let over = async {
        told.wait_for(|p| p.waiting.as_ref().is_some_and(|w| w.contains("public.ops"))).await.unwrap();
        let none = "SELECT NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'opsward_capture')";
        until(&vacuum, none).await;
    };
    let request = bed.request(Policy::Window);
    let report = while_(bed.work_on(&work, &request), over).await;
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    bed.nothing_is_left().await;
}

/// `uninstall` never makes the log's readers queue for long: it lets them pass,
/// and comes again.
#[tokio::test]
async fn uninstall_gives_a_lock_up_and_comes_again() {
    let bed = Bed::new(400).await;
    bed.held().await;
    let (reader, client) = (bed.database.client().await, bed.database.client().await);
    reader.batch_execute("BEGIN; LOCK TABLE ops IN ACCESS SHARE MODE").await.unwrap();
    // A transaction that is younger may be gone in time: a lock is tried beside it.
    until(
        &client,
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%LOCK TABLE ops%' AND pid <> pg_backend_pid()
         AND datname = current_database() AND clock_timestamp() - xact_start > interval '200 ms')",
    )
    .await;
    let uninstall::Found::Ours(owned) = uninstall::find(&bed.work.db.client().await.unwrap()).await.unwrap()
    else {
        panic!("nothing of ours")
    };
    let mut lease = bed.lease().await;
    // It looks who holds the log, and queues nobody behind a lock.
    let looked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid()
                  AND datname = current_database() AND query LIKE '%WITH held AS (%')";
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'public.ops'::regclass AND NOT granted";
    let released = async {
        until(&client, looked).await;
        let waiting: i64 = client.query_one(waits, &[]).await.unwrap().get(0);
        assert_eq!(waiting, 0);
        reader.batch_execute("COMMIT").await.unwrap();
    };
    let removed = while_(uninstall::remove(&mut lease, &owned), released).await;
    assert_eq!(removed.unwrap(), uninstall::Removal::Done);
    let left = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'opsward%')
                     + (SELECT count(*) FROM pg_namespace WHERE nspname = 'opsward')";
    assert_eq!(bed.number(left).await, 0);
}

/// A role that owns the log as a member may lack what a swap needs besides;
/// and who holds the lease is said.
#[tokio::test]
async fn the_plan_names_the_grant_and_the_holder() {
    let bed = Bed::new(200).await;
    let client = bed.database.client().await;
    client
        .batch_execute(
            "DROP ROLE IF EXISTS reclaim_member; DROP ROLE IF EXISTS reclaim_owner;
             CREATE ROLE reclaim_owner; CREATE ROLE reclaim_member IN ROLE reclaim_owner;
             ALTER TABLE ops OWNER TO reclaim_owner; GRANT ALL ON SCHEMA opsward TO reclaim_member;
             GRANT ALL ON ALL TABLES IN SCHEMA opsward TO reclaim_member;
             -- Servers before 15 let everybody make tables there.
             REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        )
        .await
        .unwrap();
    let lease = bed.lease().await;
    let mut pooled: db::Client = bed.work.db.client().await.unwrap();
    pooled.batch_execute("SET ROLE reclaim_member").await.unwrap();
    let plan = reclaim::plan(&bed.work, &mut pooled, &bed.request(Policy::Window)).await.unwrap();
    pooled.batch_execute("RESET ROLE").await.unwrap();
    let fixes: Vec<&str> = plan.obstacles.iter().map(|o| o.fix.as_str()).collect();
    let named = |grant: &str| fixes.iter().any(|fix| fix.contains(grant));
    assert!(named("GRANT CREATE ON SCHEMA opsward TO reclaim_owner"), "{fixes:?}");
    assert!(named("GRANT CREATE ON SCHEMA public TO reclaim_member"), "{fixes:?}");
    let holder = format!("process {}", lease.pid());
    assert!(plan.notes.iter().any(|note| note.contains(&holder)), "{:?}", plan.notes);
    client
        .batch_execute(
            "ALTER TABLE ops OWNER TO postgres; DROP OWNED BY reclaim_member, reclaim_owner;
             DROP ROLE reclaim_member; DROP ROLE reclaim_owner",
        )
        .await
        .unwrap();
}
