//! The replay guard: the trigger on the log, put there and taken away.

use crate::db::guard::{self, Change, Found, Try};
use crate::db::lease::Lease;
use crate::db::{self, replay};
use crate::work::Work;
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// Between two tries: whoever waits behind ours gets through (contract 6).
const PAUSE: Duration = Duration::from_secs(2);
/// Tries a run; the next run comes.
const TRIES: u32 = 5;

/// How it stands with the guard after a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was as it should be.
    Right,
    /// It was put on the log, or taken away.
    Changed,
    /// Others held the log at every try: who. The next run tries again.
    Blocked(Vec<String>),
    /// `READ_ONLY` is set: the log is not touched.
    ReadOnly,
    /// Told to stop.
    Stopped,
}

/// Has the guard on the log, as this binary makes it.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn ensure(work: &Work, lease: &mut Lease) -> db::Result<Outcome> {
    bring(work, lease, Change::Put).await
}

/// Has no guard on the log.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn remove(work: &Work, lease: &mut Lease) -> db::Result<Outcome> {
    bring(work, lease, Change::Take).await
}

async fn bring(work: &Work, lease: &mut Lease, change: Change) -> db::Result<Outcome> {
    let outcome = tried(work, lease, change).await?;
    let there = guard::find(lease.client()?).await? == Found::Right;
    work.metrics.guard_in_place.set(i64::from(there));
    count(work).await?;
    Ok(outcome)
}

async fn tried(work: &Work, lease: &mut Lease, change: Change) -> db::Result<Outcome> {
    let right = match change {
        Change::Put => Found::Right,
        Change::Take => Found::Nothing,
    };
    if guard::find(lease.client()?).await? == right {
        return Ok(Outcome::Right);
    }
    if work.settings.read_only {
        return Ok(Outcome::ReadOnly);
    }
    let mut blocked = Vec::new();
    for tries in 0..TRIES {
        if tries > 0 && work.stop.run_until_cancelled(sleep(PAUSE)).await.is_none() {
            return Ok(Outcome::Stopped);
        }
        match guard::change(lease, change).await? {
            Try::Done => {
                match change {
                    Change::Put => info!("the replay guard is on the log"),
                    Change::Take => info!("the replay guard is taken off the log"),
                }
                return Ok(Outcome::Changed);
            }
            Try::Blocked(who) => blocked = who,
        }
    }
    warn!(by = blocked.join("; "), "the replay guard could not be changed: others hold the log");
    Ok(Outcome::Blocked(blocked))
}

/// Brings the counters to what the guard has counted in the database.
///
/// # Errors
/// The database's.
pub async fn count(work: &Work) -> db::Result<()> {
    let (refused, failed) = replay::guard_counts(&work.db.client().await?).await?;
    let m = &work.metrics;
    m.guard_refused.inc_by(refused.saturating_sub(m.guard_refused.get()));
    m.guard_failed.inc_by(failed.saturating_sub(m.guard_failed.get()));
    Ok(())
}
