//! The gate: what may be deleted now, from facts alone.
//!
//! Facts → [`gate`] (how far anything may go, or what stands in the way) →
//! [`retention`] and [`dormant`], each *prune below X, bound by …* or *skip,
//! because of …* with every reason.

mod chain;
mod facts;
mod gate;
mod node;

use crate::records::models;
use crate::settings::Keep;
pub use crate::values::millis as ms;
use crate::values::{Blocker, BoundBy, Notice, OpUlid, TableDay, day_ms, is_plausible, timestamp};
pub use chain::{ChainFact, least_window};
pub use facts::{ClockFact, Facts, PeerFact, ReaderFact};
pub use gate::{Gate, gate, reset_from};
use jiff::civil::Date;
pub use node::{Seen, recognise};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const HOUR_MS: u64 = 3_600_000;
/// Milliseconds of a day.
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// Nothing younger is ever deleted: floors are never above (contract 5).
pub const YOUNGEST_MS: u64 = 2 * HOUR_MS;
/// A size never shortens the window below this (contract 5).
const LEAST_WINDOW_MS: u64 = 7 * DAY_MS;
/// Dormant cleanup acts on a census of at most this age: two of its rounds.
const DORMANT_CENSUS_MS: u64 = 2 * HOUR_MS;
/// A size to stay under, on one of at most this age: by hand, it is counted
/// once a day.
const SIZE_CENSUS_MS: u64 = 48 * HOUR_MS;
/// Where every op survives, less than this is not worth a reclaim: 16 MiB.
pub const RECLAIM_LEAST: u64 = 16 << 20;
/// The one table without a model that is cleaned up: every node skips it.
const BLOBS: &str = "blobs";

/// What is to be deleted of one table: its ops below a ULID.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// The table, as ops name it.
    pub table: String,
    /// The lowest ULID that stays.
    pub below: OpUlid,
}

/// A cut, and what keeps it from going further.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bounded {
    /// What is deleted.
    #[serde(flatten)]
    pub cut: Cut,
    /// What bounds it.
    pub bound_by: BoundBy,
}

/// What a task does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// It deletes below each cut; there may be none.
    Prune {
        /// One a table.
        cuts: Vec<Bounded>,
    },
    /// It deletes nothing.
    Skip {
        /// All that stands in the way.
        blockers: Vec<Blocker>,
    },
}

impl Decision {
    /// Nobody asked for it, whatever else would stand in its way.
    pub fn is_off(&self) -> bool {
        matches!(self, Self::Skip { blockers } if blockers.iter().any(Blocker::is_off))
    }
}

/// What retention does.
pub fn retention(facts: &Facts) -> Decision {
    let set = &facts.settings;
    let mut blockers = gate(facts).blockers;
    if set.retention_days == 0 && set.retention_bytes == 0 {
        blockers
            .insert(0, off(facts, "retention", "OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS to the days to keep"));
    } else if set.retention_days == 0 {
        blockers.extend(uncounted(facts, SIZE_CENSUS_MS));
    }
    decided(facts, blockers, |gate| {
        let cut = |table: &str| {
            let by = if set.tables.contains_key(table) { BoundBy::Age } else { window(facts).1 };
            Some(gate.bound(facts, window_of(facts, table)?, by))
        };
        models().iter().filter_map(|model| Some((model.table.clone(), cut(&model.table)?))).collect()
    })
}

/// What dormant cleanup does. Its cuts come from the census: whoever deletes
/// looks into the log once more, as a single recent op protects a table.
pub fn dormant(facts: &Facts) -> Decision {
    let set = &facts.settings;
    let mut blockers = gate(facts).blockers;
    blockers.extend(uncounted(facts, DORMANT_CENSUS_MS));
    if !set.dormant_cleanup {
        blockers.insert(0, off(facts, "dormant cleanup", "OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP=true"));
    }
    if set.keep_dormant {
        blockers.insert(
            0,
            blocker(
                facts,
                ("keep_dormant", ""),
                "OPENAUDIO_MEDIORUM_KEEP_DORMANT_OPS vetoes it".into(),
                "unset OPENAUDIO_MEDIORUM_KEEP_DORMANT_OPS",
            ),
        );
    }
    let threshold = ms(set.dormant_threshold).max(DAY_MS);
    decided(facts, blockers, |gate| {
        let cut = |table: &String| match set.tables.get(table) {
            Some(Keep::All | Keep::Compact) => None,
            Some(Keep::Days(days)) => {
                Some(gate.bound(facts, threshold.max(u64::from(*days) * DAY_MS), BoundBy::Age))
            }
            None => Some(gate.bound(facts, threshold, BoundBy::Age)),
        };
        dormant_tables(facts).into_iter().filter_map(|table| Some((table.clone(), cut(&table)?))).collect()
    })
}

