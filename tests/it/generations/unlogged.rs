//! A log that a restore left UNLOGGED: a reclaim says what becomes of it.

use super::*;

const RECLAIM: [&str; 5] = ["reclaim", "--policy=window", "--yes", "--pace", "full"];

/// A log with something to give back, UNLOGGED.
async fn unlogged() -> (Database, ChainNode) {
    let database = Database::of(Schema::C).await;
    database.migrated().await;
    let mut node = ChainNode::start(&database).await;
    old_ops(&node.client).await;
    node.block(Timestamp::now(), &[]).await;
    node.look_again(&[], Timestamp::now()).await;
    assert_eq!(json(&database, &["census", "--full", "--pace", "full"]).await.0, 0);
    node.client.batch_execute("ALTER TABLE ops SET UNLOGGED").await.unwrap();
    (database, node)
}

async fn persistence(node: &ChainNode, sql: &str) -> String {
    node.client
        .query_one(&format!("SELECT string_agg(DISTINCT relpersistence::text, '') {sql}"), &[])
        .await
        .unwrap()
        .get(0)
}

const OF_OPS: &str = "FROM pg_class c WHERE oid = 'public.ops'::regclass
    OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'public.ops'::regclass)";
const OF_OURS: &str = "FROM pg_class WHERE relnamespace = 'opsward'::regnamespace";

#[tokio::test]
async fn a_swap_leaves_it_so_unless_it_is_asked_to() {
    for (args, says, becomes) in [
        (&["--mode=swap"][..], "UNLOGGED and stays so", "u"),
        (&["--mode=swap", "--set-logged"], "takes its place is LOGGED", "p"),
        (&["--mode=in-place"], "ALTER TABLE public.ops SET LOGGED", "u"),
    ] {
        let (database, node) = unlogged().await;
        let args = [&RECLAIM[..], args].concat();
        let (code, plan) = json(&database, &[&args[..], &["--plan"]].concat()).await;
        assert_eq!(code, 0, "{plan}");
        assert!(plan["result"]["notes"].to_string().contains(says), "{args:?}: {plan}");
        assert_eq!(plan["result"]["obstacles"], json!([]), "{args:?}: {plan}");
        let ran = start(&database, &args).output().await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stderr.contains(says), "{args:?}: {ran:?}");
        assert_eq!(persistence(&node, OF_OPS).await, becomes, "{args:?}");
        assert_eq!(persistence(&node, OF_OURS).await, "p", "{args:?}");
    }
}

#[tokio::test]
async fn in_place_there_is_no_table_that_could_be_logged() {
    let (database, node) = unlogged().await;
    let args = [&RECLAIM[..], &["--mode=in-place", "--set-logged"]].concat();
    let (code, refused) = json(&database, &args).await;
    assert_eq!((code, &refused["error"]["code"]), (3, &"set_logged".into()), "{refused}");
    assert!(refused["error"]["fix"].to_string().contains("SET LOGGED"), "{refused}");
    assert_eq!(persistence(&node, OF_OPS).await, "u");
}

/// A crash of the server empties both tables: what was copied is not believed.
#[tokio::test]
async fn a_log_that_is_logged_meanwhile_is_not_replaced_by_one_that_is_not() {
    let (database, node) = unlogged().await;
    let args = [&RECLAIM[..], &["--mode=swap", "--hold"]].concat();
    let (code, held) = json(&database, &args).await;
    assert_eq!((code, &held["result"]["outcome"]), (0, &"held".into()), "{held}");
    node.client.batch_execute("ALTER TABLE ops SET LOGGED").await.unwrap();
    let (_, ended) = json(&database, &["reclaim", "--swap", "--yes", "--pace", "full"]).await;
    assert_eq!(persistence(&node, OF_OPS).await, "p", "{ended}");
    assert_eq!(persistence(&node, OF_OURS).await, "p", "{ended}");
}
