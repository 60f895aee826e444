//! Noting every write to the log while a copy of it is made: two triggers on
//! `ops`, a list of keys, and the locks that such a change of the table takes.

use super::error::{Doing, Error, Result};
use deadpool_postgres::{GenericClient, Transaction};
use tokio_postgres::error::SqlState;

/// Before a lock that keeps writers out: it waits 100 ms at most (set when the
/// transaction began), makes an autovacuum yield within them, and no statement
/// takes longer. A session that hangs meanwhile is ended by the server.
///
/// # Errors
/// The database's.
pub async fn strong(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute(STRONG).await.doing("prepare a lock")
}

/// Only a superuser may set `deadlock_timeout`.
const STRONG: &str = "SET LOCAL statement_timeout = '200ms'; \
    SET LOCAL idle_in_transaction_session_timeout = '500ms'; \
    SELECT set_config('deadlock_timeout', '20ms', true) WHERE current_setting('is_superuser') = 'on'";

/// Whether a lock could not be had in time, or not be held long enough.
pub fn is_contended(error: &Error) -> bool {
    let codes = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::QUERY_CANCELED];
    error.code().is_some_and(|code| codes.contains(code))
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
    tx.execute(OWN, &[]).await.doing("remember the triggers")?;
    identity(tx).await.map(Option::unwrap_or_default)
}

/// Not to be rolled back, `setval` comes last.
const INSTALL: &str = "
    CREATE TRIGGER opsward_capture AFTER INSERT OR UPDATE OR DELETE ON public.ops
        FOR EACH ROW EXECUTE FUNCTION opsward.capture();
    CREATE TRIGGER opsward_capture_truncate AFTER TRUNCATE ON public.ops
        FOR EACH STATEMENT EXECUTE FUNCTION opsward.capture();
    ALTER TABLE public.ops ENABLE ALWAYS TRIGGER opsward_capture;
    ALTER TABLE public.ops ENABLE ALWAYS TRIGGER opsward_capture_truncate;
    SELECT setval('opsward.capture_state', 1)";
const OWN: &str = "
    INSERT INTO opsward.owned (kind, name, drop_sql) VALUES ('trigger', 'opsward_capture',
        'DROP TRIGGER IF EXISTS opsward_capture ON public.ops; \
         DROP TRIGGER IF EXISTS opsward_capture_truncate ON public.ops')
    ON CONFLICT DO NOTHING";

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
    tx.batch_execute(REMOVE).await.doing("remove the triggers")?;
    disown(tx).await
}

const REMOVE: &str = "DROP TRIGGER IF EXISTS opsward_capture ON public.ops; \
    DROP TRIGGER IF EXISTS opsward_capture_truncate ON public.ops";

/// The triggers are gone, with their table.
pub(super) async fn disown(tx: &Transaction<'_>) -> Result<()> {
    tx.execute(DISOWN, &[]).await.doing("forget the triggers")?;
    Ok(())
}

const DISOWN: &str = "DELETE FROM opsward.owned WHERE kind = 'trigger' AND name = 'opsward_capture'";

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
