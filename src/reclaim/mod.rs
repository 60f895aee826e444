//! Contract 6: giving the disk back. What of the log survives, and how the
//! rest is returned to the filesystem while the node runs.
//!
//! The straight line: checkpoint + catalog facts → `decide::next` → a step →
//! its effect and the checkpoint in one transaction → again. A resumed, an
//! aborted and a killed reclaim walk the same line.

mod begin;
mod change;
pub mod compact;
pub mod decide;
pub mod digest;
pub mod file;
pub mod gate;
mod in_place;
pub mod plan;
pub mod reset;
mod sample;
mod swap;
pub mod verify;
mod walk;

use crate::db::clone::OPS;
use crate::db::short_lock::{Behind, Pauses, holders};
use crate::db::{self, lease::Lease};
use crate::settings::Policy;
use crate::values::{Beginning, Lately, Progress, signed, timestamp};
use crate::work::{Pacer, Stop, WaitFor, Waits, Work};
pub use begin::plan;
use begin::{BY_OPERATOR, agreed, checkpoint};
use change::Change;
use decide::{Checkpoint, Mode, OldSnapshots, Phase};
pub use gate::{Ask, Gate};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at a log that even readers are kept from.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What an operator asks of a reclaim; a job carries it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// How; where it is left out, by what fits.
    pub mode: Option<Mode>,
    /// What is kept; where it is left out, as settings say.
    pub policy: Option<Policy>,
    /// The longest window that fits.
    pub fit: bool,
    /// Stop before the swap.
    pub hold: bool,
    /// A swap puts a LOGGED table in the place of an UNLOGGED one.
    pub set_logged: bool,
    /// What becomes of snapshots from before the swap; left out when one is gone
    /// on with, it stays as it was.
    pub old_snapshots: Option<OldSnapshots>,
    /// Its own pace, 1 to 100.
    pub pace: Option<u8>,
    /// The hash of the plan that was read; another plan is refused.
    pub apply: Option<String>,
    /// What may not fit by the estimate is tried all the same.
    pub at_risk: bool,
    /// What may go now; whoever runs it asks the gate.
    pub gate: Gate,
    /// The log begins anew with this: a proof stands for the gate.
    pub reset: Option<Box<Beginning>>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Begin one.
    #[default]
    Start,
    /// Go on with an interrupted one.
    Resume,
    /// Undo an interrupted one.
    Abort,
    /// Go on with one that was held before the swap.
    Swap,
}

/// How it came out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// How it was done.
    pub mode: Mode,
    /// What was kept.
    pub policy: Policy,
    /// Bytes of the log with index and TOAST, before and now.
    pub bytes_before: u64,
    /// The same, now.
    pub bytes_after: u64,
    /// What the plan expected of them.
    pub bytes_expected: Option<u64>,
    /// Ops dropped, by table.
    pub dropped: BTreeMap<String, u64>,
    /// How long it has been under way.
    pub seconds: u64,
    /// Milliseconds that the swap kept the node's writes waiting.
    pub locked_ms: u64,
}

/// How a reclaim ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The space is given back.
    Done,
    /// It waits for `opsward reclaim --swap`.
    Held,
    /// It is undone; nothing is left of it, but what a mode in-place deleted
    /// stays deleted. Says why.
    Aborted(String),
}

/// Why a reclaim did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guard refused and nothing was done: the reason and the way out.
    #[error("{why}")]
    Refused {
        /// Why.
        why: String,
        /// What to do.
        fix: String,
    },
    /// It was told to stop, or the disk is nearly full. It can be resumed.
    #[error("{0}")]
    Halted(#[from] crate::work::Halt),
    /// It can't go on and is to be undone: why. It never leaves the walk.
    #[error("{0}")]
    Undo(String),
    /// The database's. It can be resumed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl Error {
    /// A refusal: nothing was done.
    pub fn refused(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Refused { why: why.into(), fix: fix.into() }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Halt(halt) => Self::Halted(halt),
            Stop::Db(error) => Self::Db(error),
        }
    }
}

/// A result of a reclaim.
pub type Result<T> = std::result::Result<T, Error>;

