//! Ops of a table from some time on: there is no index by table, so the log is
//! read in slices of the primary key.

use crate::db::{Client, Doing, Lease, Params, Result, census, log::PIN, rows};
use crate::values::OpUlid;
use std::collections::BTreeMap;

/// What a slice of the log holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Those of the tables that have an op in it.
    pub found: Vec<String>,
    /// Its last row; `None` where it is empty.
    pub last: Option<String>,
    /// Its rows.
    pub rows: u64,
}

/// Looks for ops of `tables` in at most `rows` rows above `after`, up to and
/// with `to`. A row whose ULID is none tells nothing. Days of what is found are
/// marked: once the census has counted it, it is not looked for again.
///
/// # Errors
/// The lease is lost, or the database's; among them that it took too long.
pub async fn slice(
    lease: &mut Lease,
    tables: &[&str],
    after: &str,
    (to, now_ms): (OpUlid, u64),
    rows: u32,
) -> Result<Slice> {
    let tx = lease.begin().await?;
    tx.batch_execute(PIN).await.doing("look for recent ops")?;
    let params: Params<'_> = &[&after, &to.as_str(), &i64::from(rows), &tables];
    let row = rows::cached_one(&tx, SLICE, params, "look for recent ops").await?;
    let slice =
        Slice { found: row.get(0), last: row.get(1), rows: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0) };
    let ulids: Vec<&str> = row.get(3);
    let days = census::late_days(ulids.into_iter().filter_map(OpUlid::parse), now_ms);
    census::touch(&tx, &days).await?;
    tx.commit().await.doing("look for recent ops")?;
    Ok(slice)
}

const SLICE: &str = r#"
    WITH slice AS MATERIALIZED (
        SELECT ulid, "table" AS name FROM public.ops
        WHERE ulid > $1::text AND ulid <= $2::text ORDER BY ulid LIMIT $3::bigint),
    found AS (
        SELECT name, max(ulid) AS ulid FROM slice
        WHERE name = ANY ($4::text[]) AND ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' GROUP BY name)
    SELECT ARRAY(SELECT name FROM found), (SELECT max(ulid) FROM slice), (SELECT count(*) FROM slice),
           ARRAY(SELECT ulid FROM found)"#;

/// Up to where the log was read for recent ops of these tables, within a week.
pub(crate) async fn read_to(client: &Client, tables: &[&str]) -> Result<BTreeMap<String, OpUlid>> {
    let read: Vec<_> = rows::all(client, READ_TO, &[&tables], "read up to where was looked").await?;
    Ok(read.into_iter().collect())
}

const READ_TO: &str = "
    SELECT table_name, read_to FROM opsward.dormancy
    WHERE table_name = ANY ($1::text[]) AND began_at > now() - interval '7 days'";

/// Remembers up to where the log was read without finding any of these tables.
pub(crate) async fn keep(client: &Client, tables: &[&str], to: OpUlid) -> Result<()> {
    rows::write(client, KEEP, &[&tables, &to.as_str()], "keep up to where was looked").await
}

const KEEP: &str = "
    INSERT INTO opsward.dormancy AS d (table_name, read_to, began_at)
    SELECT t, $2::text, now() FROM unnest($1::text[]) t
    ON CONFLICT (table_name) DO UPDATE SET
        read_to = CASE WHEN d.began_at > now() - interval '7 days'
                       THEN greatest(d.read_to, excluded.read_to) ELSE excluded.read_to END,
        began_at = CASE WHEN d.began_at > now() - interval '7 days' THEN d.began_at ELSE now() END";

/// The next look begins anew.
pub(crate) async fn forget(client: &Client) -> Result<()> {
    rows::write(client, FORGET, &[], "forget up to where was looked").await
}

const FORGET: &str = "DELETE FROM opsward.dormancy";
