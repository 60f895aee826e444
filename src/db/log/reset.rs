//! What a reset writes beside the swap that empties the log, in the same
//! transaction: how far the peers' logs count as read, floors, the history.

use crate::db::{Doing, GenericClient, Result, Transaction, rows};
use crate::records::models;
use crate::values::{Beginning, EARLIEST_ULID, OpUlid, latest_plausible, unix_ms};
use jiff::Timestamp;
use tokio_postgres::types::ToSql;

/// Raises cursors to what the reference had read, the node's and ours: never
/// lower than a plausible value there, and never ahead of now. Runs before the
/// log is locked: the node may hold its rows.
pub(in crate::db) async fn raise_cursors(
    tx: &Transaction<'_>,
    begin: &Beginning,
    now: Timestamp,
) -> Result<()> {
    let now_ms = unix_ms(now);
    let latest = OpUlid::last_of_ms(now_ms.saturating_sub(60_000));
    let hosts: Vec<&str> = begin.cursors.keys().map(String::as_str).collect();
    let capped: Vec<OpUlid> = begin.cursors.values().map(|ulid| latest.min(*ulid)).collect();
    let ulids: Vec<&str> = capped.iter().map(OpUlid::as_str).collect();
    let most = latest_plausible(now_ms);
    let values: [&(dyn ToSql + Sync); 4] = [&hosts, &ulids, &EARLIEST_ULID, &most.as_str()];
    tx.execute(NODE_RAISED, &values).await.doing("raise the node's cursors")?;
    tx.execute(NODE_MADE, &values[..2]).await.doing("raise the node's cursors")?;
    let values: [&(dyn ToSql + Sync); 5] = [&hosts, &ulids, &EARLIEST_ULID, &most.as_str(), &now];
    rows::write(tx, OWN_RAISED, &values, "raise our cursors").await
}

const NODE_RAISED: &str = "
    UPDATE public.cursors c SET last_ulid = w.ulid
    FROM unnest($1::text[], $2::text[]) AS w(host, ulid)
    WHERE rtrim(lower(trim(c.host)), '/') = w.host
      AND NOT coalesce(c.last_ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$'
          AND c.last_ulid COLLATE \"C\" BETWEEN $3::text AND $4::text
          AND c.last_ulid COLLATE \"C\" >= w.ulid, false)";
const NODE_MADE: &str = "
    INSERT INTO public.cursors (host, last_ulid)
    SELECT w.host, w.ulid FROM unnest($1::text[], $2::text[]) AS w(host, ulid)
    WHERE NOT EXISTS (SELECT FROM public.cursors c WHERE rtrim(lower(trim(c.host)), '/') = w.host)";
/// `node_ulid` is what the node's row holds now.
const OWN_RAISED: &str = "
    INSERT INTO opsward.cursors AS c (host, last_ulid, node_ulid, updated_at)
    SELECT w.host, w.ulid, (SELECT n.last_ulid FROM public.cursors n
                            WHERE rtrim(lower(trim(n.host)), '/') = w.host
                            ORDER BY n.host <> w.host, n.host LIMIT 1), $5::timestamptz
    FROM unnest($1::text[], $2::text[]) AS w(host, ulid)
    ON CONFLICT (host) DO UPDATE SET node_ulid = excluded.node_ulid, updated_at = excluded.updated_at,
        last_ulid = CASE
            WHEN c.last_ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$'
             AND c.last_ulid COLLATE \"C\" BETWEEN $3::text AND $4::text
             AND c.last_ulid COLLATE \"C\" >= excluded.last_ulid THEN c.last_ulid
            ELSE excluded.last_ulid END";

/// Writes the rest once the new table is the log: floors over what is gone,
/// the history, and nothing of what was remembered of the old one.
pub(in crate::db) async fn begin_anew(
    tx: &Transaction<'_>,
    begin: &Beginning,
    run: &str,
    (began, now): (Timestamp, Timestamp),
) -> Result<()> {
    let tables: Vec<&str> = models().iter().map(|m| m.table.as_str()).collect();
    let values: [&(dyn ToSql + Sync); 6] =
        [&tables, &begin.young.as_str(), &now, &run, &began, &begin.reference];
    rows::write(tx, BEGIN_ANEW, &values, "write down the reset").await
}

/// No traces were left: as if somebody else had pruned. Nothing is deleted
/// below a fresh table, and its census is another.
const BEGIN_ANEW: &str = "
    WITH floors AS (
        INSERT INTO opsward.floors AS f (table_name, foreign_floor, raised_at)
        SELECT t, $2::text, $3::timestamptz FROM unnest($1::text[]) t
        ON CONFLICT (table_name) DO UPDATE SET raised_at = excluded.raised_at, foreign_floor =
            greatest(f.foreign_floor COLLATE \"C\", excluded.foreign_floor COLLATE \"C\")),
    watermark AS (UPDATE opsward.watermark SET ulid = ''),
    census AS (DELETE FROM opsward.census), pass AS (DELETE FROM opsward.census_pass),
    touched AS (DELETE FROM opsward.census_touched),
    minimum AS (
        INSERT INTO opsward.minimum_seen (at, minimum, ours)
        SELECT $3::timestamptz, (SELECT ulid FROM public.ops ORDER BY ulid LIMIT 1), true
        ON CONFLICT (at) DO UPDATE SET minimum = excluded.minimum, ours = true)
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, bound_by, took_ms, outcome)
    SELECT $4::text, 'reset', '*', $5::timestamptz, $3::timestamptz, $2::text,
           greatest(0, greatest(old.reltuples, 0) - greatest(new.reltuples, 0))::bigint,
           greatest(0, pg_total_relation_size(old.oid) - pg_total_relation_size(new.oid)),
           $6::text, greatest(0, extract(epoch FROM $3::timestamptz - $5::timestamptz) * 1000)::bigint, 'done'
    FROM pg_class old, pg_class new
    WHERE old.oid = to_regclass('opsward.ops_old') AND new.oid = to_regclass('public.ops')";

/// Rows of the log; the planner's guess where counting takes too long.
pub(crate) async fn rows(client: &impl GenericClient) -> Result<u64> {
    match rows::one(client, "SELECT count(*) FROM public.ops", &[], "count what stays").await {
        Err(error) if error.is_too_long() => rows::one(client, ROWS, &[], "read the size of ops").await,
        counted => counted,
    }
}

const ROWS: &str =
    "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass('public.ops')";
