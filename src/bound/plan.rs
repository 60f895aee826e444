//! What each task would do now, and what stands in the way. Documented and
//! stable: names are never changed, only added. Sizes are bytes, times left
//! seconds, times RFC 3339 in UTC.

mod measure;
mod notices;
mod reclaim;

use super::decide::{self, Bounded, Cut, Decision, Facts};
use super::forecast::{Forecast, forecast};
use super::index::no_room;
use super::node::{self, NodePrunes};
use crate::db::guard::Found;
use crate::db::index;
use crate::db::privileges::{Lacking, Need};
use crate::db::stats::Figures;
use crate::records::models;
use crate::values::{Blocker, BoundBy, Notice, Replication, TableDay};
use jiff::Timestamp;
use jiff::civil::Date;
pub use measure::measure;
use serde::Serialize;

/// What a trace takes on disk, its index included (contract 5).
const TRACE_BYTES: u64 = 100;

/// Notices of what halts bulk work at its next batch.
const HALTS: [&str; 3] = ["paused", "outside_window", "little_disk"];

/// What there is to know besides the facts.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Now.
    pub now: Timestamp,
    /// Nothing outside the schema `opsward` is written.
    pub read_only: bool,
    /// Sizes of the log on disk.
    pub figures: Figures,
    /// Free bytes on the database's volume.
    pub free_bytes: Option<u64>,
    /// Since when bulk work is paused.
    pub paused_at: Option<Timestamp>,
    /// What there is of an index on `ops("table", ulid)`, and what it takes.
    pub index: index::Found,
    /// Privileges that this role lacks.
    pub lacking: Vec<Lacking>,
    /// What depends on the log's rows, so that deleting them fails or deletes more.
    pub hindrances: Vec<String>,
    /// When the census was last brought up to date.
    pub census_at: Option<Timestamp>,
    /// Whether peers' sweeps come here.
    pub routed: Routed,
    /// What there is of the replay guard.
    pub guard: Found,
}

/// Whether a proxy brings peers' sweeps to opsward: what answers at self's
/// public URL says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Routed {
    /// An opsward answers there.
    Routed,
    /// Something else does.
    NotRouted,
    /// Nobody asked, or nothing answered.
    NotKnown,
}

/// What would be done now.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Plan {
    /// When it was made.
    pub at: Timestamp,
    /// Nothing outside the schema `opsward` is written.
    pub read_only: bool,
    /// Each task: `retention`, `dormant_cleanup`, `index`, `replay_guard`, `reclaim`.
    pub tasks: Vec<TaskPlan>,
    /// What is worth knowing: overrides in force, stalled peers, pauses.
    pub notices: Vec<Notice>,
    /// Whether peers' sweeps come here, so that readers can hold anything.
    pub routed: Routed,
    /// How ops reach the node.
    pub replication: Replication,
    /// What the node's own pruner deletes; `null` where it has none, or keeps all.
    pub node_prunes: Option<NodePrunes>,
    /// What the log holds.
    pub census: CensusSum,
    /// Rows that would be deleted now by all tasks together.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that traces of them take, about: nearly every op has one record, and
    /// a record one trace however many ops it had.
    pub trace_bytes_about: u64,
    /// What comes.
    pub forecast: Forecast,
}

/// Whether a task acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It would do something now.
    WouldRun,
    /// It is on and has nothing to do.
    NothingToDo,
    /// It is on, and something stands in the way.
    Blocked,
    /// It is off.
    Off,
}

/// One task.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TaskPlan {
    /// Its name.
    pub name: &'static str,
    /// Whether it acts.
    pub state: State,
    /// What it would delete, a table each.
    pub deletes: Vec<Delete>,
    /// All that stands in its way.
    pub blockers: Vec<Blocker>,
    /// A word on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What would be deleted of a table.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Delete {
    /// The cut and what bounds it.
    #[serde(flatten)]
    pub bounded: Bounded,
    /// Rows, by the census.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Estimated, or cut in the middle of a day.
    pub about: bool,
    /// The oldest day that loses ops.
    pub oldest: Option<Date>,
    /// The newest day that loses ops.
    pub newest: Option<Date>,
}

/// What the log holds by the census.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CensusSum {
    /// Ops.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Not counted whole yet.
    pub estimated: bool,
    /// The oldest day.
    pub oldest: Option<Date>,
    /// When it was last brought up to date; `null` where there is none.
    pub at: Option<Timestamp>,
}

