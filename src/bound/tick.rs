//! One tick of the tasks that bound the log: facts → a decision → deletion
//! under the lease → what came of it.

use super::census::{self, Scope};
use super::decide::{self, Bounded, Decision, Facts};
use super::delete::{self, Ended, Order, Report};
use super::facts;
use super::guard;
use super::index::{self, Ensured};
use super::plan::{hindered, rows_below};
use super::recent::{self, Looked};
use super::vacuum::{self, Vacuumed};
use crate::db::lease::Lease;
use crate::db::prune::TableCut;
use crate::db::{self, known};
use crate::values::{Notice, OpUlid, millis, words};
use crate::work::{Pacer, Stop, Work};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// What the census may take of a tick before a decision.
const CENSUS_BUDGET: Duration = Duration::from_secs(600);

words! {
    /// A task that a tick can do; they run in this order.
    pub enum Which {
        /// Deletes ops of tables that fell silent.
        Dormant = "dormant",
        /// Deletes what is older than the window.
        Retention = "retention",
        /// Makes the index on (table, ulid).
        Index = "index",
    }
}

/// What came of a run of `opsward prune`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pruned {
    pub tasks: Vec<TaskOutcome>,
    /// It was told to stop before all was done.
    pub interrupted: bool,
    /// Why nothing was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
    /// Settings in which the command differs from the daemon: name, the command's, the daemon's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings_differ: Vec<[String; 3]>,
}

/// What came of a task.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TaskOutcome {
    /// The task.
    pub task: Which,
    /// What it decided, where it decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Overrides in force and stalled peers, where it decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<Notice>,
    /// What it deleted, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Report>,
    /// What came of a VACUUM that earlier deletions were owed, where nothing
    /// was to delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vacuum: Option<Vacuumed>,
    /// What came of the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<Ensured>,
    /// Why it may not go on, where it did not come to an end by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
    /// READ_ONLY kept it from acting.
    pub read_only: bool,
}

impl TaskOutcome {
    fn of(task: Which, work: &Work) -> Self {
        let read_only = work.settings.read_only;
        Self {
            task,
            decision: None,
            notices: Vec::new(),
            deleted: None,
            vacuum: None,
            index: None,
            halted: None,
            read_only,
        }
    }

    /// Rows that it deleted.
    pub fn rows(&self) -> u64 {
        self.deleted.as_ref().map_or(0, Report::rows)
    }

    /// Whether it was to do more, and something kept it from that.
    pub fn is_halted(&self) -> bool {
        let ended = self.deleted.as_ref().map(|report| &report.ended);
        self.halted.is_some() || matches!(ended, Some(Ended::Halted(_)))
    }

    /// Whether it goes on where it ended, as soon as it has a turn.
    pub fn is_out_of_time(&self) -> bool {
        self.deleted.as_ref().is_some_and(|report| report.ended == Ended::OutOfTime)
    }
}

/// Does the tasks that are on, one after the other, for at most `budget`: what
/// is left goes on at the next tick. Those that are off only say so.
///
/// # Errors
/// It may not go on before the first task, the lease is lost, or the
/// database's.
pub async fn tick(
    work: &Work,
    lease: &mut Lease,
    pacer: &mut Pacer,
    which: &[Which],
    budget: Duration,
) -> Result<Vec<TaskOutcome>, Stop> {
    let ends = Instant::now() + budget;
    known::settle(&work.db.client().await?, work.clock.now_ms()).await?;
    let mut outcomes = Vec::new();
    for task in Which::ALL.into_iter().filter(|task| which.contains(task)) {
        let done = match task {
            Which::Index => ensure_index(work, lease, pacer).await,
            _ => prune(work, lease, pacer, task, ends).await,
        };
        outcomes.push(match done {
            // What the tasks before it did stays, and is told.
            Err(Stop::Halt(halt)) => {
                TaskOutcome { halted: Some(halt.to_string()), ..TaskOutcome::of(task, work) }
            }
            done => done?,
        });
    }
    Ok(outcomes)
}

async fn ensure_index(work: &Work, lease: &mut Lease, pacer: &mut Pacer) -> Result<TaskOutcome, Stop> {
    let mut outcome = TaskOutcome::of(Which::Index, work);
    if work.settings.bounding.ensure_index && !outcome.read_only {
        outcome.index = Some(index::ensure(work, lease, pacer).await?);
    }
    Ok(outcome)
}

