//! Locks that writers wait behind: one short try, then the others' turn.

use super::super::{Result, Run};
use crate::db::clone::OPS;
use crate::db::short_lock::{self, Behind};
use crate::db::{self, Doing, capture};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::info;

/// Between two tries of a lock that writers wait behind (contract 6).
pub(super) const BETWEEN_TRIES: Duration = Duration::from_secs(2);
/// Waiting for a lock that keeps writers out, plus holding it (contract 6).
const LOCKED_AT_MOST: Duration = Duration::from_millis(200);

/// Commits what was done under a lock that writers wait behind, if it did not
/// take too long; says whether it did.
pub(super) async fn commit_in_time(
    tx: db::Transaction<'_>,
    begun: Instant,
    done: db::Result<()>,
) -> db::Result<bool> {
    match done {
        Ok(()) if begun.elapsed() <= LOCKED_AT_MOST => {
            tx.commit().await.doing("commit under a lock")?;
            Ok(true)
        }
        Ok(()) => tx.rollback().await.doing("give a lock back").map(|()| false),
        Err(e) if capture::is_contended(&e) => tx.rollback().await.doing("give a lock back").map(|()| false),
        Err(e) => Err(e),
    }
}

/// Waits where somebody holds the log who stays: a lock that queues behind them
/// would hold writers up in vain.
pub(super) async fn is_held(run: &mut Run<'_>, behind: Behind) -> Result<bool> {
    let is_held = short_lock::is_held(&*run.lease.client()?, "public.ops", behind).await?;
    if is_held {
        contended(run, OPS).await?;
    }
    Ok(is_held)
}

/// Says who is in the way, and waits.
pub(in crate::reclaim) async fn contended(run: &mut Run<'_>, table: &str) -> Result<()> {
    let holders = capture::holders(&*run.lease.client()?, table).await?;
    let waiting = match holders.is_empty() {
        true => format!("a lock on {table}"),
        false => format!("a lock on {table}, held by {}", holders.join("; ")),
    };
    info!(waiting, "the reclaim tries again");
    run.tell(Some(waiting));
    let stop = run.work.stop.clone();
    tokio::select! {
        () = sleep(BETWEEN_TRIES) => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}
