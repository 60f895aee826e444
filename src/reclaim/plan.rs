//! What a reclaim would do, from facts alone: what survives, whether it fits,
//! what stands in the way, how long it takes. `--plan` shows it, a start
//! carries it out.

mod fit;
mod obstacles;
mod space;

use super::Gate;
use super::decide::{Mode, Survivors};
use crate::db::census::Entry;
use crate::db::preflight::Standing;
use crate::db::stats::Volumes;
use crate::settings::{Bounding, Keep, Policy};
use crate::values::{Finding, OpUlid, bytes};
use fit::Fitted;
use serde::Serialize;
use sha2::{Digest, Sha256};
pub use space::{IN_PLACE_FLOOR, Sampled, Space};
use std::collections::BTreeMap;

const DAY_MS: u64 = 24 * 3_600_000;
/// Compaction touches nothing younger (contract 6): 7 days.
const YOUNGEST_COMPACTED_MS: u64 = 7 * DAY_MS;
/// What compaction keeps of a table, measured on a node's log: one in four.
const COMPACTED_KEEPS: f64 = 0.25;
/// Bytes of the log that a second of full pace gets through, measured on two cores with 2 and with
/// 20 million ops of 1 kB, three quarters of which went. The work itself tells better.
const SWAP_BYTES_A_SECOND: f64 = 220e6;
const IN_PLACE_BYTES_A_SECOND: f64 = 100e6;
/// The same where compaction judges them first.
const JUDGED_BYTES_A_SECOND: f64 = 200e6;

/// All that a plan is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What was asked for.
    pub asked: Asked,
    /// The settings.
    pub settings: &'a Bounding,
    /// What the gate lets go.
    pub gate: &'a Gate,
    /// The log by table and day.
    pub census: &'a [Entry],
    /// Whether the census says what the log holds; it does, too, where the log is empty.
    pub is_counted: bool,
    /// By table, below which it was compacted before.
    pub horizons: &'a BTreeMap<String, OpUlid>,
    /// The catalog and the server.
    pub standing: &'a Standing,
    /// What the table is like.
    pub fingerprint: &'a str,
    /// The volumes that are written to.
    pub volumes: &'a Volumes,
    /// Which records some of the log is about.
    pub seen: &'a Sampled,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// How; `None` is by what fits.
    pub mode: Option<Mode>,
    /// What is kept.
    pub policy: Policy,
    /// The longest window that fits.
    pub fit: bool,
    /// A swap puts a LOGGED table in the place of an UNLOGGED one.
    pub set_logged: bool,
    /// The share of time at work, 1 to 100.
    pub percent: u8,
}

/// What a reclaim would do.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Plan {
    /// How.
    pub mode: Mode,
    /// What is kept.
    pub policy: Policy,
    /// What does not survive.
    pub survivors: Survivors,
    /// By table.
    pub tables: Vec<OfTable>,
    /// With `--fit`, the days of the window where it is shorter than the one that
    /// is set.
    pub fit_days: Option<u64>,
    /// Whether the census has only sampled.
    pub estimated: bool,
    /// Space.
    pub space: Space,
    /// What makes it refuse.
    pub obstacles: Vec<Finding>,
    /// What it does only where it is told `--yes`.
    pub risks: Vec<Finding>,
    /// What should be known.
    pub notes: Vec<String>,
    /// How long it takes at this pace, about.
    pub seconds: u64,
    /// The share of time at work, 1 to 100.
    pub percent: u8,
    /// Of mode, policy, cutoffs by day, settings and catalog; never of counts.
    pub hash: String,
}

impl Plan {
    /// Whether no op goes: all that is left to do is to give free space back.
    pub fn moves_only(&self) -> bool {
        self.survivors.compact.is_empty() && self.tables.iter().all(|t| t.kept_rows == t.rows)
    }
}

/// What becomes of one table's ops.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct OfTable {
    /// The table.
    pub table: String,
    /// Rows now.
    pub rows: u64,
    /// Bytes of them, without indexes.
    pub bytes: u64,
    /// Rows that survive.
    pub kept_rows: u64,
    /// Bytes of them.
    pub kept_bytes: u64,
}

