//! Readers: registered peers that ask this opsward for pages, an hour a row.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use crate::values::{Host, OpUlid};
use jiff::{SignedDuration, Timestamp};

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
    let statement = client.prepare_cached(SEEN).await.doing("prepare noting a reader")?;
    client.execute(&statement, &[&host.as_str(), &after, &now]).await.doing("note a reader")?;
    Ok(())
}

/// A peer that read from here.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Reader {
    /// Who.
    pub host: Host,
    /// The lowest `after` it asked with; `None` when all of them were empty.
    pub lowest: Option<OpUlid>,
    /// When it asked last.
    pub last_at: Timestamp,
    /// How often it asked.
    pub requests: i64,
}

/// Who asked since a time, whole hours counted.
const LOWEST_SINCE: &str = "
    SELECT host, min(lowest), max(last_at), sum(requests)::bigint FROM opsward.readers
    WHERE last_at >= $1 GROUP BY host ORDER BY host";

/// How long a reader's cursor counts (contract 3).
pub const COUNTED: SignedDuration = SignedDuration::from_hours(24);

/// Every reader since `since` with the lowest `after` it asked with.
pub async fn lowest_since(client: &Client, since: Timestamp) -> Result<Vec<Reader>> {
    let rows = client.query(LOWEST_SINCE, &[&since]).await.doing("read the readers")?;
    Ok(rows
        .iter()
        .map(|row| Reader {
            host: Host::normalise(row.get(0)),
            lowest: row.get::<_, Option<&str>>(1).and_then(OpUlid::parse),
            last_at: row.get(2),
            requests: row.get(3),
        })
        .collect())
}
