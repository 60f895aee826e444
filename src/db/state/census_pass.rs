//! `opsward.census_pass`: where the census stands. Written in the transaction
//! that writes what was counted up to there, so that a pass that was killed
//! goes on without counting anything twice.

use crate::db::{GenericClient, Result, Transaction, census::Counts, rows};
use crate::values::{signed, words};
use jiff::Timestamp;
use jiff::civil::Date;
use serde::Deserialize;
use tokio_postgres::types::ToSql;

words! {
    /// What a pass counts.
    pub enum Kind {
        /// All of the log.
        Full = "full",
        /// Days that were written to late or deleted from, and the recent ones.
        Days = "days",
    }
}

/// A pass as it stands.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Pass {
    /// What it counts.
    pub kind: Kind,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended; `None` while it is under way.
    pub finished_at: Option<Timestamp>,
    /// When one of its kind last ended.
    pub last_finished_at: Option<Timestamp>,
    /// The log is counted up to and with this.
    pub position: String,
    /// The days before it are written.
    pub day: Date,
    /// Where this stretch of days ends; `None` is the end of the log.
    pub until: Option<Date>,
    /// A day that was deleted from while it was being counted.
    pub spoiled: Option<Date>,
    /// What was counted and is not written yet.
    pub counts: Counts,
    /// Rows that it has counted.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// The passes, finished or under way.
pub async fn load(client: &impl GenericClient) -> Result<Vec<Pass>> {
    rows::all(client, LOAD, &[], "see where the census stands").await
}

const LOAD: &str = "
    SELECT kind, began_at, finished_at, last_finished_at, position, day, until, spoiled,
           partial AS counts, rows, bytes
    FROM opsward.census_pass";

/// Writes where a pass stands.
pub async fn save(tx: &Transaction<'_>, pass: &Pass) -> Result<()> {
    // Plain data with text keys: it always has a JSON form.
    let partial = serde_json::to_string(&pass.counts).unwrap_or_else(|_| "[]".into());
    let Pass { kind, began_at, finished_at, last_finished_at, position, day, until, spoiled, .. } = pass;
    let (kind, rows, bytes) = (kind.word(), signed(pass.rows), signed(pass.bytes));
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&kind, began_at, finished_at, last_finished_at, position];
    params.extend_from_slice(&[day, until, spoiled, &partial, &rows, &bytes]);
    rows::write_cached(tx, SAVE, &params, "write where the census stands").await
}

const SAVE: &str = "
    INSERT INTO opsward.census_pass
        (kind, began_at, finished_at, last_finished_at, position, day, until, spoiled, partial, rows, bytes)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11)
    ON CONFLICT (kind) DO UPDATE SET
        began_at = excluded.began_at, finished_at = excluded.finished_at,
        last_finished_at = excluded.last_finished_at, position = excluded.position,
        day = excluded.day, until = excluded.until, spoiled = excluded.spoiled,
        partial = excluded.partial, rows = excluded.rows, bytes = excluded.bytes";
