//! Pulled ops into the log and their records into the tables: the statements
//! of one batch. What runs in which order is decided by `pull`.

use crate::db::{Client, Doing, Isolation, Params, Result, Transaction, rows, transaction};
use crate::records::{self, Model, Row};
use crate::values::{Action, Op, OpUlid};
use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;
use tokio_postgres::types::ToSql;

/// Begins a batch: no lock of the node's is waited for over 100 ms, no
/// statement runs over `at_most`.
pub async fn begin(client: &mut Client, at_most: Duration) -> Result<Transaction<'_>> {
    let tx = transaction::begin(client, Isolation::Write).await?;
    tx.batch_execute(&format!("{BOUNDS}; {}", bound_sql(at_most))).await.doing("begin a batch")?;
    Ok(tx)
}

/// Bounds the statements that follow.
pub async fn bound(tx: &Transaction<'_>, at_most: Duration) -> Result<()> {
    tx.batch_execute(&bound_sql(at_most)).await.doing("bound a batch")
}

fn bound_sql(at_most: Duration) -> String {
    format!("SET LOCAL statement_timeout = {}", at_most.as_millis().max(1))
}

/// The commit need not wait for the disk: the cursor is written after it, and
/// that commit takes everything before it to the disk.
/// `opsward.applies` tells the replay guard that an op may come in which acts in
/// part.
const BOUNDS: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL synchronous_commit = off; \
    SET LOCAL opsward.applies = on";

/// Inserts ops into the log; says which were not there.
pub async fn insert_ops(tx: &Transaction<'_>, ops: &[&Op]) -> Result<HashSet<OpUlid>> {
    let column = |f: fn(&Op) -> &str| ops.iter().map(|op| f(op)).collect::<Vec<&str>>();
    let (ulids, hosts) = (column(|op| op.ulid.as_str()), column(|op| &op.host));
    let (actions, tables, data) =
        (column(|op| op.action.word()), column(|op| &op.table), column(|op| &op.data));
    let params: Params<'_> = &[&ulids, &hosts, &actions, &tables, &data];
    let rows = rows::cached(tx, INSERT_OPS, params, "insert ops").await?;
    Ok(rows.iter().filter_map(|r| OpUlid::parse(r.get(0))).collect())
}

const INSERT_OPS: &str = r#"
    INSERT INTO public.ops (ulid, host, action, "table", data)
    SELECT ulid, host, action, "table", data::jsonb
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
         AS op(ulid, host, action, "table", data)
    ON CONFLICT DO NOTHING RETURNING ulid"#;

/// Those of the ULIDs that are in the log.
pub async fn known(tx: &Transaction<'_>, ulids: &[OpUlid]) -> Result<HashSet<OpUlid>> {
    let ulids: Vec<&str> = ulids.iter().map(OpUlid::as_str).collect();
    let rows = tx.query(KNOWN, &[&ulids]).await.doing("look for ops in the log")?;
    Ok(rows.iter().filter_map(|r| OpUlid::parse(r.get(0))).collect())
}

const KNOWN: &str = "SELECT ulid FROM public.ops WHERE ulid = ANY ($1::text[])";

/// Acts on records of one table, each key at most once; `now` as text is what
/// an update leaves in the column that the node touches.
pub async fn act(
    tx: &Transaction<'_>,
    model: &Model,
    action: Action,
    rows: &[Cow<'_, Row>],
    now: &str,
) -> Result<()> {
    let (sql, columns) = match action {
        Action::Create => (records::insert_sql(model), model.columns.len()),
        Action::Update => (records::upsert_sql(model), model.columns.len()),
        Action::Delete => (records::delete_sql(model), model.key.len()),
    };
    let values: Vec<Vec<Option<&str>>> = (0..columns)
        .map(|c| match action {
            Action::Delete => rows.iter().map(|row| row.key.get(c).map(String::as_str)).collect(),
            Action::Create | Action::Update => {
                rows.iter().map(|row| row.values.get(c).and_then(Option::as_deref)).collect()
            }
        })
        .collect();
    let mut params: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as &(dyn ToSql + Sync)).collect();
    if action == Action::Update && model.touched.is_some() {
        params.push(&now);
    }
    rows::write_cached(tx, &sql, &params, "apply records").await
}
