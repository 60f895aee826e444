//! Which records the ops of a part of the log are about: each of them leaves one
//! trace, however many ops it has.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use crate::db::prune_sql::key_sql;
use crate::db::transaction::{Isolation, begin};
use crate::values::OpUlid;

/// Rows of a range.
const ROWS: i64 = 2_000;

/// What a range of the log has of one table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Its ops.
    pub rows: u64,
    /// A hash of each record that they are about.
    pub records: Vec<i64>,
}

/// Looks at the rows from `from` on, at most 2,000, below `until`; by table.
pub async fn range(client: &mut Client, from: OpUlid, until: OpUlid) -> Result<Vec<(String, Seen)>> {
    let key = key_sql();
    let sql = format!(
        r#"SELECT name, count(*), coalesce(array_agg(DISTINCT hashtextextended(key, 0)) FILTER (WHERE key IS NOT NULL), '{{}}')
           FROM (SELECT coalesce(o."table", '') AS name, {key} AS key FROM public.ops o
                 WHERE o.ulid >= $1 AND o.ulid < $2 ORDER BY o.ulid LIMIT $3) part GROUP BY 1"#
    );
    let statement = client.prepare_cached(&sql).await.doing("look at some of the log")?;
    let tx = begin(client, Isolation::Read).await?;
    tx.batch_execute(BOUNDS).await.doing("look at some of the log")?;
    let rows = tx.query(&statement, &[&from.as_str(), &until.as_str(), &ROWS]).await;
    let rows = rows.doing("look at some of the log")?;
    tx.rollback().await.doing("look at some of the log")?;
    let seen = |r: &tokio_postgres::Row| {
        (r.get(0), Seen { rows: u64::try_from(r.get::<_, i64>(1)).unwrap_or(0), records: r.get(2) })
    };
    Ok(rows.iter().map(seen).collect())
}

/// The plan is pinned as pages' is. A part that takes longer is of no use to an estimate.
const BOUNDS: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '1s'; \
    SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL jit = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL max_parallel_workers_per_gather = 0";
