//! A state sync empties every table and fills them again while opsward is at
//! work: nothing of the refill is refused, and nothing of it is lost.

use super::*;
use crate::harness::daemon::Ran;

/// What is loaded: the log as it was. An op that is refused fails it.
const REFILL: &str = "DO $$ DECLARE n bigint; BEGIN
        INSERT INTO aside.before SELECT coalesce(sum(rows), 0) FROM opsward.history;
        INSERT INTO public.ops SELECT * FROM aside.ops;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> (SELECT count(*) FROM aside.ops) THEN RAISE EXCEPTION 'only % went in', n; END IF;
    END $$";
const ROWS: i64 = 6_000;

/// A log of 60 days, of which 10 were deleted already and are remembered, and
/// all of it aside.
async fn remembered() -> (Database, ChainNode) {
    let database = Database::of(Schema::C).await;
    database.migrated().await;
    let mut node = ChainNode::start(&database).await;
    let sql = format!(
        "INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status, core_confirmed_at)
         SELECT opsward.ulid_at(t) || lpad(n::text, 16, '0'), 'http://o.example', 'update', 'qm_audio_analyses',
                jsonb_build_array(jsonb_build_object('cid', n % 50, 'error', repeat(md5(n::text), 20))), 'confirmed', t
         FROM (SELECT n, now() - interval '60 d' + (n + 0.5) * interval '60 d' / {ROWS} AS t FROM generate_series(0, {ROWS} - 1) n) q;
         CREATE SCHEMA aside; CREATE TABLE aside.ops AS TABLE ops; CREATE TABLE aside.before (rows bigint);
         INSERT INTO opsward.pace (percent, set_at) VALUES (100, now())"
    );
    node.client.batch_execute(&sql).await.unwrap();
    node.block(Timestamp::now(), &[]).await;
    node.look_again(&[], Timestamp::now()).await;
    let (code, done) = guarded(&database, &["prune"]).env(RETENTION, "50").json().await;
    assert_eq!(code, 0, "{done}");
    assert_eq!(number(&node, "SELECT count(*) FROM ops").await, ROWS / 6 * 5);
    assert!(node.client.batch_execute(REFILL).await.is_err(), "the guard is on");
    (database, node)
}

fn guarded(database: &Database, args: &[&str]) -> Start {
    start(database, args)
        .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_BATCH_LIMIT", "100")
}

async fn number(node: &ChainNode, sql: &str) -> i64 {
    node.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

const DELETED: &str = "SELECT coalesce(sum(rows), 0)::bigint FROM opsward.history";

/// All that was loaded is there, or was deleted since and is remembered.
async fn is_whole(node: &mut ChainNode, before: i64, what: &str) {
    let deleted = number(node, DELETED).await - before;
    assert_eq!(number(node, "SELECT count(*) FROM ops").await, ROWS - deleted, "{what}: {deleted} deleted");
    assert_eq!(number(node, "SELECT last_value FROM opsward.guard_failed").await, 0, "{what}");
    let unlike =
        "SELECT count(*) FROM ops o LEFT JOIN aside.ops a USING (ulid) WHERE o.data IS DISTINCT FROM a.data";
    assert_eq!(number(node, unlike).await, 0, "{what}");
    let oldest = "SELECT ulid FROM aside.ops ORDER BY ulid LIMIT 1";
    let oldest: String = node.client.query_one(oldest, &[]).await.unwrap().get(0);
    let again = [(OpUlid::parse(&oldest).unwrap(), "0", "again")];
    assert_eq!(node.execute_again(&again).await, 0, "{what}");
    let left = "SELECT (to_regclass('opsward.ops_next') IS NOT NULL)::int::bigint
        + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'opsward_capture%')
        + (SELECT count(*) FROM pg_class WHERE relname = 'ops' AND relpersistence <> 'p')";
    assert_eq!(number(node, left).await, 0, "{what}");
}

/// Says how many rows were deleted before the log was emptied.
async fn synced(node: &mut ChainNode) -> i64 {
    node.state_sync(REFILL).await;
    node.block(Timestamp::now(), &[]).await;
    node.look_again(&[], Timestamp::now()).await;
    number(node, "SELECT max(rows) FROM aside.before").await
}

