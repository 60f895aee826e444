//! Contract 2: the values that everything else speaks of. Pure: nothing here
//! knows a clock, a socket or a database.
//!
//! A value is parsed once, at the edge, and carried as its type from there on.

mod beginning;
mod bytes;
mod cursors;
mod finding;
mod gate;
mod host;
mod json_key;
mod number;
mod op;
mod peers;
mod plausible;
mod printable;
mod progress;
mod replication;
mod sweep_headers;
mod task;
mod time;
mod ulid;
mod unfinished;
mod words;

pub use beginning::Beginning;
pub use bytes::bytes;
pub use cursors::{IgnoredRow, NodeWrite, StoredCursors};
pub use finding::Finding;
#[cfg(test)]
pub(crate) use gate::fixed;
pub use gate::{Blocker, BoundBy, GATE_NOTICES, Notice, OWN_AHEAD_MS, TableDay, own_ahead};
pub use host::Host;
pub use json_key::fold_key;
pub use number::{count, signed};
pub use op::{Action, Data, Op, RejectReason};
pub use peers::{Peer, PeerSet, PeerSource};
pub use plausible::{
    EARLIEST_MS, EARLIEST_ULID, MAX_AHEAD_MS, MAX_GAP_AHEAD_MS, is_plausible, latest_plausible,
};
pub use printable::{one_line, printable};
pub use progress::{Lately, Progress};
pub use replication::{Replication, SweepRoute};
pub use sweep_headers::{SweepHeaders, format_table_floors, names};
pub use task::{TaskReport, TaskState};
pub use time::{day_ms, day_of, millis, timestamp, unix_ms};
pub use ulid::OpUlid;
pub use unfinished::Unfinished;
pub(crate) use words::words;
