//! `Progress`: how far long work is, for a terminal, a job's row and `status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How far long work is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, in a word or two.
    pub phase: String,
    /// How much is done, in `unit`.
    pub done: u64,
    /// How much there is to do, if that is known.
    pub total: Option<u64>,
    /// `rows`, `bytes` or `pages`.
    pub unit: String,
    /// How long the rest will take at the rate so far.
    pub eta_seconds: Option<u64>,
    /// What it waits for, when it waits.
    pub waiting: Option<String>,
    /// Since when it waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Timestamp>,
}
