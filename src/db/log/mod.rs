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

use crate::db::{Client, Doing, Isolation, Params, Result, begin};
use tokio_postgres::Row;

/// Pins a plan to the log's primary key in its order. A generic plan does not look up the ends of
/// the index, where dead entries gather.
const PIN: &str = "SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL jit = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL max_parallel_workers_per_gather = 0";

/// Reads part of the log in a transaction of its own, with the plan pinned and `bounds` set.
async fn read_pinned(
    client: &mut Client,
    bounds: &str,
    sql: &str,
    params: Params<'_>,
    doing: &'static str,
) -> Result<Vec<Row>> {
    let statement = client.prepare_cached(sql).await.doing(doing)?;
    let tx = begin(client, Isolation::Read).await?;
    tx.batch_execute(&format!("{PIN}; SET LOCAL lock_timeout = '100ms'; {bounds}")).await.doing(doing)?;
    let rows = tx.query(&statement, params).await.doing(doing)?;
    tx.rollback().await.doing(doing)?;
    Ok(rows)
}
