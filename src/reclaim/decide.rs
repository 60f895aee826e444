//! What a reclaim does next: from its checkpoint and what the catalog says.
//! Resuming, aborting and being found after a kill are the same choice.

mod comparison;
mod phase;

use crate::settings::Policy;
use crate::values::{Beginning, OpUlid, words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use comparison::{Comparison, OldSnapshots};
pub use phase::Phase;

/// How often a reclaim begins anew by itself before it gives up.
const MOST_STARTS: u32 = 3;

words! {
    /// How the space is given back.
    pub enum Mode {
        /// What survives is copied beside the log and takes its place.
        Swap = "swap",
        /// The log is thinned where it is, and cut off at its end.
        InPlace = "in-place",
    }
}

/// What does not survive, fixed when a reclaim begins. What is written
/// afterwards survives in any case.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Survivors {
    /// By table, the lowest ULID that stays.
    pub cuts: BTreeMap<String, OpUlid>,
    /// By table, compacted below this ULID.
    pub compact: BTreeMap<String, OpUlid>,
    /// The window is the longest that fits, whatever is set.
    #[serde(default)]
    pub fitted: bool,
}

impl Survivors {
    /// By table, below which ULID something goes.
    pub fn below(&self) -> impl Iterator<Item = (&String, OpUlid)> {
        self.cuts.iter().chain(&self.compact).map(|(table, below)| (table, *below))
    }
}

/// What was dropped of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Gone {
    /// Ops.
    pub rows: u64,
    /// Bytes of their data, as stored.
    pub bytes: u64,
    /// Traces written.
    pub traces: u64,
    /// The highest op below the cut that stays for the chain's sake.
    #[serde(default)]
    pub stays: Option<OpUlid>,
}

/// All that a reclaim remembers, one row in the database.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its name in the history.
    pub run: String,
    /// How.
    pub mode: Mode,
    /// What is kept.
    pub policy: Policy,
    /// What is kept, in full.
    pub survivors: Survivors,
    /// The command's own pace, 1 to 100.
    pub pace: Option<u8>,
    /// Stop before the swap.
    pub hold: bool,
    /// Swap: the new table is LOGGED, whatever the log is.
    #[serde(default)]
    pub set_logged: bool,
    /// Where it is.
    pub phase: Phase,
    /// How far it is in the phase: a ULID or a page, '' is its start.
    pub position: String,
    /// The pass of a compaction, from 0.
    pub pass: u32,
    /// Passes in all.
    pub passes: u32,
    /// Rows done in this phase.
    pub done: u64,
    /// Rows there are to do, as estimated.
    pub total: Option<u64>,
    /// What was dropped so far, by table.
    pub gone: BTreeMap<String, Gone>,
    /// Swap: what the table was like when the new one was made.
    pub fingerprint: Option<String>,
    /// Swap: the capture as it was made.
    pub capture: Option<String>,
    /// Swap: the log's file when the capture was made.
    #[serde(default)]
    pub file: Option<i64>,
    /// The swap is a reset: with what the log begins anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Beginning>,
    /// Swap: what was compared with the copy, and when.
    #[serde(default)]
    pub comparison: Comparison,
    /// Swap: whether old snapshots are waited for.
    #[serde(default)]
    pub old_snapshots: OldSnapshots,
    /// In place: rows that were locked when their batch came.
    #[serde(default)]
    pub locked: Vec<OpUlid>,
    /// In place: while a snapshot older than this transaction is held, what was
    /// deleted or moved still takes its space.
    #[serde(default)]
    pub settled: Option<u64>,
    /// How often it began.
    pub starts: u32,
    /// Why it is being undone, when it is.
    pub aborting: Option<String>,
    /// Bytes of the log with index and TOAST before it began.
    pub bytes_before: u64,
    /// In place: how often the end of the table was cut off.
    #[serde(default)]
    pub rounds: u32,
    /// What the plan expected of the log's bytes afterwards.
    #[serde(default)]
    pub expected: Option<u64>,
    /// When it began, milliseconds since the Unix epoch.
    pub began_ms: i64,
}

