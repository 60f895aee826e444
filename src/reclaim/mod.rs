//! Contract 6: giving the disk back. What of the log survives, and how the
//! rest is returned to the filesystem while the node runs.
//!
//! The straight line: checkpoint + catalog facts → `decide::next` → a step →
//! its effect and the checkpoint in one transaction → again. A resumed, an
//! aborted and a killed reclaim walk the same line.

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

use crate::db::{self, Doing, lease::Lease};
use crate::settings::Policy;
use crate::values::{Beginning, Progress};
use crate::work::{Pacer, Stop, Work};
use decide::{Checkpoint, Mode, Phase, Survivors};
pub use gate::{Ask, Gate};
use jiff::Timestamp;
use plan::Plan;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

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
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
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
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
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
    #[error("{0}; `opsward reclaim --resume` goes on, `--abort` undoes it")]
    Halted(#[from] crate::work::Halt),
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
    /// When this process began, and what was left then ([`Phase::left`]).
    begun: (Instant, f64),
    /// What mode in-place does.
    place: in_place::Kept,
    /// How long the swap held its lock.
    locked_ms: u64,
    /// Compaction's memory, in either mode.
    compactor: Option<compact::Compactor>,
}

impl Run<'_> {
    /// Writes the checkpoint by itself.
    ///
    /// # Errors
    /// The database's.
    pub async fn save(&mut self) -> Result<()> {
        let tx = self.lease.begin().await?;
        db::reclaim::save(&tx, &self.at.json()).await?;
        tx.commit().await.doing("commit the checkpoint")?;
        Ok(())
    }

    /// Tells how far the phase is, and how long all of it will take.
    pub fn tell(&self, waiting: Option<String>) {
        let phase = self.at.phase;
        if self.told.replace(phase) != phase {
            self.work.metrics.reclaim_phase.reset();
            self.work.metrics.reclaim_phase.with_label_values(&[phase.word()]).set(1);
        }
        let (unit, done) = phase.unit().map_or(("", 0), |unit| (unit, self.at.done));
        let total = self.at.total.filter(|_| phase.unit().is_some());
        let eta_seconds = eta(self.begun.0.elapsed(), self.begun.1, left(&self.at));
        let share = total.map_or(0.0, |total| done as f64 / total.max(1) as f64);
        self.work.metrics.reclaim_progress.set(share);
        self.work.metrics.reclaim_eta.set(eta_seconds.map_or(-1, |s| i64::try_from(s).unwrap_or(i64::MAX)));
        (self.work.tell)(Progress {
            phase: phase.word().into(),
            done,
            total,
            unit: unit.into(),
            eta_seconds,
            waiting,
        });
    }
}

/// What is left of a reclaim ([`Phase::left`]).
fn left(at: &Checkpoint) -> f64 {
    let total = at.total.filter(|total| *total > 0 && at.phase.unit().is_some());
    at.phase.left(total.map_or(0.0, |total| at.done as f64 / total as f64), &at.survivors)
}

/// Seconds until the end, by what the first of it took; `None` until that is a hundredth of it.
fn eta(elapsed: Duration, first: f64, left: f64) -> Option<u64> {
    let done = first - left;
    (done * 100.0 >= first && done > 0.0).then(|| (elapsed.as_secs_f64() / done * left) as u64)
}

/// Begins, resumes, swaps or undoes a reclaim, and walks it to its end.
///
/// # Errors
/// It was told to stop, a guard refused, or the database's.
pub async fn run(work: &Work, lease: &mut Lease, request: &Request, ask: Ask<'_>) -> Result<Report> {
    let at = checkpoint(work, lease, request).await?;
    let mut pacer = Pacer::new(work, at.pace);
    if at.mode == Mode::InPlace || at.reset.is_some() {
        pacer = pacer.with_floor(plan::IN_PLACE_FLOOR);
    }
    let (told, begun) = (Cell::new(Phase::Done), (Instant::now(), left(&at)));
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
        compactor: None,
        told,
        begun,
    };
    run.save().await?;
    let ended = walk::walk(&mut run).await;
    work.metrics.reclaim_phase.reset();
    work.metrics.reclaim_progress.set(0.0);
    work.metrics.reclaim_eta.set(-1);
    let outcome = ended?;
    let figures = db::stats::figures(&*run.lease.client()?).await?;
    let (at, locked_ms, after) = (run.at, run.locked_ms, figures.ops_bytes + figures.index_bytes);
    let ended = match &outcome {
        // The swap wrote that down.
        Outcome::Done if at.reset.is_some() => None,
        Outcome::Done if after >= at.bytes_before => Some("done, but nothing was given back".to_owned()),
        Outcome::Done => Some("given back".to_owned()),
        Outcome::Aborted(why) if at.mode == Mode::InPlace => Some(format!("ended early: {why}")),
        Outcome::Aborted(why) => Some(format!("undone: {why}")),
        Outcome::Held => None,
    };
    if let Some(ended) = ended {
        let word = if outcome == Outcome::Done { "done" } else { "undone" };
        work.metrics.reclaims.with_label_values(&[word]).inc();
        let given_back = at.bytes_before.saturating_sub(after);
        let began = Timestamp::from_millisecond(at.began_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        db::reclaim::ended(run.lease.client()?, &at.run, began, (at.mode.word(), given_back), &ended).await?;
    }
    Ok(Report {
        outcome,
        mode: at.mode,
        policy: at.policy,
        bytes_before: at.bytes_before,
        bytes_after: after,
        bytes_expected: at.expected,
        dropped: at.gone.iter().map(|(table, gone)| (table.clone(), gone.rows)).collect(),
        seconds: (work.clock.now().as_millisecond() - at.began_ms).max(0) as u64 / 1000,
        locked_ms,
    })
}

