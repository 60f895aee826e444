//! `opsward.history`: what was deleted, a row a run and table.

use crate::db::{Client, Result, rows};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What one run deleted of one table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The run.
    pub run: String,
    /// The task it ran for.
    pub task: String,
    /// The table.
    pub table: String,
    /// When the run began.
    pub began_at: Timestamp,
    /// When it last deleted of this table.
    pub ended_at: Timestamp,
    /// The lowest ULID that stayed.
    pub below: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of them, without indexes.
    pub bytes: u64,
    /// Traces that were not there before.
    pub traces: u64,
    /// What kept it from going further.
    pub bound_by: String,
    /// Milliseconds it took.
    pub took_ms: u64,
    /// How it came out; `unfinished` while it runs, and where it was killed.
    pub outcome: String,
}

/// The latest entries, the newest first.
pub async fn latest(client: &Client, limit: i64) -> Result<Vec<Entry>> {
    rows::all(client, LATEST, &[&limit], "read the history").await
}

const LATEST: &str = "
    SELECT run, task, table_name AS table, began_at, ended_at, below, rows, bytes, traces, bound_by, took_ms, outcome
    FROM opsward.history ORDER BY began_at DESC, id DESC LIMIT $1";
