//! What `opsward reclaim` would give back now, and what makes it refuse.

use super::{State, Surroundings, TaskPlan, blocker, delete, is_estimated, may_not, switched, wanted};
use crate::bound::decide::{self, Bounded, Cut, Facts, RECLAIM_LEAST};
use crate::bound::{forecast, node};
use crate::db::privileges::Need;
use crate::db::stats::Figures;
use crate::settings::{Keep, Policy};
use crate::values::{Blocker, BoundBy, TableDay, bytes};

/// A reclaim that gives back less than this part of the log is not worth a word.
const WORTH_RECLAIMING: u64 = 10;

/// What a reclaim that keeps windows gives back, on disk.
struct GivenBack {
    /// Now, indexes included.
    now: u64,
    /// Rows that it drops for that.
    rows: u64,
    /// More, once the node has deleted what is older than its own window.
    later: u64,
}

/// The plan of a reclaim, as `opsward reclaim --plan` comes to it.
pub(super) fn task(facts: &Facts, around: &Surroundings) -> TaskPlan {
    let figures = &around.figures;
    let nothing = |note: &str| switched("reclaim", Some(State::NothingToDo), note);
    let refused = refusals(facts, around);
    if facts.census.is_empty() && !facts.census_whole && figures.ops_bytes > 0 {
        return nothing("what it would give back is not known: the log was not counted yet");
    }
    let back = given_back(facts, figures);
    let later = match node::prunes(facts) {
        Some(node) if back.later > 0 => format!(
            "about {} more once the node has deleted what is older than {}",
            bytes(back.later),
            node.below.strftime("%-d %b %Y")
        ),
        _ => String::new(),
    };
    let least = if back.rows == 0 { RECLAIM_LEAST } else { 0 };
    let log = figures.ops_bytes + figures.index_bytes;
    if facts.reclaim.is_none() && back.now <= least.max(log / WORTH_RECLAIMING) {
        let more = if later.is_empty() { later } else { format!("; {later}") };
        return nothing(&format!("there is little to give back{more}"));
    }
    let set = &facts.settings;
    let compacts = set.reclaim_policy == Policy::Compact || set.tables.values().any(|k| *k == Keep::Compact);
    let about = match (compacts, is_estimated(facts)) {
        (true, _) => "at least",
        (false, true) => "very roughly",
        (false, false) => "about",
    };
    let more = if later.is_empty() { later } else { format!(", {later}") };
    let note = format!("`opsward reclaim` gives back {about} {}{more}", bytes(back.now));
    wanted(switched("reclaim", Some(State::WouldRun), &note), refused)
}

/// What makes `opsward reclaim` refuse.
fn refusals(facts: &Facts, around: &Surroundings) -> Vec<Blocker> {
    let unfinished = facts.reclaim.iter().map(|reclaim| {
        let (text, fix) = reclaim.told();
        Blocker { since: reclaim.since, ..blocker(around.now, "unfinished", text, fix.to_owned()) }
    });
    let text = "this role may not put another table in the place of public.ops";
    let rights = may_not(around, Need::Guard).into_iter().map(|of| match &*of.code {
        "no_privilege" => Blocker { text: text.to_owned(), ..of },
        _ => of,
    });
    let gate = decide::gate(facts).blockers.into_iter().chain(decide::disorder(facts));
    unfinished.chain(rights).chain(gate).collect()
}

fn given_back(facts: &Facts, figures: &Figures) -> GivenBack {
    let sum = |of: fn(&TableDay) -> u64| facts.census.iter().map(of).sum::<u64>();
    let (rows, live) = (sum(|of| of.rows), sum(|of| of.bytes));
    let windows = decide::windows(facts, &decide::gate(facts)).into_iter().map(|(table, below)| {
        let cut = Cut { table, below };
        delete(Bounded { cut, bound_by: BoundBy::Age }, facts)
    });
    let (gone, gone_bytes) = windows.fold((0, 0), |(rows, bytes), of| (rows + of.rows, bytes + of.bytes));
    // As much of the indexes goes as of the rows.
    let part = rows.saturating_sub(gone) as f64 / rows.max(1) as f64;
    let afterwards = live.saturating_sub(gone_bytes) + (figures.index_bytes as f64 * part) as u64;
    let node = node::prunes(facts).map_or(0, |node| node.bytes.saturating_sub(gone_bytes));
    GivenBack {
        now: (figures.ops_bytes + figures.index_bytes).saturating_sub(afterwards),
        rows: gone,
        later: (node as f64 * forecast::overhead(figures)) as u64,
    }
}
