//! What the log and the traces hold that is newer than a late op, by record.

use crate::db::{Client, Doing, Params, Result, Transaction, log::PIN, rows};
use crate::values::{Op, OpUlid};

/// A record as traces name it, and the newest op that is known of it.
pub type Newest = (String, OpUlid);

/// The trace key of each record of each op; `None` where its table leaves no traces.
pub async fn keys(client: &Client, ops: &[&Op]) -> Result<Vec<Vec<Option<String>>>> {
    let tables: Vec<&str> = ops.iter().map(|op| op.table.as_str()).collect();
    let data: Vec<&str> = ops.iter().map(|op| &*op.data).collect();
    rows::all(client, KEYS, &[&tables, &data], "name the records of late ops").await
}

const KEYS: &str = r#"
    SELECT ARRAY(SELECT opsward.trace_key(op."table", r.record)::text
                 FROM jsonb_array_elements(op.data::jsonb) WITH ORDINALITY r(record, n) ORDER BY r.n)
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS op("table", data, place) ORDER BY op.place"#;

/// The newest trace of each of `keys` that has one.
pub async fn traces(client: &Client, keys: &[&str]) -> Result<Vec<Newest>> {
    let rows = client.query(TRACES, &[&keys]).await.doing("look for newer traces")?;
    Ok(rows.iter().filter_map(newest).collect())
}

const TRACES: &str = "
    SELECT key::text, max(ulid) FROM opsward.traces WHERE key = ANY ($1::text[]::uuid[]) GROUP BY key";

/// What some rows of the log hold.
#[derive(Debug)]
pub struct Slice {
    /// The newest op in the slice of each record that is looked for.
    pub newest: Vec<Newest>,
    /// The slice's last row; `None` where it is empty.
    pub last: Option<String>,
    /// The slice's rows.
    pub rows: u64,
}

/// Looks through at most `rows` rows above `after` for ops on the records `keys`
/// of `tables`.
pub async fn slice(
    tx: &Transaction<'_>,
    (tables, keys): (&[&str], &[&str]),
    after: &str,
    rows: u32,
) -> Result<Slice> {
    tx.batch_execute(&format!("{PIN}; {BOUND}")).await.doing("look for newer ops")?;
    let params: Params<'_> = &[&after, &i64::from(rows), &tables, &keys];
    let found = rows::cached(tx, SLICE, params, "look for newer ops").await?;
    let sums = found.first();
    Ok(Slice {
        newest: found.iter().filter_map(newest).collect(),
        last: sums.and_then(|row| row.get(2)),
        rows: sums.map_or(0, |row| u64::try_from(row.get::<_, i64>(3)).unwrap_or(0)),
    })
}

const BOUND: &str = "SET LOCAL statement_timeout = '2s'";

const SLICE: &str = r#"
    WITH slice AS MATERIALIZED (
        SELECT ulid, "table" AS name, data FROM public.ops
        WHERE ulid > $1::text ORDER BY ulid LIMIT $2::bigint),
    named AS MATERIALIZED (
        SELECT opsward.trace_key(s.name, r) AS key, s.ulid
        FROM slice s CROSS JOIN LATERAL opsward.records(s.data) r
        WHERE s.name = ANY ($3::text[]) AND s.ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$'),
    found AS (
        SELECT key::text, max(ulid) AS ulid FROM named
        WHERE key = ANY ($4::text[]::uuid[]) GROUP BY key)
    SELECT f.key, f.ulid, s.last, s.rows
    FROM (SELECT max(ulid) AS last, count(*) AS rows FROM slice) s LEFT JOIN found f ON true"#;

fn newest(row: &tokio_postgres::Row) -> Option<Newest> {
    Some((row.get::<_, Option<String>>(0)?, OpUlid::parse(row.get::<_, Option<&str>>(1)?)?))
}
