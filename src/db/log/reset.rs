//! The log begun anew: what has to stay is copied aside in short reads, then
//! one short transaction on the lease's connection empties `ops`, puts it back
//! and writes down how far the peers' logs count as read.

use crate::db::catalog;
use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use crate::db::guard::NAME;
use crate::db::lease::Lease;
use crate::db::ops::{is_locked, is_out_of_time};
use crate::db::presence::PRESENCE_LOCK;
use crate::records::quote_ident;
use crate::values::{EARLIEST_ULID, Host, OpUlid, latest_plausible};
use deadpool_postgres::{GenericClient, Transaction};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_postgres::types::ToSql;

/// Rows of the log that are looked at in one statement.
const SLICE_ROWS: i64 = 20_000;
const FEWEST_ROWS: i64 = 100;

/// What stays in the log.
pub struct Keep {
    columns: String,
    condition: String,
    tables: Vec<String>,
    young: OpUlid,
}

impl Keep {
    /// Rows from `young` on, rows owed to the chain, and rows of tables that
    /// are none of `tables`. Makes the table that they are copied into.
    ///
    /// # Errors
    /// The database's.
    pub async fn begin(lease: &mut Lease, tables: Vec<String>, young: OpUlid) -> Result<Self> {
        let client = lease.client()?;
        let relations = catalog::relations(client).await?;
        let columns = relations.columns("ops").unwrap_or_default();
        let is_owed = match columns.iter().any(|c| c == "core_tx_status") {
            true => "core_tx_status IN ('pending', 'error') OR ",
            false => "",
        };
        client.batch_execute(MAKE).await.doing("make a place for what stays")?;
        Ok(Self {
            columns: columns.iter().map(|c| quote_ident(c)).collect::<Vec<_>>().join(", "),
            condition: format!(
                "({is_owed}\"table\" IS NULL OR \"table\" <> ALL($2::text[]) OR ulid >= $1::text)"
            ),
            tables,
            young,
        })
    }

    /// Copies what stays of the next slice above `after`; says where it ended
    /// and how many rows it looked at, nothing at the end of the log.
    ///
    /// # Errors
    /// The database's.
    pub async fn copy(&self, lease: &mut Lease, after: &str) -> Result<Option<(String, u64)>> {
        let client = lease.client()?;
        let sql = format!(
            "INSERT INTO opsward.reset_kept SELECT {}, ctid FROM public.ops
             WHERE ulid > $3::text AND ulid <= $4::text AND {} ON CONFLICT DO NOTHING",
            self.columns, self.condition
        );
        let mut rows = SLICE_ROWS;
        loop {
            match self.slice(client, &sql, after, rows).await {
                Err(e) if is_out_of_time(&e) && rows > FEWEST_ROWS => rows /= 4,
                done => return done,
            }
        }
    }

    async fn slice(
        &self,
        client: &Client,
        sql: &str,
        after: &str,
        rows: i64,
    ) -> Result<Option<(String, u64)>> {
        let end = client.query_one(END, &[&after, &rows]).await.doing("read the log")?;
        let Some(last) = end.get::<_, Option<String>>(0) else {
            return Ok(None);
        };
        let values: [&(dyn ToSql + Sync); 4] = [&self.young.as_str(), &self.tables, &after, &last];
        client.execute(sql, &values).await.doing("copy what stays of the log")?;
        Ok(Some((last, u64::try_from(end.get::<_, i64>(1)).unwrap_or(0))))
    }

    /// Brings the copy up to date: young rows that came, rows that changed.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh(&self, client: &impl GenericClient) -> Result<()> {
        let stale = client.query(&stale_sql(), &[]).await.doing("look for rows that changed")?;
        let stale: Vec<String> = stale.iter().map(|r| r.get(0)).collect();
        let sql = format!(
            "INSERT INTO opsward.reset_kept SELECT {}, ctid FROM public.ops o
             WHERE (ulid >= $1::text AND NOT EXISTS (SELECT FROM opsward.reset_kept k WHERE k.ulid = o.ulid))
                OR ulid = ANY($2::text[])",
            self.columns
        );
        let values: [&(dyn ToSql + Sync); 2] = [&self.young.as_str(), &stale];
        client.execute(&sql, &values).await.doing("copy what came meanwhile")?;
        Ok(())
    }
}

