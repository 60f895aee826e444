//! Who is in the way: other sessions, named so that an operator finds them. Every query names
//! `a.pid, who, a.application_name, a.xact_start, a.query` first.

use crate::db::{Doing, GenericClient, Params, Result, rows};
use jiff::Timestamp;
use tokio_postgres::Row;

/// Characters of a query that are shown.
const SHOWN: usize = 120;

/// A session in words. The same as long as its transaction lasts, up to the first `: `.
pub(in crate::db) fn process(row: &Row) -> String {
    let or_dash =
        |column: usize| row.get::<_, Option<&str>>(column).filter(|text| !text.is_empty()).unwrap_or("-");
    let since = row.get::<_, Option<Timestamp>>(3);
    let since = since
        .map(|at| format!(", in a transaction since {}", at.strftime("%Y-%m-%d %H:%M:%S UTC")))
        .unwrap_or_default();
    let query = or_dash(4).split_whitespace().collect::<Vec<_>>().join(" ");
    let query: String = query.chars().take(SHOWN).collect();
    format!("process {} ({}, {}{since}): {query}", row.get::<_, i32>(0), or_dash(1), or_dash(2))
}

/// The sessions that build an index on the log or on its TOAST table now. An invalid
/// index may be theirs: nothing is a leftover while there is one.
pub async fn builders(client: &impl GenericClient) -> Result<Vec<String>> {
    let rows = client.query(BUILDERS, &[]).await.doing("look who builds an index on ops")?;
    Ok(rows.iter().map(process).collect())
}

/// A concurrent build keeps its lock on the table from its first transaction to its
/// last. What it is at is hidden from other roles, that it is at work is not.
const BUILDERS: &str = "
    SELECT DISTINCT a.pid, coalesce(a.usename, a.backend_type), a.application_name, a.xact_start, a.query
    FROM pg_class c JOIN pg_locks l ON l.relation IN (c.oid, c.reltoastrelid)
    JOIN pg_stat_progress_create_index p ON p.pid = l.pid JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE c.oid = to_regclass('public.ops') AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Transactions older than 5 s, the oldest first.
pub async fn long(client: &impl GenericClient) -> Result<Vec<String>> {
    let rows = client.query(LONG, &[]).await.doing("look for long transactions")?;
    Ok(rows.iter().map(process).collect())
}

const LONG: &str = "
    SELECT a.pid, coalesce(a.usename, a.backend_type), a.application_name, a.xact_start, a.query
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
      AND a.xact_start < clock_timestamp() - interval '5 s'
    ORDER BY a.xact_start LIMIT 10";

/// What is looked for that is older than a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Old {
    /// Whatever keeps deleted rows.
    Any,
    /// Snapshots: what reads by them does not see what was written since.
    Snapshot,
    /// What standbys and slots hold: this server does not know when it ends.
    Remote,
}

/// Who holds the oldest thing that is older than a transaction, in words: a session's
/// snapshot, a prepared transaction, a replication slot, a standby.
pub async fn holder(client: &impl GenericClient, xid: u64, old: Old) -> Result<Option<String>> {
    let xid = i64::try_from(xid).unwrap_or(i64::MAX);
    let params: Params<'_> = &[&xid, &(old == Old::Remote), &(old == Old::Snapshot)];
    let rows = rows::cached(client, HOLDER, params, "look for old snapshots").await?;
    let words = |row: &Row| match row.get(5) {
        "session" => format!("a snapshot held by {}", process(row)),
        "standby" => format!("a snapshot of the standby that this serves: {}", process(row)),
        _ => row.get(6),
    };
    Ok(rows.first().map(words))
}

/// A session that may go on by a snapshot from before a transaction, or by `any` that there is,
/// in words. Of any, those are left out that wait for a lock of ours by a snapshot younger than
/// the transaction: nobody can see whether their next statement has one of its own.
pub async fn reader(client: &impl GenericClient, before: u64, any: bool) -> Result<Option<String>> {
    let statement = client.prepare_cached(READER).await.doing("look for snapshots")?;
    let before = i64::try_from(before).unwrap_or(i64::MAX);
    let row = client.query_opt(&statement, &[&before, &any]).await;
    Ok(row.doing("look for snapshots")?.map(|row| format!("a snapshot held by {}", process(&row))))
}

/// The only statement of its transaction is no reader: it locks what it reads before its snapshot.
pub const READER: &str = "
    SELECT a.pid, a.usename, a.application_name, a.xact_start, a.query
    FROM pg_stat_activity a
    WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() AND a.backend_type = 'client backend'
      AND (a.state <> 'active' OR a.xact_start < a.query_start)
      AND (age(a.backend_xmin) > age($1::bigint::text::xid8::xid)
           OR $2::boolean AND a.backend_xmin IS NOT NULL
              AND pg_backend_pid() <> ALL (pg_blocking_pids(a.pid)))
      AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
    ORDER BY age(a.backend_xmin) DESC LIMIT 1";

/// A VACUUM's snapshot holds nobody up.
const HOLDER: &str = "
    SELECT pid, who, application, since, query, kind, words FROM (
        SELECT greatest(age(a.backend_xmin), CASE WHEN NOT $3::boolean THEN age(a.backend_xid) END), a.pid,
               coalesce(a.usename, a.backend_type), a.application_name, a.xact_start, a.query,
               CASE a.backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END, ''
        FROM pg_stat_activity a
        WHERE a.pid <> pg_backend_pid() AND (a.datname = current_database() OR a.backend_type = 'walsender')
          AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
        UNION ALL
        SELECT age(transaction), 0, '', '', prepared, '', 'prepared',
               format('the prepared transaction %s of %s, begun %s', gid, owner,
                      to_char(prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC'))
        FROM pg_prepared_xacts WHERE database = current_database() AND NOT $3
        UNION ALL
        SELECT age(xmin), 0, '', '', NULL, '', 'slot', format('the replication slot %s', slot_name)
        FROM pg_replication_slots
    ) h(age, pid, who, application, since, query, kind, words)
    WHERE age > age($1::bigint::text::xid8::xid) AND (kind IN ('standby', 'slot') OR NOT $2::boolean)
    ORDER BY age DESC LIMIT 1";
