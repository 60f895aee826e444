//! `Beginning`: the facts with which a reset begins the log anew.

use super::OpUlid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a reset writes down about the new log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Beginning {
    /// How far the reference had read each peer's log, by the peer's host.
    pub cursors: BTreeMap<String, OpUlid>,
    /// What the records were compared with, for the history.
    pub reference: String,
    /// Rows from here on stay, and floors are raised to it.
    pub young: OpUlid,
}
