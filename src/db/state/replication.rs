//! What `status` tells of the replication: peers with all that is known of
//! each, refused ops. Reads of own state only.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use jiff::Timestamp;

/// How long a peer that vanished from the set is still shown: as long as it
/// counts for the gate (contract 4).
const DEPARTED_DAYS: i32 = 7;

/// Where the peer set came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownSet {
    /// `static` or `discovered`.
    pub source: String,
    /// The URL that answered; empty for a static set.
    pub via: String,
    /// When it was last found.
    pub refreshed_at: Timestamp,
}

/// The last known set, where there ever was one.
pub async fn known_set(client: &Client) -> Result<Option<KnownSet>> {
    let row = client.query_opt(KNOWN_SET, &[]).await.doing("read the set of peers")?;
    Ok(row.map(|r| KnownSet { source: r.get(0), via: r.get(1), refreshed_at: r.get(2) }))
}

const KNOWN_SET: &str = "SELECT source, via, refreshed_at FROM opsward.peer_set";

/// One peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRow {
    /// Its URL in comparable form.
    pub host: String,
    /// Whether it is in the last known set.
    pub active: bool,
    /// When it was last in the set.
    pub last_seen: Timestamp,
    /// How far its log was read.
    pub cursor: Option<String>,
    /// The last attempt to pull it.
    pub pull: Option<PullRow>,
    /// Before which op its cursor stays.
    pub hold: Option<HoldRow>,
    /// When it last had nothing above the cursor.
    pub read_to_end_at: Option<Timestamp>,
}

/// What came of pulling a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullRow {
    /// The last attempt.
    pub last_at: Timestamp,
    /// The last attempt that went well.
    pub last_ok_at: Option<Timestamp>,
    /// `ok`, `failed` or `held`.
    pub outcome: String,
    /// What it failed of.
    pub detail: String,
    /// Failures since it last went well.
    pub failures_in_a_row: i32,
    /// Sums since the schema was made: pages, applied, duplicates, replays, rejected,
    /// rejected and not kept, gap advances.
    pub sums: [i64; 7],
    /// The last gap crossed: from, to, when.
    pub last_gap: Option<(String, String, Timestamp)>,
}

/// A peer whose next op is not understood here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldRow {
    /// That op.
    pub ulid: String,
    /// Its table.
    pub table: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// The active peers and those that vanished lately, active ones first.
pub async fn peers(client: &Client, now: Timestamp) -> Result<Vec<PeerRow>> {
    let rows = client.query(PEERS, &[&now, &DEPARTED_DAYS]).await.doing("read the peers")?;
    Ok(rows.iter().map(peer).collect())
}

const PEERS: &str = "
    SELECT p.host, p.active, p.last_seen, c.last_ulid,
           u.last_at, u.last_ok_at, u.outcome, u.detail, u.failures_in_a_row,
           u.pages, u.applied, u.duplicates, u.replays, u.rejected, u.rejected_unkept, u.gap_advances,
           u.last_gap_from, u.last_gap_to, u.last_gap_at,
           h.ulid, h.table_name, h.reason, h.since,
           CASE WHEN u.outcome = 'ok' AND u.empty_after = coalesce(c.last_ulid, '') THEN u.last_ok_at END
    FROM opsward.peers p
    LEFT JOIN opsward.cursors c ON c.host = p.host
    LEFT JOIN opsward.pulls u ON u.host = p.host
    LEFT JOIN opsward.holds h ON h.host = p.host
    WHERE p.active OR p.last_seen > $1::timestamptz - make_interval(days => $2::int)
    ORDER BY NOT p.active, p.host";

fn peer(r: &tokio_postgres::Row) -> PeerRow {
    let gap = || Some((r.get::<_, Option<_>>(16)?, r.get::<_, Option<_>>(17)?, r.get::<_, Option<_>>(18)?));
    PeerRow {
        host: r.get(0),
        active: r.get(1),
        last_seen: r.get(2),
        cursor: r.get(3),
        pull: r.get::<_, Option<_>>(4).map(|last_at| PullRow {
            last_at,
            last_ok_at: r.get(5),
            outcome: r.get(6),
            detail: r.get(7),
            failures_in_a_row: r.get(8),
            sums: std::array::from_fn(|i| r.get(9 + i)),
            last_gap: gap(),
        }),
        hold: r.get::<_, Option<_>>(19).map(|ulid| HoldRow {
            ulid,
            table: r.get(20),
            reason: r.get(21),
            since: r.get(22),
        }),
        read_to_end_at: r.get(23),
    }
}

/// Refused ops that are kept, of one peer and one reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RejectedRow {
    /// The peer that sent them.
    pub peer: String,
    /// The reason's stable code.
    pub code: String,
    /// How many.
    pub ops: i64,
    /// When one was last sent.
    pub last_seen: Timestamp,
}

/// Counts of the refused ops that are kept; bounded by what is kept of a peer.
pub async fn rejected(client: &Client) -> Result<Vec<RejectedRow>> {
    let rows = client.query(REJECTED, &[]).await.doing("count the refused ops")?;
    Ok(rows
        .iter()
        .map(|r| RejectedRow { peer: r.get(0), code: r.get(1), ops: r.get(2), last_seen: r.get(3) })
        .collect())
}

const REJECTED: &str = "
    SELECT peer, code, count(*), max(last_seen)
    FROM opsward.rejected_ops GROUP BY peer, code ORDER BY peer, code";
