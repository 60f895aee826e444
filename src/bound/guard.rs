//! The replay guard: the trigger on the log, put there and taken away.

use crate::db::guard::{self, Change, Found};
use crate::db::lease::Lease;
use crate::db::privileges::{self, Need};
use crate::db::short_lock::{Brief, Pauses};
use crate::db::{self, replay, truncation};
use crate::values::{Blocker, Progress};
use crate::work::{Halt, Stop, Work};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// How long a run waits for others who hold the log; the next run comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// How it stands with the guard after a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was as it should be.
    Right,
    /// It was put on the log, or taken away.
    Changed,
    /// Others held the log all the time: who. The next run tries again.
    Blocked(Vec<String>),
    /// `READ_ONLY` is set: the log is not touched.
    ReadOnly,
    /// Told to stop.
    Stopped,
}

/// Before anything is deleted: puts the guard on the log, where it is switched
/// on, or says why that cannot be: then nothing may be deleted.
///
/// # Errors
/// Told to stop, or the database's.
pub async fn first(work: &Work, lease: &mut Lease) -> Result<Option<Blocker>, Stop> {
    if !work.settings.bounding.replay_guard || work.settings.read_only {
        return Ok(None);
    }
    let is_there = guard::find(lease.client()?).await? == Found::Right;
    if let Some(lacking) = privileges::lacking(lease.client()?, &[])
        .await?
        .into_iter()
        .find(|lacking| lacking.need == Need::Guard && !is_there)
    {
        let text = lacking.need.consequence().to_owned();
        return Ok(Some(missing(work, "no_privilege", text, format!("as the owner: {}", lacking.lift))));
    }
    Ok(match ensure(work, lease).await? {
        Outcome::Right | Outcome::Changed | Outcome::ReadOnly => None,
        Outcome::Stopped => return Err(Halt::Stopped.into()),
        Outcome::Blocked(who) => {
            let text = format!(
                "the replay guard is switched on and could not be put on public.ops, which others hold: {}",
                who.join("; ")
            );
            Some(missing(work, "replay_guard", text, "it is tried again once they have ended".into()))
        }
    })
}

/// Why nothing more may be deleted, where the guard is switched on and gone.
pub async fn gone(work: &Work) -> db::Result<Option<String>> {
    let is_wanted = work.settings.bounding.replay_guard;
    let gone = is_wanted && guard::find(&work.db.client().await?).await? != Found::Right;
    Ok(gone.then(|| "the replay guard is switched on and no longer on public.ops".to_owned()))
}

fn missing(work: &Work, code: &'static str, text: String, fix: String) -> Blocker {
    let unset = "OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD=false deletes without it";
    Blocker { code, subject: String::new(), text, fix: format!("{fix}; {unset}"), since: work.clock.now() }
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
    if matches!(outcome, Outcome::Right | Outcome::Changed) && !work.settings.read_only {
        truncation(lease, change == Change::Put).await?;
    }
    let there = guard::find(lease.client()?).await? == Found::Right;
    work.metrics.guard_in_place.set(i64::from(there));
    count(work).await?;
    Ok(outcome)
}

/// The trigger that forgets a truncated log comes and goes with the guard; where
/// others hold the log, at its next run.
async fn truncation(lease: &mut Lease, wanted: bool) -> db::Result<()> {
    if truncation::is_there(lease.client()?).await? != wanted {
        match truncation::put(lease, wanted).await {
            Err(error) if db::capture::is_contended(&error) => {
                info!("the truncation trigger waits for a lock on ops");
            }
            done => return done,
        }
    }
    Ok(())
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
    let (begun, mut pauses) = (Instant::now(), Pauses::default());
    loop {
        let came = guard::change(lease, change).await?;
        let pause = pauses.after(&came);
        let (Brief::Held(who) | Brief::Refused(who)) = came else {
            match change {
                Change::Put => info!("the replay guard is on the log"),
                Change::Take => info!("the replay guard is taken off the log"),
            }
            return Ok(Outcome::Changed);
        };
        (work.tell)(Progress {
            phase: "replay guard".into(),
            waiting: Some(format!("a lock on public.ops, held by {}", who.join("; "))),
            ..Progress::default()
        });
        if begun.elapsed() + pause > PATIENCE {
            warn!(by = who.join("; "), "the replay guard could not be changed: others hold the log");
            return Ok(Outcome::Blocked(who));
        }
        if work.stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return Ok(Outcome::Stopped);
        }
    }
}

/// Brings the counters to what the guard has counted in the database.
pub async fn count(work: &Work) -> db::Result<()> {
    let (refused, failed) = replay::guard_counts(&work.db.client().await?).await?;
    let m = &work.metrics;
    m.guard_refused.inc_by(refused.saturating_sub(m.guard_refused.get()));
    m.guard_failed.inc_by(failed.saturating_sub(m.guard_failed.get()));
    Ok(())
}
