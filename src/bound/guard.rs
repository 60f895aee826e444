//! The replay guard: the trigger on the log, put there and taken away.

use crate::db::guard::{self, Change, Found};
use crate::db::lease::Lease;
use crate::db::privileges::{self, Need};
use crate::db::short_lock::{Brief, Patience};
use crate::db::{self, replay};
use crate::values::{Blocker, Progress};
use crate::work::{Halt, Stop, WaitFor, Waits, Work};
use std::time::Duration;
use tokio::time::sleep;
use tracing::{info, warn};

/// How long a run waits for others who hold the log; the next run comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What makes a function of the schema opsward anew.
const REMAKE: &str = "`opsward uninstall` and a new start make all of it anew";

/// How it stands with the guard after a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was as it should be.
    Right,
    /// It was put on the log, or taken away.
    Changed,
    /// Others held the log all the time, in words. The next run tries again.
    Blocked(String),
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
    if guard::find(lease.client()?).await? == Found::Right {
        return Ok(None);
    }
    let lacking = privileges::lacking(lease.client()?, &[]).await?;
    if let Some(lacking) = lacking.into_iter().find(|lacking| lacking.need == Need::Guard) {
        let text = lacking.need.consequence().to_owned();
        return Ok(Some(missing(work, "no_privilege", text, format!("as the owner: {}", lacking.lift))));
    }
    Ok(match ensure(work, lease).await? {
        Outcome::Right | Outcome::Changed | Outcome::ReadOnly => None,
        Outcome::Stopped => return Err(Halt::Stopped.into()),
        Outcome::Blocked(who) => {
            let text = format!("the replay guard is switched on and waits for {who}");
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
    let fix = format!("{fix}; {unset}");
    Blocker { code: code.into(), subject: String::new(), text, fix, since: work.clock.now() }
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
    let lost = guard::lost_function(lease.client()?).await?.filter(|_| change == Change::Put);
    let outcome = match guard::is_as(lease.client()?, change).await? {
        _ if let Some(lost) = lost => {
            warn!(%lost, fix = REMAKE, "the replay guard lets everything pass: somebody dropped a function");
            Outcome::Blocked(format!("{lost}, which somebody dropped: {REMAKE}"))
        }
        true => Outcome::Right,
        false if work.settings.read_only => Outcome::ReadOnly,
        false => changed(work, lease, change).await?,
    };
    let there = guard::find(lease.client()?).await? == Found::Right;
    work.metrics.guard_in_place.set(i64::from(there));
    count(work).await?;
    Ok(outcome)
}

async fn changed(work: &Work, lease: &mut Lease, change: Change) -> db::Result<Outcome> {
    let (mut patience, mut waits) = (Patience::of(PATIENCE), Waits::of("replay guard"));
    loop {
        let came = guard::change(lease, change).await?;
        let pause = patience.pause(&came);
        let (Brief::Held(who) | Brief::Refused(who)) = came else { break };
        let what = who.to_string();
        let Some(pause) = pause else {
            warn!(%who, "the replay guard could not be changed");
            return Ok(Outcome::Blocked(what));
        };
        let since = waits.tell(work, lease.pid(), (WaitFor::Lock, &what), pause).await;
        let (phase, waiting) = ("replay guard".into(), Some(what));
        (work.tell)(Progress { phase, waiting, waiting_since: Some(since), ..Progress::default() });
        if work.stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return Ok(Outcome::Stopped);
        }
    }
    waits.over(work).await;
    match change {
        Change::Put => info!("the replay guard is on the log"),
        Change::Take => info!("the replay guard is taken off the log"),
    }
    Ok(Outcome::Changed)
}

/// Brings the counters to what the guard has counted in the database.
pub async fn count(work: &Work) -> db::Result<()> {
    let (refused, failed) = replay::guard_counts(&work.db.client().await?).await?;
    let m = &work.metrics;
    m.guard_refused.inc_by(refused.saturating_sub(m.guard_refused.get()));
    m.guard_failed.inc_by(failed.saturating_sub(m.guard_failed.get()));
    Ok(())
}
