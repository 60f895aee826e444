//! opsward keeps the replication log of an Open Audio validator bounded, and
//! gives the disk back, from beside the node. A room is a section of the
//! contract; `docs/ARCHITECTURE.md` says who may import whom.
#![allow(async_fn_in_trait, reason = "the crate is its only user")]

pub mod clock;
pub mod db;
pub mod metrics;
pub mod settings;
pub mod tls;
pub mod values;
