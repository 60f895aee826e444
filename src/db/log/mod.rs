//! Everything that reads or writes `ops`, and what hangs on it.

pub mod apply;
pub mod capture;
pub mod census_slice;
pub mod clone;
pub mod copy;
pub mod digest;
pub mod floors;
pub mod foreign;
pub mod guard;
pub mod in_place;
pub mod index;
pub mod known;
pub mod newer;
pub mod ops;
pub mod order;
pub(in crate::db) mod owed;
pub mod preflight;
pub mod prune;
pub(in crate::db) mod prune_run;
pub(in crate::db) mod prune_sql;
pub mod recent;
pub(in crate::db) mod remember;
pub mod replay;
pub mod reset;
pub mod swap;
pub mod traced;
pub mod watermark;
