//! The replay guard on the log: a trigger that keeps ops out which would not
//! act again (`opsward.replay_guard`, in the migrations: an upgrade replaces
//! it there). Putting it on the log locks the log, so never for long.

use crate::db::connect::Client;
use crate::db::error::{Doing, Error, Result};
use crate::db::lease::Lease;
use crate::db::privileges::may_set_deadlock_timeout;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

/// Waiting for the lock and holding it (contract 6: 200 ms, or roll back).
const AT_MOST: Duration = Duration::from_millis(200);

/// What there is of the guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// It is as this binary makes it.
    Right,
    /// It is disabled, or made otherwise.
    Other,
}

/// Looks for the guard on the log.
///
/// # Errors
/// The database's.
pub async fn find(client: &Client) -> Result<Found> {
    let row = client.query_opt(FIND, &[&NAME]).await.doing("look for the replay guard")?;
    Ok(match row {
        None => Found::Nothing,
        Some(row) if row.get::<_, &str>(0) == DEFINITION => Found::Right,
        Some(_) => Found::Other,
    })
}

/// The trigger's name.
pub const NAME: &str = "opsward_replay_guard";
/// As the server prints it, `O` for enabled. It is plain, not ALWAYS: what a
/// logical subscription or a restore writes (role `replica`) is no op from a
/// peer, and nodes write in the role `origin`.
const DEFINITION: &str = "CREATE TRIGGER opsward_replay_guard BEFORE INSERT ON public.ops \
    FOR EACH ROW EXECUTE FUNCTION opsward.replay_guard() O";
const FIND: &str = "
    SELECT pg_get_triggerdef(oid) || ' ' || tgenabled::text FROM pg_trigger
    WHERE tgrelid = to_regclass('public.ops') AND tgname = $1 AND NOT tgisinternal";

/// What is done with the guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Put on the log, anew where one is there.
    Put,
    /// Taken away.
    Take,
}

/// How a try to change it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Try {
    /// It is done.
    Done,
    /// Others held the log all the time: who.
    Blocked(Vec<String>),
}

/// Tries once to put the guard on the log or to take it away. That we own it
/// is recorded before, and forgotten after.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn change(lease: &mut Lease, change: Change) -> Result<Try> {
    if change == Change::Put {
        lease.client()?.execute(OWN, &[&NAME, &DROP]).await.doing("record the replay guard")?;
    }
    // A trigger that is there goes under a lock that readers are in the way of.
    let found = find(lease.client()?).await?;
    let may_set = may_set_deadlock_timeout(lease.client()?).await?;
    let tx = lease.begin().await?;
    // Without the right to set the second one, autovacuum is waited for.
    tx.batch_execute(QUICKLY).await.doing("prepare the replay guard")?;
    if may_set {
        tx.batch_execute("SET LOCAL deadlock_timeout = '20ms'").await.doing("prepare the replay guard")?;
    }
    let began = Instant::now();
    let changed = match (change, found) {
        (Change::Put, Found::Nothing) => tx.batch_execute(CREATE).await,
        (Change::Put, _) => tx.batch_execute(&format!("{DROP}; {CREATE}")).await,
        (Change::Take, Found::Nothing) => Ok(()),
        (Change::Take, _) => tx.batch_execute(DROP).await,
    };
    let late = began.elapsed() > AT_MOST;
    match changed {
        Ok(()) if !late => {}
        Err(e) if !is_blocked(&e) => return Err(Error::of("change the replay guard", e)),
        _ => {
            tx.rollback().await.doing("give the replay guard up")?;
            return Ok(Try::Blocked(blockers(lease.client()?, found).await?));
        }
    }
    if change == Change::Take {
        tx.execute(DISOWN, &[&NAME]).await.doing("forget the replay guard")?;
    }
    tx.commit().await.doing("commit the replay guard")?;
    Ok(Try::Done)
}

fn is_blocked(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|c| {
        [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED, SqlState::T_R_DEADLOCK_DETECTED].contains(c)
    })
}

/// A process that stops here gives the lock up as well.
const QUICKLY: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '200ms'; \
    SET LOCAL idle_in_transaction_session_timeout = '1s'";
const DROP: &str = "DROP TRIGGER IF EXISTS opsward_replay_guard ON public.ops";
/// Puts the guard on the log; also for a log that was rewritten.
pub const CREATE: &str = "CREATE TRIGGER opsward_replay_guard BEFORE INSERT ON public.ops \
    FOR EACH ROW EXECUTE FUNCTION opsward.replay_guard()";
const OWN: &str = "
    INSERT INTO opsward.owned (kind, name, drop_sql) VALUES ('trigger', $1, $2)
    ON CONFLICT (kind, name) DO UPDATE SET drop_sql = excluded.drop_sql";
const DISOWN: &str = "DELETE FROM opsward.owned WHERE kind = 'trigger' AND name = $1";

/// Who holds a lock on the log that keeps a trigger away, for a person.
async fn blockers(client: &Client, found: Found) -> Result<Vec<String>> {
    let rows = client.query(BLOCKERS, &[&(found != Found::Nothing)]).await.doing("look who holds the log")?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

const BLOCKERS: &str = "
    SELECT DISTINCT format('process %s (%s, %s, %s): %s', a.pid, coalesce(a.usename, a.backend_type),
                  coalesce(nullif(a.application_name, ''), 'unnamed'), l.mode,
                  coalesce(nullif(left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80), ''), 'no statement'))
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.relation = to_regclass('public.ops')
      AND ($1 OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))";
