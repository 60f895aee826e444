//! Floors: ops of a table below its floor were deleted.

use crate::db::{Client, GenericClient, Params, Result, rows};
use crate::values::OpUlid;

/// Floors above a ULID. The horizon is none: compaction leaves nothing out that
/// a reader needs.
pub(in crate::db) const ABOVE: &str = "
    SELECT table_name, greatest(floor, foreign_floor) FROM opsward.floors
    WHERE greatest(floor, foreign_floor) > $1 ORDER BY table_name";

/// Every floor above `after`, by table.
pub(in crate::db) async fn above(
    client: &impl GenericClient,
    after: OpUlid,
) -> Result<Vec<(String, OpUlid)>> {
    read(client, ABOVE, &[&after.as_str()]).await
}

/// Every table's own floor: below it, we deleted.
pub async fn all(client: &Client) -> Result<Vec<(String, OpUlid)>> {
    read(client, ALL, &[]).await
}

const ALL: &str = "SELECT table_name, floor FROM opsward.floors WHERE floor IS NOT NULL";

/// Every table's horizon: below it, we compacted.
pub async fn horizons(client: &Client) -> Result<Vec<(String, OpUlid)>> {
    read(client, HORIZONS, &[]).await
}

const HORIZONS: &str = "SELECT table_name, horizon FROM opsward.floors WHERE horizon IS NOT NULL";

async fn read(client: &impl GenericClient, sql: &str, params: Params<'_>) -> Result<Vec<(String, OpUlid)>> {
    let rows = rows::cached(client, sql, params, "read the floors").await?;
    Ok(rows.iter().filter_map(|row| Some((row.get(0), OpUlid::parse(row.get(1))?))).collect())
}
