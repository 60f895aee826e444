//! Turns the records of a batch into few statements that end where applying
//! its ops one by one would. Each wave holds a key at most once, so the order
//! inside of it makes no difference, and the waves are in order.
//!
//! What a later op of the same batch overwrites whole is not written first,
//! unless the database might refuse it: an op that is refused on its own has
//! to be refused here too.

use crate::records::{Model, Row};
use crate::values::Action;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// Rows of one table and one action, each key at most once.
#[derive(Debug)]
pub struct Step<'a> {
    /// The table.
    pub model: &'a Model,
    /// What is done with the rows.
    pub action: Action,
    /// The rows.
    pub rows: Vec<Cow<'a, Row>>,
}

/// What is still to be done with one key, in order.
type Pending<'a> = Vec<(Action, Cow<'a, Row>)>;

/// The statements for records in their order of arrival; `now` is what an
/// update of a row that is there leaves in the column that the node touches.
pub fn plan<'a>(records: impl Iterator<Item = (&'a Model, Action, &'a Row)>, now: &str) -> Vec<Step<'a>> {
    let mut keys: HashMap<(&str, &[String]), (&Model, Pending<'_>)> = HashMap::new();
    for (model, action, row) in records {
        let (_, pending) = keys.entry((&model.table, &row.key)).or_insert((model, Vec::new()));
        join(pending, model, (action, row), now);
    }
    let mut waves: BTreeMap<(usize, &str, Action), Step<'a>> = BTreeMap::new();
    for (model, pending) in keys.into_values() {
        for (turn, (action, row)) in pending.into_iter().enumerate() {
            waves
                .entry((turn, &model.table, action))
                .or_insert_with(|| Step { model, action, rows: Vec::new() })
                .rows
                .push(row);
        }
    }
    let mut steps: Vec<Step<'a>> = waves.into_values().collect();
    // Every batch takes the rows of a table in one order.
    for step in &mut steps {
        step.rows.sort_by(|a, b| a.key.cmp(&b.key));
    }
    steps
}

/// Adds one more thing to be done with a key.
fn join<'a>(pending: &mut Pending<'a>, model: &Model, (action, row): (Action, &'a Row), now: &str) {
    let superseded = pending.last().map(|(last, row)| (*last, row.may_be_refused()));
    match (superseded, action) {
        // It is there for certain: a create does nothing.
        (Some((Action::Create | Action::Update, _)), Action::Create) => {}
        (Some((Action::Create | Action::Update, false)), Action::Update) => {
            let mut row = row.clone();
            if let Some(column) = model.touched {
                row.values[column] = Some(now.to_owned());
            }
            pending.pop();
            pending.push((Action::Update, Cow::Owned(row)));
        }
        (Some((Action::Create | Action::Update, false)), Action::Delete) => {
            pending.pop();
            join(pending, model, (action, row), now);
        }
        (Some((Action::Delete, _)), Action::Delete) => {}
        _ => pending.push((action, Cow::Borrowed(row))),
    }
}
