//! The index on the log by table and ULID, and leftovers of builds that failed.

use crate::db::{Client, Doing, Lease, Result, rows};
use serde::Deserialize;

/// The index that is made where none is there.
pub const NAME: &str = "opsward_ops_table_ulid";
/// Makes it; waits for every older transaction, so it is run with the watch.
pub const MAKE: &str = "CREATE INDEX CONCURRENTLY opsward_ops_table_ulid ON public.ops (\"table\", ulid)";
/// What `uninstall` runs.
const DROP: &str = "DROP INDEX IF EXISTS public.opsward_ops_table_ulid";

/// What there is.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Found {
    /// A valid index on these columns, by whatever name.
    pub there: Option<String>,
    /// Invalid ones that a failed build left, as they are dropped: ours, and
    /// those of REINDEX CONCURRENTLY.
    pub leftovers: Vec<String>,
    /// Bytes that the index is estimated to take.
    pub bytes: u64,
    /// Bytes of WAL that the server may keep of it (`max_wal_size`), the index's
    /// own at most.
    pub wal_bytes: u64,
    /// Whether this role may make an index on the log.
    pub may: bool,
}

/// Looks in the catalog.
pub async fn find(client: &Client) -> Result<Found> {
    rows::one(client, FIND, &[&NAME], "look at the indexes of ops").await
}

/// A row of the index is some 24 bytes more than the key's own, for the
/// table's name; a tenth is left free in its pages.
const FIND: &str = r#"
    WITH indexes AS (
        SELECT c.oid, c.relname, i.indisvalid,
               i.indpred IS NULL AND i.indexprs IS NULL AND
               (SELECT array_agg(a.attname::text ORDER BY k.n)
                FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum)
               = ARRAY['table', 'ulid'] AS fits
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = 'public.ops'::regclass)
    SELECT (SELECT relname::text FROM indexes WHERE fits AND indisvalid ORDER BY relname LIMIT 1) AS there,
           ARRAY(SELECT format('%I.%I', 'public', relname) FROM indexes
                 WHERE NOT indisvalid AND (relname = $1::text OR relname ~ '_cc(new|old)[0-9]*$')) AS leftovers,
           bytes, pg_has_role(c.relowner, 'USAGE') AS may,
           least(bytes, (SELECT setting::bigint << 20 FROM pg_settings WHERE name = 'max_wal_size')) AS wal_bytes
    FROM pg_class c,
         LATERAL (SELECT (pg_relation_size('public.ops_pkey') + greatest(c.reltuples, 0) * 24 * 1.1)::bigint) b(bytes)
    WHERE c.oid = 'public.ops'::regclass"#;

/// Drops a leftover without holding anybody up.
pub fn drop_sql(leftover: &str) -> String {
    format!("DROP INDEX CONCURRENTLY IF EXISTS {leftover}")
}

/// Records that the index is ours, before it is made.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn own(lease: &mut Lease) -> Result<()> {
    let tx = lease.begin().await?;
    tx.execute(OWN, &[&NAME, &DROP]).await.doing("record what is owned")?;
    tx.commit().await.doing("record what is owned")
}

const OWN: &str = "
    INSERT INTO opsward.owned (kind, name, drop_sql) VALUES ('index', $1, $2)
    ON CONFLICT (kind, name) DO UPDATE SET drop_sql = excluded.drop_sql";

/// How far a build is, in blocks of the table: done and in all.
pub async fn progress(client: &Client) -> Result<Option<(String, u64, u64)>> {
    rows::maybe(client, PROGRESS, &[], "look how far the index is").await
}

const PROGRESS: &str = "
    SELECT phase, blocks_done, blocks_total FROM pg_stat_progress_create_index
    WHERE relid = 'public.ops'::regclass AND datname = current_database()";
