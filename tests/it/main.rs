//! The integration tests: one module a section of the contract, on a real
//! PostgreSQL and real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests: clippy's own exemption ends at the functions they call"
)]
#![allow(dead_code, reason = "the harness serves modules that come and go")]

mod batches;
mod bounding;
mod bounds;
mod census;
mod cli;
mod digest;
mod docs;
mod faults;
mod gate;
mod generations;
mod halts;
mod harness;
mod harness_test;
mod in_place;
mod killed;
mod maintain;
mod node_test;
mod peers;
mod prune;
mod pull;
mod puller;
mod reclaim;
mod records;
mod rejected;
mod replay;
mod reset;
mod roles;
mod serve;
mod sessions;
mod sim;
mod statements;
mod states;
mod supervision;
mod versions;
mod walks;
mod watched;
mod wire_test;
mod work;
