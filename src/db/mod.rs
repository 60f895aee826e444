//! All SQL, one file a relation: a named `const` right above the one function
//! that runs it. Nothing here decides, counts or logs.

pub mod activity;
pub mod apply;
pub mod capture;
pub mod catalog;
pub mod census;
pub mod census_pass;
pub mod census_slice;
pub mod clone;
mod connect;
pub mod copy;
pub mod cursors;
pub mod digest;
mod error;
pub mod floors;
pub mod foreign;
pub mod gate;
pub mod guard;
pub mod history;
pub mod in_place;
pub mod index;
pub mod jobs;
pub mod lease;
pub mod maintain;
pub mod migrate;
pub mod ops;
pub mod overview;
pub mod pace;
pub mod peers;
pub mod preflight;
pub mod presence;
pub mod privileges;
pub mod prune;
mod prune_sql;
pub mod pulls;
pub mod readers;
pub mod reclaim;
pub mod rejected;
pub mod replay;
pub mod reset;
pub mod stats;
pub mod swap;
pub mod uninstall;
pub mod watermark;

pub use connect::{Client, Db};
pub use error::{Doing, Error, Result, describe};