/// `opsward_ctid` tells a row that was written anew since it was copied.
const MAKE: &str = "DROP TABLE IF EXISTS opsward.reset_kept;
    CREATE UNLOGGED TABLE opsward.reset_kept (LIKE public.ops, opsward_ctid tid, PRIMARY KEY (ulid))";
const END: &str = "
    SELECT max(ulid), count(*) FROM (SELECT ulid FROM public.ops WHERE ulid > $1::text ORDER BY ulid LIMIT $2::bigint) s";

/// Removes copies of rows that were written anew since, or are gone. The table
/// is in no migration: it is there for as long as a reset takes.
fn stale_sql() -> String {
    "DELETE FROM opsward.reset_kept k
     WHERE NOT EXISTS (SELECT FROM public.ops o WHERE o.ulid = k.ulid AND o.ctid = k.opsward_ctid)
     RETURNING ulid"
        .into()
}

/// Removes the copy.
///
/// # Errors
/// The database's.
pub async fn drop_copy(lease: &mut Lease) -> Result<()> {
    lease.client()?.batch_execute("DROP TABLE IF EXISTS opsward.reset_kept").await.doing("remove the copy")
}

/// What the log's new beginning is written down with.
pub struct Beginning<'a> {
    /// What has been read of each peer's log, as the reference says.
    pub cursors: &'a BTreeMap<Host, OpUlid>,
    /// The tables whose floors are raised.
    pub tables: &'a [String],
    /// Everything younger was put back.
    pub young: OpUlid,
    /// What it was compared with, for the history.
    pub reference: &'a str,
    /// How long the log may stay locked, from the lock to the commit.
    pub longest_lock: Duration,
    /// The time.
    pub now: Timestamp,
}

/// What came of a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// It is done: rows that were put back, bytes before and after, and how long
    /// the log was locked in milliseconds.
    Done {
        /// Rows that were put back.
        kept: u64,
        /// Bytes of the log with its indexes before.
        bytes: u64,
        /// The same, afterwards.
        after: u64,
        /// Milliseconds from the lock to the commit.
        locked_ms: u64,
    },
    /// Somebody uses the log: nothing was done.
    Busy,
    /// The log would have been locked for too long: nothing was done.
    TooLong,
    /// A daemon is connected: nothing was done.
    DaemonConnected,
    /// A trigger kept rows out that were to be put back: nothing was done.
    KeptOut {
        /// Rows that were put back.
        back: u64,
        /// Rows that were to be.
        of: u64,
    },
}

/// Empties the log and puts back what stays, or does nothing.
///
/// # Errors
/// The database's, the lease lost among them: nothing was done then.
pub async fn reset(lease: &mut Lease, keep: &Keep, begin: &Beginning<'_>) -> Result<Reset> {
    let tx = lease.begin().await?;
    if !tx.query_one(ALONE, &[&PRESENCE_LOCK]).await.doing("look for a daemon")?.get::<_, bool>(0) {
        return Ok(Reset::DaemonConnected);
    }
    // Most of what came is copied while nobody waits.
    keep.refresh(&tx).await?;
    tx.commit().await.doing("copy what came meanwhile")?;

    let tx = lease.begin().await?;
    if !tx.query_one(ALONE, &[&PRESENCE_LOCK]).await.doing("look for a daemon")?.get::<_, bool>(0) {
        return Ok(Reset::DaemonConnected);
    }
    let done = match locked(&tx, keep, begin).await {
        Ok(Some(done @ Reset::Done { .. })) => done,
        Ok(Some(other)) => return Ok(other),
        Ok(None) => return Ok(Reset::TooLong),
        Err(e) if is_locked(&e) => return Ok(Reset::Busy),
        Err(e) if is_out_of_time(&e) => return Ok(Reset::TooLong),
        Err(e) => return Err(e),
    };
    tx.commit().await.doing("commit the reset")?;
    Ok(done)
}