impl Checkpoint {
    /// At its beginning, when nothing is done yet.
    pub fn begin(run: String, mode: Mode, policy: Policy, survivors: Survivors) -> Self {
        Self {
            run,
            mode,
            policy,
            survivors,
            pace: None,
            hold: false,
            set_logged: false,
            phase: Phase::first(mode),
            position: String::new(),
            pass: 0,
            passes: 1,
            done: 0,
            total: None,
            gone: BTreeMap::new(),
            fingerprint: None,
            capture: None,
            file: None,
            reset: None,
            comparison: Comparison::default(),
            old_snapshots: OldSnapshots::Wait,
            locked: Vec::new(),
            settled: None,
            starts: 1,
            aborting: None,
            bytes_before: 0,
            rounds: 0,
            expected: None,
            began_ms: 0,
        }
    }

    /// Goes on to the next phase.
    pub fn advance(&mut self) {
        self.phase = self.phase.next(&self.survivors);
        self.position.clear();
        self.done = 0;
    }

    /// Compares what was not compared lately.
    pub fn compare(&mut self, now_ms: i64) {
        (self.phase, self.done) = (Phase::Verify, 0);
        self.comparison.begin(now_ms);
    }

    /// As the database keeps it.
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Back to the first phase, with nothing done.
    pub fn anew(&mut self) {
        self.phase = Phase::first(self.mode);
        self.position.clear();
        (self.pass, self.done) = (0, 0);
        self.gone.clear();
        self.comparison = Comparison::default();
        (self.fingerprint, self.capture) = (None, None);
        self.starts += 1;
    }
}

/// Whether every write to the log is still being noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Capture {
    /// There is none.
    Absent,
    /// It works since it was made; the text tells it from another.
    Intact(String),
    /// It missed something; says what.
    Broken(&'static str),
}

/// What the catalog says now, as far as a swap goes by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// What the table is like: columns, indexes, owner, and so on.
    pub fingerprint: String,
    /// The capture.
    pub capture: Capture,
    /// The log's file.
    pub file: i64,
    /// What the new table in our schema is like, where it stands there.
    pub next: Option<String>,
    /// Whether the replaced table does.
    pub old: bool,
}

/// What is done next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The phase's own work, a batch of it.
    Work(Phase),
    /// It waits for the word to swap.
    Hold,
    /// What it stood on changed: from the start.
    Anew(String),
    /// It can't go on: undone from here.
    Abort(String),
    /// The capture is switched off and removed.
    DropCapture,
    /// The new table is dropped.
    DropNext,
    /// What an interrupted REINDEX left is dropped.
    DropLeftover,
    /// The checkpoint goes: it is all over.
    Finish,
}

/// What is done next in place: an abort ends where it stands, what was deleted
/// is deleted. `leftover`: an interrupted REINDEX left an index.
pub fn next_in_place(at: &Checkpoint, leftover: bool) -> Step {
    match (at.aborting.is_some(), at.phase) {
        (true, Phase::Reindex) if leftover => Step::DropLeftover,
        (true, _) | (_, Phase::Done) => Step::Finish,
        (false, phase) => Step::Work(phase),
    }
}

/// What is done next in a swap.
pub fn next_of_swap(at: &Checkpoint, facts: &Facts) -> Step {
    // After the swap there is no way back, and no need of one.
    if matches!(at.phase, Phase::Drop | Phase::Done) {
        return match facts.old {
            true => Step::Work(Phase::Drop),
            false => Step::Finish,
        };
    }
    if at.aborting.is_some() {
        return undo(facts, Step::Finish);
    }
    if facts.old {
        return Step::Abort(
            "a table opsward.ops_old is there, and the log could not go by that name: drop it or rename it"
                .into(),
        );
    }
    if at.phase == Phase::Prepare {
        return undo(facts, Step::Work(Phase::Prepare));
    }
    if let Some(why) = changed(at, facts) {
        return match why {
            Changed::Table | Changed::File if at.starts < MOST_STARTS => Step::Anew(why.words()),
            _ => Step::Abort(why.words()),
        };
    }
    match at.phase {
        Phase::Swap if at.hold => Step::Hold,
        phase => Step::Work(phase),
    }
}

