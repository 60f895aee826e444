//! One tick of the tasks that bound the log: facts → a decision → deletion
//! under the lease → what came of it.

use super::census::{self, Scope};
use super::decide::{self, Decision};
use super::delete::{self, Order, Report};
use super::facts;
use super::index::{self, Ensured};
use crate::db::lease::Lease;
use crate::db::prune::TableCut;
use crate::db::reclaim;
use crate::values::{Blocker, OpUlid};
use crate::work::{Pacer, Stop, Work};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A tick ends at the latest after this; what is left goes on at the next.
const BUDGET: Duration = Duration::from_secs(3600);
/// What the census may take of it before a decision.
const CENSUS_BUDGET: Duration = Duration::from_secs(600);

/// A task that a tick can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Deletes what is older than the window.
    Retention,
    /// Deletes ops of tables that fell silent.
    Dormant,
    /// Makes the index on (table, ulid).
    Index,
}

impl Which {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 3] = [Self::Dormant, Self::Retention, Self::Index];

    /// Its word, on the command line, in history and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Dormant => "dormant",
            Self::Index => "index",
        }
    }
}

/// What came of a task.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TaskOutcome {
    /// The task.
    pub task: Which,
    /// What it decided, where it decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// What it deleted, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Report>,
    /// What came of the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<Ensured>,
    /// READ_ONLY kept it from acting.
    pub read_only: bool,
}

/// Does the tasks that are on, one after the other. Those that are off only
/// say so.
///
/// # Errors
/// It may not go on before the first deletion, the lease is lost, or the
/// database's.
pub async fn tick(
    work: &Work,
    lease: &mut Lease,
    pacer: &mut Pacer,
    which: &[Which],
) -> Result<Vec<TaskOutcome>, Stop> {
    let set = &work.settings.bounding;
    let deletes = set.retention_days > 0 || set.retention_bytes > 0 || set.dormant_cleanup;
    if deletes && set.census && which.iter().any(|w| *w != Which::Index) {
        census::run_once(work, lease, pacer, Scope::Now, CENSUS_BUDGET).await?;
    }
    let mut outcomes = Vec::new();
    for task in Which::ALL.into_iter().filter(|task| which.contains(task)) {
        outcomes.push(match task {
            Which::Index => ensure_index(work, lease, pacer).await?,
            _ => prune(work, lease, pacer, task).await?,
        });
    }
    Ok(outcomes)
}

async fn ensure_index(work: &Work, lease: &mut Lease, pacer: &mut Pacer) -> Result<TaskOutcome, Stop> {
    let read_only = work.settings.read_only;
    let index = match work.settings.bounding.ensure_index && !read_only {
        true => Some(index::ensure(work, lease, pacer).await?),
        false => None,
    };
    Ok(TaskOutcome { task: Which::Index, decision: None, deleted: None, index, read_only })
}

/// A swap under way: what is deleted beside it is noted for it, and too much
/// ends it; what is to go it leaves out itself.
async fn copying(lease: &mut Lease, now: Timestamp) -> Result<Option<Blocker>, Stop> {
    let unfinished = reclaim::unfinished(&*lease.client()?).await?;
    Ok(unfinished.filter(|of| of.mode == "swap").map(|of| Blocker {
        code: "reclaim",
        subject: String::new(),
        text: format!("a reclaim in mode swap is unfinished, in its phase {}", of.phase),
        fix: "`opsward reclaim --resume` goes on with it, or `--swap` where it is held; `--abort` undoes it"
            .to_owned(),
        since: now,
    }))
}

async fn prune(work: &Work, lease: &mut Lease, pacer: &mut Pacer, task: Which) -> Result<TaskOutcome, Stop> {
    let now = work.clock.now();
    let facts = facts::gather(lease.client()?, &work.settings, &work.own, now).await?;
    facts::note(lease.client()?, &facts, now).await?;
    let decision = match (copying(lease, now).await?, task) {
        (Some(copying), _) => Decision::Skip { blockers: vec![copying] },
        (None, Which::Dormant) => decide::dormant(&facts),
        (None, _) => decide::retention(&facts),
    };
    let read_only = work.settings.read_only;
    let mut outcome = TaskOutcome { task, decision: None, deleted: None, index: None, read_only };
    if let Decision::Prune { cuts } = &decision
        && !read_only
        && !cuts.is_empty()
    {
        let cut = |of: &decide::Bounded| TableCut {
            table: of.cut.table.clone(),
            below: of.cut.below,
            bound_by: of.bound_by.to_string(),
        };
        let threshold =
            u64::try_from(work.settings.bounding.dormant_threshold.as_millis()).unwrap_or(u64::MAX);
        let now_ms = work.clock.now_ms();
        let order = Order {
            run: format!("{now_ms}-{}", lease.pid()),
            task: task.word(),
            cuts: cuts.iter().map(cut).collect(),
            active_since: (task == Which::Dormant)
                .then(|| OpUlid::first_of_ms(now_ms.saturating_sub(threshold))),
        };
        outcome.deleted = Some(delete::run(work, lease, pacer, &order, BUDGET).await?);
    }
    outcome.decision = Some(decision);
    Ok(outcome)
}
