//! `opsward.cursors`, ours, and `public.cursors`, the node's. The node writes
//! its rows by an unconditional upsert; ours of them are compare-and-set.

use crate::db::{
    Client, Doing, Error, GenericClient, Isolation, Result, begin, digest::identity, known, rows,
};
use crate::values::{EARLIEST_ULID, Host, IgnoredRow, NodeWrite, OpUlid, StoredCursors, unix_ms};
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use tracing::warn;

/// Reads both cursors of a peer, once it is known that ours is of this log.
pub async fn load(client: &Client, host: &Host) -> Result<StoredCursors> {
    known::check(client).await?;
    let values: [&(dyn ToSql + Sync); 2] = [&host.as_str(), &EARLIEST_ULID];
    if let Some(lowered) = rows::maybe::<String>(client, LOWER, &values, "lower our cursor").await? {
        warn!(peer = %host, "{lowered}");
    }
    let own = client.query_opt(OWN, &[&host.as_str()]).await.doing("read our cursor")?;
    let mut spelled =
        client.query(NODE, &[&host.as_str()]).await.doing("read the node's cursor")?.into_iter();
    let node = spelled.next();
    let counts: &str = node.as_ref().map_or("", |r| r.get(0));
    let ignored = spelled.map(|r| ignored(r.get(0), counts)).collect();
    Ok(StoredCursors {
        own: own.as_ref().map(|r| r.get(0)),
        node_seen: own.and_then(|r| r.get(1)),
        ignored,
        node: node.map(|r| r.get(1)),
    })
}

