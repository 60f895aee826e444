//! All that the gate decides from.

use super::ChainFact;
use crate::settings::Bounding;
use crate::values::{Host, IgnoredRow, OpUlid, Replication, TableDay, Unfinished};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// All that a decision is made from.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The settings.
    pub settings: Bounding,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// This validator.
    pub own: Host,
    /// How ops reach the node.
    pub replication: Replication,
    /// How far it has read the chain, where they come by it.
    pub chain: ChainFact,
    /// The replay guard is switched on and on the log.
    pub guarded: bool,
    /// The active peers and those that vanished within 7 days; `None` when no
    /// set was ever known.
    pub peers: Option<Vec<PeerFact>>,
    /// The node's rows that are other spellings of a host.
    pub ignored_rows: Vec<IgnoredRow>,
    /// How often each peer is pulled.
    pub pulled_every: Duration,
    /// Who read from here within 24 h.
    pub readers: Vec<ReaderFact>,
    /// An op of this host lies over an hour ahead: its ULID.
    pub own_ahead: Option<OpUlid>,
    /// The census, or a sample.
    pub census: Vec<TableDay>,
    /// The log was counted whole once.
    pub census_whole: bool,
    /// When it was last brought up to date, in milliseconds since the Unix
    /// epoch; 0 where it never was.
    pub census_ms: u64,
    /// What a byte of the census takes on disk, its part of the indexes
    /// included; at least 1.
    pub overhead: f64,
    /// A reclaim that has not ended.
    pub reclaim: Option<Unfinished>,
    /// Why ranges of the log's key can't be trusted, and the way out.
    pub disordered: Option<(String, String)>,
    /// Since when each blocker stands, by code and subject.
    pub since: BTreeMap<(String, String), Timestamp>,
}

/// A peer, as far as the gate is concerned. Texts are as stored: nothing of
/// them is believed yet.
#[derive(Clone, Debug)]
pub struct PeerFact {
    /// Who.
    pub host: Host,
    /// When it was first seen, in milliseconds since the Unix epoch.
    pub first_seen_ms: u64,
    /// When it was last one of the set, in milliseconds, where it no longer is.
    pub removed_ms: Option<u64>,
    /// Our own cursor.
    pub own: Option<String>,
    /// What the node's row holds, and held in the last 30 minutes; '' for NULL.
    pub node: Vec<String>,
    /// The node's row was removed since it was read: an operator's reset.
    pub reset: bool,
    /// Since when it answers `[]` at one cursor, in milliseconds.
    pub empty_since_ms: Option<u64>,
    /// Its clock, where it is pulled and tells.
    pub clock: Option<ClockFact>,
}

/// A peer's clock against ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockFact {
    /// It less ours, in milliseconds.
    pub offset_ms: i64,
    /// When that was found, by ours, in milliseconds since the Unix epoch.
    pub found_ms: u64,
}

/// A registered peer that read from here.
#[derive(Clone, Debug)]
pub struct ReaderFact {
    /// Who.
    pub host: Host,
    /// The lowest `after` it asked with; `None` holds nothing.
    pub lowest: Option<OpUlid>,
}
