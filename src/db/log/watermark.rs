//! The watermark: below it everything was deleted, so a look for the log's
//! minimum begins there and not among the dead entries of the index.

use crate::db::{GenericClient, Result, rows};
use crate::values::{EARLIEST_ULID, OpUlid, is_plausible};

/// Rows a look: nearly always the first row is the answer.
const LOOK_ROWS: usize = 100;
/// Looks at most: more implausible rows than 10,000 at the log's old end are
/// no log that a node wrote, and its minimum counts as unknown.
const LOOKS: usize = 100;

/// $1 is where to look from, the watermark where that is higher. Bounds and
/// order are the column's own collation.
pub(in crate::db) const MINIMUM: &str = "
    SELECT ulid FROM public.ops
    WHERE ulid >= greatest($1::text, (SELECT ulid FROM opsward.watermark ORDER BY n DESC LIMIT 1))
    ORDER BY ulid LIMIT 100";

/// The smallest plausible ULID from the watermark upward.
pub(in crate::db) async fn minimum(client: &impl GenericClient, now_ms: u64) -> Result<Option<OpUlid>> {
    let mut from = EARLIEST_ULID.to_owned();
    for _ in 0..LOOKS {
        let rows = rows::cached(client, MINIMUM, &[&from], "look for the log's minimum").await?;
        let found =
            rows.iter().filter_map(|row| OpUlid::parse(row.get(0))).find(|ulid| is_plausible(*ulid, now_ms));
        match rows.last() {
            Some(last) if found.is_none() && rows.len() == LOOK_ROWS => from = last.get(0),
            _ => return Ok(found),
        }
    }
    Ok(None)
}
