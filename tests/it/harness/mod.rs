//! What integration tests stand on: a real PostgreSQL, a database a test,
//! peers that say anything, a line that fails on purpose, the real binary.

pub mod cluster;
mod database;

pub use cluster::{Cluster, Stop};
pub use database::{Database, target};
