//! The disk back after the node's own pruner, while blocks go on: each row is
//! inserted, and updated within seconds.

use super::*;
use crate::harness::daemon::Ran;

/// Blocks of two ops and own writes for as long as the command runs: the second
/// look at a block and the submitter come after the next one. Returns how many
/// ops there were.
async fn beside(node: &mut ChainNode, command: &Daemon) -> (u64, Ran) {
    let mut ran = std::pin::pin!(command.ran());
    let (mut ops, mut before): (u64, Vec<(OpUlid, String)>) = (0, Vec::new());
    loop {
        tokio::select! {
            ran = &mut ran => return (ops, ran),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        let now = Timestamp::now();
        let ulid = |n: u128| OpUlid::from_parts(ulid_of(now).ms(), u128::from(ops) * 4 + n);
        let block = [(ulid(0), format!("r{}", ops % 7)), (ulid(1), format!("r{}", (ops + 1) % 7))];
        let last = std::mem::replace(&mut before, block.to_vec());
        let this: Vec<_> = block.iter().map(|(ulid, cid)| (*ulid, cid.as_str(), "new")).collect();
        assert_eq!(node.block(now, &this).await, 2);
        let last: Vec<_> = last.iter().map(|(ulid, cid)| (*ulid, cid.as_str(), "new")).collect();
        node.look_again(&last, now).await;
        node.submits().await;
        node.writes(ulid(2), &json!([{"cid": "own"}])).await;
        ops += 3;
    }
}

#[tokio::test]
async fn both_modes_give_back_what_the_node_pruned_while_blocks_go_on() {
    for mode in ["--mode=swap", "--mode=in-place"] {
        let database = Database::of(Schema::C).await;
        database.migrated().await;
        let mut node = ChainNode::start(&database).await;
        let old = ulid_of(real_ago(40)).ms();
        for (from, rows) in [(old, 18_000), (ulid_of(real_ago(3)).ms(), 2_000)] {
            let sql = format!(
                "INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status, core_confirmed_at)
                 SELECT opsward.ulid_at(to_timestamp(({from} + n) / 1000.0)) || lpad(n::text, 16, '0'),
                        'http://o.example', 'update', 'qm_audio_analyses',
                        jsonb_build_array(jsonb_build_object('cid', n, 'error', (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 40) i))),
                        'confirmed', to_timestamp(({from} + n) / 1000.0)
                 FROM generate_series(1, {rows}) n"
            );
            node.client.batch_execute(&sql).await.unwrap();
        }
        assert_eq!(node.prunes(ulid_of(real_ago(30))).await, 18_000);
        node.client.batch_execute("VACUUM ops").await.unwrap();
        node.block(Timestamp::now(), &[]).await;
        node.look_again(&[], Timestamp::now()).await;
        assert_eq!(json(&database, &["census", "--full", "--pace", "full"]).await.0, 0);

        let args = ["reclaim", "--policy=window", mode, "--yes", "--pace", "60%"];
        let (_, plan) = json(&database, &[&args[..], &["--plan"]].concat()).await;
        let notes = plan["result"]["notes"].to_string();
        assert!(notes.contains("nothing to delete and no trace to leave"), "{plan}");
        assert!(notes.contains("is better"), "{plan}");
        let command = start(&database, &args).spawn();
        let (wrote, ran) = beside(&mut node, &command).await;
        assert_eq!(ran.code, Some(0), "{mode}: {ran:?}");
        assert!(wrote > 6, "{mode}: the node wrote only {wrote} ops meanwhile");
        node.submits().await;

        let row = node
            .client
            .query_one(
                "SELECT (SELECT count(*) FROM ops WHERE core_tx_status = 'confirmed' OR ulid IN (SELECT ulid FROM ops ORDER BY ulid DESC LIMIT 4)),
                        (SELECT count(*) FROM ops), (SELECT count(*) FROM opsward.traces),
                        (SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = 'public.ops_core_pending_idx'::regclass
                         AND indrelid = 'public.ops'::regclass),
                        pg_table_size('ops')",
                &[],
            )
            .await
            .unwrap();
        let [confirmed, rows, traces] = [0, 1, 2].map(|i| row.get::<_, i64>(i));
        assert_eq!((rows, confirmed), (2_000 + wrote as i64, rows), "{mode}");
        assert_eq!(traces, 0, "{mode}");
        assert!(row.get::<_, bool>(3), "{mode}: the index is valid, under its name");
        assert!(row.get::<_, i64>(4) < 12 << 20, "{mode}: {} bytes", row.get::<_, i64>(4));
    }
}
