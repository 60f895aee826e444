//! The moment at which the new table takes the log's place.

use super::clone::{Columns, NEXT, OPS, traits};
use super::copy::{Copied, recheck, replay};
use super::error::{Doing, Result};
use super::{capture, prune};
use crate::values::OpUlid;
use deadpool_postgres::Transaction;
use jiff::Timestamp;

/// Noted keys that the last replay takes on at most, under the lock.
const LAST_KEYS: u32 = 500;

/// What a swap has to find, or it is none.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// What the log is like.
    pub fingerprint: &'a str,
    /// The capture as it was made.
    pub capture: &'a str,
    /// What can be written of a row.
    pub columns: &'a Columns,
    /// Keys below it are remembered as kept.
    pub ceiling: &'a str,
}

/// What came of a try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Swapped {
    /// The new table is the log, once this transaction commits.
    Yes,
    /// Too much was written meanwhile: replay first.
    Behind,
    /// Something is not as it was: look again.
    Changed,
    /// These keys differ: the copy is not to be trusted.
    Differs(Vec<String>),
}

/// Puts the new table in the log's place, in the transaction that
/// [`capture::strong`] prepared: the lock, the last replay, the last checks,
/// the names, our triggers. Only `Yes` may be committed.
///
/// # Errors
/// The database's; see [`capture::is_contended`].
pub async fn swap(tx: &Transaction<'_>, expected: &Expected<'_>) -> Result<Swapped> {
    tx.batch_execute(LOCK).await.doing("lock the log")?;
    // From here on nobody writes, and every statement sees all that was.
    let standing = capture::standing(tx).await?;
    let noted = standing.firing && standing.state == 1 && standing.next && !standing.old;
    if !noted || standing.triggers.as_deref() != Some(expected.capture) {
        return Ok(Swapped::Changed);
    }
    if traits(tx, OPS).await?.fingerprint() != expected.fingerprint
        || traits(tx, NEXT).await?.fingerprint() != expected.fingerprint
    {
        return Ok(Swapped::Changed);
    }
    let keys = replay(tx, expected.columns, Copied::All, (expected.ceiling, LAST_KEYS)).await?;
    let left = tx.query_one(LEFT, &[]).await.doing("look for unreplayed writes")?;
    if left.get(0) {
        return Ok(Swapped::Behind);
    }
    let differs = recheck(tx, expected.columns, &keys).await?;
    if !differs.is_empty() {
        return Ok(Swapped::Differs(differs));
    }
    let script = tx.query(SCRIPT, &[]).await.doing("read the names of ops")?;
    let script: Vec<String> = script.iter().map(|r| r.get(0)).collect();
    tx.batch_execute(&script.join("; ")).await.doing("swap the tables")?;
    capture::disown(tx).await?;
    Ok(Swapped::Yes)
}

/// The new table first: an autovacuum of it yields while nobody waits yet.
const LOCK: &str = "LOCK TABLE opsward.ops_next IN ACCESS EXCLUSIVE MODE; \
    LOCK TABLE public.ops IN ACCESS EXCLUSIVE MODE";
const LEFT: &str = "SELECT EXISTS (SELECT FROM opsward.captured)";

/// Names of indexes are one a schema: the old ones make room. Triggers of ours
/// but the capture come back on the new table, after the last replay.
const SCRIPT: &str = r#"
    SELECT statement FROM (
        SELECT 1 AS place, i.oid::bigint AS n,
               format('ALTER INDEX public.%I RENAME TO %I', i.relname,
                      'ops_old_' || row_number() OVER (ORDER BY i.oid) || '_idx') AS statement
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = 'public.ops'::regclass
        UNION ALL SELECT 2, 0, 'ALTER TABLE public.ops RENAME TO ops_old'
        UNION ALL SELECT 3, 0, 'ALTER TABLE public.ops_old SET SCHEMA opsward'
        UNION ALL SELECT 4, 0, 'ALTER TABLE opsward.ops_next SET SCHEMA public'
        UNION ALL SELECT 5, 0, 'ALTER TABLE public.ops_next RENAME TO ops'
        UNION ALL
        SELECT 6, t.oid::bigint, pg_get_triggerdef(t.oid)
        FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace = 'opsward'::regnamespace
        WHERE t.tgrelid = 'public.ops'::regclass AND NOT t.tgisinternal AND p.proname <> 'capture'
        UNION ALL
        SELECT 7, t.oid::bigint, format('ALTER TABLE public.ops %s TRIGGER %I', CASE t.tgenabled
                   WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'DISABLE' END, t.tgname)
        FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace = 'opsward'::regnamespace
        WHERE t.tgrelid = 'public.ops'::regclass AND NOT t.tgisinternal AND p.proname <> 'capture'
          AND t.tgenabled <> 'O') script
    ORDER BY place, n"#;

/// What is written of one table when it has been swapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// The table.
    pub table: String,
    /// The lowest ULID that stays.
    pub below: OpUlid,
    /// Compacted, and not cut: it raises the horizon, not the floor.
    pub compacted: bool,
    /// Rows, bytes without indexes, traces.
    pub sums: [u64; 3],
}

/// Raises floors and horizons over what is gone, and adds to the history.
///
/// # Errors
/// The database's.
pub async fn remember(tx: &Transaction<'_>, run: &str, began: Timestamp, losses: &[Loss]) -> Result<()> {
    for (compacted, raise) in [(false, prune::RAISE_FLOORS), (true, prune::RAISE_HORIZONS)] {
        let of: Vec<&Loss> = losses.iter().filter(|l| l.compacted == compacted).collect();
        let tables: Vec<&str> = of.iter().map(|l| l.table.as_str()).collect();
        let belows: Vec<&str> = of.iter().map(|l| l.below.as_str()).collect();
        let statement = tx.prepare_cached(raise).await.doing("raise floors")?;
        tx.execute(&statement, &[&tables, &belows]).await.doing("raise floors")?;
    }
    for loss in losses {
        let [rows, bytes, traces] = loss.sums.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let bound_by = if loss.compacted { "compact" } else { "window" };
        tx.execute(
            ADD,
            &[&run, &loss.table, &began, &loss.below.as_str(), &rows, &bytes, &traces, &bound_by],
        )
        .await
        .doing("write the history")?;
    }
    Ok(())
}

const ADD: &str = "
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, traces, bound_by, took_ms, outcome)
    VALUES ($1, 'reclaim', $2, $3::timestamptz, now(), $4, $5, $6, $7, $8,
            greatest(0, extract(epoch FROM now() - $3) * 1000)::bigint, 'done')
    ON CONFLICT (run, task, table_name) DO NOTHING";

/// Drops the replaced table, and makes the census count again what it lost.
///
/// # Errors
/// The database's; see [`capture::is_contended`].
pub async fn drop_old(tx: &Transaction<'_>, losses: &[Loss]) -> Result<()> {
    tx.batch_execute("DROP TABLE IF EXISTS opsward.ops_old").await.doing("drop the old table")?;
    for loss in losses {
        tx.execute(RECOUNT, &[&loss.table, &loss.below.as_str()]).await.doing("touch the census")?;
    }
    Ok(())
}

const RECOUNT: &str = "
    INSERT INTO opsward.census_touched
    SELECT DISTINCT day FROM opsward.census WHERE table_name = $1 AND oldest < $2 AND day > 'epoch'
    ON CONFLICT DO NOTHING";

/// Drops the new table.
///
/// # Errors
/// The database's.
pub async fn drop_next(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute("DROP TABLE IF EXISTS opsward.ops_next").await.doing("drop the new table")
}
