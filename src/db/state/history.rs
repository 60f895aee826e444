//! `opsward.history`: what was deleted, a row a run and table.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use jiff::Timestamp;
use serde::Serialize;

/// What one run deleted of one table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
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
    pub rows: i64,
    /// Bytes of them, without indexes.
    pub bytes: i64,
    /// Traces that were not there before.
    pub traces: i64,
    /// What kept it from going further.
    pub bound_by: String,
    /// Milliseconds it took.
    pub took_ms: i64,
    /// How it came out; `unfinished` while it runs, and where it was killed.
    pub outcome: String,
}

/// The latest entries, the newest first.
pub async fn latest(client: &Client, limit: i64) -> Result<Vec<Entry>> {
    let rows = client.query(LATEST, &[&limit]).await.doing("read the history")?;
    let read = |r: &tokio_postgres::Row| Entry {
        run: r.get(0),
        task: r.get(1),
        table: r.get(2),
        began_at: r.get(3),
        ended_at: r.get(4),
        below: r.get(5),
        rows: r.get(6),
        bytes: r.get(7),
        traces: r.get(8),
        bound_by: r.get(9),
        took_ms: r.get(10),
        outcome: r.get(11),
    };
    Ok(rows.iter().map(read).collect())
}

const LATEST: &str = "
    SELECT run, task, table_name, began_at, ended_at, below, rows, bytes, traces, bound_by, took_ms, outcome
    FROM opsward.history ORDER BY began_at DESC, id DESC LIMIT $1";
