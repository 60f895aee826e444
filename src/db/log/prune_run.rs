//! Where a run of deletions begins and ends.

use crate::db::{
    Client, Doing, Params, Result, Transaction, activity::process, prune::TableCut, rows, watermark,
};
use crate::values::{EARLIEST_ULID, OpUlid};

/// Writes how a run came out.
pub async fn end(client: &Client, run: &str, outcome: &str) -> Result<()> {
    rows::write(client, END, &[&run, &outcome], "write the history").await
}

const END: &str = "UPDATE opsward.history SET outcome = $2 WHERE run = $1";

/// The sessions that hold these rows locked: the server writes the last of them into the row.
pub async fn lockers(client: &Client, ulids: &[OpUlid]) -> Result<Vec<String>> {
    let ulids: Vec<&str> = ulids.iter().map(OpUlid::as_str).collect();
    let rows = client.query(LOCKERS, &[&ulids]).await.doing("look who holds rows of ops")?;
    Ok(rows.iter().map(process).collect())
}

const LOCKERS: &str = "
    SELECT DISTINCT a.pid, coalesce(a.usename, a.backend_type), a.application_name, a.xact_start, a.query
    FROM public.ops o
    JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = o.xmax AND l.granted
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE o.ulid = ANY ($1::text[]) AND a.pid <> pg_backend_pid() LIMIT 5";

/// Where a run over these tables begins: below it nothing is left of them. It
/// is the watermark, or where their last run ended, unless the census has seen
/// rows below that since.
pub async fn begin_at(client: &Client, tables: &[&str]) -> Result<String> {
    rows::one(client, BEGIN_AT, &[&tables, &EARLIEST_ULID], "see where to begin").await
}

const BEGIN_AT: &str = "
    SELECT greatest($2::text, least(
        greatest((SELECT ulid FROM opsward.watermark ORDER BY n DESC LIMIT 1), min(coalesce(f.swept, ''))),
        (SELECT min(c.oldest COLLATE \"default\") FROM opsward.census c
         WHERE c.table_name = ANY ($1) AND c.rows > c.owed AND NOT c.estimated)))
    FROM unnest($1::text[]) AS t(name) LEFT JOIN opsward.floors f ON f.table_name = t.name";

/// Which of these tables have an op at or above a ULID among the newest of the
/// log: what came since all that is recent was read, before the run.
pub async fn active(
    tx: &Transaction<'_>,
    tables: &[&str],
    since: OpUlid,
    latest: OpUlid,
) -> Result<Vec<String>> {
    let statement = tx.prepare_cached(ACTIVE).await.doing("look for recent ops")?;
    let params: Params<'_> = &[&tables, &since.as_str(), &latest.as_str()];
    rows::all(tx, &statement, params, "look for recent ops").await
}

const ACTIVE: &str = r#"
    SELECT DISTINCT name FROM (
        SELECT "table" AS name FROM public.ops WHERE ulid >= $2 AND ulid <= $3
        ORDER BY ulid DESC LIMIT 20000) newest
    WHERE name = ANY ($1)"#;

/// Remembers that nothing is left of these tables below a ULID, or below their
/// cuts where those are lower.
pub async fn swept(tx: &Transaction<'_>, cuts: &[TableCut], to: &str) -> Result<()> {
    let tables: Vec<&str> = cuts.iter().map(|c| c.table.as_str()).collect();
    let belows: Vec<&str> = cuts.iter().map(|c| c.below.as_str()).collect();
    rows::write_cached(tx, SWEPT, &[&tables, &belows, &to], "remember how far it got").await
}

const SWEPT: &str = "
    INSERT INTO opsward.floors AS f (table_name, swept, raised_at)
    SELECT name, least(below, $3), now() FROM unnest($1::text[], $2::text[]) AS c(name, below)
    ON CONFLICT (table_name) DO UPDATE SET swept = greatest(f.swept, excluded.swept)";

/// Moves the watermark to the first row that is left, where batches could not:
/// they began above it, or came back to rows that had been locked.
///
/// # Errors
/// The database's; among them that too many dead entries lie in between. The
/// watermark stays then.
pub async fn settle(tx: &Transaction<'_>, until: OpUlid, now_ms: u64) -> Result<()> {
    let first = watermark::minimum(tx, now_ms).await?.map_or(until, |first| first.min(until));
    rows::write_cached(tx, SETTLE, &[&first.as_str()], "move the watermark").await
}

const SETTLE: &str = "UPDATE opsward.watermark SET ulid = $1::text WHERE ulid < $1::text";
