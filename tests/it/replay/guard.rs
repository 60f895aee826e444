//! The replay guard: a node's own inserts, judged by the same rule.

use super::{Bench, op, ulid, upload};
use crate::harness::MadeOp;
use crate::work;
use opsward::bound::guard::{Outcome, ensure, remove};
use opsward::db::lease::Lease;
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
    // In part, without a model, of no time that can be true, no records: these pass.
    let two = r#"[{"id":"a","status":"best"},{"id":"y","status":"y"}]"#;
    assert!(node_applies(&mut bench.node, &op(ulid(31, 1), "update", "uploads", two)).await);
    for (ulid, table, data) in [
        (ulid(30, 11).to_string(), "blobs", r#"[{"id":"a"}]"#),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV".into(), "uploads", r#"[{"id":"a"}]"#),
        ("x".into(), "uploads", r#"[{"id":"a"}]"#),
        (ulid(30, 12).to_string(), "uploads", "null"),
        (ulid(30, 13).to_string(), "uploads", "[]"),
    ] {
        bench.run(&format!("INSERT INTO ops VALUES ('{ulid}', 'h', 'update', '{table}', '{data}')")).await;
    }
    assert_eq!(bench.text("SELECT count(*) FROM ops").await, "7");
    // An error of ours is none of the node's.
    bench.run("ALTER TABLE opsward.floors RENAME TO gone").await;
    assert!(node_applies(&mut bench.node, &upload(ulid(30, 1), "create", "b", "back")).await);
    bench.run("ALTER TABLE opsward.gone RENAME TO floors").await;
    assert_eq!(bench.text("SELECT last_value + is_called::int FROM opsward.guard_failed").await, "1");
    assert_eq!(remove(&work, &mut lease).await.unwrap(), Outcome::Changed);
    assert_eq!(bench.text("SELECT count(*) FROM opsward.owned").await, "0");
    assert!(node_applies(&mut bench.node, &log[1]).await, "a plain table again");
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
    assert_eq!(bench.text("SELECT name FROM opsward.owned").await, "opsward_replay_guard");
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
    assert!(who[0].contains("a node") && who[0].contains("INSERT INTO ops"), "{who:?}");
    bench.run("ROLLBACK").await;
    assert_eq!(ensure(&work, &mut lease).await.unwrap(), Outcome::Changed);
}
