//! opsward keeps the replication log of an Open Audio validator bounded, and
//! gives the disk back, from beside the node. A room is a section of the
//! contract; `docs/ARCHITECTURE.md` says who may import whom.

pub mod bound;
pub mod cli;
pub mod clock;
pub mod daemon;
pub mod db;
pub mod http;
pub mod job;
pub mod logging;
pub mod metrics;
pub mod pull;
pub mod reclaim;
pub mod records;
pub mod serve;
pub mod settings;
pub mod show;
pub mod supervisor;
pub mod tls;
pub mod values;
pub mod wire;
pub mod work;
