//! A node as the database sees it: what it runs at its start, and the writes
//! of its day, each of them accounted for.

mod startup;
mod writer;

pub use startup::{Generation, Startup, node_starts};
pub use writer::{Load, Writer, Written};
