//! opsward's own small tables, one file a relation.

pub mod census;
pub mod census_pass;
pub mod covers;
pub mod cursors;
pub mod gate;
pub mod history;
pub mod jobs;
pub mod node;
pub mod overview;
pub mod pace;
pub mod peers;
pub mod pulls;
pub mod readers;
pub mod reclaim;
pub mod rejected;
pub mod replication;
pub mod stats;
pub mod waiting;