/// Tables with a model, and `blobs`, whose newest op is older than the threshold.
fn dormant_tables(facts: &Facts) -> Vec<String> {
    let silent =
        OpUlid::first_of_ms(facts.now_ms.saturating_sub(ms(facts.settings.dormant_threshold).max(DAY_MS)));
    let mut newest: BTreeMap<&str, Option<OpUlid>> = BTreeMap::new();
    for of in facts.census.iter().filter(|of| of.rows > 0) {
        let newest = newest.entry(&of.table).or_default();
        *newest = (*newest).max(of.newest.filter(|u| is_plausible(*u, facts.now_ms)));
    }
    let known = |table: &str| table == BLOBS || models().get(table).is_some();
    let dormant =
        newest.into_iter().filter(|(table, newest)| known(table) && newest.is_some_and(|n| n < silent));
    dormant.map(|(table, _)| table.to_owned()).collect()
}

type Bounds = Vec<(String, (OpUlid, BoundBy))>;

fn decided(facts: &Facts, mut blockers: Vec<Blocker>, bounds: impl FnOnce(&Gate) -> Bounds) -> Decision {
    // Deletes during a swap are captured, and more than 256 MiB of captured keys
    // abort it: do not prune now. The swap leaves out what retention would delete.
    let swapping = facts.reclaim.as_ref().filter(|reclaim| reclaim.mode == "swap");
    if let Some(reclaim) = swapping.filter(|_| !blockers.iter().any(Blocker::is_off)) {
        let (text, fix) = reclaim.told();
        blockers.push(blocker(facts, ("reclaim", ""), text, fix));
    }
    if !blockers.iter().any(Blocker::is_off) {
        blockers.extend(disorder(facts));
    }
    if !blockers.is_empty() {
        return Decision::Skip { blockers };
    }
    let bounded = |(table, (below, bound_by))| Bounded { cut: Cut { table, below }, bound_by };
    Decision::Prune { cuts: bounds(&gate(facts)).into_iter().map(bounded).collect() }
}

/// What blocks everything that walks the log: its order.
pub fn disorder(facts: &Facts) -> Option<Blocker> {
    let (text, fix) = facts.disordered.as_ref()?;
    Some(blocker(facts, ("collation", ""), text.clone(), fix))
}

/// The window of a table by retention, in milliseconds; `None` keeps all of it.
pub fn window_of(facts: &Facts, table: &str) -> Option<u64> {
    let set = &facts.settings;
    let on = set.retention_days > 0 || set.retention_bytes > 0;
    match set.tables.get(table) {
        _ if !on || models().get(table).is_none() => None,
        Some(Keep::All | Keep::Compact) => None,
        Some(Keep::Days(days)) => Some(u64::from(*days) * DAY_MS),
        None => window(facts).0,
    }
}

/// By table, the lowest ULID that stays where a reclaim keeps windows. Every node skips `blobs`:
/// its window is the one that is set in days.
pub fn windows(facts: &Facts, gate: &Gate) -> BTreeMap<String, OpUlid> {
    let days = facts.settings.retention_days;
    let window = |table: &str| match facts.settings.tables.get(table) {
        Some(Keep::Days(days)) => Some(u64::from(*days) * DAY_MS),
        Some(Keep::All | Keep::Compact) => None,
        None if table == BLOBS => (days > 0).then_some(u64::from(days) * DAY_MS),
        None => window_of(facts, table),
    };
    let tables = models().iter().map(|m| m.table.as_str()).chain([BLOBS]);
    let cut = |table: &str| Some((table.to_owned(), gate.bound(facts, window(table)?, BoundBy::Age).0));
    tables.filter_map(cut).collect()
}

/// The window of tables that say nothing of their own, in milliseconds, and
/// whether a size shortened it; `None` keeps everything.
fn window(facts: &Facts) -> (Option<u64>, BoundBy) {
    let age = match facts.settings.retention_days {
        0 => None,
        days => Some(u64::from(days) * DAY_MS),
    };
    match size_window(facts) {
        Some((size, _)) if age.is_none_or(|age| size < age) => (Some(size), BoundBy::Size),
        _ => (age, BoundBy::Age),
    }
}

/// The longest window, in whole UTC days, under which the log stays below the
/// size that is set, and whether 7 days are enough for it. `None` where it
/// does, no size is set, or nothing was counted.
fn size_window(facts: &Facts) -> Option<(u64, bool)> {
    let set = &facts.settings;
    if set.retention_bytes == 0 || uncounted(facts, SIZE_CENSUS_MS).is_some() {
        return None;
    }
    // The census knows the table alone.
    let mut left = (set.retention_bytes as f64 / facts.overhead.max(1.0)) as u64;
    let mut by_day: BTreeMap<Date, u64> = BTreeMap::new();
    for of in &facts.census {
        let shortened = models().get(&of.table).is_some() && !set.tables.contains_key(&of.table);
        let gone = matches!(set.tables.get(&of.table), Some(Keep::Days(days))
            if age_ms(of.day, facts.now_ms) > u64::from(*days) * DAY_MS + DAY_MS);
        match (shortened, gone) {
            (true, _) => *by_day.entry(of.day).or_default() += of.bytes,
            (false, true) => {}
            (false, false) => left = left.saturating_sub(of.bytes),
        }
    }
    for (day, bytes) in by_day.into_iter().rev() {
        if bytes > left {
            let end = age_ms(day, facts.now_ms).saturating_sub(DAY_MS);
            return Some((end.max(LEAST_WINDOW_MS), end >= LEAST_WINDOW_MS));
        }
        left -= bytes;
    }
    None
}

