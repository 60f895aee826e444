//! The node's blocks and our locks.

use super::*;
use opsward::db::lease::Lease;
use opsward::db::short_lock::{Behind, briefly};
use tokio::sync::watch;
use tokio::time::Instant;

/// Whichever task takes them, locks share the time that writers may wait.
#[tokio::test]
async fn a_lock_waits_for_the_second_of_the_one_before() {
    let database = Database::of(Schema::C).await;
    let db = database.migrated().await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        // Each a turn of another task; whether it is in time does not matter.
        let mut lease = Lease::take(&db).await.unwrap().unwrap();
        let lock = "LOCK TABLE public.ops IN SHARE ROW EXCLUSIVE MODE";
        let tried = briefly(&mut lease, (&["public.ops"], Behind::Writers), async |tx| {
            begun.push(Instant::now());
            tx.batch_execute(lock).await.unwrap();
            tokio::time::sleep(Duration::from_millis(110)).await;
            Ok(())
        });
        tried.await.unwrap();
    }
    let apart = begun[1] - begun[0];
    assert!(apart > Duration::from_millis(1_100), "{apart:?}");
}

/// Blocks until it is told to stop: how long each insert took.
async fn blocks(mut node: ChainNode, mut stop: watch::Receiver<bool>) -> Vec<Duration> {
    let mut took = Vec::new();
    while !*stop.borrow_and_update() {
        let now = Timestamp::now();
        let n = took.len() as u128;
        let op = [(OpUlid::from_parts(ulid_of(now).ms(), n), "one", "new")];
        let begun = Instant::now();
        assert_eq!(node.block(now, &op).await, 1);
        took.push(begun.elapsed());
        node.look_again(&op, now).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took
}

/// Guard on and off, an index, deletions, a swap and a reclaim in place, one
/// after the other and all at once: no insert of the node's fails.
#[tokio::test]
#[ignore = "on a quiet machine; prints how long the node's inserts took"]
async fn no_insert_of_the_nodes_fails_whatever_we_do() {
    let database = Database::of(Schema::C).await;
    database.migrated().await;
    let client = database.client().await;
    let sql = "INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status)
        SELECT opsward.ulid_at(now() - interval '60 d' + n * interval '4 min') || lpad(n::text, 16, '0'), 'http://o.example',
               'update', 'qm_audio_analyses', jsonb_build_array(jsonb_build_object('cid', n, 'error',
               (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 40) i))), 'confirmed'
        FROM generate_series(1, 20000) n";
    client.batch_execute(sql).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let node = tokio::spawn(blocks(ChainNode::start(&database).await, stopped));
    let settled = "SELECT (SELECT count(*) = $1 FROM pg_trigger WHERE tgname = 'opsward_replay_guard')
        AND EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.opsward_ops_table_ulid') AND indisvalid)";
    for (guard, mode) in [("true", "--mode=swap"), ("false", "--mode=in-place")] {
        let daemon = start(&database, &["run"])
            .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", guard)
            .env("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX", "true")
            .env("OPENAUDIO_MEDIORUM_NODE_URL", "http://127.0.0.1:9")
            .spawn();
        daemon.ready().await;
        let done = async |args: &[&str]| {
            let ran = start(&database, args).output().await;
            // Whoever comes first leaves the other nothing to do.
            assert!(matches!(ran.code, Some(0 | 3)), "{args:?}: {ran:?}");
        };
        done(&["census", "--full", "--pace", "full"]).await;
        while !client.query_one(settled, &[&i64::from(guard == "true")]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let args = ["reclaim", "--policy=window", mode, "--yes", "--pace", "full", "--wait"];
        tokio::join!(done(&args), done(&["prune", "--pace", "full", "--wait"]));
        daemon.signal("TERM");
        daemon.exit().await;
    }
    stop.send(true).unwrap();
    let mut took = node.await.unwrap();
    took.sort();
    println!(
        "{} blocks; the slowest took {:?}, the median {:?}",
        took.len(),
        took[took.len() - 1],
        took[took.len() / 2]
    );
    assert!(took.len() > 100);
    let left: i64 = client
        .query_one("SELECT count(*) FROM ops WHERE host = 'http://other.example'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, took.len() as i64);
}
