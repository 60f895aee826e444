//! Locks of a swap: one short try when its time has come, then the others' turn.

use super::super::{Result, Run};
use crate::db::short_lock::{self, Brief, Target};
use crate::db::{self, Transaction};
use crate::work::WaitFor;
use std::time::Duration;
use tokio::time::Instant;

/// The longest wait before the walk goes round: it follows the log, and looks for a
/// stop, a pause and a changed table.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Whether a try is due, with nobody in the way whom it would wait for in vain. Else who
/// is in the way is told, and waited for a moment.
pub(super) async fn is_due(run: &mut Run<'_>, target: Target<'_>) -> Result<bool> {
    if !has_paused(run, target).await? {
        return Ok(false);
    }
    let Some(who) = short_lock::held(&*run.lease.client()?, target).await? else { return Ok(true) };
    run.wait(WaitFor::Lock, who.to_string(), AT_ONCE).await;
    Ok(false)
}

/// Whether the pause after the last try is over. Else who is in the way is told meanwhile.
async fn has_paused(run: &mut Run<'_>, target: Target<'_>) -> Result<bool> {
    let left = run.next_try.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
    if left.is_zero() {
        return Ok(true);
    }
    let who = short_lock::holders(&*run.lease.client()?, target).await?;
    run.wait(WaitFor::Lock, who.to_string(), left.min(AT_ONCE)).await;
    Ok(false)
}

/// Changes something under a lock; `None` where the lock was not to be had yet.
pub(in crate::reclaim) async fn locked<T>(
    run: &mut Run<'_>,
    target: Target<'_>,
    change: impl AsyncFnOnce(&Transaction<'_>) -> db::Result<T>,
) -> Result<Option<T>> {
    if !has_paused(run, target).await? {
        return Ok(None);
    }
    let came = short_lock::briefly(run.lease, target, change).await?;
    run.next_try = Some(Instant::now() + run.pauses.after(&came));
    match came {
        Brief::Done(value) => Ok(Some(value)),
        Brief::Overtaken => Ok(None),
        Brief::Held(who) | Brief::Refused(who) => {
            run.wait(WaitFor::Lock, who.to_string(), AT_ONCE).await;
            Ok(None)
        }
    }
}
