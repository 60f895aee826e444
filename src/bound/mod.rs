//! Contract 5: bounding the log.
//!
//! The straight line: facts (settings, now, peers, cursors, readers, census,
//! floors) → a decision → deletion under the lease → history and metrics.
//! `plan` is the same line, stopped before the deletion.

pub mod census;
pub mod decide;
pub mod delete;
pub mod facts;
pub mod forecast;
pub mod foreign;
pub mod guard;
pub mod index;
pub mod node;
pub mod plan;
pub mod recent;
mod skipped;
pub mod tick;
pub mod vacuum;
