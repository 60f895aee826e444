//! `opsward.reclaim_covers`: what the pass of a compaction that is under way has
//! learned so far, part by part. Its room understands it.

use crate::db::{Doing, GenericClient, Result, rows};

/// Adds what a part taught.
pub async fn add(client: &impl GenericClient, learned: &[u8]) -> Result<()> {
    if learned.is_empty() {
        return Ok(());
    }
    rows::write_cached(client, ADD, &[&learned], "store what a part taught").await
}

const ADD: &str = "INSERT INTO opsward.reclaim_covers (learned) VALUES ($1)";

/// The next part after one, and what it taught.
pub async fn next(client: &impl GenericClient, after: i64) -> Result<Option<(i64, Vec<u8>)>> {
    let rows = rows::cached(client, NEXT, &[&after], "read what a part taught").await?;
    Ok(rows.first().map(|r| (r.get(0), r.get(1))))
}

const NEXT: &str = "SELECT part, learned FROM opsward.reclaim_covers WHERE part > $1 ORDER BY part LIMIT 1";

/// The pass is over.
pub async fn clear(client: &impl GenericClient) -> Result<()> {
    client.batch_execute(CLEAR).await.doing("forget what a pass learned")
}

const CLEAR: &str = "DO $clear$ BEGIN
    TRUNCATE opsward.reclaim_covers;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    DELETE FROM opsward.reclaim_covers;
END $clear$";