/// Makes the plan.
pub fn plan(facts: &Facts, around: &Surroundings) -> Plan {
    let retention = deleting("retention", decide::retention(facts), facts, around);
    let dormant = deleting("dormant_cleanup", decide::dormant(facts), facts, around);
    let together = together(&[&retention, &dormant]);
    let sums: Vec<Delete> = together.into_iter().map(|bounded| delete(bounded, facts)).collect();
    let leaves_traces = |d: &&Delete| models().get(&d.bounded.cut.table).is_some_and(|m| !m.append_only);
    let traced: u64 = sums.iter().filter(leaves_traces).map(|d| d.rows).sum();
    let bytes = sums.iter().map(|d| d.bytes).sum();
    Plan {
        at: around.now,
        read_only: around.read_only,
        notices: notices::notices(facts, around),
        routed: around.routed,
        replication: facts.replication,
        node_prunes: node::prunes(facts),
        census: CensusSum {
            rows: facts.census.iter().map(|of| of.rows).sum(),
            bytes: facts.census.iter().map(|of| of.bytes).sum(),
            estimated: is_estimated(facts),
            oldest: facts.census.iter().map(|of| of.day).min(),
            at: around.census_at,
        },
        rows: sums.iter().map(|d| d.rows).sum(),
        bytes,
        trace_bytes_about: traced * TRACE_BYTES,
        forecast: forecast(facts, around),
        tasks: vec![
            retention,
            dormant,
            index(facts, around),
            guard(facts, around),
            reclaim::task(facts, around),
        ],
    }
}

fn deleting(name: &'static str, decision: Decision, facts: &Facts, around: &Surroundings) -> TaskPlan {
    let task = |state, deletes, blockers| TaskPlan { name, state, deletes, blockers, note: None };
    let is_off = decision.is_off();
    match decision {
        Decision::Skip { blockers } => {
            task(if is_off { State::Off } else { State::Blocked }, Vec::new(), blockers)
        }
        Decision::Prune { cuts } => {
            let deletes: Vec<Delete> = cuts.into_iter().map(|bounded| delete(bounded, facts)).collect();
            let mut blockers = may_not(around, Need::Delete);
            if facts.settings.replay_guard && around.guard != Found::Right && blockers.is_empty() {
                blockers = may_not(around, Need::Guard);
            }
            match (deletes.iter().any(|d| d.rows > 0), blockers.is_empty()) {
                // Age needs no census to act; what it would delete is unknown then.
                (false, _) if facts.census_whole => task(State::NothingToDo, deletes, Vec::new()),
                (_, false) => task(State::Blocked, deletes, blockers),
                (_, true) => task(State::WouldRun, deletes, Vec::new()),
            }
        }
    }
}

/// The furthest cut of each table: what one task deletes the other does not.
fn together(tasks: &[&TaskPlan]) -> Vec<Bounded> {
    let mut all: Vec<Bounded> =
        tasks.iter().flat_map(|task| &task.deletes).map(|delete| delete.bounded.clone()).collect();
    all.sort_by(|a, b| (&a.cut.table, b.cut.below).cmp(&(&b.cut.table, a.cut.below)));
    all.dedup_by(|later, first| later.cut.table == first.cut.table);
    all
}

/// Rows of a table below a cut that the census says may go.
pub(super) fn rows_below(facts: &Facts, cut: &Cut) -> u64 {
    let of_day =
        |of: &TableDay| (of.rows.saturating_sub(of.owed) as f64 * share_below(of, cut.below.ms())).round();
    facts.census.iter().filter(|of| of.table == cut.table).map(|of| of_day(of) as u64).sum()
}

fn delete(bounded: Bounded, facts: &Facts) -> Delete {
    let mut sum = Delete { bounded, rows: 0, bytes: 0, about: false, oldest: None, newest: None };
    let Cut { table, below } = &sum.bounded.cut;
    for of in facts.census.iter().filter(|of| of.table == *table) {
        let share = share_below(of, below.ms());
        let rows = (of.rows.saturating_sub(of.owed) as f64 * share).round() as u64;
        if rows > 0 {
            sum.rows += rows;
            sum.bytes += (of.bytes as f64 * share * (rows as f64 / (of.rows as f64 * share))) as u64;
            sum.about |= of.estimated || share < 1.0;
            sum.oldest = Some(sum.oldest.map_or(of.day, |d| d.min(of.day)));
            sum.newest = Some(sum.newest.map_or(of.day, |d| d.max(of.day)));
        }
    }
    sum
}

/// The part of a day's ops that lies below a time, as if they came evenly
/// between its oldest and its newest.
fn share_below(of: &TableDay, ms: u64) -> f64 {
    let (Some(oldest), Some(newest)) = (of.oldest, of.newest) else {
        return 0.0;
    };
    match (oldest.ms(), newest.ms()) {
        (_, newest) if newest < ms => 1.0,
        (oldest, _) if oldest >= ms => 0.0,
        (oldest, newest) => (ms - oldest) as f64 / (newest - oldest).max(1) as f64,
    }
}

