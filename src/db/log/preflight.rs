//! What a reclaim has to know before it begins: from the catalog and the
//! server's own views.

use crate::db::{GenericClient, Result, activity, rows};
use serde::Deserialize;

/// What stands in the way, and the sizes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Standing {
    /// The role may change the table `ops`.
    pub owner: bool,
    /// The role that is logged in.
    pub role: String,
    /// It is a plain table.
    pub plain: bool,
    /// It is UNLOGGED: a crash of the server empties it.
    pub unlogged: bool,
    /// Bytes of the table with its TOAST.
    pub table_bytes: u64,
    /// Bytes of its indexes.
    pub index_bytes: u64,
    /// `max_wal_size`.
    pub max_wal_bytes: u64,
    /// Transactions that `vacuum_defer_cleanup_age` keeps deleted rows for.
    pub kept_xids: i64,
    /// `old_snapshot_threshold` is set.
    pub old_snapshots: bool,
    /// What depends on the table and would not follow a swap, in words.
    #[serde(skip)]
    pub dependents: Vec<String>,
    /// What depends on its rows, so that deleting or moving them fails, or changes more.
    #[serde(skip)]
    pub hindrances: Vec<String>,
    /// Its indexes that are invalid.
    pub invalid: Vec<String>,
    /// Prepared transactions of this database.
    pub prepared: Vec<String>,
    /// Replication slots that nobody reads, or whose reader is further behind than `max_wal_size`.
    pub slots: Vec<String>,
    /// WAL that could not be archived last, where that failed.
    pub archiving: Option<String>,
    /// Transactions older than 5 s, in words.
    #[serde(skip)]
    pub long: Vec<String>,
    /// Statements that give what a swap needs beyond owning the table.
    #[serde(skip)]
    pub grants: Vec<String>,
    /// Another session that holds the lease, in words.
    #[serde(skip)]
    pub lease: Option<String>,
}

/// Reads it.
pub async fn standing(client: &impl GenericClient) -> Result<Standing> {
    Ok(Standing {
        dependents: dependents(client).await?,
        hindrances: hindrances(client, true).await?,
        long: activity::long(client).await?,
        grants: words(client, GRANTS).await?,
        ..rows::one(client, STANDING, &[], "look at ops before a reclaim").await?
    })
}

async fn words(client: &impl GenericClient, sql: &str) -> Result<Vec<String>> {
    rows::all(client, sql, &[], "look what stands in the way").await
}

const STANDING: &str = "
    SELECT pg_has_role(c.relowner, 'USAGE') AS owner, current_user::text AS role,
           c.relkind = 'r' AND c.relpersistence <> 't' AND NOT c.relispartition AS plain,
           pg_table_size(c.oid) AS table_bytes, pg_indexes_size(c.oid) AS index_bytes,
           (SELECT setting::bigint << 20 FROM pg_settings WHERE name = 'max_wal_size') AS max_wal_bytes,
           coalesce((SELECT setting::bigint FROM pg_settings WHERE name = 'vacuum_defer_cleanup_age'), 0)
           AS kept_xids,
           ARRAY(SELECT x.indexrelid::regclass::text FROM pg_index x
                 WHERE x.indrelid = c.oid AND NOT x.indisvalid) AS invalid,
           ARRAY(SELECT gid FROM pg_prepared_xacts WHERE database = current_database()) AS prepared,
           ARRAY(SELECT CASE WHEN active THEN format('%s, whose reader is %s behind', slot_name,
                                  pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)))
                             ELSE slot_name::text END
                 FROM pg_replication_slots
                 WHERE NOT active OR pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn) >
                     (SELECT setting::bigint << 20 FROM pg_settings WHERE name = 'max_wal_size')) AS slots,
           (SELECT last_failed_wal FROM pg_stat_archiver
            WHERE current_setting('archive_mode') <> 'off'
              AND last_failed_time > coalesce(last_archived_time, '-infinity')) AS archiving,
           coalesce((SELECT setting::int >= 0 FROM pg_settings WHERE name = 'old_snapshot_threshold'), false)
           AS old_snapshots, c.relpersistence = 'u' AS unlogged
    FROM pg_class c WHERE c.oid = 'public.ops'::regclass";

/// What depends on the table and would not follow a swap, in words.
pub async fn dependents(client: &impl GenericClient) -> Result<Vec<String>> {
    words(client, DEPENDENTS).await
}

/// What depends on the table's rows, so that deleting them, or moving them as well, fails or
/// changes more.
pub async fn hindrances(client: &impl GenericClient, moves: bool) -> Result<Vec<String>> {
    rows::all(client, HINDRANCES, &[&moves], "look what depends on the rows of ops").await
}

