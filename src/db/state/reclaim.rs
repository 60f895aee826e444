//! `opsward.reclaim`: the checkpoint of a reclaim, as JSON that its room
//! understands. A step writes it in the transaction of its effect.

use crate::db::error::{Doing, Error, Result};
use crate::db::transaction::GenericClient;
use jiff::Timestamp;
use serde_json::Value;

/// The checkpoint, where a reclaim is under way or was interrupted, and when
/// it was last written.
pub async fn load(client: &impl GenericClient) -> Result<Option<(Value, Timestamp)>> {
    let row = client.query_opt(LOAD, &[]).await.doing("read the checkpoint")?;
    row.map(|r| {
        let text: String = r.get(0);
        let value = serde_json::from_str(&text).map_err(|e| {
            Error::Unfit(format!("the checkpoint of the reclaim in opsward.reclaim does not read: {e}"))
        })?;
        Ok((value, r.get(1)))
    })
    .transpose()
}

const LOAD: &str = "SELECT checkpoint::text, updated_at FROM opsward.reclaim";

/// Writes it.
pub async fn save(client: &impl GenericClient, checkpoint: &Value) -> Result<()> {
    let statement = client.prepare_cached(SAVE).await.doing("write the checkpoint")?;
    client.execute(&statement, &[&checkpoint.to_string()]).await.doing("write the checkpoint")?;
    Ok(())
}

pub(in crate::db) const SAVE: &str = "
    INSERT INTO opsward.reclaim (checkpoint, updated_at) VALUES ($1::text::jsonb, clock_timestamp())
    ON CONFLICT (one) DO UPDATE SET checkpoint = excluded.checkpoint, updated_at = excluded.updated_at";

/// The reclaim is over.
pub async fn forget(client: &impl GenericClient) -> Result<()> {
    client.batch_execute(FORGET).await.doing("end the reclaim")?;
    clear(client).await
}

/// The capture's function goes last: the old table's triggers needed it.
const FORGET: &str = "DO $forget$ BEGIN
    DELETE FROM opsward.reclaim;
    DROP FUNCTION IF EXISTS public.opsward_capture() CASCADE;
    DELETE FROM opsward.owned WHERE kind = 'trigger' AND name = 'opsward_capture';
    END $forget$";

/// Empties what only one reclaim uses. A dump that reads it, or an autovacuum,
/// is in the way of a TRUNCATE, not of deleting what mostly is little.
pub async fn clear(client: &impl GenericClient) -> Result<()> {
    client.batch_execute(CLEAR).await.doing("clear what a reclaim left")
}

const CLEAR: &str = "DO $clear$ BEGIN
    TRUNCATE opsward.captured, opsward.reclaim_kept, opsward.reclaim_drops, opsward.reclaim_covers;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    DELETE FROM opsward.captured;
    DELETE FROM opsward.reclaim_kept;
    DELETE FROM opsward.reclaim_drops;
    DELETE FROM opsward.reclaim_covers;
END $clear$";

/// A reclaim that is under way or was interrupted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unfinished {
    /// `swap` or `in-place`.
    pub mode: String,
    /// Its phase, in a word.
    pub phase: String,
    /// It waits for `opsward reclaim --swap`.
    pub held: bool,
    /// When it last did something.
    pub since: Timestamp,
}

/// The reclaim that is under way or was interrupted, for whoever shows it.
pub async fn unfinished(client: &impl GenericClient) -> Result<Option<Unfinished>> {
    let row = client.query_opt(UNFINISHED, &[]).await.doing("look for an unfinished reclaim")?;
    Ok(row.map(|r| Unfinished { mode: r.get(0), phase: r.get(1), held: r.get(2), since: r.get(3) }))
}

const UNFINISHED: &str = "
    SELECT coalesce(checkpoint ->> 'mode', ''), coalesce(checkpoint ->> 'phase', ''),
           coalesce((checkpoint ->> 'hold')::boolean AND checkpoint ->> 'phase' = 'swap', false), updated_at
    FROM opsward.reclaim";

/// Adds to the history how a reclaim ended: its mode, and the bytes that the
/// filesystem got back.
pub async fn ended(
    client: &impl GenericClient,
    run: &str,
    began: Timestamp,
    (mode, bytes): (&str, u64),
    outcome: &str,
) -> Result<()> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    client.execute(ENDED, &[&run, &began, &bytes, &mode, &outcome]).await.doing("write the history")?;
    Ok(())
}

const ENDED: &str = "
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, bound_by, took_ms, outcome)
    VALUES ($1, 'reclaim', '(disk)', $2::timestamptz, now(), '', 0, $3, $4,
            greatest(0, extract(epoch FROM now() - $2) * 1000)::bigint, $5)
    ON CONFLICT (run, task, table_name) DO NOTHING";

/// When a reclaim last ended, well or undone.
pub async fn last(client: &impl GenericClient) -> Result<Option<Timestamp>> {
    Ok(client.query_one(LAST, &[]).await.doing("look for the last reclaim")?.get(0))
}

const LAST: &str =
    "SELECT max(ended_at) FROM opsward.history WHERE task = 'reclaim' AND table_name = '(disk)'";
