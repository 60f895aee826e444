//! A node as the database sees it: what it runs at its start, and the writes
//! of its day, each of them accounted for.

mod chain;
mod startup;
mod writer;

pub use chain::{ChainNode, upgrade_to_b, upgrade_to_c};
pub use startup::{Generation, Startup, node_starts};
pub use writer::{Load, Writer, Written};