/// Makes the plan.
pub fn plan(facts: &Facts<'_>) -> Plan {
    let Fitted { survivors, tables, space, from } = fit::longest(facts);
    let mode = facts.asked.mode.unwrap_or(match space.free {
        // Whatever is kept fits in place: only a swap chooses by what fits.
        _ if facts.asked.fit => Mode::Swap,
        Some(free) if free < space.swap_needs => Mode::InPlace,
        _ => Mode::Swap,
    });
    let mut plan = Plan {
        mode,
        policy: facts.asked.policy,
        hash: hash(facts, mode, &survivors),
        survivors,
        tables,
        fit_days: from.map(|from| facts.now_ms.saturating_sub(from.ms()) / DAY_MS),
        estimated: facts.census.iter().any(|e| e.estimated),
        space,
        obstacles: Vec::new(),
        risks: Vec::new(),
        notes: Vec::new(),
        seconds: 0,
        percent: facts.asked.percent,
    };
    plan.seconds = seconds(&plan, mode);
    if !plan.survivors.compact.is_empty() {
        plan.notes.push(
            "What compaction keeps is expected, not counted: one op in four, more where records have few ops.".into(),
        );
    }
    plan.notes.extend(better(&plan));
    plan.notes.extend(persistence(facts, mode));
    plan.obstacles = obstacles::obstacles(facts, &plan);
    plan.risks = obstacles::risks(&plan);
    if facts.asked.fit && plan.fit_days.is_none() && space.free.is_some_and(|free| space.swap_needs <= free) {
        plan.notes.push("All that is set to be kept fits.".into());
    }
    if let Some(days) = plan.fit_days.filter(|_| space.free.is_some_and(|free| space.swap_needs <= free)) {
        let set = match (facts.settings.retention_days, facts.settings.retention_bytes) {
            (0, 0) => "all of the log".to_owned(),
            (0, _) => "what is set in bytes".to_owned(),
            (set, _) => format!("the {set} that are set"),
        };
        plan.notes.push(format!("{days} days are the longest window that fits, instead of {set}."));
    }
    let standing = facts.standing;
    if let Some(holder) = &standing.lease {
        plan.notes.push(format!(
            "The lease is held by {holder}. A daemon will do this; with another holder, --wait waits."
        ));
    }
    if !standing.long.is_empty() {
        let text = format!("Transactions that hold old rows or locks: {}", standing.long.join("; "));
        plan.notes.push(text);
    }
    plan
}

/// How long a mode takes at the plan's pace, about.
fn seconds(plan: &Plan, mode: Mode) -> u64 {
    let bytes = (plan.space.table + plan.space.indexes) as f64;
    let rate = match mode {
        Mode::Swap => SWAP_BYTES_A_SECOND,
        Mode::InPlace => IN_PLACE_BYTES_A_SECOND,
    };
    let judged = if plan.survivors.compact.is_empty() { 0.0 } else { bytes / JUDGED_BYTES_A_SECOND };
    ((bytes / rate + judged) * 100.0 / f64::from(plan.percent.max(1))) as u64 + 1
}

/// What becomes of a log that a crash of the server empties.
fn persistence(facts: &Facts<'_>, mode: Mode) -> Option<String> {
    const STAYS: &str = "ops is UNLOGGED and stays so: a crash of the server empties it.";
    let says = match (mode, facts.asked.set_logged) {
        (Mode::Swap, true) => "ops is UNLOGGED: the table that takes its place is LOGGED.".to_owned(),
        (Mode::Swap, false) => format!("{STAYS} With --set-logged the table that takes its place is LOGGED."),
        (Mode::InPlace, _) => {
            format!("{STAYS} ALTER TABLE public.ops SET LOGGED writes it anew, where there is room.")
        }
    };
    facts.standing.unlogged.then_some(says)
}

/// Nothing is to be deleted, and most of the file holds nothing: which mode is better then, and why.
fn better(plan: &Plan) -> Option<String> {
    let space = &plan.space;
    let is_pruned = plan.moves_only() && plan.tables.iter().any(|t| t.rows > 0);
    if !is_pruned || !space.is_mostly_free() {
        return None;
    }
    let [swap, in_place] = [Mode::Swap, Mode::InPlace].map(|mode| seconds(plan, mode));
    let fits = space.free.is_some_and(|free| free >= space.swap_needs);
    let choice = match fits {
        true => "a swap is better: it copies only what is there, compares it, and leaves a new index",
        false => "in place is better: a swap does not fit on the disk",
    };
    Some(format!(
        "Every op stays, and about {} of {} hold nothing: there is nothing to delete and no trace to leave. \
         {choice}. In place moves the last rows to the front (about {in_place} s, {} needed); \
         a swap takes about {swap} s and {}.",
        bytes(space.gain()),
        bytes(space.table + space.indexes),
        bytes(space.in_place_needs),
        bytes(space.swap_needs)
    ))
}

