//! What `status` tells of the replication: peers with all that is known of
//! each, refused ops. Reads of own state only.

use crate::db::{Client, Result, rows};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How long a peer that vanished from the set is still shown: as long as it
/// counts for the gate (contract 4).
const DEPARTED_DAYS: i32 = 7;

/// The last known set, where there ever was one: `static` or `discovered`, the URL
/// that told of it (empty for a static set), and when it was last found.
pub async fn known_set(client: &Client) -> Result<Option<(String, String, Timestamp)>> {
    rows::maybe(client, KNOWN_SET, &[], "read the set of peers").await
}

const KNOWN_SET: &str = "SELECT source, via, refreshed_at FROM opsward.peer_set";

/// One peer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its URL.
    pub host: String,
    /// Whether it is in the set; one that vanished counts for 7 days more.
    pub active: bool,
    /// When it was last in the set.
    pub last_seen: Timestamp,
    /// How far its log was read.
    pub cursor: Option<String>,
    /// How far behind now that is.
    #[serde(default)]
    pub lag_seconds: Option<u64>,
    /// The last attempt to pull it.
    pub last_at: Option<Timestamp>,
    /// The last attempt that went well.
    pub last_ok_at: Option<Timestamp>,
    /// `ok`, `failed` or `held`; `null` before the first attempt.
    pub outcome: Option<String>,
    /// What the last attempt failed of.
    pub detail: Option<String>,
    /// Failures since it last went well.
    pub failures_in_a_row: u32,
    /// Pages pulled.
    pub pages: u64,
    /// Ops that were new and are applied.
    pub applied: u64,
    /// Ops that were here already.
    pub duplicates: u64,
    /// Ops below a floor that do not act again.
    #[serde(default)]
    pub replays: u64,
    /// Ops that were refused.
    pub rejected: u64,
    /// Refused ops that were counted and not kept: their bound was reached.
    pub rejected_unkept: u64,
    /// Cursors moved over a gap that it signalled.
    pub gap_advances: u64,
    /// The last of them.
    pub last_gap: Option<GapStatus>,
    /// The op before which its cursor stays.
    pub held: Option<HoldStatus>,
    /// When its log was last read to its end.
    #[serde(default, skip_serializing)]
    pub read_to_end_at: Option<Timestamp>,
}

/// A gap that was crossed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GapStatus {
    /// The cursor before.
    pub from: String,
    /// The smallest ULID that the peer still had.
    pub to: String,
    /// When.
    pub at: Timestamp,
}

/// An op that is not understood here.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HoldStatus {
    /// The op.
    pub ulid: String,
    /// Its table.
    pub table: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// The active peers and those that vanished lately, active ones first; how far behind
/// each is stays open.
pub async fn peers(client: &Client, now: Timestamp) -> Result<Vec<PeerStatus>> {
    rows::all(client, PEERS, &[&now, &DEPARTED_DAYS], "read the peers").await
}

const PEERS: &str = "
    SELECT p.host, p.active, p.last_seen, c.last_ulid AS cursor,
           u.last_at, u.last_ok_at, u.outcome, nullif(u.detail, '') AS detail,
           abs(coalesce(u.failures_in_a_row, 0)) AS failures_in_a_row,
           coalesce(u.pages, 0) AS pages, coalesce(u.applied, 0) AS applied,
           coalesce(u.duplicates, 0) AS duplicates, coalesce(u.replays, 0) AS replays,
           coalesce(u.rejected, 0) AS rejected, coalesce(u.rejected_unkept, 0) AS rejected_unkept,
           coalesce(u.gap_advances, 0) AS gap_advances,
           CASE WHEN u.last_gap_from || u.last_gap_to IS NOT NULL AND u.last_gap_at IS NOT NULL
                THEN jsonb_build_object('from', u.last_gap_from, 'to', u.last_gap_to, 'at', u.last_gap_at)
           END AS last_gap,
           (SELECT jsonb_build_object('ulid', h.ulid, 'table', h.table_name, 'reason', h.reason, 'since', h.since)
            FROM opsward.holds h WHERE h.host = p.host) AS held,
           CASE WHEN u.outcome = 'ok' AND u.empty_after = coalesce(c.last_ulid, '') THEN u.last_ok_at END
           AS read_to_end_at
    FROM opsward.peers p
    LEFT JOIN opsward.cursors c ON c.host = p.host
    LEFT JOIN opsward.pulls u ON u.host = p.host
    WHERE p.active OR p.last_seen > $1::timestamptz - make_interval(days => $2::int)
    ORDER BY NOT p.active, p.host";

/// Refused ops of one peer and one reason.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RejectedStatus {
    /// The peer that sent them.
    pub peer: String,
    /// The reason's stable code.
    pub code: String,
    /// How many are kept.
    pub ops: u64,
    /// When one was last sent.
    pub last_seen: Timestamp,
}

/// Counts of the refused ops that are kept; bounded by what is kept of a peer.
pub async fn rejected(client: &Client) -> Result<Vec<RejectedStatus>> {
    rows::all(client, REJECTED, &[], "count the refused ops").await
}

const REJECTED: &str = "
    SELECT peer, code, count(*) AS ops, max(last_seen) AS last_seen
    FROM opsward.rejected_ops GROUP BY peer, code ORDER BY peer, code";
