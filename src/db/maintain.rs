//! VACUUM, CREATE INDEX and their kind on `ops`: on the lease's connection,
//! with a second one that looks whether anybody waits behind them, and cancels
//! them then. A node's start-up waits behind every one of them.

use super::connect::{Client, Db};
use super::error::{Doing, Error, Result};
use super::lease::Lease;
use std::time::Duration;
use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a session waits (contract 1).
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How a statement that could be cancelled came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It did its work.
    Done,
    /// Another session waited behind it: cancelled, to be tried again later.
    Yielded,
    /// It was told to stop.
    Stopped,
}

/// Runs one statement outside a transaction on the lease's connection, as long
/// as it takes, unless another session waits behind it or `stop` says so.
/// `settings` are `SET`s for it, undone afterwards by `RESET`.
///
/// # Errors
/// The database's.
pub async fn watched(
    lease: &mut Lease,
    db: &Db,
    statement: &str,
    settings: &[(&str, String)],
    stop: &CancellationToken,
) -> Result<Ended> {
    let watcher = db.client().await?;
    let pid = lease.pid();
    let client = lease.client()?;
    for (name, value) in [("statement_timeout", "0".to_owned())].iter().chain(settings) {
        client.batch_execute(&format!("SET {name} = '{value}'")).await.doing("prepare maintenance")?;
    }
    let (result, why) = {
        let mut work = std::pin::pin!(client.batch_execute(statement));
        let mut why = Ended::Done;
        loop {
            tokio::select! {
                result = &mut work => break (result, why),
                () = sleep(LOOK_EVERY) => {
                    if why == Ended::Done {
                        why = reason(&watcher, pid, stop).await?;
                    }
                    if why != Ended::Done {
                        watcher.execute(CANCEL, &[&pid]).await.doing("cancel maintenance")?;
                    }
                }
            }
        }
    };
    let names = std::iter::once("statement_timeout").chain(settings.iter().map(|(name, _)| *name));
    let resets: Vec<String> = names.map(|name| format!("RESET {name}")).collect();
    client.batch_execute(&resets.join("; ")).await.doing("end maintenance")?;
    match result {
        Ok(()) => Ok(Ended::Done),
        Err(e) if e.code() == Some(&SqlState::QUERY_CANCELED) && why != Ended::Done => Ok(why),
        Err(e) => Err(Error::of("maintain the log", e)),
    }
}

async fn reason(watcher: &Client, pid: i32, stop: &CancellationToken) -> Result<Ended> {
    if stop.is_cancelled() {
        return Ok(Ended::Stopped);
    }
    let statement = watcher.prepare_cached(WAITED_FOR).await.doing("watch maintenance")?;
    let row = watcher.query_one(&statement, &[&pid]).await.doing("watch maintenance")?;
    Ok(if row.get(0) { Ended::Yielded } else { Ended::Done })
}

/// Only sessions that wait for a lock are asked for what they wait for. What
/// other roles' sessions wait for is hidden in `pg_stat_activity`, not here.
const WAITED_FOR: &str = "
    SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                   WHERE NOT l.granted AND a.datname = current_database()
                     AND coalesce(a.backend_type, 'client backend') = 'client backend'
                     AND $1 = ANY (pg_blocking_pids(l.pid)))";
const CANCEL: &str = "SELECT pg_cancel_backend($1)";

/// Space in the table is reused, none is given back: that would lock it.
pub const VACUUM: &str = "VACUUM (TRUNCATE off, INDEX_CLEANUP on, PROCESS_TOAST on) public.ops";

/// The planner is told what the table is like now.
pub const ANALYZE: &str = "ANALYZE public.ops";

/// The empty end is given back, if the lock for it can be had at once. Entries
/// of dead rows must go from the indexes, or their pages do not count as empty.
pub const VACUUM_AND_TRUNCATE: &str = "VACUUM (TRUNCATE on, INDEX_CLEANUP on, PROCESS_TOAST on) public.ops";

/// Whether this role may VACUUM the log. Where it may not, the server only
/// says so in a notice and skips the table.
///
/// # Errors
/// The database's.
pub async fn may_vacuum(client: &Client) -> Result<bool> {
    let row = client.query_one(MAY_VACUUM, &[]).await.doing("look who owns the log")?;
    Ok(row.get(0))
}

const MAY_VACUUM: &str = "
    SELECT pg_has_role(c.relowner, 'USAGE') OR pg_has_role(d.datdba, 'USAGE')
    FROM pg_class c, pg_database d
    WHERE c.oid = 'public.ops'::regclass AND d.datname = current_database()";
