//! `opsward.waiting`: what bulk work waits for, for every view.

use crate::db::{Client, Result, rows};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a piece of bulk work waits for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WaitStatus {
    /// Which work.
    pub work: String,
    /// What for, and who holds it.
    pub what: String,
    /// Since when.
    pub since: Timestamp,
}

/// Notes what a piece of work waits for; `pid` is the lease's session. Returns since when.
pub async fn note(
    client: &Client,
    work: &str,
    (what, pid): (&str, i32),
    now: Timestamp,
) -> Result<Timestamp> {
    rows::one(client, NOTE, &[&work, &what, &now, &pid], "note a wait").await
}

/// Up to the first `: ` it says whom it waits for; the rest is what they are at.
const NOTE: &str = "
    INSERT INTO opsward.waiting AS w (work, what, since, pid) VALUES ($1, $2, $3, $4)
    ON CONFLICT (work) DO UPDATE SET what = excluded.what, pid = excluded.pid,
        since = CASE WHEN w.pid = excluded.pid AND split_part(w.what, ': ', 1) = split_part(excluded.what, ': ', 1)
                     THEN w.since ELSE excluded.since END
    RETURNING since";

/// A piece of work waits no more.
pub async fn over(client: &Client, work: &str) -> Result<()> {
    rows::write(client, OVER, &[&work], "end a wait").await
}

const OVER: &str = "DELETE FROM opsward.waiting WHERE work = $1";

/// What is waited for now by whoever `holder` is, the lease's session: the longest first.
pub async fn all(client: &Client, holder: Option<i32>) -> Result<Vec<WaitStatus>> {
    rows::all(client, ALL, &[&holder], "read what is waited for").await
}

const ALL: &str = "SELECT work, what, since FROM opsward.waiting WHERE pid = $1::int ORDER BY since, work";
