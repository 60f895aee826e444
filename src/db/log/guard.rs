//! The replay guard: a trigger on the log that keeps ops out which would not
//! act again, as a node would apply them over newer state.
//!
//! Its function stands in schema public, so that a dump of that schema alone
//! restores and takes inserts; `opsward.guard_make()`, in the migrations, makes
//! it. It lets pass what lies above all that was deleted or announced, for the
//! price of the call. So whatever deletes announces it first.

use crate::db::connect::Client;
use crate::db::error::{Doing, Error, Result};
use crate::db::lease::Lease;
use crate::db::privileges::may_set_deadlock_timeout;
use crate::values::OpUlid;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;

/// Waiting for the lock and holding it (contract 6: 200 ms, or roll back).
const AT_MOST: Duration = Duration::from_millis(200);

/// What there is of the guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// No trigger.
    Nothing,
    /// It is as this binary makes it.
    Right,
    /// It is disabled, or made otherwise.
    Other,
}

/// Looks for the guard on the log.
pub async fn find(client: &Client) -> Result<Found> {
    Ok(match client.query_one(FIND, &[&NAME]).await.doing("look for the replay guard")?.get(0) {
        None => Found::Nothing,
        Some(true) => Found::Right,
        Some(false) => Found::Other,
    })
}

/// The trigger's name.
pub const NAME: &str = "opsward_replay_guard";
/// 7: before each row of an INSERT. `O`: not ALWAYS, as what a logical
/// subscription or a restore writes (role `replica`) is no op from a peer, and
/// nodes write in the role `origin`.
const FIND: &str = "
    SELECT CASE WHEN t.oid IS NOT NULL THEN
               coalesce(t.tgtype = 7 AND t.tgenabled = 'O' AND t.tgqual IS NULL AND p.prosecdef AND t.tgfoid = p.oid, false)
           END
    FROM (SELECT to_regprocedure('public.opsward_replay_guard()') AS oid) f
    LEFT JOIN pg_proc p ON p.oid = f.oid
    LEFT JOIN pg_trigger t
        ON t.tgrelid = to_regclass('public.ops') AND t.tgname = $1 AND NOT t.tgisinternal";

/// Tells the guard what is about to be deleted: by table, below which ULID.
/// Nothing where there is no guard. Inserts that are under way meanwhile have
/// asked the guard as it was: they are waited for.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn announce<'a>(
    lease: &mut Lease,
    cuts: impl IntoIterator<Item = (&'a String, OpUlid)>,
) -> Result<()> {
    let (tables, below): (Vec<&str>, Vec<String>) =
        cuts.into_iter().map(|(table, below)| (table.as_str(), below.to_string())).unzip();
    let tx = lease.begin().await?;
    let raised = tx.execute(ANNOUNCE, &[&tables, &below]).await.doing("announce a deletion to the guard")?;
    tx.commit().await.doing("announce a deletion to the guard")?;
    if raised == 0 {
        return Ok(());
    }
    let client = lease.client()?;
    let since: Timestamp =
        client.query_one("SELECT clock_timestamp()", &[]).await.doing("read the clock")?.get(0);
    for _ in 0..LOOKS {
        let row = client.query_one(UNDER_WAY, &[&since]).await.doing("look for inserts under way")?;
        if !row.get::<_, bool>(0) {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

const ANNOUNCE: &str = "
    INSERT INTO opsward.floors AS f (table_name, announced, raised_at)
    SELECT c.name, c.below, now() FROM unnest($1::text[], $2::text[]) AS c(name, below)
    WHERE to_regprocedure('public.opsward_replay_guard()') IS NOT NULL
    ON CONFLICT (table_name) DO UPDATE SET announced = excluded.announced
        WHERE excluded.announced > coalesce(f.announced, '')";
/// A second: an insert is between its question and its row for microseconds,
/// and a longer statement asks anew for each row.
const LOOKS: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(50);
const UNDER_WAY: &str = "
    SELECT EXISTS (
        SELECT FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.relation = to_regclass('public.ops') AND l.granted AND l.mode = 'RowExclusiveLock'
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.pid <> pg_backend_pid()
          AND (a.state IS NULL OR a.state = 'active' AND a.query_start < $1))";

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
    let found = find(lease.client()?).await?;
    if change == Change::Put {
        lease
            .client()?
            .execute(OWN, &[&NAME, &format!("{DROP}; {DROP_FUNCTION}")])
            .await
            .doing("record the replay guard")?;
    }
    let may_set = may_set_deadlock_timeout(lease.client()?).await?;
    let tx = lease.begin().await?;
    // Without the right to set the second one, autovacuum is waited for.
    tx.batch_execute(QUICKLY).await.doing("prepare the replay guard")?;
    if may_set {
        tx.batch_execute("SET LOCAL deadlock_timeout = '20ms'").await.doing("prepare the replay guard")?;
    }
    let began = Instant::now();
    // A trigger that is there goes under a lock that readers are in the way of.
    let changed = match (change, found) {
        (Change::Put, Found::Nothing) => tx.batch_execute(CREATE).await,
        (Change::Put, _) => tx.batch_execute(&format!("{DROP}; {CREATE}")).await,
        (Change::Take, Found::Nothing) => tx.batch_execute(DROP_FUNCTION).await,
        (Change::Take, _) => tx.batch_execute(&format!("{DROP}; {DROP_FUNCTION}")).await,
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
const DROP_FUNCTION: &str = "DROP FUNCTION IF EXISTS public.opsward_replay_guard()";
/// Makes the guard.
pub const CREATE: &str = "DO $guard$ BEGIN
    PERFORM opsward.guard_make();
    CREATE TRIGGER opsward_replay_guard BEFORE INSERT ON public.ops
        FOR EACH ROW EXECUTE FUNCTION public.opsward_replay_guard();
    END $guard$";
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
