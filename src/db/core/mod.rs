//! How opsward talks to Postgres: sessions, errors, the lease, maintenance that is
//! watched, migrations.

pub mod activity;
pub mod catalog;
pub(in crate::db) mod connect;
pub(in crate::db) mod error;
pub mod helper;
pub mod lease;
pub(in crate::db) mod lock_budget;
pub mod maintain;
pub mod migrate;
pub mod presence;
pub mod privileges;
pub(in crate::db) mod rows;
pub(in crate::db) mod session;
pub mod short_lock;
pub(in crate::db) mod transaction;
pub mod uninstall;
