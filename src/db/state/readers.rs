//! Readers: registered peers that ask this opsward for pages, an hour a row.

use crate::db::{Client, Result, rows};
use crate::values::{Host, OpUlid};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// What was asked: `lowest` stays NULL for an `after` that holds nothing.
/// Rows of the day before yesterday go on the way.
const SEEN: &str = "
    WITH gone AS (DELETE FROM opsward.readers WHERE last_at < $3::timestamptz - interval '48 hours')
    INSERT INTO opsward.readers AS r (host, hour, lowest, latest, requests, last_at)
    VALUES ($1, date_trunc('hour', $3::timestamptz), nullif($2, ''), $2, 1, $3)
    ON CONFLICT (host, hour) DO UPDATE
    SET lowest = least(r.lowest, excluded.lowest), latest = excluded.latest,
        requests = r.requests + 1, last_at = greatest(r.last_at, excluded.last_at)";

/// Notes that `host` asked for what comes after `after`; `None` is a first
/// contact, which holds nothing.
pub async fn seen(client: &Client, host: &Host, after: Option<OpUlid>, now: Timestamp) -> Result<()> {
    let after = after.as_ref().map_or("", OpUlid::as_str);
    rows::write_cached(client, SEEN, &[&host.as_str(), &after, &now], "note a reader").await
}

/// A registered peer that reads from here.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ReaderStatus {
    /// Its URL.
    pub host: String,
    /// The lowest cursor of 24 h that it asked with; `null`: only empty ones.
    pub lowest: Option<String>,
    /// How far behind now that is; [`lowest_since`] leaves it open.
    #[serde(default)]
    pub lag_seconds: Option<u64>,
    /// When it last asked.
    pub last_at: Timestamp,
    /// Requests of 24 h.
    pub requests: u64,
}

/// Who asked since a time, whole hours counted.
const LOWEST_SINCE: &str = "
    SELECT host, min(lowest) AS lowest, max(last_at) AS last_at, sum(requests)::bigint AS requests
    FROM opsward.readers
    WHERE last_at >= $1 GROUP BY host ORDER BY host";

/// How long a reader's cursor counts (contract 3).
pub const COUNTED: SignedDuration = SignedDuration::from_hours(24);

/// Every reader since `since` with the lowest `after` it asked with.
pub async fn lowest_since(client: &Client, since: Timestamp) -> Result<Vec<ReaderStatus>> {
    rows::all(client, LOWEST_SINCE, &[&since], "read the readers").await
}