/// What does not survive; where a window begins at `from`, tables without a
/// word of their own keep no more than it.
fn survivors(facts: &Facts<'_>, from: Option<OpUlid>) -> Survivors {
    let mut survivors = Survivors::default();
    let Some(ceiling) = facts.gate.ceiling else { return survivors };
    let settled = OpUlid::first_of_ms(facts.now_ms.saturating_sub(YOUNGEST_COMPACTED_MS));
    let models = crate::records::models().iter().map(|m| m.table.clone());
    for table in models.chain(["blobs".to_owned()]) {
        let default = match facts.asked.policy {
            Policy::Compact => Keep::Compact,
            Policy::Window => Keep::Days(0),
        };
        match facts.settings.tables.get(&table).copied().unwrap_or(default) {
            Keep::All => {}
            Keep::Compact => {
                survivors.compact.insert(table, ceiling.min(settled));
            }
            Keep::Days(_) => {
                let set = facts.gate.cuts.get(&table).copied();
                let fitted = from.filter(|_| !facts.settings.tables.contains_key(&table));
                if let Some(cut) = set.max(fitted.and_then(|from| facts.gate.at(from))) {
                    survivors.cuts.insert(table, cut);
                }
            }
        }
    }
    survivors
}

fn tables(facts: &Facts<'_>, survivors: &Survivors) -> Vec<OfTable> {
    let mut tables: BTreeMap<&str, OfTable> = BTreeMap::new();
    for day in facts.census {
        let of = tables
            .entry(&day.table)
            .or_insert_with(|| OfTable { table: day.table.clone(), ..OfTable::default() });
        let compact = survivors.compact.get(&day.table);
        let below = survivors.cuts.get(&day.table).or(compact);
        let goes = below.map_or(0.0, |below| share_below(day, *below));
        let stays = match crate::records::models().get(&day.table) {
            _ if compact.is_none() => 0.0,
            // No later op makes one of it useless.
            Some(model) if model.append_only => 1.0,
            _ => COMPACTED_KEEPS,
        };
        // What was compacted before stays, but for little.
        let horizon = compact.and(facts.horizons.get(&day.table));
        let goes = horizon.map_or(goes, |horizon| (goes - share_below(day, *horizon)).max(0.0));
        let goes = goes * (1.0 - stays) * (1.0 - day.owed as f64 / day.rows.max(1) as f64);
        of.rows += day.rows;
        of.bytes += day.bytes;
        of.kept_rows += day.rows - (day.rows as f64 * goes) as u64;
        of.kept_bytes += day.bytes - (day.bytes as f64 * goes) as u64;
    }
    tables.into_values().collect()
}

/// Which part of a day's ops lies below a ULID, as if they came evenly.
fn share_below(day: &Entry, below: OpUlid) -> f64 {
    let (first, last) = (day.oldest.ms(), day.newest.ms());
    if day.newest < below {
        return 1.0;
    }
    let passed = below.ms().saturating_sub(first) as f64;
    (passed / (last - first).max(1) as f64).clamp(0.0, 1.0)
}

fn hash(facts: &Facts<'_>, mode: Mode, survivors: &Survivors) -> String {
    let by_day = |cuts: &BTreeMap<String, OpUlid>| -> Vec<(String, u64)> {
        cuts.iter().map(|(table, cut)| (table.clone(), cut.ms() / DAY_MS)).collect()
    };
    let text = format!(
        "{} {} {:?} {:?} {:?} {} {} {}{}",
        mode.word(),
        facts.asked.policy.word(),
        by_day(&survivors.cuts),
        by_day(&survivors.compact),
        facts.settings.tables,
        facts.settings.min_free_disk,
        facts.settings.reclaim_memory,
        facts.fingerprint,
        if facts.asked.set_logged { " logged" } else { "" },
    );
    Sha256::digest(text.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect()
}
