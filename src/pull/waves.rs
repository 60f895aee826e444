//! Turns the records of a batch into statements that end where applying its
//! ops one by one would: each wave holds a key at most once, so the order
//! inside of it makes no difference, and the waves are in order.

use crate::records::{Model, Row};
use crate::values::Action;
use std::collections::{BTreeMap, HashMap};

/// Rows of one table and one action, each key at most once.
#[derive(Debug)]
pub struct Step<'a> {
    /// The table.
    pub model: &'a Model,
    /// What is done with the rows.
    pub action: Action,
    /// The rows.
    pub rows: Vec<&'a Row>,
}

/// The statements for records in their order of arrival.
pub fn plan<'a>(records: impl Iterator<Item = (&'a Model, Action, &'a Row)>) -> Vec<Step<'a>> {
    let mut turns: HashMap<(&str, &[String]), usize> = HashMap::new();
    let mut waves: BTreeMap<(usize, &str, Action), Step<'a>> = BTreeMap::new();
    for (model, action, row) in records {
        let turn = turns.entry((&model.table, &row.key)).or_default();
        waves
            .entry((*turn, &model.table, action))
            .or_insert_with(|| Step {
                model,
                action,
                rows: Vec::new(),
            })
            .rows
            .push(row);
        *turn += 1;
    }
    waves.into_values().collect()
}
