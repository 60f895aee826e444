//! Records read for a digest, a page of the primary key at a time, each page a
//! statement and so a transaction of its own; and what says which log stands
//! behind them.

use crate::db::{Client, Db, Doing, Result};
use crate::records::{Kind, Model, quote_ident};
use crate::values::{Host, OpUlid, is_plausible, latest_plausible};
use futures_util::TryStreamExt;
use std::collections::BTreeMap;
use tokio_postgres::types::ToSql;

/// Rows a page begins with, and its bounds: a page that ran out of time is
/// asked for again with half of them, full ones grow.
const PAGE_ROWS: i64 = 1_000;
const MOST_ROWS: i64 = 8_000;
const FEWEST_ROWS: i64 = 10;
/// Keys that are looked up in one statement.
const KEYS: usize = 500;

/// One record, as far as a digest goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The texts of its primary key's columns, times in UTC.
    pub key: Vec<String>,
    /// 128 bits of a SHA-256 over all its columns but the one that every node
    /// sets to its own time of writing.
    pub hash: u128,
}

/// Where a walk through a table's records stands.
pub struct Walk {
    first: String,
    next: String,
    rows: i64,
    last: Option<Vec<String>>,
}

impl Walk {
    /// A walk through all records of a model's table.
    pub fn new(model: &Model) -> Self {
        Self { first: page_sql(model, false), next: page_sql(model, true), rows: PAGE_ROWS, last: None }
    }

    /// The next records in the order of their key; empty at the end.
    pub async fn page(&mut self, client: &Client) -> Result<Vec<Record>> {
        loop {
            let mut values: Vec<&(dyn ToSql + Sync)> = vec![&self.rows];
            let last = self.last.as_deref().unwrap_or_default();
            values.extend(last.iter().map(|text| text as &(dyn ToSql + Sync)));
            let sql = if self.last.is_some() { &self.next } else { &self.first };
            match client.query(sql, &values).await.doing("read records") {
                Err(e) if e.is_too_long() && self.rows > FEWEST_ROWS => {
                    self.rows = (self.rows / 4).max(FEWEST_ROWS);
                }
                Err(e) => return Err(e),
                Ok(rows) => {
                    let records: Vec<Record> = rows.iter().map(record).collect();
                    if let Some(last) = records.last() {
                        self.last = Some(last.key.clone());
                        self.rows = (self.rows * 5 / 4).min(MOST_ROWS);
                    }
                    return Ok(records);
                }
            }
        }
    }
}

/// The records of these keys that are there.
pub async fn by_keys(client: &Client, model: &Model, keys: &[Vec<String>]) -> Result<Vec<Record>> {
    let sql = keys_sql(model);
    let mut found = Vec::new();
    for part in keys.chunks(KEYS) {
        let columns: Vec<Vec<&str>> = (0..model.key.len())
            .map(|place| part.iter().map(|key| key.get(place).map_or("", String::as_str)).collect())
            .collect();
        let values: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|c| c as &(dyn ToSql + Sync)).collect();
        let rows = client.query(&sql, &values).await.doing("read records by key")?;
        found.extend(rows.iter().map(record));
    }
    Ok(found)
}

fn record(row: &tokio_postgres::Row) -> Record {
    let hash: &[u8] = row.get(1);
    Record { key: row.get(0), hash: u128::from_be_bytes(hash.try_into().unwrap_or_default()) }
}

/// Keys and hashes. Values are hashed in their text form, which the session's
/// pinned settings make the same on every server: in the binary form of an
/// array, where NULL and '' differ and no text can end another.
fn selected(model: &Model) -> String {
    let name = |place: &usize| format!("t.{}", quote_ident(&model.columns[*place].name));
    let key: Vec<String> = model.key.iter().map(|place| format!("{}::text", name(place))).collect();
    let content: Vec<String> = (0..model.columns.len())
        .filter(|place| Some(*place) != model.touched)
        .map(|place| match model.columns[place].kind {
            // 0.5 and 0.50 are one number.
            Kind::Float => format!("trim_scale({})::text", name(&place)),
            _ => format!("{}::text", name(&place)),
        })
        .collect();
    format!(
        "SELECT ARRAY[{}], substr(sha256(array_send(ARRAY[{}]::text[])), 1, 16) FROM public.{} t",
        key.join(", "),
        content.join(", "),
        quote_ident(&model.table)
    )
}

/// A page; with `after` one that begins after the key in $2 and on.
fn page_sql(model: &Model, after: bool) -> String {
    let key: Vec<String> =
        model.key.iter().map(|place| format!("t.{}", quote_ident(&model.columns[*place].name))).collect();
    let key = key.join(", ");
    let from: Vec<String> = (2..)
        .zip(&model.key)
        .map(|(n, place)| format!("${n}::text::{}", model.columns[*place].kind.pg_type()))
        .collect();
    let bound = if after { format!(" WHERE ({key}) > ({})", from.join(", ")) } else { String::new() };
    format!("{}{bound} ORDER BY {key} LIMIT $1::bigint", selected(model))
}

