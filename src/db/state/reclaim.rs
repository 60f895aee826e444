//! `opsward.reclaim`: the checkpoint of a reclaim, as JSON that its room
//! understands. A step writes it in the transaction of its effect.

use crate::db::{Doing, GenericClient, Result, lease::LEASE_LOCK, rows};
use crate::values::{Unfinished, signed};
use jiff::Timestamp;
use serde_json::Value;

/// The checkpoint, where a reclaim is under way or was interrupted, and when
/// it was last written.
pub async fn load(client: &impl GenericClient) -> Result<Option<(Value, Timestamp)>> {
    rows::maybe(client, LOAD, &[], "read the checkpoint").await
}

const LOAD: &str = "SELECT checkpoint, updated_at FROM opsward.reclaim ORDER BY n DESC LIMIT 1";

/// Writes it. Planned anew each time: the plan of an empty table reads all versions.
pub async fn save(client: &impl GenericClient, checkpoint: &Value) -> Result<()> {
    rows::write(client, SAVE, &[&checkpoint.to_string()], "write the checkpoint").await
}

pub(in crate::db) const SAVE: &str = "
    WITH last AS (SELECT n FROM opsward.reclaim ORDER BY n DESC LIMIT 1),
    first AS (
        INSERT INTO opsward.reclaim (checkpoint, updated_at)
        SELECT $1::text::jsonb, clock_timestamp() WHERE NOT EXISTS (SELECT FROM last))
    UPDATE opsward.reclaim SET checkpoint = $1::text::jsonb, updated_at = clock_timestamp(), n = n + 1
    WHERE n = (SELECT n FROM last)";

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

/// The reclaim that is under way or was interrupted, for whoever shows it.
pub async fn unfinished(client: &impl GenericClient) -> Result<Option<Unfinished>> {
    rows::maybe(client, UNFINISHED, &[&LEASE_LOCK], "look for an unfinished reclaim").await
}

const UNFINISHED: &str = "
    SELECT coalesce(checkpoint ->> 'mode', '') AS mode, coalesce(checkpoint ->> 'phase', '') AS phase,
           coalesce((checkpoint ->> 'hold')::boolean AND checkpoint ->> 'phase' = 'swap', false) AS held,
           EXISTS (SELECT FROM opsward.jobs
                   WHERE kind = 'reclaim' AND started_at IS NOT NULL AND finished_at IS NULL)
           AND EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND (classid::bigint << 32 | objid::bigint) = $1::bigint) AS at_work,
           updated_at AS since
    FROM opsward.reclaim ORDER BY n DESC LIMIT 1";

/// Adds to the history how a reclaim ended: its mode, and the bytes that the
/// filesystem got back.
pub async fn ended(
    client: &impl GenericClient,
    run: &str,
    began: Timestamp,
    (mode, bytes): (&str, u64),
    outcome: &str,
) -> Result<()> {
    let bytes = signed(bytes);
    rows::write(client, ENDED, &[&run, &began, &bytes, &mode, &outcome], "write the history").await
}

const ENDED: &str = "
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, bound_by, took_ms, outcome)
    VALUES ($1, 'reclaim', '(disk)', $2::timestamptz, now(), '', 0, $3, $4,
            greatest(0, extract(epoch FROM now() - $2) * 1000)::bigint, $5)
    ON CONFLICT (run, task, table_name) DO NOTHING";

/// When a reclaim last ended, well or undone.
pub async fn last(client: &impl GenericClient) -> Result<Option<Timestamp>> {
    rows::one(client, LAST, &[], "look for the last reclaim").await
}

const LAST: &str =
    "SELECT max(ended_at) FROM opsward.history WHERE task = 'reclaim' AND table_name = '(disk)'";
