//! `opsward.pulls` and `opsward.holds`: what came of pulling each peer.

use crate::db::{Client, Doing, Result, rows};
use crate::values::{Host, OpUlid};
use jiff::Timestamp;

/// What one page brought.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PageSums {
    /// Ops that were new.
    pub applied: i64,
    /// Ops that were already there.
    pub duplicates: i64,
    /// Ops below a floor that do not act again.
    pub replays: i64,
    /// Ops that were refused.
    pub rejected: i64,
    /// Those of them that were not refused before.
    pub rejected_new: i64,
    /// Refused ops that could not be kept: the peer's share is full.
    pub rejected_unkept: i64,
    /// A gap that was crossed: from our cursor to the peer's minimum.
    pub gap: Option<(OpUlid, OpUlid)>,
    /// The cursor after which it had nothing at all; '' for none.
    pub empty_after: Option<String>,
    /// The peer's clock less ours, in milliseconds.
    pub clock_offset_ms: Option<i64>,
}

/// Records that a page was pulled well; `detail` says what a person would
/// want to know, or is empty.
pub async fn succeeded(
    client: &Client,
    host: &Host,
    sums: &PageSums,
    outcome: &str,
    now: Timestamp,
) -> Result<()> {
    let from = sums.gap.as_ref().map(|g| g.0.as_str());
    let to = sums.gap.as_ref().map(|g| g.1.as_str());
    rows::write(
        client,
        SUCCEEDED,
        &[
            &host.as_str(),
            &now,
            &outcome,
            &sums.applied,
            &sums.duplicates,
            &sums.rejected,
            &sums.rejected_unkept,
            &from,
            &to,
            &sums.empty_after,
            &sums.clock_offset_ms,
            &sums.replays,
        ],
        "record a pull",
    )
    .await
}

const SUCCEEDED: &str = "
    INSERT INTO opsward.pulls AS p
        (host, last_at, last_ok_at, outcome, detail, pages, applied, duplicates, rejected,
         rejected_unkept, gap_advances, last_gap_from, last_gap_to, last_gap_at,
         empty_after, empty_since, clock_offset_ms, replays)
    VALUES ($1, $2, $2, $3, '', 1, $4, $5, $6, $7, CASE WHEN $8::text IS NULL THEN 0 ELSE 1 END,
            $8, $9, CASE WHEN $8::text IS NULL THEN NULL ELSE $2::timestamptz END,
            $10, CASE WHEN $10::text IS NULL THEN NULL ELSE $2::timestamptz END, $11, $12)
    ON CONFLICT (host) DO UPDATE SET
        last_at = excluded.last_at, last_ok_at = excluded.last_ok_at, outcome = excluded.outcome,
        detail = '', failures_in_a_row = 0, pages = p.pages + 1,
        applied = p.applied + excluded.applied, duplicates = p.duplicates + excluded.duplicates,
        replays = p.replays + excluded.replays, rejected = p.rejected + excluded.rejected,
        rejected_unkept = p.rejected_unkept + excluded.rejected_unkept,
        gap_advances = p.gap_advances + excluded.gap_advances,
        last_gap_from = coalesce(excluded.last_gap_from, p.last_gap_from),
        last_gap_to = coalesce(excluded.last_gap_to, p.last_gap_to),
        last_gap_at = coalesce(excluded.last_gap_at, p.last_gap_at),
        empty_after = excluded.empty_after,
        empty_since = CASE WHEN p.empty_after = excluded.empty_after
                           THEN coalesce(p.empty_since, excluded.empty_since)
                           ELSE excluded.empty_since END,
        clock_offset_ms = excluded.clock_offset_ms";

/// Records that pulling a peer failed, and why.
pub async fn failed(client: &Client, host: &Host, detail: &str, now: Timestamp) -> Result<()> {
    rows::write(client, FAILED, &[&host.as_str(), &now, &detail], "record a pull").await
}

const FAILED: &str = "
    INSERT INTO opsward.pulls AS p (host, last_at, outcome, detail, failures_in_a_row)
    VALUES ($1, $2, 'failed', $3, 1)
    ON CONFLICT (host) DO UPDATE SET last_at = excluded.last_at, outcome = 'failed',
        detail = excluded.detail, failures_in_a_row = p.failures_in_a_row + 1";

/// A peer whose next op is not understood here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// The op that the cursor stays before.
    pub ulid: OpUlid,
    /// Its table.
    pub table: String,
    /// Why, and what lifts it.
    pub reason: String,
}

/// Records that a peer is held, or no longer; the time of the first stays.
/// Says whether it is held before an op that it was not held before.
pub async fn hold(client: &Client, host: &Host, hold: Option<&Hold>, now: Timestamp) -> Result<bool> {
    let Some(h) = hold else {
        let unheld = client.execute(UNHOLD, &[&host.as_str()]).await;
        return unheld.doing("record a hold").map(|_| false);
    };
    let held = client.query_one(HOLD, &[&host.as_str(), &h.ulid.as_str(), &h.table, &h.reason, &now]).await;
    Ok(held.doing("record a hold")?.get(0))
}

const HOLD: &str = "
    INSERT INTO opsward.holds (host, ulid, table_name, reason, since) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (host) DO UPDATE SET ulid = excluded.ulid, table_name = excluded.table_name,
        reason = excluded.reason,
        since = CASE WHEN opsward.holds.ulid = excluded.ulid THEN opsward.holds.since ELSE excluded.since END
    RETURNING since = $5";
const UNHOLD: &str = "DELETE FROM opsward.holds WHERE host = $1";

/// How many peers are held, departed ones left out.
pub async fn held(client: &Client) -> Result<i64> {
    rows::one(client, HELD, &[], "count held peers").await
}

const HELD: &str = "
    SELECT count(*) FROM opsward.holds h
    WHERE NOT EXISTS (SELECT FROM opsward.peers p WHERE p.host = h.host AND NOT p.active)";
