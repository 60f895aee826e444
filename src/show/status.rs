//! `Status`: the one snapshot that JSON, text and the page are made from.
//! Documented and stable: names are never changed, only added. Sizes are
//! bytes, ages seconds, times RFC 3339 in UTC.

mod bounding;

pub use crate::db::overview::{CensusStatus, JobStatus, Overview, RunStatus};
pub use crate::db::readers::ReaderStatus;
pub use crate::db::replication::{GapStatus, HoldStatus, PeerStatus, RejectedStatus};
pub use crate::db::stats::RelationStatus;
pub use crate::db::waiting::WaitStatus;
pub use bounding::*;

use crate::values::{Replication, TaskReport};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What there is to know at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Nothing outside the schema `opsward` is written.
    pub read_only: bool,
    /// This validator's own host.
    #[serde(rename = "self")]
    pub own: Option<String>,
    /// The version of the opsward that looked.
    pub version: String,
    /// When it looked.
    pub at: Timestamp,
    /// The daemon's own view; `null` when it could not be asked.
    pub daemon: Option<DaemonStatus>,
    pub database: DatabaseStatus,
    /// How ops reach the node; `null` where nobody has looked yet.
    #[serde(default)]
    pub node: Option<NodeStatus>,
    /// The peers that are pulled.
    pub peers: PeersStatus,
    /// Registered peers that read from here, within 24 h.
    pub readers: Vec<ReaderStatus>,
    /// Refused ops that are kept, by peer and reason.
    pub rejected: Vec<RejectedStatus>,
    /// What bounds the log; `null` where there is no schema `opsward` yet.
    #[serde(default)]
    pub bounding: Option<BoundingStatus>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// When it was started.
    pub started_at: Timestamp,
    /// How long it has run.
    pub uptime_seconds: u64,
    /// Its process id, in its own container.
    pub pid: u32,
    /// Where peers reach it.
    pub listen: String,
    /// Where its operator reaches it.
    pub admin_listen: String,
    pub tasks: Vec<TaskReport>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// `host:port/database`.
    pub shown: String,
    /// Whether it answered.
    pub up: bool,
    /// Whether it is away, so that waiting may help; when it is neither up nor
    /// away, `error` says what to correct.
    pub away: bool,
    /// Why it is not up.
    pub error: Option<String>,
    /// `ready`, or the code of what is in the way.
    #[serde(default)]
    pub state: String,
    /// What to do about that; empty where `error` says so.
    #[serde(default)]
    pub fix: String,
    /// The server's version.
    pub server_version: Option<String>,
    /// The version of the schema `opsward`; 0 where there is none.
    pub schema_version: Option<i32>,
    /// Bytes of the table `ops` with its TOAST, without indexes.
    pub ops_bytes: Option<u64>,
    /// Bytes of the indexes of `ops`.
    pub index_bytes: Option<u64>,
    /// Dead rows in `ops`, as the server estimates them.
    pub dead_rows: Option<u64>,
    /// Free bytes on its volume; `null` where that cannot be seen.
    pub free_disk_bytes: Option<u64>,
    /// The directory by which its volume was seen.
    pub free_disk_path: Option<String>,
    /// Free bytes below which bulk work stops.
    #[serde(default)]
    pub min_free_disk_bytes: Option<u64>,
    /// Somebody else pruned the log below this.
    #[serde(default)]
    pub foreign_floor: Option<String>,
    /// When and why what was remembered of another log was forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_replaced: Option<(Timestamp, String)>,
    /// The ten largest tables of the node, with their indexes, largest first.
    #[serde(default)]
    pub relations: Vec<RelationStatus>,
}

/// How ops reach the node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `peers`, `both` or `chain`.
    pub replication: Replication,
    /// What told it, as a sentence.
    pub why: String,
    /// Since when it is so.
    pub since: Timestamp,
    /// The height up to which the node has read the chain, as it wrote it.
    pub read_height: Option<String>,
    /// The time of that block.
    pub read_until: Option<Timestamp>,
    /// The node's own pruner deletes ops born before this; `null` where it has
    /// none, or nobody told of one.
    #[serde(default)]
    pub prunes_below: Option<Timestamp>,
    /// `ops` is UNLOGGED: a crash of the server empties it.
    pub is_unlogged: bool,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PeersStatus {
    /// `static` or `discovered`; `null` when no set was ever known.
    pub source: Option<String>,
    /// The URL that told of them.
    pub via: Option<String>,
    /// When the set was last found.
    pub refreshed_at: Option<Timestamp>,
    /// Each of them.
    pub list: Vec<PeerStatus>,
}
