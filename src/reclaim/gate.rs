//! How far a reclaim may go: the gate of retention, with its windows.

use super::decide::Survivors;
use crate::bound::decide::{self, DAY_MS, Facts};
use crate::db;
use crate::values::{Blocker, BoundBy, OpUlid};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// No window is shorter, but one that the operator set: 7 days (contract 5, 6).
const LEAST_WINDOW_MS: u64 = 7 * DAY_MS;

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

/// Asks the gate what may go now: whoever runs a reclaim knows how.
pub type Ask<'a> = &'a (dyn Fn() -> BoxFuture<'static, db::Result<Gate>> + Send + Sync);

impl Gate {
    /// The lowest ULID that stays under a window that begins at `from`; `None`
    /// where the gate is closed.
    pub fn at(&self, from: OpUlid) -> Option<OpUlid> {
        let held = self.held.map_or(from, |(needed, hold_ms)| {
            needed.max(OpUlid::first_of_ms(from.ms().saturating_sub(hold_ms)))
        });
        Some(from.min(held).min(self.ceiling?))
    }

    /// Why what was chosen to go may no longer, each as a sentence; empty where
    /// it may. Between the choice and the last op are days: a peer may have
    /// come, or gone back.
    pub fn forbids(&self, survivors: &Survivors) -> Vec<String> {
        let Some(ceiling) = self.ceiling.filter(|_| self.blockers.is_empty()) else {
            let closed = self.blockers.join("; ");
            return vec![if closed.is_empty() { "the gate is closed".into() } else { closed }];
        };
        let cuts = survivors.cuts.iter().map(|(table, cut)| {
            let set = self.cuts.get(table).copied();
            (table, cut, if survivors.fitted { set.max(Some(ceiling)) } else { set })
        });
        let compact = survivors.compact.iter().map(|(table, below)| (table, below, Some(ceiling)));
        let forbidden = cuts.chain(compact).filter_map(|(table, chosen, may)| match may {
            None => Some(format!("no window is set for {table} any more")),
            Some(may) if *chosen > may => {
                Some(format!("ops of {table} below {chosen} were to go, now only those below {may} may"))
            }
            Some(_) => None,
        });
        forbidden.collect()
    }
}

/// Asks the gate.
pub fn of(facts: &Facts) -> Gate {
    unless(facts, |_| true)
}

/// Asks it while a reclaim is at work: clocks were compared when that began, and
/// without a daemon nobody compares them meanwhile.
pub fn still(facts: &Facts) -> Gate {
    unless(facts, |blocker| blocker.code != "clock_unknown")
}

fn unless(facts: &Facts, counts: impl Fn(&Blocker) -> bool) -> Gate {
    let mut gate = decide::gate(facts);
    gate.blockers.extend(decide::disorder(facts));
    gate.blockers.retain(counts);
    if !gate.blockers.is_empty() {
        let blockers = gate.blockers.iter().map(|b| format!("{}; {}", b.text, b.fix)).collect();
        return Gate { blockers, ..Gate::default() };
    }
    let needed = gate.readers.iter().map(|(needed, _)| *needed).min();
    Gate {
        cuts: decide::windows(facts, &gate),
        ceiling: Some(gate.bound(facts, LEAST_WINDOW_MS, BoundBy::Age).0),
        held: needed.map(|needed| (needed, decide::ms(facts.settings.reader_hold))),
        blockers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: u64) -> OpUlid {
        OpUlid::first_of_ms(1_700_000_000_000 + n * DAY_MS)
    }

    fn of_uploads(day: OpUlid) -> BTreeMap<String, OpUlid> {
        BTreeMap::from([("uploads".to_owned(), day)])
    }

    #[test]
    fn what_was_chosen_goes_only_while_the_gate_agrees() {
        let gate = Gate { cuts: of_uploads(day(10)), ceiling: Some(day(30)), ..Gate::default() };
        let cut = |n| Survivors { cuts: of_uploads(day(n)), ..Survivors::default() };
        let compact = |n| Survivors { compact: of_uploads(day(n)), ..Survivors::default() };
        let is_refused = |gate: &Gate, survivors: &Survivors| !gate.forbids(survivors).is_empty();
        assert!(!is_refused(&gate, &cut(10)) && is_refused(&gate, &cut(11)));
        assert!(!is_refused(&gate, &compact(30)) && is_refused(&gate, &compact(31)));
        // What fits is shorter than what is set, never above the gate.
        let fitted = |n| Survivors { fitted: true, ..cut(n) };
        assert!(!is_refused(&gate, &fitted(30)) && is_refused(&gate, &fitted(31)));

        let unset = Gate { cuts: BTreeMap::new(), ..gate.clone() };
        assert!(is_refused(&unset, &cut(10)) && !is_refused(&unset, &fitted(10)));
        let blocked = Gate { blockers: vec!["a peer has no cursor".into()], ..gate };
        assert_eq!(blocked.forbids(&cut(1)), ["a peer has no cursor"]);
        assert!(is_refused(&Gate::default(), &Survivors::default()));
    }
}