/// All that happens under the lock; `None` where it took too long.
async fn locked(tx: &Transaction<'_>, keep: &Keep, begin: &Beginning<'_>) -> Result<Option<Reset>> {
    // Rows that the node holds are waited for before the log is locked.
    cursors(tx, begin).await?;
    let bytes: i64 = tx.query_one(BYTES, &[]).await.doing("read the size of ops")?.get(0);
    let rows: i64 = tx.query_one(ROWS, &[]).await.doing("read the size of ops")?.get(0);
    tx.batch_execute(LOCK).await.doing("lock ops")?;
    let since = Instant::now();
    let bounded = async |tx: &Transaction<'_>| -> Result<()> {
        let left = begin.longest_lock.saturating_sub(since.elapsed()).as_millis().max(1);
        tx.batch_execute(&format!("SET LOCAL statement_timeout = {left}")).await.doing("bound the lock")
    };
    bounded(tx).await?;
    keep.refresh(tx).await?;
    bounded(tx).await?;
    tx.batch_execute("TRUNCATE public.ops").await.doing("empty ops")?;
    let sql = format!(
        "INSERT INTO public.ops ({0}) SELECT {0} FROM opsward.reset_kept ORDER BY ulid",
        keep.columns
    );
    bounded(tx).await?;
    // The replay guard would refuse what is put back: it acted long ago.
    let guarded: bool = tx.query_one(GUARDED, &[&NAME]).await.doing("look for the replay guard")?.get(0);
    let guard = async |what: &str| match guarded {
        true => {
            let sql = format!("ALTER TABLE public.ops {what} TRIGGER {NAME}");
            tx.batch_execute(&sql).await.doing("switch the replay guard")
        }
        false => Ok(()),
    };
    guard("DISABLE").await?;
    let kept = tx.execute(&sql, &[]).await.doing("put back what stays")?;
    guard("ENABLE").await?;
    bounded(tx).await?;
    let all: i64 =
        tx.query_one("SELECT count(*) FROM opsward.reset_kept", &[]).await.doing("count what stays")?.get(0);
    if i64::try_from(kept).ok() != Some(all) {
        return Ok(Some(Reset::KeptOut { back: kept, of: u64::try_from(all).unwrap_or(0) }));
    }
    let (young, now) = (begin.young.as_str(), begin.now);
    tx.execute(FLOORS, &[&begin.tables, &young, &now]).await.doing("raise the floors")?;
    tx.execute(FORGET, &[]).await.doing("forget the old log")?;
    tx.execute(MINIMUM, &[&now]).await.doing("note the log's minimum")?;
    let after: i64 = tx.query_one(BYTES, &[]).await.doing("read the size of ops")?.get(0);
    let freed = bytes.saturating_sub(after).max(0);
    let took = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
    let gone = rows.saturating_sub(i64::try_from(kept).unwrap_or(0)).max(0);
    let run = format!("reset {now}");
    tx.execute(HISTORY, &[&run, &now, &young, &gone, &freed, &begin.reference, &took])
        .await
        .doing("write the history")?;
    if since.elapsed() > begin.longest_lock {
        return Ok(None);
    }
    let natural = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(Some(Reset::Done { kept, bytes: natural(bytes), after: natural(after), locked_ms: natural(took) }))
}

/// `deadlock_timeout`: an autovacuum yields only after it.
const LOCK: &str = "SET LOCAL deadlock_timeout = '20ms'; LOCK TABLE public.ops IN ACCESS EXCLUSIVE MODE";
const GUARDED: &str = "
    SELECT EXISTS (SELECT FROM pg_trigger
                   WHERE tgrelid = 'public.ops'::regclass AND tgname = $1 AND tgenabled = 'O')";