fn is_estimated(facts: &Facts) -> bool {
    !facts.census_whole || facts.census.iter().any(|of| of.estimated)
}

fn blocker(now: Timestamp, code: &'static str, text: String, fix: String) -> Blocker {
    Blocker { code: code.into(), subject: String::new(), text, fix, since: now }
}

/// What keeps a task from writing to the log: the mode, a missing privilege.
fn may_not(around: &Surroundings, need: Need) -> Vec<Blocker> {
    let read_only = around.read_only.then(|| {
        let text = "nothing outside the schema opsward is written".into();
        blocker(around.now, "read_only", text, "set OPENAUDIO_MEDIORUM_READ_ONLY=false".into())
    });
    let lacking = around.lacking.iter().filter(|lacking| lacking.need == need);
    let lacking = lacking.map(|of| {
        blocker(
            around.now,
            "no_privilege",
            need.consequence().to_owned(),
            format!("as the owner: {}", of.lift),
        )
    });
    let hindered = (need == Need::Delete).then(|| hindered(&around.hindrances, around.now)).flatten();
    read_only.into_iter().chain(lacking).chain(hindered).collect()
}

/// Nothing is deleted where others' rows, or others' rules, hang on it.
pub(super) fn hindered(hindrances: &[String], now: Timestamp) -> Option<Blocker> {
    (!hindrances.is_empty()).then(|| {
        let text = format!("rows of ops can't just be deleted: it has a {}", hindrances.join(", a "));
        blocker(now, "dependents", text, "drop it, or detach it from ops".into())
    })
}

/// A task that is a switch and a state of the database.
fn switched(name: &'static str, on: Option<State>, note: &str) -> TaskPlan {
    let state = on.unwrap_or(State::Off);
    TaskPlan { name, state, deletes: Vec::new(), blockers: Vec::new(), note: Some(note.to_owned()) }
}

fn index(facts: &Facts, around: &Surroundings) -> TaskPlan {
    let set = &facts.settings;
    if !set.ensure_index {
        return switched("index", None, "OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX=true turns it on");
    }
    if around.index.there.is_some() {
        return switched("index", Some(State::NothingToDo), "the index on (table, ulid) is there");
    }
    let mut blockers = may_not(around, Need::Index);
    blockers.extend(
        no_room(around.index.bytes, around.index.wal_bytes, around.free_bytes, set.min_free_disk).map(
            |text| {
                let fix = "make room, or lower OPENAUDIO_MEDIORUM_MIN_FREE_DISK".into();
                blocker(around.now, "no_room", text, fix)
            },
        ),
    );
    wanted(switched("index", Some(State::WouldRun), "an index on (table, ulid) is missing"), blockers)
}

fn guard(facts: &Facts, around: &Surroundings) -> TaskPlan {
    match (facts.settings.replay_guard, around.guard) {
        (true, Found::Right) => switched("replay_guard", Some(State::NothingToDo), "it is on the log"),
        (true, _) => wanted(
            switched(
                "replay_guard",
                Some(State::WouldRun),
                "it is not on the log: `opsward run` puts it there, and so does whatever deletes, before it does",
            ),
            may_not(around, Need::Guard),
        ),
        (false, _) => switched("replay_guard", None, "OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD=true turns it on"),
    }
}

/// A task that would run, were it not for these.
fn wanted(task: TaskPlan, blockers: Vec<Blocker>) -> TaskPlan {
    let state = if blockers.is_empty() { task.state } else { State::Blocked };
    TaskPlan { state, blockers, ..task }
}

impl Plan {
    /// A task by its name.
    pub fn task(&self, name: &str) -> Option<&TaskPlan> {
        self.tasks.iter().find(|task| task.name == name)
    }
}

impl TaskPlan {
    /// Why it would halt at its first batch: paused, outside its window, too little disk.
    pub fn halts<'a>(&self, plan: &'a Plan) -> Vec<&'a Notice> {
        let halts = |notice: &&Notice| HALTS.contains(&&*notice.code);
        // The guard is put on the log however that is.
        let is_bulk = self.state == State::WouldRun && self.name != "replay_guard";
        plan.notices.iter().filter(halts).filter(|_| is_bulk).collect()
    }

    /// What bounds it furthest back, and how far.
    pub fn lowest(&self) -> Option<(&Cut, &BoundBy)> {
        let lowest = self.deletes.iter().min_by_key(|d| d.bounded.cut.below)?;
        Some((&lowest.bounded.cut, &lowest.bounded.bound_by))
    }
}

#[cfg(test)]
mod tests;