async fn prune(
    work: &Work,
    lease: &mut Lease,
    pacer: &mut Pacer,
    task: Which,
    ends: Instant,
) -> Result<TaskOutcome, Stop> {
    let now = work.clock.now();
    let mut facts = facts::gather(lease.client()?, &work.settings, &work.own, now).await?;
    // What a look for recent ops found was marked to be counted.
    let cleans = task == Which::Dormant
        && matches!(decide::dormant(&facts), Decision::Prune { cuts } if !cuts.is_empty())
        && db::census::is_touched(&*lease.client()?).await?;
    if work.settings.bounding.census && (cleans || decide::wants_census(&facts, task == Which::Dormant)) {
        let left = ends.saturating_duration_since(Instant::now());
        census::run_once(work, lease, pacer, Scope::Now, left.min(CENSUS_BUDGET)).await?;
        facts = facts::gather(lease.client()?, &work.settings, &work.own, now).await?;
    }
    facts::note(lease.client()?, &facts, now).await?;
    let decision = match task {
        Which::Dormant => decide::dormant(&facts),
        _ => decide::retention(&facts),
    };
    let mut outcome = TaskOutcome::of(task, work);
    let is_on = !decision.is_off();
    if is_on {
        outcome.notices = decide::gate(&facts).notices;
        outcome.notices.extend(decide::size_notice(&facts).filter(|_| task == Which::Retention));
    }
    if let Decision::Prune { cuts } = &decision
        && !outcome.read_only
        && !cuts.is_empty()
    {
        let mut order = order(work, lease, task, &facts, cuts);
        if !order.cuts.is_empty() {
            let hindrances = db::preflight::hindrances(&*lease.client()?, false).await?;
            let blocker = match hindered(&hindrances, now) {
                None => guard::first(work, lease).await?,
                hindered => hindered,
            };
            if let Some(blocker) = blocker {
                outcome.decision = Some(Decision::Skip { blockers: vec![blocker] });
                return Ok(outcome);
            }
            outcome.deleted = Some(delete(work, lease, pacer, &mut order, ends).await?);
            census::show(lease, &work.metrics).await?;
        }
    } else if is_on && !outcome.read_only {
        outcome.vacuum = vacuum::after(work, lease, pacer).await?;
    }
    outcome.decision = Some(decision);
    Ok(outcome)
}

/// What is to be deleted; dormant cleanup leaves out what the census does not have.
fn order(work: &Work, lease: &Lease, task: Which, facts: &Facts, cuts: &[Bounded]) -> Order {
    let now_ms = work.clock.now_ms();
    let threshold = millis(work.settings.bounding.dormant_threshold);
    let active_since =
        (task == Which::Dormant).then(|| OpUlid::first_of_ms(now_ms.saturating_sub(threshold)));
    let goes = |of: &&Bounded| active_since.is_none() || decide::is_counted_below(facts, &of.cut);
    let cut = |of: &Bounded| TableCut {
        table: of.cut.table.clone(),
        below: of.cut.below,
        bound_by: of.bound_by.to_string(),
    };
    let expected = cuts.iter().filter(goes).map(|of| rows_below(facts, &of.cut)).sum();
    Order {
        run: format!("{now_ms}-{}", lease.pid()),
        task: task.word(),
        cuts: cuts.iter().filter(goes).map(cut).collect(),
        active_since,
        expected: Some(expected).filter(|rows| *rows > 0),
    }
}

/// A table with a recent op is left alone, and so is every one of them while
/// that is not known.
async fn delete(
    work: &Work,
    lease: &mut Lease,
    pacer: &mut Pacer,
    order: &mut Order,
    ends: Instant,
) -> Result<Report, Stop> {
    let mut looked = Looked { active: Vec::new(), is_over: true };
    if let Some(since) = order.active_since {
        let tables: Vec<&str> = order.cuts.iter().map(|cut| cut.table.as_str()).collect();
        looked = recent::look(work, lease, pacer, (&tables, since), ends).await?;
        order.cuts.retain(|cut| looked.is_over && !looked.active.contains(&cut.table));
    }
    let budget = ends.saturating_duration_since(Instant::now());
    let mut report = delete::run(work, lease, pacer, order, budget).await?;
    if order.active_since.is_some() && looked.is_over && matches!(report.ended, Ended::Done { .. }) {
        recent::done(lease).await?;
    }
    report.active.splice(0..0, looked.active);
    if !looked.is_over {
        report.ended = Ended::OutOfTime;
    }
    Ok(report)
}