const ALONE: &str = "SELECT pg_try_advisory_xact_lock($1)";
const BYTES: &str = "SELECT pg_total_relation_size(to_regclass('public.ops'))";
const ROWS: &str =
    "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass('public.ops')";
/// Nothing is deleted below a fresh table, and its census is another.
const FORGET: &str = "
    WITH watermark AS (UPDATE opsward.watermark SET ulid = ''), census AS (DELETE FROM opsward.census),
         pass AS (DELETE FROM opsward.census_pass)
    DELETE FROM opsward.census_touched";
/// No traces were left: as if somebody else had pruned.
const FLOORS: &str = "
    INSERT INTO opsward.floors AS f (table_name, foreign_floor, raised_at)
    SELECT t, $2::text, $3::timestamptz FROM unnest($1::text[]) t
    ON CONFLICT (table_name) DO UPDATE SET raised_at = excluded.raised_at, foreign_floor =
        greatest(f.foreign_floor COLLATE \"C\", excluded.foreign_floor COLLATE \"C\")";
const MINIMUM: &str = "
    INSERT INTO opsward.minimum_seen (at, minimum, ours)
    SELECT $1::timestamptz, (SELECT ulid FROM public.ops ORDER BY ulid LIMIT 1), true
    ON CONFLICT (at) DO UPDATE SET minimum = excluded.minimum, ours = true";
const HISTORY: &str = "
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, bound_by, took_ms, outcome)
    VALUES ($1::text, 'reset', '*', $2::timestamptz, $2::timestamptz, $3::text, $4::bigint, $5::bigint,
            $6::text, $7::bigint, 'done')";

/// Raises cursors to what the reference had read, the node's and ours: never
/// lower than a plausible value there, and never ahead of now.
async fn cursors(tx: &Transaction<'_>, begin: &Beginning<'_>) -> Result<()> {
    let now_ms = u64::try_from(begin.now.as_millisecond()).unwrap_or(0);
    let latest = OpUlid::last_of_ms(now_ms.saturating_sub(60_000));
    let hosts: Vec<&str> = begin.cursors.keys().map(Host::as_str).collect();
    let capped: Vec<OpUlid> = begin.cursors.values().map(|ulid| latest.min(*ulid)).collect();
    let ulids: Vec<&str> = capped.iter().map(OpUlid::as_str).collect();
    let most = latest_plausible(now_ms);
    let values: [&(dyn ToSql + Sync); 4] = [&hosts, &ulids, &EARLIEST_ULID, &most.as_str()];
    tx.execute(NODE_RAISED, &values).await.doing("raise the node's cursors")?;
    tx.execute(NODE_MADE, &values[..2]).await.doing("raise the node's cursors")?;
    let values: [&(dyn ToSql + Sync); 5] = [&hosts, &ulids, &EARLIEST_ULID, &most.as_str(), &begin.now];
    tx.execute(OWN_RAISED, &values).await.doing("raise our cursors")?;
    Ok(())
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

/// Who stands between us and the log, for the one who waits: sessions with a
/// lock on it.
///
/// # Errors
/// The database's.
pub async fn users(lease: &mut Lease) -> Result<Vec<String>> {
    let rows = lease.client()?.query(USERS, &[]).await.doing("look who uses ops")?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

const USERS: &str = "
    SELECT format('%s, process %s of %s', coalesce(nullif(a.application_name, ''), 'a session'), a.pid,
                  coalesce(a.usename::text, '?'))
    FROM pg_stat_activity a
    WHERE a.pid <> pg_backend_pid() AND EXISTS (
        SELECT FROM pg_locks l
        WHERE l.pid = a.pid AND l.granted AND l.relation = to_regclass('public.ops'))
    ORDER BY a.xact_start LIMIT 5";
