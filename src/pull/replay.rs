//! Which ops of a batch act, and with which records, where some lie below a
//! floor. No I/O: floors and traces were read before.

use super::apply::Fitting;
use crate::db::replay::{Floors, Judged};
use crate::records::Row;
use crate::values::Action;
use std::collections::HashSet;

/// An op that acts.
#[derive(Debug)]
pub struct Acting<'a> {
    /// The op.
    pub fitting: &'a Fitting,
    /// What is done with its records: below what somebody else pruned, records
    /// are only ever put where there is none.
    pub action: Action,
    /// How it was judged, where it lies below a floor.
    pub judged: Option<Judged>,
    /// The places of the records that act; `None` for all.
    places: Option<Vec<usize>>,
}

impl<'a> Acting<'a> {
    /// The records that act.
    pub fn rows(&self) -> impl Iterator<Item = &'a Row> {
        let rows = self.fitting.rows.iter().enumerate();
        rows.filter(|(n, _)| self.places.as_ref().is_none_or(|p| p.contains(n))).map(|(_, row)| row)
    }
}

/// The ops of a run that act; the others are known or replays.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// In their order.
    pub acting: Vec<Acting<'a>>,
    /// How many ops of which no record acts.
    pub replays: u64,
}

/// Cuts a batch where ops below what somebody else pruned begin or end: whether
/// those act depends on the records that are there.
pub fn runs<'a>(batch: &'a [Fitting], floors: &Floors) -> impl Iterator<Item = &'a [Fitting]> {
    batch.chunk_by(|a, b| floors.is_below_foreign(&a.op) == floors.is_below_foreign(&b.op))
}

/// Chooses from a run; `judged` are those of its ops that lie below a floor.
pub fn choose<'a>(run: &'a [Fitting], floors: &Floors, judged: Vec<Judged>) -> Chosen<'a> {
    let mut judged = judged.into_iter();
    let mut chosen = Chosen { acting: Vec::with_capacity(run.len()), replays: 0 };
    // Below a foreign floor a record that an earlier op of this run created exists.
    let (mut put, mut taken) = (HashSet::new(), HashSet::new());
    for fitting in run {
        let op = &fitting.op;
        let judged = if floors.is_below(op) { judged.next() } else { None };
        let superseded = fitting.late.as_ref().map_or(&[][..], |late| &late.superseded);
        let judged = match judged {
            Some(judged) => judged,
            None if superseded.is_empty() => {
                chosen.acting.push(Acting { fitting, action: op.action, judged: None, places: None });
                continue;
            }
            None => Judged { known: false, acting: None },
        };
        if judged.known {
            continue;
        }
        let keys = |n: &usize| (&op.table, &fitting.rows[*n].key);
        let mut places: Vec<usize> =
            (0..fitting.rows.len()).filter(|n| judged.acts(*n) && !superseded.contains(n)).collect();
        let mut action = op.action;
        if floors.is_below_foreign(op) {
            if taken.contains(&op.ulid) {
                continue;
            }
            places.retain(|n| !put.contains(&keys(n)));
            action = Action::Create;
        }
        if places.is_empty() {
            chosen.replays += 1;
            continue;
        }
        put.extend(places.iter().map(keys));
        taken.insert(op.ulid);
        chosen.acting.push(Acting { fitting, action, judged: Some(judged), places: Some(places) });
    }
    chosen
}