/// What a step works with.
pub struct Run<'a> {
    /// Settings, the pool, the time, where progress goes.
    pub work: &'a Work,
    /// The lease.
    pub lease: &'a mut Lease,
    /// Rests, window, disk: asked before each batch.
    pub pacer: Pacer,
    /// What is waited for; kept over a step that waits again.
    waits: Waits,
    /// Whether the step that is done now waited.
    waited: bool,
    /// Before this no lock is tried for; how long it is after the next try.
    next_try: Option<Instant>,
    pauses: Pauses,
    /// What is remembered; a step writes it in the transaction of its effect.
    pub at: Checkpoint,
    /// How the gate is asked again before anything is lost for good.
    ask: Ask<'a>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// Batches that failed, one after the other.
    failures: u32,
    /// What mode swap keeps between two batches.
    kept: swap::Kept,
    /// The phase that was told last.
    told: Cell<Phase>,
    /// When this process began, and how fast the phase went lately.
    begun: Instant,
    lately: RefCell<Lately>,
    /// What mode in-place does.
    place: in_place::Kept,
    /// How long the swap held its lock.
    locked_ms: u64,
    /// Compaction's memory, in either mode.
    compactor: Option<compact::Compactor>,
}

impl Run<'_> {
    /// Writes the checkpoint by itself.
    pub async fn save(&mut self) -> Result<()> {
        Change::begin(self.lease, &self.at).await?.commit("commit the checkpoint").await.map(|_| ())
    }

    /// Goes on to the next phase.
    pub(crate) async fn advance(&mut self) -> Result<()> {
        self.at.advance();
        self.save().await
    }

    fn now_ms(&self) -> i64 {
        self.work.clock.now().as_millisecond()
    }

    /// Waits a while, and says for what in every view; a signal to stop ends it.
    async fn wait(&mut self, wait: WaitFor, what: String, pause: Duration) {
        self.waits.tell(self.work, self.lease.pid(), (wait, &what), pause).await;
        self.waited = true;
        self.tell();
        self.pacer.idle(pause).await;
    }

    /// It waits no more.
    async fn goes_on(&mut self) {
        if self.waits.told().is_some() {
            self.waits.over(self.work).await;
        }
    }

    /// Tells how far the phase is, and how long all of it will take.
    fn tell(&self) {
        let phase = self.at.phase;
        let waits = self.waits.told();
        let mut lately = self.lately.borrow_mut();
        // Another phase goes at another rate, and a wait says nothing of any.
        if self.told.get() != phase || waits.is_some() {
            *lately = Lately::default();
        }
        if self.told.replace(phase) != phase {
            self.work.metrics.reclaim_phase.reset();
            self.work.metrics.reclaim_phase.with_label_values(&[phase.word()]).set(1);
        }
        let (unit, done) = phase.unit().map_or(("", 0), |unit| (unit, self.at.done));
        let total = self.at.total.filter(|_| phase.unit().is_some());
        let eta_seconds = lately.eta(self.begun.elapsed(), left(&self.at)).filter(|_| waits.is_none());
        let share = total.map_or(0.0, |total| done as f64 / total.max(1) as f64);
        self.work.metrics.reclaim_progress.set(share);
        self.work.metrics.reclaim_eta.set(eta_seconds.map_or(-1, signed));
        (self.work.tell)(Progress {
            phase: phase.word().into(),
            done,
            total,
            unit: unit.into(),
            eta_seconds,
            waiting: waits.map(|(what, _)| what.clone()),
            waiting_since: waits.map(|(_, since)| *since),
        });
    }
}

/// What is left of a reclaim ([`Phase::left`]).
fn left(at: &Checkpoint) -> f64 {
    let total = at.total.filter(|total| *total > 0 && at.phase.unit().is_some());
    at.phase.left(total.map_or(0.0, |total| at.done as f64 / total as f64), &at.survivors)
}

/// Makes sure that the log is the one that opsward remembers, or forgets the
/// other; waits while somebody keeps even readers away from the log.
async fn same_log(work: &Work, pid: i32) -> Result<()> {
    let mut waits = Waits::of("reclaim");
    loop {
        let client = work.db.client().await?;
        let Err(error) = db::known::settle(&client, work.clock.now_ms()).await else { break };
        if !error.is_contended() || work.stop.is_cancelled() {
            return Err(error.into());
        }
        let what = holders(&client, (&[OPS], Behind::Everybody)).await?.to_string();
        let since = waits.tell(work, pid, (WaitFor::Lock, &what), LOOK_AGAIN).await;
        let phase = "look at the log".into();
        (work.tell)(Progress {
            phase,
            waiting: Some(what),
            waiting_since: Some(since),
            ..Progress::default()
        });
        sleep(LOOK_AGAIN).await;
    }
    if waits.told().is_some() {
        waits.over(work).await;
    }
    Ok(())
}

