//! The vocabulary of bounding the log: what bounds a cut, what blocks a task, what is worth
//! saying, and a day of the census.

use super::{Host, OpUlid, timestamp};
use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What the census knows of one table on one UTC day.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct TableDay {
    /// The table; '' for rows that are implausible.
    pub table: String,
    pub day: Date,
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Rows that the chain has not got: nothing of ours deletes them.
    pub owed: u64,
    pub oldest: Option<OpUlid>,
    pub newest: Option<OpUlid>,
    /// Sampled, not counted.
    pub estimated: bool,
}

/// What bounds a cut.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "by", content = "host", rename_all = "snake_case")]
pub enum BoundBy {
    /// The window, or the dormant threshold.
    Age,
    /// The slowest peer.
    Peer(Host),
    /// The slowest reader.
    Reader(Host),
    /// The size to stay under.
    Size,
    /// How far the node has read the chain.
    Chain,
}

impl BoundBy {
    /// It in a word: bounded, for labels.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Peer(_) => "peer",
            Self::Reader(_) => "reader",
            Self::Size => "size",
            Self::Chain => "chain",
        }
    }
}

impl std::fmt::Display for BoundBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Age | Self::Size | Self::Chain => f.write_str(self.word()),
            Self::Peer(host) | Self::Reader(host) => write!(f, "{} {host}", self.word()),
        }
    }
}

/// Something that stands in the way, or that `status` shows as worth knowing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blocker {
    /// Stable.
    pub code: Cow<'static, str>,
    /// Whom or what it is about; may be empty.
    pub subject: String,
    /// What stands in the way.
    #[serde(default)]
    pub text: String,
    /// What lifts it, with the setting's name.
    #[serde(default)]
    pub fix: String,
    /// Since when; now where it is new.
    pub since: Timestamp,
}

impl Blocker {
    /// Whether the task is off or vetoed: nobody asked for it.
    pub fn is_off(&self) -> bool {
        ["off", "keep_dormant"].contains(&&*self.code)
    }
}

/// What the gate has to say of peers that it is not blocked by.
pub const GATE_NOTICES: [&str; 6] =
    ["cursor_spelling", "ignored_peer", "ignored_reader", "lagging_peer", "peer_removed", "peer_stalled"];

/// How far ahead of now an op of this host blocks what deletes.
pub const OWN_AHEAD_MS: u64 = 3_600_000;

/// What there is to say of such an op.
pub fn own_ahead(op: OpUlid) -> String {
    format!(
        "op {op} of this host is of {:.0}, over an hour ahead of now: nothing is deleted until {:.0}",
        timestamp(op.ms()),
        timestamp(op.ms().saturating_sub(OWN_AHEAD_MS))
    )
}

/// Worth saying wherever a decision is shown.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Notice {
    /// Stable: `cursor_spelling`, `ignored_peer`, `ignored_reader`, `lagging_peer`,
    /// `peer_removed`, `peer_stalled`, `size_not_counted`, `size_not_reached`.
    pub code: Cow<'static, str>,
    /// Whom it is about; may be empty.
    pub subject: String,
    /// What there is to say.
    pub text: String,
    /// What ends it; empty where the text says so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

/// The code of something that was found in this process.
#[cfg(test)]
pub(crate) fn fixed(code: Cow<'static, str>) -> &'static str {
    match code {
        Cow::Borrowed(code) => code,
        Cow::Owned(_) => "",
    }
}
