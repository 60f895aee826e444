//! All SQL: a named `const` right above the one function that runs it. Nothing
//! here decides, counts or logs.

mod core;
mod log;
mod state;

pub use self::core::{
    activity, catalog, helper, lease, maintain, migrate, presence, privileges, short_lock, uninstall,
};
use self::core::{connect, error, lock_budget, rows, session, transaction};
pub use self::log::{
    apply, capture, census_slice, clone, copy, digest, floors, foreign, guard, in_place, index, known, newer,
    ops, order, preflight, prune, recent, replay, reset, swap, traced, watermark,
};
use self::log::{owed, prune_run, prune_sql, remember};
pub use self::state::{
    census, census_pass, covers, cursors, gate, history, jobs, node, overview, pace, peers, pulls, readers,
    reclaim, rejected, replication, stats, waiting,
};

pub use self::core::connect::{Client, Db};
pub use self::core::error::{Doing, Error, Kind, Result, describe};
pub use self::core::lease::Lease;
use self::core::transaction::Params;
pub use self::core::transaction::{GenericClient, Isolation, Transaction, begin};