/// Whether only a newer census could tell what a task may delete; a window by
/// age needs none.
pub fn wants_census(facts: &Facts, is_dormant: bool) -> bool {
    let is_count = |b: &Blocker| ["no_census", "census_estimated", "census_old"].contains(&&*b.code);
    match if is_dormant { dormant(facts) } else { retention(facts) } {
        Decision::Skip { blockers } => blockers.iter().all(is_count),
        Decision::Prune { .. } => {
            !is_dormant && facts.settings.retention_bytes > 0 && uncounted(facts, SIZE_CENSUS_MS).is_some()
        }
    }
}

/// What there is to say of the size to stay under.
pub fn size_notice(facts: &Facts) -> Option<Notice> {
    if facts.settings.retention_bytes == 0 {
        return None;
    }
    let notice = |code: &'static str, text: &str| {
        Some(Notice { code: code.into(), text: text.into(), ..Notice::default() })
    };
    match (uncounted(facts, SIZE_CENSUS_MS), size_window(facts)) {
        (Some(why), _) => notice(
            "size_not_counted",
            &format!("OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES does not count yet: {}", why.text),
        ),
        (None, Some((_, false))) => notice(
            "size_not_reached",
            "7 days are more than OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES: they are kept nevertheless",
        ),
        _ => None,
    }
}

/// A window that is set shorter than it may be.
pub fn window_notice(facts: &Facts) -> Option<Notice> {
    let days = facts.settings.retention_days;
    let least = least_window(facts);
    (days > 0 && u64::from(days) * DAY_MS < least).then(|| Notice {
        code: "window_raised".into(),
        text: format!(
            "the window is {} days, not OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS={days}: without the replay guard \
             a block that is executed again puts old state over new; \
             OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD=true lifts that",
            least / DAY_MS
        ),
        ..Notice::default()
    })
}

/// Whether the census has ops below a cut that may go.
pub fn is_counted_below(facts: &Facts, cut: &Cut) -> bool {
    let is_below = |of: &TableDay| of.oldest.is_some_and(|oldest| oldest < cut.below);
    facts.census.iter().any(|of| of.table == cut.table && of.rows > of.owed && is_below(of))
}

/// What is missing of a census that may be acted on, while it is no older than
/// `most_ms`.
fn uncounted(facts: &Facts, most_ms: u64) -> Option<Blocker> {
    let fix =
        "let the daemon finish its census (OPENAUDIO_MEDIORUM_OPS_CENSUS=true), or run `opsward census`";
    if facts.census.is_empty() && !facts.census_whole {
        return Some(blocker(facts, ("no_census", ""), "the log was not counted yet".into(), fix));
    }
    let estimated = !facts.census_whole || facts.census.iter().any(|of| of.estimated);
    if estimated {
        let text = "the log was sampled, not yet counted whole";
        return Some(blocker(facts, ("census_estimated", ""), text.into(), fix));
    }
    // One from the future was counted by another clock.
    let age_ms = facts.now_ms.abs_diff(facts.census_ms);
    let hours = |ms: u64| ms.div_ceil(HOUR_MS);
    let text = || format!("the log was counted {} h ago: over {} h", hours(age_ms), hours(most_ms));
    (age_ms > most_ms).then(|| blocker(facts, ("census_old", ""), text(), fix))
}

fn off(facts: &Facts, task: &str, setting: &str) -> Blocker {
    blocker(facts, ("off", task), format!("{task} is off"), &format!("set {setting}"))
}

fn blocker(facts: &Facts, (code, subject): (&'static str, &str), text: String, fix: &str) -> Blocker {
    let since = facts.since.get(&(code.to_owned(), subject.to_owned())).copied();
    Blocker {
        code: code.into(),
        subject: subject.to_owned(),
        text,
        fix: fix.to_owned(),
        since: since.unwrap_or_else(|| timestamp(facts.now_ms)),
    }
}

/// How long ago a UTC day began, in milliseconds.
pub fn age_ms(day: Date, now_ms: u64) -> u64 {
    now_ms.saturating_sub(day_ms(day))
}

#[cfg(test)]
pub(crate) mod tests;