#[tokio::test]
async fn what_a_state_sync_loads_goes_in_whole() {
    let (database, mut node) = remembered().await;
    let before = synced(&mut node).await;
    let kept = "SELECT (SELECT count(*) FROM opsward.floors WHERE floor IS NOT NULL)
        + (SELECT count(*) FROM opsward.traces) + (SELECT count(*) FROM opsward.census)";
    assert_eq!(number(&node, kept).await, 0);
    is_whole(&mut node, before, "idle").await;
    // What is deleted of it is remembered anew.
    let (code, done) = guarded(&database, &["prune"]).json().await;
    assert_eq!(code, 0, "{done}");
    is_whole(&mut node, before, "pruned").await;
}

const ANOTHER: &str = "CREATE TABLE another (LIKE ops INCLUDING ALL); DROP TABLE ops;
    ALTER TABLE another RENAME TO ops; ALTER INDEX another_pkey RENAME TO ops_pkey;
    ALTER INDEX another_host_core_tx_status_ulid_idx RENAME TO ops_core_pending_idx";

/// As `pg_restore --clean` does it, without a daemon that keeps looking: whatever deleted of the
/// table before knew which one it was, right after a TRUNCATE too.
#[tokio::test]
async fn what_is_put_back_into_another_table_goes_in_whole() {
    let (database, mut node) = remembered().await;
    let prune = async |what: &str| {
        let (code, done) = guarded(&database, &["prune"]).json().await;
        assert_eq!(code, 0, "{what}: {done}");
    };
    for what in ["after a prune", "after a TRUNCATE and a prune"] {
        node.client.batch_execute(ANOTHER).await.unwrap();
        prune(what).await;
        let before = number(&node, DELETED).await;
        node.client.batch_execute(REFILL).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        // What came below where it had read is found by a census.
        assert_eq!(guarded(&database, &["census", "--full"]).json().await.0, 0, "{what}");
        prune(what).await;
        is_whole(&mut node, before, what).await;
        assert!(number(&node, DELETED).await > before, "{what}");
        node.client.batch_execute("TRUNCATE ops").await.unwrap();
        node.client.batch_execute(REFILL).await.unwrap();
        prune(what).await;
    }
}

/// A state sync comes as a command is at it, which goes at so much of its pace until then.
async fn meanwhile(args: &[&str], percent: u8, is_at_it: &str) -> Ran {
    let (database, mut node) = remembered().await;
    let pace = |percent: u8| format!("UPDATE opsward.pace SET percent = {percent}");
    node.client.batch_execute(&pace(percent)).await.unwrap();
    let command = guarded(&database, args).spawn();
    let look = async {
        while number(&node, is_at_it).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(300), look).await;
    waited.unwrap_or_else(|_| panic!("{args:?} never came to {is_at_it}:\n{}", command.log()));
    node.client.batch_execute(&pace(5)).await.unwrap();
    let before = synced(&mut node).await;
    node.client.batch_execute(&pace(100)).await.unwrap();
    let ran = command.ran().await;
    let (code, said) = guarded(&database, &["reclaim", "--abort", "--yes"]).json().await;
    assert!(code == 0 || said.to_string().contains("no reclaim to undo"), "{args:?}: {said}");
    is_whole(&mut node, before, &format!("{args:?}")).await;
    ran
}

#[tokio::test]
async fn a_state_sync_in_the_middle_of_a_prune() {
    let at_it = "SELECT count(*) FROM (SELECT count(*) FROM ops) q WHERE count < 5000";
    let ran = meanwhile(&["prune"], 5, at_it).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

fn reclaim(mode: &'static str) -> [&'static str; 4] {
    ["reclaim", "--policy=window", "--yes", mode]
}

fn in_phase(phases: &str) -> String {
    format!("SELECT count(*) FROM opsward.reclaim WHERE checkpoint::text ~ '\"({phases})\"'")
}

#[tokio::test]
async fn a_state_sync_in_the_middle_of_a_swap() {
    let ran = meanwhile(&reclaim("--mode=swap"), 5, &in_phase("copy")).await;
    assert_ne!(ran.code, Some(0), "{ran:?}");
    // Whatever of it was noticed first.
    assert!(ran.stderr.contains("the reclaim is undone"), "{ran:?}");
}

#[tokio::test]
async fn a_state_sync_in_the_middle_of_a_reclaim_in_place() {
    for (phases, percent) in [("delete", 5), ("vacuum|rewrite|move", 100)] {
        let ran = meanwhile(&reclaim("--mode=in-place"), percent, &in_phase(phases)).await;
        // The gate closed, as the node has no block yet; or nothing is left to do.
        assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
    }
}
