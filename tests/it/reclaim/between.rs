//! What happens between two statements of a swap: writes and changes of the
//! table at the worst moment.

use super::*;
use crate::harness::Wire;
use crate::harness::cluster::binary;
use crate::harness::wire::{Matcher, Plan};
use opsward::db::{Db, clone, copy};
use opsward::settings::DbTarget;
use std::cell::Cell;

/// The last statement before the swap's lock. (That lock begins like the one that
/// makes the triggers, which may be tried for several times.)
fn the_lock() -> Matcher {
    Matcher::Text("INSERT INTO opsward.floors AS f (table_name, announced".into(), 1)
}

/// The log is read by ranges, first to be copied.
fn range(n: u64) -> Matcher {
    Matcher::Text("SELECT ulid FROM public.ops WHERE ulid > $1 ORDER BY".into(), n)
}

impl Bed {
    /// Runs a request; a node does something right before a statement of it.
    pub(super) async fn meddled(&self, request: &Request, at: Matcher, sql: &str) -> Result<Report, Error> {
        let line = Wire::to(self.database.cluster()).await.run(Plan::Hold { at }, |_| {});
        let target = DbTarget { hosts: vec![("127.0.0.1".into(), line.port())], ..self.database.target() };
        let db = Db::open(&target, "opsward test", 8).await.unwrap();
        let work = Work { db, ..self.work.clone() };
        let mut lease = Lease::take(&work.db).await.unwrap().unwrap_or_else(|by| panic!("held by {by:?}"));
        let (node, meddled) = (self.database.client().await, Cell::new(false));
        let meddle = async {
            line.held().await;
            node.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
            meddled.set(true);
            line.let_go();
            std::future::pending::<()>().await;
        };
        let ask = asked(self.gate());
        let ended = tokio::select! {
            ended = reclaim::run(&work, &mut lease, request, &ask) => ended,
            () = meddle => unreachable!(),
        };
        assert!(meddled.get(), "the statement never came: {ended:?}");
        ended
    }

    /// The hosts of ops, `-` where there is none.
    async fn hosts(&self, ulids: &[OpUlid]) -> Vec<String> {
        let ulids: Vec<&str> = ulids.iter().map(OpUlid::as_str).collect();
        let sql = "SELECT coalesce(o.host, '-') FROM unnest($1::text[]) WITH ORDINALITY e(ulid, n)
                   LEFT JOIN ops o USING (ulid) ORDER BY n";
        let client = self.database.client().await;
        client.query(sql, &[&ulids]).await.unwrap().iter().map(|r| r.get(0)).collect()
    }
}