fn keys_sql(model: &Model) -> String {
    let params: Vec<String> = (1..=model.key.len()).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<String> = (1..=model.key.len()).map(|n| format!("k{n}")).collect();
    let on: Vec<String> = names
        .iter()
        .zip(&model.key)
        .map(|(k, place)| {
            let column = &model.columns[*place];
            format!("t.{} = w.{k}::{}", quote_ident(&column.name), column.kind.pg_type())
        })
        .collect();
    format!(
        "{} JOIN unnest({}) AS w({}) ON {}",
        selected(model),
        params.join(", "),
        names.join(", "),
        on.join(" AND ")
    )
}

/// Which database this is: the server's own identifier, where the role may see
/// it, and the database's in it. Two names of one database have it in common.
pub async fn identity(client: &Client) -> Result<Option<String>> {
    match client.query_one(IDENTITY, &[]).await.doing("identify the server") {
        Ok(row) => Ok(Some(row.get(0))),
        Err(e) if e.is_denied() => Ok(None),
        Err(e) => Err(e),
    }
}

const IDENTITY: &str = "
    SELECT format('%s/%s', c.system_identifier, d.oid)
    FROM pg_control_system() c, pg_database d WHERE d.datname = current_database()";

/// How far each peer's log was read and applied for certain: the lowest of
/// opsward's own cursor and the node's rows, plausible ones only.
pub async fn cursors(client: &Client, now_ms: u64) -> Result<BTreeMap<String, OpUlid>> {
    let mut rows = client.query(NODE_CURSORS, &[]).await.doing("read the node's cursors")?;
    if crate::db::migrate::version(client).await? > 0 {
        rows.extend(client.query(OWN_CURSORS, &[]).await.doing("read our cursors")?);
    }
    let mut lowest = BTreeMap::new();
    for row in &rows {
        let (host, text): (&str, &str) = (row.get(0), row.get(1));
        let ulid = OpUlid::parse(text).filter(|ulid| is_plausible(*ulid, now_ms));
        if let (Some(host), Some(ulid)) = (Host::parse(host), ulid) {
            let seen = lowest.entry(host.as_str().to_owned()).or_insert(ulid);
            *seen = ulid.min(*seen);
        }
    }
    Ok(lowest)
}

const NODE_CURSORS: &str = "SELECT host, coalesce(last_ulid, '') FROM public.cursors";
const OWN_CURSORS: &str = "SELECT host, last_ulid FROM opsward.cursors";

/// The newest plausible op of the log.
pub async fn newest(client: &Client, now_ms: u64) -> Result<Option<OpUlid>> {
    let rows =
        client.query(NEWEST, &[&latest_plausible(now_ms).as_str()]).await.doing("look for the newest op")?;
    Ok(rows.iter().filter_map(|r| OpUlid::parse(r.get(0))).find(|ulid| is_plausible(*ulid, now_ms)))
}

const NEWEST: &str = "SELECT ulid FROM public.ops WHERE ulid <= $1::text ORDER BY ulid DESC LIMIT 100";

/// An op of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedOp {
    /// Its key.
    pub ulid: String,
    /// Who wrote it first.
    pub host: String,
    /// What it does.
    pub action: String,
    /// The table of its records.
    pub table: String,
    /// The text of its records.
    pub data: String,
}

/// Shows every op above `after` to `each`, in short reads; for the young end
/// of the log.
pub async fn ops_above(db: &Db, after: OpUlid, mut each: impl FnMut(LoggedOp)) -> Result<()> {
    let client = db.client().await?;
    let mut after = after.as_str().to_owned();
    loop {
        let rows = client.query_raw(ABOVE, [&after]).await.doing("read the young ops")?;
        let mut rows = std::pin::pin!(rows);
        let mut last = None;
        while let Some(r) = rows.try_next().await.doing("read the young ops")? {
            let text = |i: usize| r.get::<_, Option<String>>(i).unwrap_or_default();
            last = Some(text(0));
            each(LoggedOp { ulid: text(0), host: text(1), action: text(2), table: text(3), data: text(4) });
        }
        match last {
            Some(last) => after = last,
            None => return Ok(()),
        }
    }
}

const ABOVE: &str = "
    SELECT ulid, host, action, \"table\", data::text FROM public.ops
    WHERE ulid > $1::text ORDER BY ulid LIMIT 1000";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::models;

    #[test]
    fn what_is_sent() {
        let sizes = models().get("storage_and_db_sizes").unwrap();
        insta::assert_snapshot!(page_sql(sizes, true), @r#"SELECT ARRAY[t."logged_at"::text, t."host"::text], substr(sha256(array_send(ARRAY[t."logged_at"::text, t."host"::text, t."storage_backend"::text, t."db_used"::text, t."mediorum_disk_used"::text, t."mediorum_disk_size"::text, t."storage_expectation"::text, t."last_repair_size"::text, t."last_cleanup_size"::text]::text[])), 1, 16) FROM public."storage_and_db_sizes" t WHERE (t."logged_at", t."host") > ($2::text::timestamptz, $3::text::text) ORDER BY t."logged_at", t."host" LIMIT $1::bigint"#);
        let uploads = models().get("uploads").unwrap();
        assert!(page_sql(uploads, false).contains(r#"trim_scale(t."transcode_progress")::text"#));
        assert!(!page_sql(uploads, false).contains("updated_at"), "every node sets its own");
        assert!(keys_sql(sizes).ends_with(
            r#"JOIN unnest($1::text[], $2::text[]) AS w(k1, k2) ON t."logged_at" = w.k1::timestamptz AND t."host" = w.k2::text"#
        ));
    }
}