/// Whatever the catalog says depends on the table, its row type or its
/// columns, but what belongs to it and follows, as a sequence that it owns does. Publications of all tables and
/// of the schema would show both tables.
const DEPENDENTS: &str = "
    WITH c AS (SELECT oid, reltype FROM pg_class WHERE oid = 'public.ops'::regclass),
    own AS (
        SELECT 'pg_class'::regclass AS classid, oid AS objid FROM c
        UNION ALL SELECT 'pg_type'::regclass, reltype FROM c
        UNION ALL SELECT 'pg_type'::regclass, t.typarray FROM c JOIN pg_type t ON t.oid = c.reltype
        UNION ALL SELECT 'pg_class'::regclass, x.indexrelid FROM c JOIN pg_index x ON x.indrelid = c.oid
        UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM c JOIN pg_constraint k ON k.conrelid = c.oid
            WHERE k.contype IN ('p', 'u', 'c', 'n')
        UNION ALL SELECT 'pg_attrdef'::regclass, d.oid FROM c JOIN pg_attrdef d ON d.adrelid = c.oid
        UNION ALL SELECT 'pg_class'::regclass, r.reltoastrelid FROM c JOIN pg_class r ON r.oid = c.oid
        UNION ALL SELECT 'pg_class'::regclass, x.indexrelid FROM c JOIN pg_class r ON r.oid = c.oid
            JOIN pg_index x ON x.indrelid = r.reltoastrelid
        UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM c JOIN pg_trigger t ON t.tgrelid = c.oid
            AND starts_with(t.tgname, 'opsward_')
        UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM c JOIN pg_trigger t ON t.tgrelid = c.oid
            WHERE t.tgisinternal)
    SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0)
    FROM own JOIN pg_depend d ON d.refclassid = own.classid AND d.refobjid = own.objid
    WHERE NOT EXISTS (SELECT FROM own o WHERE o.classid = d.classid AND o.objid = d.objid)
      AND NOT (d.classid = 'pg_class'::regclass AND d.deptype = 'a'
               AND EXISTS (SELECT FROM pg_class s WHERE s.oid = d.objid AND s.relkind = 'S'))
    UNION ALL
    SELECT 'foreign key ' || conname FROM pg_constraint
    WHERE conrelid = 'public.ops'::regclass AND contype = 'f'
    UNION ALL
    SELECT format('constraint %s, which is NOT VALID', conname) FROM pg_constraint
    WHERE conrelid = 'public.ops'::regclass AND contype = 'c' AND NOT convalidated
    UNION ALL
    SELECT format('table %s that it inherits from', inhparent::regclass) FROM pg_inherits
    WHERE inhrelid = 'public.ops'::regclass
    UNION ALL
    SELECT format('subscription %s, whose writes fire no trigger of a statement', s.subname)
    FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
    WHERE r.srrelid = 'public.ops'::regclass
    UNION ALL
    SELECT 'publication ' || pubname || ' for all tables' FROM pg_publication WHERE puballtables
    UNION ALL
    SELECT 'publication ' || pubname FROM pg_publication_tables
    WHERE schemaname = 'public' AND tablename = 'ops'
      AND pubname NOT IN (SELECT pubname FROM pg_publication WHERE puballtables)
    ORDER BY 1";

/// A trigger's bits: 2 is BEFORE, 8 DELETE, 16 UPDATE, by which rows move. What is fired after
/// a DELETE keeps no row from going.
const HINDRANCES: &str = "
    SELECT format('foreign key %s of %s', conname, conrelid::regclass) FROM pg_constraint
    WHERE confrelid = 'public.ops'::regclass AND contype = 'f'
    UNION ALL SELECT format('rule %s', rulename) FROM pg_rewrite WHERE ev_class = 'public.ops'::regclass
    UNION ALL SELECT format('trigger %s', tgname) FROM pg_trigger
    WHERE tgrelid = 'public.ops'::regclass AND NOT tgisinternal AND NOT starts_with(tgname, 'opsward_')
      AND tgenabled <> 'D' AND (tgtype & 10 = 10 OR $1::boolean AND tgtype & 16 <> 0)
    UNION ALL SELECT format('table %s that inherits from it', inhrelid::regclass) FROM pg_inherits
    WHERE inhparent = 'public.ops'::regclass
    ORDER BY 1";

/// The new table is made in our schema and given to the log's owner; then both
/// change schemas. Only superusers need no leave.
const GRANTS: &str = "
    WITH o AS (SELECT relowner AS owner FROM pg_class WHERE oid = 'public.ops'::regclass)
    SELECT format('GRANT CREATE ON SCHEMA opsward TO %s', owner::regrole) FROM o
    WHERE owner <> current_user::regrole AND to_regnamespace('opsward') IS NOT NULL
      AND current_setting('is_superuser') = 'off' AND NOT has_schema_privilege(owner, 'opsward', 'CREATE')
    UNION ALL
    SELECT format('GRANT CREATE ON SCHEMA public TO %s', current_user::regrole)
    WHERE NOT has_schema_privilege('public', 'CREATE')";
