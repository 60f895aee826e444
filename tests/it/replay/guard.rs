//! The replay guard: a node's own inserts, judged by the same rule.

use super::{Bench, op, ulid, upload};
use crate::harness::cluster::binary;
use crate::harness::{Database, MadeOp};
use crate::work;
use opsward::bound::guard::{Outcome, ensure, remove};
use opsward::clock::Clock;
use opsward::db::guard::announce;
use opsward::db::lease::Lease;
use opsward::db::rejected;
use opsward::pull::retry::{Retried, retry};
use std::process::Command;
use tokio_postgres::Client;

/// As a node applies a pulled op: the op, and its record if that was new.
pub async fn node_applies(node: &mut Client, op: &MadeOp) -> bool {
    let tx = node.transaction().await.unwrap();
    let sql = "INSERT INTO \"ops\" (\"ulid\",\"host\",\"action\",\"table\",\"data\")
               VALUES ($1,$2,$3,$4,$5::text::jsonb) ON CONFLICT DO NOTHING";
    let row = [op.ulid.as_str(), &op.host, op.action, op.table, &op.data];
    let new = tx.execute(sql, &[&row[0], &row[1], &row[2], &row[3], &row[4]]).await.unwrap() == 1;
    if new {
        let sql = match op.action {
            "delete" => "DELETE FROM uploads WHERE id IN (SELECT r->>'id' FROM jsonb_array_elements($1::text::jsonb) r)",
            "create" => "INSERT INTO uploads (id, status) SELECT r->>'id', r->>'status'
                         FROM jsonb_array_elements($1::text::jsonb) r ON CONFLICT DO NOTHING",
            _ => "INSERT INTO uploads (id, status) SELECT r->>'id', r->>'status'
                  FROM jsonb_array_elements($1::text::jsonb) r ON CONFLICT (id) DO UPDATE SET status = excluded.status",
        };
        tx.execute(sql, &[&row[4]]).await.unwrap();
    }
    tx.commit().await.unwrap();
    new
}