/// Why READ_ONLY refuses a reclaim, and what lifts that.
const READ_ONLY: (&str, &str) = (
    "READ_ONLY is set: ops stays as it is",
    "set OPENAUDIO_MEDIORUM_READ_ONLY=false to reclaim; `opsward reclaim --abort` undoes one",
);

/// The checkpoint to go on from: the one that is there, or a new one.
async fn checkpoint(work: &Work, lease: &mut Lease, request: &Request) -> Result<Checkpoint> {
    let there = db::reclaim::load(&*lease.client()?).await?;
    let there = match there {
        Some((value, _)) => Some(serde_json::from_value::<Checkpoint>(value).map_err(|e| {
            db::Error::Unfit(format!("the checkpoint in opsward.reclaim is not of this version: {e}"))
        })?),
        None => None,
    };
    let nothing = |what: &str| {
        Error::refused(
            format!("there is no reclaim to {what}"),
            "`opsward reclaim --plan` shows what one would do",
        )
    };
    if work.settings.read_only && request.action != Action::Abort {
        return Err(Error::refused(READ_ONLY.0, READ_ONLY.1));
    }
    match (request.action, there) {
        (Action::Resume, Some(at)) if at.reset.is_some() => Err(Error::refused(
            "a reset was interrupted",
            "`opsward reclaim --abort` undoes it; then `opsward reset` begins anew",
        )),
        (Action::Start, None) => begin(work, lease, request).await,
        (Action::Start, Some(at)) => {
            let is_held = at.hold && at.phase == Phase::Swap;
            let (why, fix) = unfinished_words(at.mode.word(), at.phase.word(), is_held);
            Err(Error::refused(why, fix))
        }
        (Action::Resume, Some(at)) => {
            agreed(&request.gate, &at)?;
            Ok(Checkpoint { pace: request.pace.or(at.pace), ..at })
        }
        (Action::Resume, None) => Err(nothing("go on with")),
        (Action::Abort, Some(mut at)) => {
            at.aborting.get_or_insert_with(|| "by the operator".into());
            Ok(at)
        }
        (Action::Abort, None) => Err(nothing("undo")),
        (Action::Swap, Some(at)) if at.phase == Phase::Swap => {
            agreed(&request.gate, &at)?;
            Ok(Checkpoint { hold: false, ..at })
        }
        (Action::Swap, Some(at)) => Err(Error::refused(
            format!("the reclaim is in its phase {}, not held before the swap", at.phase.word()),
            "`opsward reclaim --resume` goes on with it",
        )),
        (Action::Swap, None) => Err(nothing("swap")),
    }
}

/// Makes sure that what was chosen to go may go still.
fn agreed(gate: &Gate, at: &Checkpoint) -> Result<()> {
    let forbidden = match at.aborting.is_none() && at.phase.is_open() && at.reset.is_none() {
        true => gate.forbids(&at.survivors),
        false => Vec::new(),
    };
    if forbidden.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        format!("what this reclaim was to drop may not go now: {}", forbidden.join("; ")),
        "`opsward plan` shows what lifts it, then `opsward reclaim --resume` goes on; `--abort` undoes it",
    ))
}

