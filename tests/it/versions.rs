//! Contract 5: an old snapshot keeps every version of opsward's own rows. What a batch reads
//! and writes of them does not grow with the batches before it.

use crate::harness::Database;
use opsward::db::lease::Lease;
use opsward::db::{Client, Db, Transaction, reclaim};
use serde_json::json;

/// Blocks that a session and those before it read of a relation of ours, its indexes included.
async fn blocks(db: &Db, relation: &str, session: &Client) -> i64 {
    session.batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    session.batch_execute("SELECT 1").await.unwrap();
    let sql = "SELECT coalesce(heap_blks_read + heap_blks_hit, 0) + coalesce(idx_blks_read + idx_blks_hit, 0)
               FROM pg_statio_user_tables WHERE schemaname = 'opsward' AND relname = $1";
    db.client().await.unwrap().query_one(sql, &[&relation]).await.unwrap().get(0)
}

/// Runs something again and again, a transaction each; blocks that the first and the last 100 read.
async fn first_and_last(db: &Db, relation: &str, change: impl AsyncFn(&Transaction<'_>, u32)) -> [i64; 2] {
    let Ok(mut lease) = Lease::take(db).await.unwrap() else { panic!("the lease is held") };
    let mut read = Vec::new();
    for n in 0..=1_000 {
        if n % 100 == 0 {
            read.push(blocks(db, relation, lease.client().unwrap()).await);
        }
        let tx = lease.begin().await.unwrap();
        change(&tx, n).await;
        tx.commit().await.unwrap();
    }
    [read[1] - read[0], read[10] - read[9]]
}

#[tokio::test]
async fn a_checkpoint_costs_the_same_whatever_was_written_before_it() {
    let database = Database::new().await;
    let (db, _old) = (database.migrated().await, database.old_snapshot().await);
    let survivors = "x".repeat(1_500);
    let save = async |tx: &Transaction<'_>, n: u32| {
        reclaim::save(tx, &json!({ "position": n, "survivors": survivors })).await.unwrap();
    };
    let [first, last] = first_and_last(&db, "reclaim", save).await;
    println!("blocks of 100 checkpoints: {first} of the first, {last} of the last");
    // The server counts some of it late, and an autovacuum's reads as well: with a key that
    // stayed the same it was 21 times as much.
    assert!(last < first * 4, "{first} became {last}");
    // Whoever looks reads the last one, not those before it.
    let client = db.client().await.unwrap();
    let before = blocks(&db, "reclaim", &client).await;
    let (checkpoint, _) = reclaim::load(&client).await.unwrap().unwrap();
    assert_eq!(checkpoint["position"], 1_000);
    let look = blocks(&db, "reclaim", &client).await - before;
    assert!(look < 20, "a look reads {look} blocks");
}
