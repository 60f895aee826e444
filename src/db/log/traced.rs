//! Which records the ops of a part of the log are about: each of them leaves one
//! trace, however many ops it has.

use crate::db::{Client, Params, Result, log::read_pinned, prune_sql::key_sql};
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
    let params: Params<'_> = &[&from.as_str(), &until.as_str(), &ROWS];
    let rows = read_pinned(client, BOUNDS, &sql, params, "look at some of the log").await?;
    let seen = |r: &tokio_postgres::Row| {
        (r.get(0), Seen { rows: u64::try_from(r.get::<_, i64>(1)).unwrap_or(0), records: r.get(2) })
    };
    Ok(rows.iter().map(seen).collect())
}

/// A part that takes longer is of no use to an estimate.
const BOUNDS: &str = "SET LOCAL statement_timeout = '1s'";