/// Writes into the history how it ended, but for what the swap of a reset wrote itself.
async fn remember(run: &mut Run<'_>, outcome: &Outcome, after: u64) -> Result<()> {
    let at = &run.at;
    let (word, ended) = match outcome {
        Outcome::Held => return Ok(()),
        Outcome::Done if at.reset.is_some() => return Ok(()),
        Outcome::Done if after >= at.bytes_before => ("done", "done, but nothing was given back".to_owned()),
        Outcome::Done => ("done", "given back".to_owned()),
        Outcome::Aborted(why) if at.mode == Mode::InPlace => ("undone", format!("ended early: {why}")),
        Outcome::Aborted(why) => ("undone", format!("undone: {why}")),
    };
    let is_asked_for = matches!(outcome, Outcome::Aborted(why) if why == BY_OPERATOR);
    let word = if is_asked_for { "aborted" } else { word };
    run.work.metrics.reclaims.with_label_values(&[word]).inc();
    let given_back = (at.mode.word(), at.bytes_before.saturating_sub(after));
    let began = timestamp(at.began_ms.unsigned_abs());
    Ok(db::reclaim::ended(run.lease.client()?, &at.run, began, given_back, &ended).await?)
}

/// Begins, resumes, swaps or undoes a reclaim, and walks it to its end.
///
/// # Errors
/// It was told to stop, a guard refused, or the database's.
pub async fn run(work: &Work, lease: &mut Lease, request: &Request, ask: Ask<'_>) -> Result<Report> {
    if request.action != Action::Abort {
        same_log(work, lease.pid()).await?;
    }
    let at = checkpoint(work, lease, request).await?;
    let mut pacer = Pacer::new(work, at.pace);
    if at.mode == Mode::InPlace || at.reset.is_some() {
        pacer = pacer.with_floor(plan::IN_PLACE_FLOOR);
    }
    let (told, begun, lately) = (Cell::new(Phase::Done), Instant::now(), RefCell::default());
    let (kept, place) = (swap::Kept::default(), in_place::Kept::default());
    let mut run = Run {
        work,
        lease,
        pacer,
        at,
        ask,
        asked: None,
        failures: 0,
        kept,
        place,
        locked_ms: 0,
        waits: Waits::of("reclaim"),
        waited: false,
        next_try: None,
        pauses: Pauses::default(),
        compactor: None,
        told,
        begun,
        lately,
    };
    run.save().await?;
    let ended = Box::pin(walk::walk(&mut run)).await;
    run.waits.over(work).await;
    work.metrics.reclaim_phase.reset();
    work.metrics.reclaim_progress.set(0.0);
    work.metrics.reclaim_eta.set(-1);
    let outcome = ended?;
    let figures = db::stats::figures(&*run.lease.client()?).await?;
    let after = figures.ops_bytes + figures.index_bytes;
    remember(&mut run, &outcome, after).await?;
    let (at, locked_ms) = (run.at, run.locked_ms);
    Ok(Report {
        outcome,
        mode: at.mode,
        policy: at.policy,
        bytes_before: at.bytes_before,
        bytes_after: after,
        bytes_expected: at.expected,
        dropped: at
            .gone
            .iter()
            .filter(|(_, gone)| gone.rows > 0)
            .map(|(table, gone)| (table.clone(), gone.rows))
            .collect(),
        seconds: (work.clock.now().as_millisecond() - at.began_ms).max(0) as u64 / 1000,
        locked_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::decide::Survivors;
    use super::*;
    use crate::values::OpUlid;

    #[test]
    fn each_phase_has_its_part_of_the_time() {
        let window = Survivors::default();
        let of = |phase: Phase| phase.left(0.0, &window);
        assert!(of(Phase::Prepare) < 110.0 && of(Phase::Delete) > 250.0, "in place takes longer");
        assert!(Phase::Delete.left(0.5, &window) < of(Phase::Delete) && of(Phase::Done) == 0.0);
        let compact = Survivors {
            compact: [("uploads".into(), OpUlid::first_of_ms(1))].into(),
            ..Survivors::default()
        };
        assert!(Phase::Prepare.left(0.0, &compact) > of(Phase::Prepare) + 90.0);
    }
}