/// Writes to five ops, and what their hosts are then. An op that would have
/// been dropped stays when it is written to.
fn writes([new, late, updated, deleted, replaced]: [OpUlid; 5]) -> (String, [&'static str; 5]) {
    let sql = format!(
        "BEGIN;
         INSERT INTO ops (ulid, host, action, \"table\", data) VALUES ('{new}', 'new', 'create', 'uploads', '[]');
         INSERT INTO ops (ulid, host, action, \"table\", data) VALUES ('{late}', 'late', 'create', 'uploads', '[]');
         UPDATE ops SET host = 'updated', core_tx_status = 'confirmed' WHERE ulid = '{updated}';
         DELETE FROM ops WHERE ulid IN ('{deleted}', '{replaced}');
         INSERT INTO ops (ulid, host, \"table\") VALUES ('{replaced}', 'replaced', 'uploads');
         COMMIT;
         BEGIN; DELETE FROM ops WHERE ulid > '{updated}'; ROLLBACK"
    );
    (sql, ["new", "late", "updated", "-", "replaced"])
}

fn just_now() -> [OpUlid; 2] {
    [0, 60].map(|days| OpUlid::from_parts(now_ms() - days * DAY_MS, 7))
}

#[tokio::test]
async fn what_is_written_just_before_the_lock_is_there() {
    let bed = Bed::new(400).await;
    let [new, late] = just_now();
    let touched = [new, late, bed.ops[0].ulid, bed.ops[398].ulid, bed.ops[399].ulid];
    let (sql, after) = writes(touched);
    let report = bed.meddled(&bed.request(Policy::Window), the_lock(), &sql).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(bed.hosts(&touched).await, after);
    bed.nothing_is_left().await;
}

/// Sessions in which ordinary triggers do not fire, as a restore has them.
#[tokio::test]
async fn what_a_replica_writes_is_there() {
    let bed = Bed::new(400).await;
    let [new, late] = just_now();
    let touched = [new, late, bed.ops[0].ulid, bed.ops[398].ulid, bed.ops[399].ulid];
    let (sql, after) = writes(touched);
    let sql = format!("SET session_replication_role = replica; {sql}");
    let report = bed.meddled(&bed.request(Policy::Window), the_lock(), &sql).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(bed.hosts(&touched).await, after);
    bed.nothing_is_left().await;
}

/// More than may be replayed under the lock: it is given back, and tried again.
#[tokio::test]
async fn much_that_is_written_just_before_the_lock_is_there() {
    let bed = Bed::new(400).await;
    let sql = "INSERT INTO ops (ulid, \"table\") SELECT 'n' || n, 'uploads' FROM generate_series(1, 1200) n";
    let report = bed.meddled(&bed.request(Policy::Window), the_lock(), sql).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(bed.ulids().await.iter().filter(|ulid| ulid.starts_with('n')).count(), 1_200);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_table_changed_just_before_the_lock_is_copied_anew() {
    for (sql, shown) in [
        ("CREATE INDEX theirs ON ops (host)", "CREATE INDEX theirs ON public.ops"),
        ("ALTER TABLE ops ADD COLUMN more text DEFAULT 'x'", "more text DEFAULT 'x'"),
        ("GRANT SELECT ON ops TO PUBLIC", "GRANT SELECT ON TABLE public.ops TO PUBLIC"),
    ] {
        let bed = Bed::new(400).await;
        let report = bed.meddled(&bed.request(Policy::Window), the_lock(), sql).await.unwrap();
        assert_eq!(report.outcome, Outcome::Done);
        assert!(bed.schema().contains(shown), "{sql}");
        bed.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_write_that_was_not_noted_just_before_the_lock_undoes_it() {
    let [new, _] = just_now();
    let off = format!(
        "ALTER TABLE ops DISABLE TRIGGER opsward_capture;
         INSERT INTO ops (ulid, host) VALUES ('{new}', 'new');
         ALTER TABLE ops ENABLE ALWAYS TRIGGER opsward_capture"
    );
    let truncated = format!("TRUNCATE ops; INSERT INTO ops (ulid, host) VALUES ('{new}', 'new')");
    for (sql, rows) in [(off, 402), (truncated, 1)] {
        let bed = Bed::new(400).await;
        let report = bed.meddled(&bed.request(Policy::Window), the_lock(), &sql).await.unwrap();
        assert!(matches!(report.outcome, Outcome::Aborted(_)), "{sql}: {report:?}");
        assert_eq!((bed.ulids().await.len(), bed.hosts(&[new]).await), (rows, vec!["new".to_owned()]));
        bed.nothing_is_left().await;
    }
}

/// Writes before and behind the place where the copy is, and every op at the
/// seam of two ranges.
#[tokio::test]
async fn a_copy_in_ranges_loses_nothing_of_what_is_written_around_it() {
    let mut bed = Bed::new(5_000).await;
    bed.cut = bed.ops[100].ulid;
    let client = bed.database.client().await;
    client.batch_execute("CREATE TEMP TABLE before AS SELECT * FROM ops").await.unwrap();
    let [new, late] = just_now();
    let touched = [new, late, bed.ops[50].ulid, bed.ops[200].ulid, bed.ops[300].ulid];
    let ahead = [
        OpUlid::from_parts(now_ms(), 8),
        OpUlid::from_parts(now_ms() - 2 * DAY_MS, 8),
        bed.ops[4_000].ulid,
        bed.ops[4_100].ulid,
        bed.ops[4_200].ulid,
    ];
    let ((one, after), (other, _)) = (writes(touched), writes(ahead));
    let sql = format!("{one}; {other}");
    let report = bed.meddled(&bed.request(Policy::Window), range(2), &sql).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(bed.hosts(&touched).await, after);
    assert_eq!(bed.hosts(&ahead).await, after);
    let touched: Vec<String> = touched.iter().chain(&ahead).map(ToString::to_string).collect();
    let wrong = "SELECT coalesce(b.ulid, o.ulid)
         FROM (SELECT * FROM before WHERE ulid >= $1) b FULL JOIN ops o USING (ulid)
         WHERE coalesce(b.ulid, o.ulid) <> ALL ($2) AND to_jsonb(b) IS DISTINCT FROM to_jsonb(o)";
    let wrong = client.query(wrong, &[&bed.cut.as_str(), &touched]).await.unwrap();
    let wrong: Vec<String> = wrong.iter().map(|r| r.get(0)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    bed.nothing_is_left().await;
}

/// What is written after it was decided what goes survives, where it is replayed before the
/// copy comes to it.
#[tokio::test]
async fn what_is_written_below_the_cut_ahead_of_the_copy_survives() {
    let bed = Bed::new(400).await;
    bed.run_until(&bed.request(Policy::Window), "copy").await;
    let ahead = [10, 20, 30].map(|n| bed.ops[n].ulid);
    let keys = ahead.map(|ulid| format!("'{ulid}'")).join(", ");
    let sql = format!("UPDATE ops SET host = 'new' WHERE ulid IN ({keys})");
    bed.database.client().await.batch_execute(&sql).await.unwrap();
    let survivors = bed.ops.iter().filter(|op| op.ulid >= bed.cut).count();
    let report = bed.run(&bed.again(Action::Resume)).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(bed.hosts(&ahead).await, ["new", "new", "new"]);
    // With the op that a node writes as it starts.
    assert_eq!(bed.ulids().await.len(), survivors + 3 + 1);
    bed.nothing_is_left().await;
}

/// Writers meet no error, and what was missed is never swapped.
#[tokio::test]
async fn a_capture_that_fails_undoes_it() {
    let bed = Bed::new(400).await;
    let request = Request { hold: true, ..bed.request(Policy::Window) };
    assert_eq!(bed.run(&request).await.unwrap().outcome, Outcome::Held);
    let [new, _] = just_now();
    let client = bed.database.client().await;
    for sql in [
        "ALTER TABLE opsward.captured RENAME TO away".to_owned(),
        format!("INSERT INTO ops (ulid, host) VALUES ('{new}', 'new')"),
        "ALTER TABLE opsward.away RENAME TO captured".to_owned(),
    ] {
        client.batch_execute(&sql).await.unwrap();
    }
    let report = bed.run(&bed.again(Action::Swap)).await.unwrap();
    assert!(matches!(report.outcome, Outcome::Aborted(_)), "{report:?}");
    assert_eq!(bed.ulids().await.len(), 402);
    assert_eq!(bed.hosts(&[new]).await, ["new"]);
    bed.nothing_is_left().await;
}

/// Under the lock and before it the log is met by the keys that were noted,
/// and compared by the range, never read as a whole.
#[tokio::test]
async fn a_replay_reads_no_more_than_its_keys() {
    const READ: &str =
        "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint FROM pg_stat_xact_all_tables
                        WHERE relid IN ('public.ops'::regclass, 'opsward.ops_next'::regclass)";
    let bed = Bed::new(400).await;
    bed.fill(12_000).await;
    let request = Request { hold: true, ..bed.request(Policy::Window) };
    assert_eq!(bed.run(&request).await.unwrap().outcome, Outcome::Held);
    let node = bed.database.client().await;
    let sql = "UPDATE ops SET host = 'late' WHERE ulid IN (SELECT ulid FROM ops ORDER BY ulid DESC LIMIT 50)";
    node.batch_execute(sql).await.unwrap();
    let mut client = bed.work.db.client().await.unwrap();
    let columns = clone::columns(&client).await.unwrap();
    let tx = opsward::db::begin(&mut client, opsward::db::Isolation::Write).await.unwrap();
    let read = async || tx.query_one(READ, &[]).await.unwrap().get::<_, i64>(0);
    // The server still counts what the session did in the second before.
    let before = read().await;
    const NOTED: &str = "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint
                         FROM pg_stat_xact_all_tables WHERE relid = 'opsward.captured'::regclass";
    let keys = copy::replay(&tx, &columns, copy::Copied::All, ("", 500)).await.unwrap();
    assert_eq!(keys.len(), 50);
    let replayed = read().await - before;
    // The list may hold a million keys by now: what is equal is no reason to read it.
    node.batch_execute("INSERT INTO opsward.captured SELECT 'noted' || i FROM generate_series(1, 5000) i")
        .await
        .unwrap();
    let noted = tx.query_one(NOTED, &[]).await.unwrap().get::<_, i64>(0);
    assert!(copy::recheck(&tx, &columns, copy::Copied::All, &keys).await.unwrap().is_empty());
    let checked = read().await - before - replayed;
    assert!(replayed <= 500 && checked <= 200, "{replayed} rows to replay 50 keys, {checked} to check them");
    let cuts = request.gate.cuts;
    let range = copy::range(&tx, bed.cut.as_str(), 300).await.unwrap();
    let (before, doomed) = (read().await, copy::Doomed { cuts: &cuts, listed: true, columns: &columns });
    assert!(copy::verify(&tx, &doomed, &range).await.unwrap().is_empty());
    let compared = read().await - before;
    assert!(compared <= 1_000, "{compared} rows to compare 300");
    let noted = tx.query_one(NOTED, &[]).await.unwrap().get::<_, i64>(0) - noted;
    assert_eq!(noted, 0, "noted keys that were read where nothing differs");
}

/// A statement of many rows is noted by one, in one subtransaction.
#[tokio::test]
async fn many_rows_are_noted_at_once() {
    let bed = Bed::new(400).await;
    let request = Request { hold: true, ..bed.request(Policy::Window) };
    assert_eq!(bed.run(&request).await.unwrap().outcome, Outcome::Held);
    let client = bed.database.client().await;
    let noted = async |want: i64, what: &str| {
        let sql = "SELECT count(*), count(DISTINCT xmin::text) FROM opsward.captured";
        let row = client.query_one(sql, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (want, 1), "{what}");
        client.batch_execute("DELETE FROM opsward.captured").await.unwrap();
    };
    client
        .batch_execute("INSERT INTO ops (ulid) SELECT 'new' || n FROM generate_series(1, 1000) n")
        .await
        .unwrap();
    noted(1000, "INSERT").await;
    client.batch_execute("UPDATE ops SET ulid = ulid || 'x' WHERE ulid LIKE 'new%'").await.unwrap();
    noted(2000, "an UPDATE of keys").await;
    client.batch_execute("UPDATE ops SET host = 'x' WHERE ulid LIKE 'new%'").await.unwrap();
    noted(1000, "an UPDATE").await;
    client.batch_execute("DELETE FROM ops WHERE ulid LIKE 'new%'").await.unwrap();
    noted(1000, "DELETE").await;
    let nothing = "INSERT INTO ops SELECT * FROM ops LIMIT 1 ON CONFLICT DO NOTHING;
                   DELETE FROM ops WHERE ulid = 'none'";
    client.batch_execute(&format!("BEGIN; {nothing}")).await.unwrap();
    let no_id = "SELECT pg_current_xact_id_if_assigned() IS NULL";
    assert!(
        client.query_one(no_id, &[]).await.unwrap().get::<_, bool>(0),
        "what writes nothing is not noted"
    );
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(bed.run(&bed.again(Action::Swap)).await.unwrap().outcome, Outcome::Done);
    bed.nothing_is_left().await;
}

/// A dump of the node's own schema stands by itself, beside a swap too.
#[tokio::test]
async fn a_dump_of_schema_public_restores_elsewhere() {
    let bed = Bed::new(400).await;
    let request = Request { hold: true, ..bed.request(Policy::Window) };
    assert_eq!(bed.run(&request).await.unwrap().outcome, Outcome::Held);
    let other = crate::harness::Database::new().await;
    let node = other.client().await;
    node.batch_execute("DROP SCHEMA public CASCADE").await.unwrap();
    // A newer pg_dump sets what an older server does not know.
    let command = format!(
        "{} -n public -d '{}' | grep -v '^SET transaction_timeout' | {} -v ON_ERROR_STOP=1 -qX '{}'",
        binary("pg_dump").display(),
        bed.database.url(),
        binary("psql").display(),
        other.url()
    );
    let sh = std::process::Command::new("bash").args(["-o", "pipefail", "-c", &command]).output().unwrap();
    assert!(sh.status.success(), "{}", String::from_utf8_lossy(&sh.stderr));
    for write in [
        "INSERT INTO public.ops (ulid) VALUES ('a'), ('b')",
        "UPDATE public.ops SET host = 'x' WHERE ulid = 'a'",
        "DELETE FROM public.ops WHERE ulid = 'a'",
        "TRUNCATE public.ops",
    ] {
        node.batch_execute(write).await.unwrap();
    }
}

/// Nobody was seen to hold the log when the lock was tried for: it is given up
/// in time, and not tried for again while somebody holds it.
#[tokio::test]
async fn a_reader_that_comes_just_before_the_lock_is_waited_for() {
    let mut bed = Bed::new(400).await;
    let (work, mut told) = bed.told();
    bed.work = work;
    let reader = "SET idle_in_transaction_session_timeout = '3s'; BEGIN; SELECT count(*) FROM ops";
    let request = bed.request(Policy::Window);
    let named = async {
        let names =
            |p: &Progress| p.waiting.as_ref().is_some_and(|w| w.contains("public.ops, held by process"));
        told.wait_for(names).await.is_ok()
    };
    let (report, named) = tokio::join!(bed.meddled(&request, the_lock(), reader), named);
    assert!(named);
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    bed.nothing_is_left().await;
}
