//! Floors: ops of a table below its floor were deleted.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use crate::db::transaction::GenericClient;
use crate::values::OpUlid;
use tokio_postgres::Statement;

/// Floors above a ULID. The horizon is none: compaction leaves nothing out that
/// a reader needs.
const ABOVE: &str = "
    SELECT table_name, greatest(floor, foreign_floor) FROM opsward.floors
    WHERE greatest(floor, foreign_floor) > $1 ORDER BY table_name";

/// Prepares [`above`].
pub(in crate::db) async fn prepare_above(client: &Client) -> Result<Statement> {
    client.prepare_cached(ABOVE).await.doing("prepare reading the floors")
}

/// Every floor above `after`, by table.
pub(in crate::db) async fn above(
    client: &impl GenericClient,
    statement: &Statement,
    after: OpUlid,
) -> Result<Vec<(String, OpUlid)>> {
    let rows = client.query(statement, &[&after.as_str()]).await.doing("read the floors")?;
    Ok(rows.iter().filter_map(|row| Some((row.get(0), OpUlid::parse(row.get(1))?))).collect())
}

/// Every table's own floor: below it, we deleted.
pub async fn all(client: &Client) -> Result<Vec<(String, OpUlid)>> {
    let rows = client.query(ALL, &[]).await.doing("read the floors")?;
    Ok(rows.iter().filter_map(|row| Some((row.get(0), OpUlid::parse(row.get(1))?))).collect())
}

const ALL: &str = "SELECT table_name, floor FROM opsward.floors WHERE floor IS NOT NULL";

/// Every table's horizon: below it, we compacted.
pub async fn horizons(client: &Client) -> Result<Vec<(String, OpUlid)>> {
    let rows = client.query(HORIZONS, &[]).await.doing("read the horizons")?;
    Ok(rows.iter().filter_map(|row| Some((row.get(0), OpUlid::parse(row.get(1))?))).collect())
}

const HORIZONS: &str = "SELECT table_name, horizon FROM opsward.floors WHERE horizon IS NOT NULL";
