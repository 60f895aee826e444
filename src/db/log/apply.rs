//! Pulled ops into the log and their records into the tables: the statements
//! of one batch. What runs in which order is decided by `pull`.

use crate::db::connect::Client;
use crate::db::error::{Doing, Error, Result};
use crate::db::session::{self, Isolation};
use crate::records::{self, Model, Row};
use crate::values::{Action, Op, OpUlid};
use deadpool_postgres::Transaction;
use std::borrow::Cow;
use std::collections::HashSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

/// Begins a batch: no lock of the node's is waited for over 100 ms, no
/// statement runs over 2 s.
///
/// # Errors
/// The database's.
pub async fn begin(client: &mut Client) -> Result<Transaction<'_>> {
    let tx = session::begin(client, Isolation::Write).await?;
    tx.batch_execute(BOUNDS).await.doing("begin a batch")?;
    Ok(tx)
}

/// The commit need not wait for the disk: the cursor is written after it, and
/// that commit takes everything before it to the disk.
/// `opsward.applies` tells the replay guard that an op may come in which acts in
/// part.
const BOUNDS: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '2s'; \
    SET LOCAL synchronous_commit = off; SET LOCAL opsward.applies = on";

/// Inserts ops into the log; says which were not there.
///
/// # Errors
/// The database's.
pub async fn insert_ops(tx: &Transaction<'_>, ops: &[&Op]) -> Result<HashSet<OpUlid>> {
    let column = |f: fn(&Op) -> &str| ops.iter().map(|op| f(op)).collect::<Vec<&str>>();
    let statement = tx.prepare_cached(INSERT_OPS).await.doing("insert ops")?;
    let rows = tx
        .query(
            &statement,
            &[
                &column(|op| op.ulid.as_str()),
                &column(|op| &op.host),
                &column(|op| op.action.as_str()),
                &column(|op| &op.table),
                &column(|op| &op.data),
            ],
        )
        .await
        .doing("insert ops")?;
    Ok(rows.iter().filter_map(|r| OpUlid::parse(r.get(0))).collect())
}

const INSERT_OPS: &str = r#"
    INSERT INTO public.ops (ulid, host, action, "table", data)
    SELECT ulid, host, action, "table", data::jsonb
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
         AS op(ulid, host, action, "table", data)
    ON CONFLICT DO NOTHING RETURNING ulid"#;

/// Acts on records of one table, each key at most once; `now` as text is what
/// an update leaves in the column that the node touches.
///
/// # Errors
/// The database's.
pub async fn act(
    tx: &Transaction<'_>,
    model: &Model,
    action: Action,
    rows: &[Cow<'_, Row>],
    now: &str,
) -> Result<()> {
    let (sql, columns) = match action {
        Action::Create => (records::insert_sql(model), (0..model.columns.len()).collect()),
        Action::Update => (records::upsert_sql(model), (0..model.columns.len()).collect()),
        Action::Delete => (records::delete_sql(model), model.key.clone()),
    };
    let values: Vec<Vec<Option<&str>>> =
        columns.iter().map(|c| rows.iter().map(|r| r.values[*c].as_deref()).collect()).collect();
    let mut params: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as &(dyn ToSql + Sync)).collect();
    if action == Action::Update && model.touched.is_some() {
        params.push(&now);
    }
    let statement = tx.prepare_cached(&sql).await.doing("apply records")?;
    tx.execute(&statement, &params).await.doing("apply records")?;
    Ok(())
}

/// What a failed batch means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// An op in it is refused by the database; splitting finds which.
    BadOp,
    /// It took too long; half of it may not.
    TooLong,
    /// Somebody else held a lock, or was first; the same again may pass.
    Contended,
    /// Nothing about these ops.
    Other,
}

/// Sorts the error of a batch.
pub fn sort(error: &Error) -> Failure {
    match error {
        Error::TooLong(_) => return Failure::TooLong,
        Error::Overtaken(_) => return Failure::Contended,
        _ => {}
    }
    let Some(code) = error.code() else {
        return Failure::Other;
    };
    match &code.code()[..2] {
        // Data exception, cardinality, integrity, program limit exceeded.
        "22" | "21" | "23" | "54" => Failure::BadOp,
        _ if *code == SqlState::QUERY_CANCELED => Failure::TooLong,
        _ if [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
        ]
        .contains(code) =>
        {
            Failure::Contended
        }
        _ => Failure::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_outlives_its_time_is_halved() {
        assert_eq!(sort(&Error::TooLong("apply a batch")), Failure::TooLong);
        assert_eq!(sort(&Error::Away("gone".into())), Failure::Other);
    }
}