/// Nothing of ours is left behind, the capture first: it costs writers.
fn undo(facts: &Facts, then: Step) -> Step {
    match facts {
        Facts { capture: Capture::Intact(_) | Capture::Broken(_), .. } => Step::DropCapture,
        Facts { next: Some(_), .. } => Step::DropNext,
        _ => then,
    }
}

enum Changed {
    Table,
    File,
    Next,
    Capture(&'static str),
    Gone(&'static str),
}

impl Changed {
    fn words(&self) -> String {
        match self {
            Self::Table => {
                "the table ops was changed meanwhile: its columns, indexes or other attributes".into()
            }
            Self::File => "the table ops was rewritten meanwhile".into(),
            Self::Next => "the new table opsward.ops_next was changed: its grants, indexes or other \
                attributes are no longer those of ops"
                .into(),
            Self::Capture(why) => format!("not every write to ops was noted: {why}"),
            Self::Gone(what) => format!("{what} is gone: somebody removed it"),
        }
    }
}

fn changed(at: &Checkpoint, facts: &Facts) -> Option<Changed> {
    if at.fingerprint.as_ref() != Some(&facts.fingerprint) {
        return Some(Changed::Table);
    }
    match &facts.next {
        None => return Some(Changed::Gone("the new table")),
        Some(next) if *next != facts.fingerprint => return Some(Changed::Next),
        Some(_) => {}
    }
    if !at.phase.follows() {
        return None;
    }
    match &facts.capture {
        Capture::Absent => Some(Changed::Gone("the trigger that notes writes")),
        Capture::Broken(why) => Some(Changed::Capture(why)),
        Capture::Intact(which) if at.capture.as_ref() != Some(which) => {
            Some(Changed::Capture("its trigger was replaced or switched off for a while"))
        }
        Capture::Intact(_) if at.file.is_some_and(|file| file != facts.file) => Some(Changed::File),
        Capture::Intact(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(phase: Phase) -> Checkpoint {
        let (fingerprint, capture, file) = (Some("a".into()), Some("c".into()), Some(7));
        let begun = Checkpoint::begin("r".into(), Mode::Swap, Policy::Window, Survivors::default());
        Checkpoint { phase, fingerprint, capture, file, ..begun }
    }

    fn facts() -> Facts {
        let capture = Capture::Intact("c".into());
        Facts { fingerprint: "a".into(), capture, file: 7, next: Some("a".into()), old: false }
    }

    #[test]
    fn a_log_that_was_rewritten_is_copied_anew() {
        let facts = Facts { file: 8, ..facts() };
        assert!(matches!(next_of_swap(&at(Phase::Swap), &facts), Step::Anew(_)));
        // A checkpoint of an older version does not know the file.
        let at = Checkpoint { file: None, ..at(Phase::Swap) };
        assert_eq!(next_of_swap(&at, &facts), Step::Work(Phase::Swap));
    }

    #[test]
    fn leftovers_go_first_and_the_capture_before_the_table() {
        let mut facts = facts();
        assert_eq!(next_of_swap(&at(Phase::Prepare), &facts), Step::DropCapture);
        facts.capture = Capture::Absent;
        assert_eq!(next_of_swap(&at(Phase::Prepare), &facts), Step::DropNext);
        facts.next = None;
        assert_eq!(next_of_swap(&at(Phase::Prepare), &facts), Step::Work(Phase::Prepare));
    }

    #[test]
    fn an_abort_ends_with_nothing_left_at_every_phase() {
        let phases = [Phase::Prepare, Phase::Capture, Phase::Copy, Phase::Verify, Phase::Swap];
        for phase in phases {
            let (mut at, mut facts) = (at(phase), facts());
            at.aborting = Some("by the operator".into());
            facts.capture = Capture::Broken("x");
            assert_eq!(next_of_swap(&at, &facts), Step::DropCapture, "{phase:?}");
            facts.capture = Capture::Absent;
            assert_eq!(next_of_swap(&at, &facts), Step::DropNext, "{phase:?}");
            facts.next = None;
            assert_eq!(next_of_swap(&at, &facts), Step::Finish, "{phase:?}");
        }
    }

    #[test]
    fn after_the_swap_an_abort_drops_the_old_table() {
        let (mut at, mut facts) = (at(Phase::Drop), facts());
        at.aborting = Some("by the operator".into());
        (facts.old, facts.next, facts.capture) = (true, None, Capture::Absent);
        assert_eq!(next_of_swap(&at, &facts), Step::Work(Phase::Drop));
        facts.old = false;
        assert_eq!(next_of_swap(&at, &facts), Step::Finish);
    }

    #[test]
    fn a_changed_table_begins_anew_a_few_times_only() {
        let (mut at, mut facts) = (at(Phase::Copy), facts());
        facts.fingerprint = "b".into();
        assert!(matches!(next_of_swap(&at, &facts), Step::Anew(_)));
        at.starts = MOST_STARTS;
        assert!(matches!(next_of_swap(&at, &facts), Step::Abort(_)));
    }

    #[test]
    fn what_was_not_noted_is_never_swapped() {
        for capture in [Capture::Absent, Capture::Broken("x"), Capture::Intact("other".into())] {
            for phase in [Phase::Judge, Phase::Copy, Phase::Replay, Phase::Verify, Phase::Swap] {
                let facts = Facts { capture: capture.clone(), ..facts() };
                assert!(matches!(next_of_swap(&at(phase), &facts), Step::Abort(_)), "{phase:?} {capture:?}");
            }
        }
        let facts = Facts { capture: Capture::Absent, ..facts() };
        assert_eq!(next_of_swap(&at(Phase::Capture), &facts), Step::Work(Phase::Capture));
    }

    #[test]
    fn a_hold_ends_before_the_swap() {
        let mut at = at(Phase::Swap);
        assert_eq!(next_of_swap(&at, &facts()), Step::Work(Phase::Swap));
        at.hold = true;
        assert_eq!(next_of_swap(&at, &facts()), Step::Hold);
    }

    /// What is there under our names stays as it was made, or there is no swap:
    /// under the lock it could only be tried again and again.
    #[test]
    fn a_new_table_that_was_changed_and_a_name_that_is_taken_undo_it() {
        let changed = Facts { next: Some("b".into()), ..facts() };
        let taken = Facts { old: true, ..facts() };
        for phase in [Phase::Capture, Phase::Copy, Phase::Verify, Phase::Swap] {
            for (facts, word) in [(&changed, "ops_next"), (&taken, "ops_old")] {
                let step = next_of_swap(&at(phase), facts);
                assert!(matches!(&step, Step::Abort(why) if why.contains(word)), "{phase:?}: {step:?}");
            }
        }
        assert!(matches!(next_of_swap(&at(Phase::Prepare), &taken), Step::Abort(_)));
        // The log itself is asked first: it may begin anew.
        let both = Facts { fingerprint: "b".into(), ..facts() };
        assert!(matches!(next_of_swap(&at(Phase::Copy), &both), Step::Anew(_)));
    }

    #[test]
    fn an_abort_in_place_takes_the_leftover_of_its_reindex_along() {
        let mut at = at(Phase::Reindex);
        assert_eq!(next_in_place(&at, true), Step::Work(Phase::Reindex));
        at.aborting = Some("by the operator".into());
        assert_eq!(next_in_place(&at, true), Step::DropLeftover);
        assert_eq!(next_in_place(&at, false), Step::Finish);
        // An index in the making then is somebody else's.
        at.phase = Phase::Move;
        assert_eq!(next_in_place(&at, true), Step::Finish);
    }
}
