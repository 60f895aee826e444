//! One op's `data` becomes rows, exactly as a node's ORM would write them.
//!
//! Each column is a `Slot` that starts as Go's zero value and is decoded in
//! place, entry after entry: so a key that appears twice merges or overwrites
//! as it does in a node, without a rule for it.

mod number;
mod serialised;
mod slot;
mod text;
mod time;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod properties;

use super::code::{KEY_TWICE, NO_KEY, TOO_MANY};
use super::fit_for_jsonb;
use super::json::{self, Event};
use super::model::Model;
use crate::values::{Action, RejectReason};
use jiff::Timestamp;
use slot::Slot;
use std::collections::HashSet;

/// One record, ready for the statements of its model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The text forms of the primary key's columns, in its order. Equal keys
    /// have equal texts.
    pub key: Vec<String>,
    /// The text form of each column in the model's order; `None` is NULL. Empty
    /// for a delete, which needs the key alone.
    pub values: Vec<Option<String>>,
}

/// No value up to this many bytes is refused by an index of the node's (they
/// refuse over some 2,700).
const NEVER_REFUSED: usize = 2_000;

impl Row {
    /// Whether the database might refuse to write it, although it fits its
    /// model: a value that no index may hold.
    pub fn may_be_refused(&self) -> bool {
        self.values.iter().flatten().any(|v| v.len() > NEVER_REFUSED)
    }
}

/// The time as the text of a timestamptz, cut to microseconds.
pub fn time_text(at: Timestamp) -> String {
    time::text(time::micros_of(at))
}

/// Converts the `data` of one op. `now` fills the column that the node sets to
/// the time of writing, where the op gives none.
///
/// # Errors
/// The op can't be applied as a whole: see [`super::code`].
pub fn convert(model: &Model, action: Action, data: &str, now: Timestamp) -> Result<Vec<Row>, RejectReason> {
    fit_for_jsonb(data)?;
    let mut reader = Reader { model, action, now, slots: Vec::new(), rows: Vec::new() };
    json::records(data, &mut |event| match event {
        Event::Entry(key, value) => reader.entry(key, value),
        Event::End => reader.end(),
    })?;
    let rows = reader.rows;
    if action == Action::Update && rows.len() > 1 {
        let mut seen = HashSet::with_capacity(rows.len());
        if let Some(row) = rows.iter().find(|row| !seen.insert(&row.key)) {
            let key = json::excerpt(&row.key.join(", "));
            return Err(RejectReason::new(KEY_TWICE, format!("key {key} is there twice")));
        }
    }
    Ok(rows)
}

/// Whether `data` is what it has to be for any table.
///
/// # Errors
/// It is no array of objects, an empty one, or nothing that jsonb can hold.
pub fn check(data: &str) -> Result<(), RejectReason> {
    fit_for_jsonb(data)?;
    json::records(data, &mut |_| Ok(()))
}

/// Collects rows; `slots` is the record being read, empty between records.
struct Reader<'m> {
    model: &'m Model,
    action: Action,
    now: Timestamp,
    slots: Vec<Slot>,
    rows: Vec<Row>,
}

impl Reader<'_> {
    fn entry(&mut self, key: &str, value: &str) -> Result<(), RejectReason> {
        let Some(place) = self.model.names.find(key) else {
            return Ok(());
        };
        self.fill();
        let column = &self.model.columns[place];
        self.slots[place].set(&column.kind, value).map_err(|reason| self.named(place, reason))
    }

    fn end(&mut self) -> Result<(), RejectReason> {
        let most = self.model.most_records(self.action);
        if self.rows.len() >= most {
            let detail = format!("it has more than {most} records, which is the most that a node can apply");
            return Err(RejectReason::new(TOO_MANY, detail));
        }
        self.fill();
        let mut slots = std::mem::take(&mut self.slots);
        let writes = self.action != Action::Delete;
        if let Some(touched) = self.model.touched
            && writes
        {
            slots[touched].touch(self.now);
        }
        let mut values = Vec::with_capacity(slots.len());
        for (place, slot) in slots.into_iter().enumerate() {
            let column = &self.model.columns[place];
            // A node deletes by key: it decodes the other fields of a delete but never encodes them.
            if writes || self.model.key.contains(&place) {
                let text = slot.into_text(&column.kind);
                values.push(text.map_err(|reason| self.named(place, reason))?);
            } else {
                values.push(None);
            }
        }
        let key = self.key(&values)?;
        let values = if writes { values } else { Vec::new() };
        self.rows.push(Row { key, values });
        Ok(())
    }

    /// Begins a record, if none is begun.
    fn fill(&mut self) {
        if self.slots.is_empty() {
            let columns = self.model.columns.iter();
            self.slots.extend(columns.map(|c| Slot::zero(&c.kind)));
        }
    }

    fn key(&self, values: &[Option<String>]) -> Result<Vec<String>, RejectReason> {
        let mut key = Vec::with_capacity(self.model.key.len());
        for place in &self.model.key {
            match &values[*place] {
                Some(text) if !text.is_empty() => key.push(text.clone()),
                _ => {
                    let column = &self.model.columns[*place].json;
                    let detail = format!("record {}: no {column}", self.rows.len() + 1);
                    return Err(RejectReason::new(NO_KEY, detail));
                }
            }
        }
        Ok(key)
    }

    /// The reason, with the place of the value.
    fn named(&self, place: usize, reason: RejectReason) -> RejectReason {
        let record = self.rows.len() + 1;
        let json = &self.model.columns[place].json;
        RejectReason::new(reason.code, format!("record {record}, {json}: {}", reason.detail))
    }
}
