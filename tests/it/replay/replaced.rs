//! Contract 10: a log that was replaced. What is remembered of the old one is
//! forgotten before anything trusts it.

use super::{Bench, guard::node_applies, ulid, upload};
use crate::harness::cluster::binary;
use crate::work;
use opsward::bound::foreign::{self, Found};
use opsward::bound::guard::ensure;
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::{cursors, known};
use opsward::values::{Host, NodeWrite, OpUlid};
use std::process::Command;

fn peer() -> Host {
    Host::parse("https://p.example").unwrap()
}

/// As a sweep that read up to the last of the ops writes its cursor.
async fn read_up_to(bench: &Bench, n: u64) {
    let mut client = bench.db.client().await.unwrap();
    let decide = |_: Option<&str>| NodeWrite::Set;
    cursors::write(&mut client, &peer(), ulid(30, n), Clock::System.now(), decide).await.unwrap();
}

async fn ops(bench: &Bench, from: u64, to: u64) {
    for n in from..=to {
        let op = upload(ulid(30, n), "update", "a", "x");
        let sql = "INSERT INTO ops VALUES ($1, 'http://h', 'update', 'uploads', $2::text::jsonb)";
        bench.node.execute(sql, &[&op.ulid.as_str(), &op.data]).await.unwrap();
    }
}

async fn remembered(bench: &Bench) -> String {
    bench
        .text(
            "SELECT concat_ws(' ', (SELECT count(*) FROM opsward.floors WHERE floor IS NOT NULL),
                              (SELECT count(*) FROM opsward.traces), (SELECT count(*) FROM opsward.cursors),
                              nullif((SELECT ulid FROM opsward.watermark), ''))",
        )
        .await
}

async fn told(bench: &Bench) -> String {
    bench.text("SELECT count(*) || ' ' || max(outcome) FROM opsward.history WHERE task = 'log'").await
}

/// Half of the log was read since the dump: it is read again.
#[tokio::test]
async fn an_older_dump_is_put_back() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dump");
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(binary(program));
        command.args(args).args(["-d", &bench.database.url(), "-f"]).arg(&file);
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    ops(&bench, 1, 200).await;
    read_up_to(&bench, 200).await;
    run("pg_dump", &["-n", "public", "--clean", "--if-exists"]);
    ops(&bench, 201, 400).await;
    read_up_to(&bench, 400).await;
    bench.run(&format!("UPDATE opsward.watermark SET ulid = '{}'", ulid(30, 150))).await;
    bench.prune("uploads", ulid(30, 100)).await;
    assert_eq!(known::check(&bench.db.client().await.unwrap()).await.unwrap(), None, "our own pruning");
    run("psql", &["-v", "ON_ERROR_STOP=1"]);

    // A sweep that was under way does not move the node's cursor.
    let mut client = bench.db.client().await.unwrap();
    let late =
        cursors::write(&mut client, &peer(), ulid(30, 400), Clock::System.now(), |_| NodeWrite::Set).await;
    assert!(late.is_err());
    let stored = cursors::load(&client, &peer()).await.unwrap();
    assert_eq!((stored.own, stored.node), (None, Some(ulid(30, 200).to_string())));
    assert_eq!(remembered(&bench).await, "0 0 0");
    assert!(told(&bench).await.starts_with("1 floors, traces"), "{}", told(&bench).await);
    assert!(known::forgotten(&client).await.unwrap().is_some());
    assert_eq!(known::check(&client).await.unwrap(), None, "once");
}

/// The same table, its rows of an older day.
#[tokio::test]
async fn rows_are_put_back_into_the_same_table() {
    let bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    ops(&bench, 1, 10).await;
    assert_eq!(foreign::observe(&work).await.unwrap(), Found::Unknown);
    bench.prune("uploads", ulid(30, 5)).await;
    bench.run(&format!("DELETE FROM ops WHERE ulid > '{}'", ulid(30, 8))).await;
    assert_eq!(foreign::observe(&work).await.unwrap(), Found::Unknown);
    assert_eq!(remembered(&bench).await, "0 0 0");
    assert_eq!(foreign::observe(&work).await.unwrap(), Found::Nothing);
    // All of it below a floor of ours is no other log.
    bench.prune("uploads", ulid(2, 0)).await;
    foreign::observe(&work).await.unwrap();
    assert_eq!(bench.text("SELECT count(*) FROM opsward.floors WHERE floor IS NOT NULL").await, "1");
    assert!(told(&bench).await.starts_with("1 "));
}

/// One that lies ahead may be a mistake of somebody's clock, and removed by hand.
#[tokio::test]
async fn an_op_ahead_that_is_removed_is_no_other_log() {
    let bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    ops(&bench, 1, 10).await;
    foreign::observe(&work).await.unwrap();
    bench.prune("uploads", ulid(30, 5)).await;
    let ahead = OpUlid::from_parts(Clock::System.now_ms() + 20 * 3_600_000, 1);
    bench.run(&format!("INSERT INTO ops VALUES ('{ahead}', 'http://h', 'create', 'uploads', '[]')")).await;
    foreign::observe(&work).await.unwrap();
    read_up_to(&bench, 10).await;
    let before = remembered(&bench).await;
    bench.run(&format!("DELETE FROM ops WHERE ulid = '{ahead}'")).await;
    foreign::observe(&work).await.unwrap();
    read_up_to(&bench, 10).await;
    assert_eq!(remembered(&bench).await, before);
}

/// A state sync truncates every table and fills them again: the refill goes in
/// whole, ops below the old floors too.
#[tokio::test]
async fn a_state_sync_goes_in_whole() {
    let mut bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    ensure(&work, &mut lease).await.unwrap();
    let log = [upload(ulid(30, 1), "create", "a", "new"), upload(ulid(1, 2), "update", "a", "best")];
    bench.pull(&log).await;
    bench.prune("uploads", ulid(2, 0)).await;
    assert!(!node_applies(&mut bench.node, &log[0]).await, "the guard is on");
    // One that is rolled back changes nothing.
    bench.run("BEGIN; TRUNCATE ops, cursors, uploads; ROLLBACK").await;
    assert_eq!(bench.text("SELECT count(*) FROM opsward.traces").await, "1");
    bench.run("SET session_replication_role = replica; TRUNCATE ops, cursors, uploads; RESET session_replication_role").await;
    assert_eq!(remembered(&bench).await, "0 0 0");
    assert!(told(&bench).await.contains("truncated"), "{}", told(&bench).await);
    for op in &log {
        assert!(node_applies(&mut bench.node, op).await, "{op:?}");
    }
    assert_eq!(bench.uploads().await, "a=best");
    assert_eq!(known::check(&bench.db.client().await.unwrap()).await.unwrap(), None);

    // A dump that reads the traces holds nobody up: they go at the next look.
    bench.prune("uploads", ulid(2, 0)).await;
    let mut dump = bench.database.client().await;
    let tx = dump.transaction().await.unwrap();
    tx.execute("SELECT FROM opsward.traces", &[]).await.unwrap();
    bench.run("TRUNCATE ops, cursors, uploads").await;
    assert_eq!(remembered(&bench).await, "0 1 0");
    tx.rollback().await.unwrap();
    assert_eq!(known::check(&bench.db.client().await.unwrap()).await.unwrap(), None);
    assert_eq!(remembered(&bench).await, "0 0 0");
}
