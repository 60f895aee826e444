//! What integration tests stand on: a real PostgreSQL, a database a test,
//! peers that say anything, a line that fails on purpose, the real binary.
#![allow(unused_imports, reason = "not every module's tests need every one")]

pub mod cluster;
pub mod daemon;
mod database;
mod dice;
pub mod http;
pub mod node;
pub mod ops;
pub mod peer;
pub mod proxy;
mod target;
pub mod wire;

pub use cluster::{Cluster, Schema, Stop};
pub use daemon::{Daemon, Start};
pub use database::{Database, target};
pub use dice::Dice;
pub use ops::{MadeOp, Ops};
pub use peer::{Answer, Peer};
pub use proxy::{Fault, Proxy};
pub use wire::Wire;
