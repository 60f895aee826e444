//! With the guard switched on, nothing is deleted before it is on the log.

use super::*;

const GUARD: &str = "OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD";
const GUARDED: &str = "SELECT count(*) FROM pg_trigger WHERE tgname = 'opsward_replay_guard'";

#[tokio::test]
async fn whoever_deletes_by_hand_puts_it_on_first() {
    for args in [
        &["prune", "--strict"][..],
        &["reclaim", "--mode", "in-place", "--policy", "window", "--yes"],
        &["reclaim", "--mode", "swap", "--policy", "window", "--yes"],
    ] {
        let bench = Bench::new().await.with(GUARD, "true");
        bench.log(300, 30).await;
        assert_eq!(bench.json(&["census", "--full"]).await.0, 0);
        let node = bench.database.client().await;
        node.batch_execute("SET application_name = 'a node'; BEGIN; INSERT INTO ops VALUES ('x')")
            .await
            .unwrap();
        let ran = bench.start(args).output().await;
        let told = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!((ran.code, bench.left().await), (Some(3), 330), "{args:?}: {ran:?}");
        assert!(told.contains("replay guard") && told.contains("a node"), "{args:?}: {told}");
        node.batch_execute("ROLLBACK").await.unwrap();
        let ran = bench.start(args).output().await;
        assert_eq!(
            (ran.code, bench.left().await, bench.number(GUARDED).await),
            (Some(0), 30, 1),
            "{args:?}: {ran:?}"
        );
    }
}

#[tokio::test]
async fn a_daemon_puts_it_on_before_it_deletes() {
    let bench =
        Bench::new().await.with(GUARD, "true").with("OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL", "1m");
    bench.log(300, 30).await;
    let node = bench.database.client().await;
    node.batch_execute("BEGIN; INSERT INTO ops VALUES ('x')").await.unwrap();
    let daemon = bench.daemon().await;
    let (code, pruned) = bench.json(&["prune", "--strict"]).await;
    let blocker = &pruned["result"]["tasks"][1]["decision"]["blockers"][0];
    assert_eq!((code, &blocker["code"], bench.left().await), (3, &"replay_guard".into(), 330), "{pruned}");
    node.batch_execute("ROLLBACK").await.unwrap();
    bench.until("SELECT count(*) = 30 FROM ops").await;
    assert_eq!(bench.number(GUARDED).await, 1);
    drop(daemon);
}

/// What acts in part is kept from the node, and the rest of it not lost.
#[tokio::test]
async fn a_daemon_applies_what_acts_in_part() {
    let bench = Bench::new().await.with(GUARD, "true");
    let (old, floor) = (ago(50 * DAY_MS), ago(40 * DAY_MS));
    bench.run(opsward::db::guard::CREATE).await;
    bench
        .run(&format!(
            r#"INSERT INTO opsward.floors (table_name, floor, raised_at) VALUES ('uploads', '{floor}', now());
               INSERT INTO opsward.traces SELECT opsward.trace_key('uploads', '{{"id":"a"}}'), '{floor}';
               INSERT INTO uploads (id, status) VALUES ('a', 'newer');
               INSERT INTO ops VALUES ('{old}', 'http://h', 'update', 'uploads',
                   '[{{"id":"a","status":"old"}},{{"id":"b","status":"b"}}]')"#
        ))
        .await;
    assert_eq!(bench.left().await, 0);
    let _daemon = bench.daemon().await;
    bench.until("SELECT count(*) = 1 FROM uploads WHERE id = 'b' AND status = 'b'").await;
    bench.until("SELECT count(*) = 0 FROM opsward.rejected_ops").await;
    assert_eq!(bench.number("SELECT count(*) FROM uploads WHERE status = 'newer'").await, 1);
}