/// A backup may hold every op that we remember, and older cursors of the node's: what was
/// read since is read again. The node itself writes older values now and then, but into the
/// same table.
const LOWER: &str = "
    WITH node AS (
        SELECT max(last_ulid COLLATE \"C\") AS ulid FROM public.cursors
        WHERE rtrim(lower(trim(host)), '/') = $1 AND last_ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$'
          AND last_ulid COLLATE \"C\" BETWEEN $2::text AND opsward.ulid_at(now() + interval '24 hours')),
    seen AS (
        UPDATE opsward.cursors c SET last_ulid = least(was.last_ulid COLLATE \"C\", node.ulid),
            node_file = pg_relation_filenode(to_regclass('public.cursors'))
        FROM opsward.cursors was, node
        WHERE c.host = $1 AND was.host = $1
          AND c.node_file IS DISTINCT FROM pg_relation_filenode(to_regclass('public.cursors'))
        RETURNING was.last_ulid AS was, c.last_ulid AS now)
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, bound_by, took_ms, outcome)
    SELECT 'log-' || extract(epoch FROM clock_timestamp()), 'log', '*', clock_timestamp(), clock_timestamp(), now, 0, 0,
           'another log', 0, format('our cursor of %s was lowered from %s to %s, where the node''s stands: '
               'cursors is another table than it was', $1::text, was, now)
    FROM seen WHERE now COLLATE \"C\" < was
    RETURNING outcome";

/// A row that does not count, and what removes it.
pub(super) fn ignored(host: &str, counts: &str) -> IgnoredRow {
    let quoted = host.replace('\'', "''");
    IgnoredRow {
        host: host.into(),
        counts: counts.into(),
        fix: format!("it may be deleted by hand: DELETE FROM cursors WHERE host = '{quoted}'"),
    }
}

const OWN: &str = "SELECT last_ulid, node_ulid FROM opsward.cursors WHERE host = $1";

/// The node's rows of a host in whatever spelling: the first, the freshest
/// plausible one, counts.
const NODE: &str = "
    SELECT host, coalesce(last_ulid, '') FROM public.cursors
    WHERE rtrim(lower(trim(host)), '/') = $1
    ORDER BY last_ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' AND last_ulid COLLATE \"C\"
                 < opsward.ulid_at(now() + interval '24 hours') DESC NULLS LAST,
             last_ulid COLLATE \"C\" DESC NULLS LAST, host <> $1, host";

/// Makes the node's cursor ours at first sight: until we have one, a sweep
/// that fails must not begin where the node's own has got to meanwhile.
pub async fn seed(
    client: &Client,
    host: &Host,
    cursor: OpUlid,
    node: Option<&str>,
    now: Timestamp,
) -> Result<()> {
    rows::write(client, SEED, &[&host.as_str(), &cursor.as_str(), &node, &now], "take over the node's cursor")
        .await
}

const SEED: &str = "
    INSERT INTO opsward.cursors (host, last_ulid, node_ulid, updated_at, node_file)
    VALUES ($1, $2, $3, $4, pg_relation_filenode(to_regclass('public.cursors')))
    ON CONFLICT DO NOTHING";

/// What became of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// What was done to the node's row.
    pub node: NodeWrite,
    /// What the node's row held before.
    pub node_before: Option<String>,
}

/// Writes our cursor, then the node's row by compare-and-set: `decide` sees
/// the row as it stands, locked, and what it says is done in the same
/// transaction. A row that the node holds for more than 100 ms is an error, and
/// so is a log that was replaced since the cursor was read.
pub async fn write(
    client: &mut Client,
    host: &Host,
    cursor: OpUlid,
    now: Timestamp,
    decide: impl FnOnce(Option<&str>) -> NodeWrite,
) -> Result<Written> {
    let database = identity(client).await?;
    let tx = begin(client, Isolation::Write).await?;
    tx.batch_execute("SET LOCAL lock_timeout = '100ms'").await.doing("write the cursor")?;
    if known::in_transaction(&tx, database.as_deref()).await?.is_some() {
        tx.commit().await.doing("forget the log before")?;
        return Err(Error::Overtaken("write the cursor"));
    }
    let row = tx.query_opt(NODE_LOCKED, &[&host.as_str()]).await.doing("lock the node's cursor")?;
    // From here on nobody can truncate or drop the node's table.
    if tx.query_opt(MOVED, &[&host.as_str()]).await.doing("write the cursor")?.is_some() {
        tx.rollback().await.doing("write the cursor")?;
        return Err(Error::Overtaken("write the cursor"));
    }
    let found: Option<(String, String)> = row.map(|r| (r.get(0), r.get(1)));
    let before = found.as_ref().map(|(_, ulid)| ulid.clone());
    let node = decide(before.as_deref());
    let text = cursor.as_str();
    match (node, &found) {
        (NodeWrite::Reset, _) => {
            drop_own(&tx, host).await?;
        }
        (NodeWrite::Set, Some((spelled, _))) => {
            tx.execute(NODE_SET, &[spelled, &text]).await.doing("write the node's cursor")?;
        }
        (NodeWrite::Set, None) => {
            tx.execute(NODE_INSERT, &[&host.as_str(), &text]).await.doing("write the node's cursor")?;
        }
        (NodeWrite::Leave, _) => {}
    }
    if node != NodeWrite::Reset {
        let seen = if node == NodeWrite::Set { Some(text) } else { before.as_deref() };
        let latest = OpUlid::last_of_ms(unix_ms(now));
        let values: [&(dyn ToSql + Sync); 5] = [&host.as_str(), &text, &seen, &now, &latest.as_str()];
        tx.execute(OWN_SET, &values).await.doing("write our cursor")?;
    }
    tx.commit().await.doing("commit the cursor")?;
    Ok(Written { node, node_before: before })
}

const NODE_LOCKED: &str = "
    SELECT host, coalesce(last_ulid, '') FROM public.cursors
    WHERE rtrim(lower(trim(host)), '/') = $1
    ORDER BY last_ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' AND last_ulid COLLATE \"C\"
                 < opsward.ulid_at(now() + interval '24 hours') DESC NULLS LAST,
             last_ulid COLLATE \"C\" DESC NULLS LAST, host <> $1, host LIMIT 1 FOR UPDATE";
const MOVED: &str = "
    SELECT FROM opsward.cursors
    WHERE host = $1 AND node_file <> pg_relation_filenode(to_regclass('public.cursors'))";
const NODE_SET: &str = "UPDATE public.cursors SET last_ulid = $2 WHERE host = $1";
/// The node inserting the same row first is an error of ours, tried again.
const NODE_INSERT: &str = "INSERT INTO public.cursors (host, last_ulid) VALUES ($1, $2)";
const OWN_SET: &str = "
    INSERT INTO opsward.cursors AS c (host, last_ulid, node_ulid, updated_at, node_file, witness)
    SELECT $1, $2, $3, $4, pg_relation_filenode(to_regclass('public.cursors')),
           (SELECT o.ulid FROM public.ops o WHERE o.ulid <= $5::text ORDER BY o.ulid DESC LIMIT 1)
    ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid, node_ulid = excluded.node_ulid,
        updated_at = excluded.updated_at, node_file = excluded.node_file, witness = excluded.witness";

/// Forgets our cursor of a peer: its log is read anew.
pub async fn drop_own(client: &impl GenericClient, host: &Host) -> Result<()> {
    rows::write(client, OWN_DROP, &[&host.as_str()], "drop our cursor").await
}

const OWN_DROP: &str = "DELETE FROM opsward.cursors WHERE host = $1";
