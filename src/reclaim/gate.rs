//! How far a reclaim may go: the gate of retention, with its windows.

use crate::bound::decide::{self, DAY_MS, Facts};
use crate::records::models;
use crate::settings::Keep;
use crate::values::{BoundBy, OpUlid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// No window is shorter, but one that the operator set: 7 days (contract 5, 6).
const LEAST_WINDOW_MS: u64 = 7 * DAY_MS;
/// The table that every node skips: it is windowed as tables without a word
/// of their own are.
const SKIPPED: &str = "blobs";

/// What the gate of retention lets go.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Gate {
    /// By table, the lowest ULID that stays under its window; a table that no
    /// window is set for is left out.
    pub cuts: BTreeMap<String, OpUlid>,
    /// The lowest ULID that stays under the shortest window there may be;
    /// `None` where the gate is closed.
    pub ceiling: Option<OpUlid>,
    /// The lowest ULID that a reader needs, and by how many milliseconds a
    /// window is longer for it at most.
    pub held: Option<(OpUlid, u64)>,
    /// What closed it, each as a sentence.
    pub blockers: Vec<String>,
}

impl Gate {
    /// The lowest ULID that stays under a window that begins at `from`; `None`
    /// where the gate is closed.
    pub fn at(&self, from: OpUlid) -> Option<OpUlid> {
        let held = self.held.map_or(from, |(needed, hold_ms)| {
            needed.max(OpUlid::first_of_ms(from.ms().saturating_sub(hold_ms)))
        });
        Some(from.min(held).min(self.ceiling?))
    }
}

/// Asks the gate.
pub fn of(facts: &Facts) -> Gate {
    let gate = decide::gate(facts);
    if !gate.blockers.is_empty() {
        let blockers = gate.blockers.iter().map(|b| format!("{}; {}", b.text, b.fix)).collect();
        return Gate { blockers, ..Gate::default() };
    }
    let at = |window: u64| gate.bound(facts, window, BoundBy::Age).0;
    let days = facts.settings.retention_days;
    let window = |table: &str| match facts.settings.tables.get(table) {
        Some(Keep::Days(days)) => Some(u64::from(*days) * DAY_MS),
        Some(Keep::All | Keep::Compact) => None,
        None if table == SKIPPED => (days > 0).then_some(u64::from(days) * DAY_MS),
        None => decide::window_of(facts, table),
    };
    let tables = models().iter().map(|m| m.table.as_str()).chain([SKIPPED]);
    let cuts = tables.filter_map(|table| Some((table.to_owned(), at(window(table)?))));
    let needed = gate.readers.iter().map(|(needed, _)| *needed).min();
    Gate {
        cuts: cuts.collect(),
        ceiling: Some(at(LEAST_WINDOW_MS)),
        held: needed.map(|needed| (needed, decide::ms(facts.settings.reader_hold))),
        blockers: Vec::new(),
    }
}
