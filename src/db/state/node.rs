//! The node beside us: what its tables tell of how ops reach it, how far it
//! has read the chain, and what was last found.

use crate::db::{Client, Doing, Result, rows};
use crate::values::Replication;
use jiff::Timestamp;
use serde::Deserialize;

/// What the catalog tells, and what was last found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Catalog {
    /// `ops` has `core_tx_status`.
    pub has_status: bool,
    /// `uploads` has `user_id`.
    pub has_user_id: bool,
    /// There is a table `core_blocks` of the columns that are read here.
    pub has_blocks: bool,
    /// The GRANT that lets this role read it, where it may not.
    pub grant_blocks: Option<String>,
    /// `ops` is UNLOGGED: a crash of the server empties it.
    pub is_unlogged: bool,
}

/// Reads the catalog.
pub async fn catalog(client: &Client) -> Result<Catalog> {
    rows::one(client, CATALOG, &[], "look at the node's tables").await
}

const CATALOG: &str = "
    SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.ops')
                   AND attname = 'core_tx_status' AND NOT attisdropped) AS has_status,
           EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.uploads')
                   AND attname = 'user_id' AND NOT attisdropped) AS has_user_id,
           (SELECT count(*) = 3 FROM pg_attribute
            WHERE attrelid = to_regclass('public.core_blocks') AND NOT attisdropped
              AND (attname, atttypid::regtype) IN (('height', 'bigint'::regtype), ('chain_id', 'text'::regtype),
                                                   ('created_at', 'timestamp'::regtype))) AS has_blocks,
           CASE WHEN NOT has_table_privilege(to_regclass('public.core_blocks'), 'SELECT')
                THEN format('GRANT SELECT ON public.core_blocks TO %I', current_user) END AS grant_blocks,
           coalesce((SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass('public.ops')), false)
           AS is_unlogged";

/// How ops reach the node, as it was last found.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Kept {
    /// The way.
    pub replication: Replication,
    /// What told it, as a sentence.
    pub why: String,
    /// Since when it is so.
    pub since: Timestamp,
}

/// Reads what was last found; `None` before the first look.
pub async fn kept(client: &Client) -> Result<Option<Kept>> {
    rows::maybe(client, KEPT, &[], "read how ops reach the node").await
}

const KEPT: &str = "SELECT replication, why, since FROM opsward.node";

/// Keeps what was found, and says what was before.
pub async fn keep(
    client: &Client,
    found: Replication,
    why: &str,
    now: Timestamp,
) -> Result<Option<Replication>> {
    let row = client.query_one(KEEP, &[&found.word(), &why, &now]).await;
    let row = row.doing("keep how ops reach the node")?;
    Ok(row.get::<_, Option<&str>>(0).and_then(Replication::parse))
}

const KEEP: &str = "
    WITH before AS (SELECT replication FROM opsward.node)
    INSERT INTO opsward.node AS n (replication, why, since, looked_at)
    VALUES ($1::text, $2::text, $3::timestamptz, $3::timestamptz)
    ON CONFLICT (one) DO UPDATE SET replication = excluded.replication, why = excluded.why,
        looked_at = excluded.looked_at,
        since = CASE WHEN n.replication = excluded.replication THEN n.since ELSE excluded.since END
    RETURNING (SELECT replication FROM before)";

/// How far the node has read the chain. Texts are as stored: nothing of them
/// is believed yet.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Chain {
    /// What the node's cursor holds; `None` where there is none.
    pub cursor: Option<String>,
    /// The newest block: its chain and its height.
    pub tip: Option<(String, i64)>,
    /// The time of the block at the cursor, on that chain, where it is one.
    pub read_until: Option<Timestamp>,
}

/// Reads how far the node has read the chain, in one snapshot.
pub async fn chain(client: &Client, catalog: &Catalog) -> Result<Chain> {
    let doing = "read how far the node read the chain";
    if !catalog.has_blocks || catalog.grant_blocks.is_some() {
        let row = client.query_opt(CURSOR, &[]).await.doing(doing)?;
        return Ok(Chain { cursor: row.and_then(|r| r.get(0)), ..Chain::default() });
    }
    let row = client.query_one(&chain_sql(), &[]).await.doing(doing)?;
    let tip = row.get::<_, Option<String>>(1).zip(row.get(2));
    Ok(Chain { cursor: row.get(0), tip, read_until: row.get(3) })
}

const CURSOR: &str = "SELECT last_ulid FROM public.cursors WHERE host = 'core_mediorum_blocks'";

/// No constant: not every node has the table. A block without a time is the newest, which tells
/// nothing; a time may lie beyond all that a calendar has.
fn chain_sql() -> String {
    "SELECT c.last_ulid, t.chain_id, t.height,
            (SELECT b.created_at AT TIME ZONE 'UTC' FROM public.core_blocks b
             WHERE b.chain_id = t.chain_id AND b.created_at BETWEEN 'epoch' AND '9999-01-01'
               AND b.height = CASE WHEN c.last_ulid ~ '^[0-9]{1,18}$' THEN c.last_ulid::bigint END)
     FROM (SELECT) one
     LEFT JOIN public.cursors c ON c.host = 'core_mediorum_blocks'
     LEFT JOIN (SELECT chain_id, height, created_at FROM public.core_blocks
                ORDER BY created_at DESC, height DESC LIMIT 1) t ON true"
        .into()
}

/// Settings that a state sync leaves in `postgresql.auto.conf`, as
/// `name = value`; nothing where the role may not see where they stand.
pub async fn left_settings(client: &Client) -> Result<Vec<(String, String)>> {
    rows::all(client, LEFT_SETTINGS, &[], "read the server's settings").await
}

const LEFT_SETTINGS: &str = "
    SELECT name, current_setting(name) FROM pg_settings
    WHERE sourcefile LIKE '%postgresql.auto.conf'
      AND name IN ('max_wal_size', 'checkpoint_timeout', 'synchronous_commit') ORDER BY name";