/// What a reclaim would do, and what stands in its way. Writes nothing.
///
/// # Errors
/// No policy is set, or the database's.
pub async fn plan(work: &Work, client: &db::Client, request: &Request) -> Result<Plan> {
    let settings = &work.settings.bounding;
    // What fits is a window.
    let fit = request.fit.then_some(Policy::Window);
    let Some(policy) = request.policy.or(fit).or(settings.reclaim_policy) else {
        let why = "no policy says what of the log is to be kept";
        return Err(Error::refused(
            why,
            "say --policy window or compact, or set OPENAUDIO_MEDIORUM_OPS_RECLAIM_POLICY",
        ));
    };
    let signs = db::pace::signs(client).await?;
    let mut standing = db::preflight::standing(client).await?;
    standing.lease = db::lease::other(client).await?.map(|holder| holder.to_string());
    let traits = db::clone::traits(client, db::clone::OPS).await?.fingerprint();
    // A plan of another database, or of the log before a swap, is another plan.
    let fingerprint = format!("{traits} {}", db::clone::identity(client).await?);
    let census = db::census::load(client).await?;
    let horizons = db::floors::horizons(client).await?.into_iter().collect();
    let volumes = db::stats::volumes(work.settings.pgdata_path.as_deref(), &work.settings.db, &signs.places);
    let seen = sample::seen(work, &census, request.gate.ceiling).await?;
    let mut plan = plan::plan(&plan::Facts {
        asked: plan::Asked {
            mode: request.mode,
            policy,
            fit: request.fit,
            percent: request.pace.unwrap_or(signs.percent),
        },
        settings,
        gate: &request.gate,
        census: &census,
        horizons: &horizons,
        standing: &standing,
        fingerprint: &fingerprint,
        volumes: &volumes,
        seen: &seen,
        now_ms: u64::try_from(work.clock.now().as_millisecond()).unwrap_or(0),
    });
    let mut stands = |is: bool, code, text: &str, fix: &str| {
        if is {
            plan.obstacles.push(plan::Obstacle { code, text: text.into(), fix: fix.into() });
        }
    };
    stands(work.settings.read_only, "read_only", READ_ONLY.0, READ_ONLY.1);
    stands(
        request.hold && plan.mode == Mode::InPlace,
        "hold",
        "mode in-place has no swap that --hold could stop before",
        "leave out --hold, or make room for --mode swap",
    );
    // The sizes are of a log in between: what there is to do comes first.
    if let Some(unfinished) = db::reclaim::unfinished(client).await? {
        let (text, fix) = unfinished_words(&unfinished.mode, &unfinished.phase, unfinished.held);
        plan.obstacles.insert(0, plan::Obstacle { code: "unfinished", text, fix });
    }
    Ok(plan)
}

/// What is said of a reclaim that stands in the way of another.
fn unfinished_words(mode: &str, phase: &str, is_held: bool) -> (String, String) {
    match is_held {
        true => (
            "a reclaim in mode swap is held before its swap".to_owned(),
            "`opsward reclaim --swap` puts the new table in place, `--abort` undoes it".to_owned(),
        ),
        false => (
            format!("a reclaim in mode {mode} is unfinished, in its phase {phase}"),
            "`opsward reclaim --resume` goes on with it, `--abort` ends it".to_owned(),
        ),
    }
}

/// A new reclaim: only as the plan that was read, and with nothing in its way.
async fn begin(work: &Work, lease: &mut Lease, request: &Request) -> Result<Checkpoint> {
    if let Some(beginning) = &request.reset {
        return reset::begin(work, lease, beginning).await;
    }
    let plan = plan(work, lease.client()?, request).await?;
    if let Some(hash) = request.apply.as_ref().filter(|hash| **hash != plan.hash) {
        let why = format!(
            "the plan is now {}, not {hash}: mode, policy, cutoff, settings or table changed",
            plan.hash
        );
        return Err(Error::refused(why, "read it again: `opsward reclaim --plan`"));
    }
    if !plan.obstacles.is_empty() {
        let of = |part: fn(&plan::Obstacle) -> &String| {
            plan.obstacles.iter().map(part).cloned().collect::<Vec<_>>()
        };
        return Err(Error::refused(of(|o| &o.text).join("; "), of(|o| &o.fix).join("; ")));
    }
    if let Some(risk) = plan.risks.first().filter(|_| !request.at_risk) {
        return Err(Error::refused(&risk.text, &risk.fix));
    }
    let (now, is_moves_only) = (work.clock.now(), plan.moves_only());
    let rows: u64 = plan.tables.iter().map(|t| t.rows).sum();
    // About every tenth op changes a record that compaction must remember.
    let memory = usize::try_from(work.settings.bounding.reclaim_memory).unwrap_or(usize::MAX);
    // A window of a size is found by the census, which waits while this goes on.
    let fitted = request.fit || work.settings.bounding.retention_bytes > 0;
    let survivors = Survivors { fitted, ..plan.survivors };
    let run = format!("reclaim-{}", now.as_millisecond());
    let begin = Checkpoint::begin(run, plan.mode, plan.policy, survivors);
    let phase = match plan.mode {
        // Nothing is to be deleted.
        Mode::InPlace if is_moves_only => Phase::Vacuum,
        _ => begin.phase,
    };
    Ok(Checkpoint {
        pace: request.pace,
        phase,
        expected: Some(plan.space.afterwards),
        hold: request.hold,
        passes: compact::passes(memory, rows / 10),
        total: Some(rows),
        bytes_before: plan.space.table + plan.space.indexes,
        began_ms: now.as_millisecond(),
        ..begin
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::OpUlid;

    #[test]
    fn the_first_part_tells_how_long_the_rest_takes() {
        let ten = Duration::from_secs(10);
        assert_eq!(eta(ten, 100.0, 99.5), None, "too little to tell");
        assert_eq!((eta(ten, 100.0, 90.0), eta(ten, 100.0, 0.0)), (Some(90), Some(0)));
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