#[tokio::test]
async fn a_nodes_insert_is_judged_alike() {
    let mut bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    let log = [
        upload(ulid(30, 1), "create", "a", "new"),
        upload(ulid(29, 2), "update", "a", "busy"),
        upload(ulid(28, 3), "create", "b", "new"),
        upload(ulid(27, 4), "delete", "b", ""),
        upload(ulid(1, 6), "update", "a", "best"),
    ];
    bench.pull(&log).await;
    bench.prune("uploads", ulid(2, 0)).await;
    assert_eq!(ensure(&work, &mut lease).await.unwrap(), Outcome::Changed);
    assert_eq!(ensure(&work, &mut lease).await.unwrap(), Outcome::Right);
    for op in &log {
        assert!(!node_applies(&mut bench.node, op).await, "{op:?}");
    }
    assert_eq!(bench.uploads().await, "a=best");
    opsward::bound::guard::count(&work).await.unwrap();
    assert_eq!((work.metrics.guard_refused.get(), work.metrics.guard_failed.get()), (4, 0));
    // Without a model, of no time that can be true, no records: these pass.
    for (ulid, table, data) in [
        (ulid(30, 11).to_string(), "blobs", r#"[{"id":"a"}]"#),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV".into(), "uploads", r#"[{"id":"a"}]"#),
        ("x".into(), "uploads", r#"[{"id":"a"}]"#),
        (ulid(30, 12).to_string(), "uploads", "null"),
        (ulid(30, 13).to_string(), "uploads", "[]"),
    ] {
        bench.run(&format!("INSERT INTO ops VALUES ('{ulid}', 'h', 'update', '{table}', '{data}')")).await;
    }
    assert_eq!(bench.text("SELECT count(*) FROM ops").await, "6");
    // An error of ours is none of the node's.
    bench.run("ALTER TABLE opsward.floors RENAME TO gone").await;
    assert!(node_applies(&mut bench.node, &upload(ulid(30, 1), "create", "b", "back")).await);
    bench.run("ALTER TABLE opsward.gone RENAME TO floors").await;
    assert_eq!(bench.text("SELECT last_value + is_called::int FROM opsward.guard_failed").await, "1");
    assert_eq!(remove(&work, &mut lease).await.unwrap(), Outcome::Changed);
    assert_eq!(bench.text("SELECT count(*) FROM opsward.owned").await, "0");
    assert!(node_applies(&mut bench.node, &log[1]).await, "a plain table again");
}

/// The guard runs with its owner's rights: nothing that the writer made is called by it.
#[tokio::test]
async fn a_writers_own_operators_are_not_the_guards() {
    let bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    bench.pull(&[upload(ulid(30, 1), "create", "a", "new"), upload(ulid(1, 2), "update", "a", "best")]).await;
    bench.prune("uploads", ulid(2, 0)).await;
    assert_eq!(ensure(&work, &mut lease).await.unwrap(), Outcome::Changed);
    bench
        .run(
            "CREATE SCHEMA evil;
             CREATE FUNCTION evil.called(text, text) RETURNS boolean LANGUAGE plpgsql
             AS 'BEGIN RAISE EXCEPTION ''called''; END'",
        )
        .await;
    for operator in ["=", "<", "<>", "||", ">="] {
        let make = format!(
            "CREATE OPERATOR evil.{operator} (leftarg = text, rightarg = text, function = evil.called)"
        );
        bench.run(&make).await;
    }
    bench.run("SET search_path = evil, pg_catalog, public").await;
    let old = ulid(30, 1);
    for table in ["uploads", "audio_previews", "blobs"] {
        let data = r#"[{"id":"a"}]"#;
        bench
            .run(&format!("INSERT INTO public.ops VALUES ('{old}', 'h', 'create', '{table}', '{data}')"))
            .await;
        bench
            .run(&format!("DELETE FROM public.ops WHERE ulid COLLATE \"C\" OPERATOR(pg_catalog.=) '{old}'"))
            .await;
    }
}

#[tokio::test]
async fn the_guard_is_owned_and_leaves_nothing() {
    let bench = Bench::new().await;
    let triggers = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'ops'::regclass";
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    let read_only = work::on(&bench.db, |s| s.read_only = true);
    assert_eq!(ensure(&read_only, &mut lease).await.unwrap(), Outcome::ReadOnly);
    assert_eq!(bench.text(triggers).await, "");
    let work = work::on(&bench.db, |_| {});
    ensure(&work, &mut lease).await.unwrap();
    bench.run("ALTER TABLE ops DISABLE TRIGGER ALL").await;
    assert_eq!(ensure(&work, &mut lease).await.unwrap(), Outcome::Changed, "disabled");
    assert_eq!(bench.text("SELECT name FROM opsward.owned").await, "opsward_replay_guard opsward_truncation");
    let client = bench.db.client().await.unwrap();
    let opsward::db::uninstall::Found::Ours(owned) = opsward::db::uninstall::find(&client).await.unwrap()
    else {
        panic!("nothing to uninstall");
    };
    opsward::db::uninstall::remove(&mut lease, &owned).await.unwrap();
    assert_eq!(bench.text(triggers).await, "");
    assert_eq!(bench.text("SELECT nspname FROM pg_namespace WHERE nspname = 'opsward'").await, "");
}

#[tokio::test]
async fn whoever_holds_the_log_is_named() {
    let bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    bench.run("SET application_name = 'a node'; BEGIN; INSERT INTO ops VALUES ('x')").await;
    let Outcome::Blocked(who) = ensure(&work, &mut lease).await.unwrap() else { panic!("not blocked") };
    assert!(who.contains("a node") && who.contains("INSERT INTO ops"), "{who:?}");
    bench.run("ROLLBACK").await;
    assert_eq!(ensure(&work, &mut lease).await.unwrap(), Outcome::Changed);
}

/// The node would apply all its records, over newer state too: the op stays
/// out, and opsward applies the others.
#[tokio::test]
async fn an_op_that_acts_in_part_is_kept_for_opsward() {
    let mut bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    ensure(&work, &mut lease).await.unwrap();
    bench.pull(&[upload(ulid(30, 5), "update", "a", "newer")]).await;
    bench.prune("uploads", ulid(2, 0)).await;
    let pulled =
        op(ulid(31, 0), "update", "uploads", r#"[{"id":"a","status":"old"},{"id":"x","status":"x"}]"#);
    assert_eq!(bench.pull(&[pulled]).await.sums.applied, 1);
    assert_eq!(bench.uploads().await, "a=newer x=x", "the guard lets opsward's own pull through");
    let two = op(ulid(31, 1), "update", "uploads", r#"[{"id":"a","status":"old"},{"id":"y","status":"y"}]"#);
    for _ in 0..2 {
        assert!(!node_applies(&mut bench.node, &two).await);
    }
    assert_eq!(bench.uploads().await, "a=newer x=x");
    assert_eq!(bench.text("SELECT code || times FROM opsward.rejected_ops").await, "partial_replay2");
    let mut client = bench.db.client().await.unwrap();
    let kept = rejected::list(&client, None, 0, 10).await.unwrap();
    let retried = retry(&mut client, &kept, &Clock::System).await.unwrap();
    assert!(matches!(retried[..], [Retried::AppliedInPart(_)]), "{retried:?}");
    assert_eq!(bench.uploads().await, "a=newer x=x y=y");
    // In the log now, whole: it comes again as any duplicate.
    assert!(!node_applies(&mut bench.node, &two).await);
    assert_eq!(bench.text("SELECT count(*) FROM opsward.rejected_ops").await, "0");
}

/// Whether a node's insert writes nothing and takes no transaction id.
async fn is_free(node: &mut Client, op: &MadeOp) -> bool {
    let insert = format!(
        "INSERT INTO ops VALUES ('{}', '{}', '{}', '{}', '{}') ON CONFLICT DO NOTHING",
        op.ulid, op.host, op.action, op.table, op.data
    );
    let tx = node.transaction().await.unwrap();
    assert_eq!(tx.execute(&insert, &[]).await.unwrap(), 0, "a duplicate");
    // Whoever reads a page first after a delete may prune it, as the server does by itself.
    let mut wrote = true;
    for _ in 0..3 {
        let explained = tx.query(&format!("EXPLAIN (ANALYZE, WAL) {insert}"), &[]).await.unwrap();
        wrote &= explained.iter().any(|line| line.get::<_, &str>(0).contains("WAL:"));
    }
    let sql = "SELECT pg_current_xact_id_if_assigned() IS NULL";
    let no_id: bool = tx.query_one(sql, &[]).await.unwrap().get(0);
    tx.commit().await.unwrap();
    no_id && !wrote
}

#[tokio::test]
async fn a_duplicate_writes_nothing() {
    let mut bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    ensure(&work, &mut lease).await.unwrap();
    let log: Vec<MadeOp> =
        (0..60).map(|n| upload(ulid(60 - n, n), "update", &format!("r{n}"), "s")).collect();
    let sizes = op(ulid(50, 99), "create", "storage_and_db_sizes", "[]");
    bench.pull(&log).await;
    bench
        .run(&format!("INSERT INTO ops VALUES ('{}', 'h', 'create', '{}', '[]')", sizes.ulid, sizes.table))
        .await;
    for op in log.iter().chain([&sizes]) {
        assert!(is_free(&mut bench.node, op).await, "no floor: {op:?}");
    }
    bench.prune("uploads", ulid(30, 0)).await;
    for op in log.iter().filter(|op| op.ulid >= ulid(30, 0)).chain([&sizes]) {
        assert!(is_free(&mut bench.node, op).await, "above the floor of its table: {op:?}");
    }
    // Below it, and still in the log; newer state of its record is not.
    let old = upload(ulid(59, 77), "update", "r20", "s");
    bench.run(&format!("ALTER TABLE ops DISABLE TRIGGER USER; INSERT INTO ops VALUES ('{}', 'h', 'update', 'uploads', '{}'); ALTER TABLE ops ENABLE TRIGGER USER", old.ulid, old.data)).await;
    assert!(is_free(&mut bench.node, &old).await, "traced");
}

/// Between a deletion and its commit, the op that comes again waits, and then
/// meets its trace: also where the floor was never that high before.
#[tokio::test]
async fn an_insert_waits_for_the_deleter_of_its_row() {
    let mut bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    ensure(&work, &mut lease).await.unwrap();
    let old = upload(ulid(30, 1), "create", "a", "old");
    bench.pull(&[old.clone(), upload(ulid(29, 1), "update", "a", "new")]).await;
    announce(&mut lease, [(&"uploads".to_owned(), ulid(2, 0))]).await.unwrap();
    let mut deleter = bench.database.client().await;
    let tx = deleter.transaction().await.unwrap();
    tx.execute(super::PRUNE, &[&"uploads", &ulid(2, 0).as_str()]).await.unwrap();
    let (waits, committed) = tokio::join!(node_applies(&mut bench.node, &old), async {
        let waiting = "SELECT count(*) = 1 FROM pg_stat_activity
                       WHERE wait_event_type = 'Lock' AND datname = current_database()";
        while !tx.query_one(waiting, &[]).await.unwrap().get::<_, bool>(0) {}
        tx.commit().await
    });
    committed.unwrap();
    assert!(!waits, "its trace is there");
    assert_eq!(bench.uploads().await, "a=new");
}

/// A dump of the node's own schema stands by itself.
#[tokio::test]
async fn a_dump_of_schema_public_restores_elsewhere() {
    let bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    ensure(&work, &mut lease).await.unwrap();
    bench.pull(&[upload(ulid(30, 1), "create", "a", "old")]).await;
    bench.prune("uploads", ulid(2, 0)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump");
    let run = |program: &str, args: &[&str], database: &Database| {
        let mut command = Command::new(binary(program));
        command.args(args).arg("-d").arg(database.url());
        if program == "pg_dump" {
            command.arg("-f");
        }
        let ran = command.arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        // A newer pg_restore sets what an older server does not know, and goes on.
        let is_newer = said.matches("error:").count() == 1 && said.contains("transaction_timeout");
        assert!(ran.status.success() || is_newer, "{program}: {said}");
    };
    run("pg_dump", &["-Fc", "-n", "public"], &bench.database);
    let other = Database::new().await;
    let mut node = other.client().await;
    node.batch_execute("DROP SCHEMA public CASCADE").await.unwrap();
    run("pg_restore", &[], &other);
    for op in [upload(ulid(30, 1), "create", "a", "old"), upload(ulid(0, 1), "create", "b", "new")] {
        assert!(node_applies(&mut node, &op).await, "{op:?}");
    }
}
