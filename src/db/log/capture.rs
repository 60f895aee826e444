//! Noting every write to the log while a copy of it is made: two triggers on
//! `ops`, a list of keys, and the locks that such a change of the table takes.

use crate::db::error::{Doing, Error, Result};
use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::error::SqlState;

/// Before a lock that keeps writers out: it waits 100 ms at most (set when the
/// transaction began), makes an autovacuum yield within them, and no statement
/// takes longer. A session that hangs meanwhile is ended by the server. Nor does
/// the lock wait for the disk: its commit may be lost in a crash, as a whole,
/// and whatever commits after it comes after it in WAL.
///
/// # Errors
/// The database's.
pub async fn strong(tx: &Transaction<'_>) -> Result<()> {
    // Not prepared later than what it is sent along with.
    tx.prepare_cached(BOUND).await.doing("prepare a lock")?;
    tx.batch_execute(STRONG).await.doing("prepare a lock")?;
    overtake(tx).await
}

/// Makes an autovacuum that is in the way of a lock yield before the lock is
/// given up. Only a superuser may.
///
/// # Errors
/// The database's.
pub async fn overtake(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute(OVERTAKE).await.doing("prepare a lock")
}

const OVERTAKE: &str = "
    SELECT set_config('deadlock_timeout', '20ms', true) WHERE current_setting('is_superuser') = 'on'";
const STRONG: &str = "SET LOCAL statement_timeout = '200ms'; \
    SET LOCAL idle_in_transaction_session_timeout = '200ms'; \
    SET LOCAL synchronous_commit = off; \
    SELECT set_config('opsward.since', clock_timestamp()::text, true)";

/// Bounds the next statement by what is left of the 200 ms since [`strong`]:
/// the server counts each one anew. Sent along with it, it costs no answer.
///
/// # Errors
/// The database's.
pub async fn bound(tx: &Transaction<'_>) -> Result<()> {
    let statement = tx.prepare_cached(BOUND).await.doing("bound a lock")?;
    tx.query_one(&statement, &[]).await.doing("bound a lock")?;
    Ok(())
}

const BOUND: &str = "
    SELECT set_config('statement_timeout', greatest(1, 200 - 1000 * extract(
        epoch FROM clock_timestamp() - current_setting('opsward.since')::timestamptz))::int::text, true)";

/// Whether a VACUUM to prevent wraparound is at the log, as far as this role
/// may see it.
///
/// # Errors
/// The database's.
pub async fn wraparound(client: &impl GenericClient) -> Result<bool> {
    let statement = client.prepare_cached(WRAPAROUND).await.doing("look for a VACUUM of ops")?;
    Ok(client.query_one(&statement, &[]).await.doing("look for a VACUUM of ops")?.get(0))
}

/// The words are the server's own: no statement begins so.
const WRAPAROUND: &str = "
    SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                   AND query LIKE 'autovacuum: VACUUM% public.ops (to prevent wraparound)')";

/// Whether a lock could not be had in time, or not be held long enough.
pub fn is_contended(error: &Error) -> bool {
    let codes = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::QUERY_CANCELED];
    matches!(error, Error::TooLong(_)) || error.code().is_some_and(|code| codes.contains(code))
}

/// Who holds a lock on a table that is in the way of a strong one, each in
/// words.
///
/// # Errors
/// The database's.
pub async fn holders(client: &impl GenericClient, table: &str) -> Result<Vec<String>> {
    let statement = client.prepare_cached(HOLDERS).await.doing("look who holds a lock")?;
    let rows = client.query(&statement, &[&table]).await.doing("look who holds a lock")?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

const HOLDERS: &str = "
    SELECT DISTINCT format('process %s (%s, %s, in a transaction for %s s): %s', a.pid,
                           coalesce(a.usename, a.backend_type), coalesce(nullif(a.application_name, ''), '-'),
                           coalesce(extract(epoch FROM clock_timestamp() - a.xact_start)::bigint, 0),
                           left(regexp_replace(a.query, '\\s+', ' ', 'g'), 120))
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.relation = to_regclass($1::text) AND l.granted AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    LIMIT 5";

/// From the commit on every write is noted: there is none that began before
/// and ends after, as the lock waits for them. Call [`strong`] first.
///
/// # Errors
/// The database's; see [`is_contended`].
pub async fn install(tx: &Transaction<'_>) -> Result<String> {
    tx.batch_execute(INSTALL).await.doing("note the writes to ops")?;
    let (_, which) = tokio::try_join!(biased; bound(tx), identity(tx))?;
    Ok(which.unwrap_or_default())
}

/// One statement, so that one timeout bounds it. Not to be rolled back,
/// `setval` comes last.
const INSTALL: &str = "DO $install$ BEGIN
    CREATE TRIGGER opsward_capture AFTER INSERT OR UPDATE OR DELETE ON public.ops
        FOR EACH ROW EXECUTE FUNCTION opsward.capture();
    CREATE TRIGGER opsward_capture_truncate AFTER TRUNCATE ON public.ops
        FOR EACH STATEMENT EXECUTE FUNCTION opsward.capture();
    ALTER TABLE public.ops ENABLE ALWAYS TRIGGER opsward_capture;
    ALTER TABLE public.ops ENABLE ALWAYS TRIGGER opsward_capture_truncate;
    INSERT INTO opsward.owned (kind, name, drop_sql) VALUES ('trigger', 'opsward_capture',
        'DROP TRIGGER IF EXISTS opsward_capture ON public.ops; \
         DROP TRIGGER IF EXISTS opsward_capture_truncate ON public.ops')
    ON CONFLICT DO NOTHING;
    PERFORM setval('opsward.capture_state', 1);
    END $install$";

/// From now on nothing is noted, whoever writes: no lock is needed for it.
///
/// # Errors
/// The database's.
pub async fn switch_off(client: &impl GenericClient) -> Result<()> {
    client.execute(SWITCH_OFF, &[]).await.doing("switch off the capture")?;
    Ok(())
}

const SWITCH_OFF: &str = "SELECT setval('opsward.capture_state', 5)";

/// Removes the triggers. Call [`strong`] first.
///
/// # Errors
/// The database's; see [`is_contended`].
pub async fn remove(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute(REMOVE).await.doing("remove the triggers")
}

const REMOVE: &str = "DO $remove$ BEGIN
    DROP TRIGGER IF EXISTS opsward_capture ON public.ops;
    DROP TRIGGER IF EXISTS opsward_capture_truncate ON public.ops;
    DELETE FROM opsward.owned WHERE kind = 'trigger' AND name = 'opsward_capture';
    END $remove$";

/// What the catalog says of a swap under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Our triggers on `ops`: which they are, since when, whether always on.
    pub triggers: Option<String>,
    /// Both are there and fire for every session.
    pub firing: bool,
    /// `opsward.capture_state`.
    pub state: i64,
    /// The new table is there.
    pub next: bool,
    /// The replaced table is there.
    pub old: bool,
}

/// Reads it.
///
/// # Errors
/// The database's.
pub async fn standing(client: &impl GenericClient) -> Result<Standing> {
    let statement = client.prepare_cached(STANDING).await.doing("look at the reclaim")?;
    let row = client.query_one(&statement, &[]).await.doing("look at the reclaim")?;
    Ok(Standing {
        triggers: row.get(0),
        firing: row.get(1),
        state: row.get(2),
        next: row.get(3),
        old: row.get(4),
    })
}

/// A trigger that is switched off and on again has another xmin.
const STANDING: &str = "
    SELECT string_agg(t.oid::text || ':' || t.xmin::text, ',' ORDER BY t.tgname),
           count(*) = 2 AND bool_and(t.tgenabled = 'A'),
           (SELECT last_value FROM opsward.capture_state),
           to_regclass('opsward.ops_next') IS NOT NULL, to_regclass('opsward.ops_old') IS NOT NULL
    FROM pg_trigger t
    WHERE t.tgrelid = 'public.ops'::regclass AND t.tgname IN ('opsward_capture', 'opsward_capture_truncate')";

async fn identity(tx: &Transaction<'_>) -> Result<Option<String>> {
    Ok(standing(tx).await?.triggers)
}
