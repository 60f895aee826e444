//! A table like `ops`: its attributes as the catalog has them, the statements
//! that make another one with all of them, and what tells two apart. Indexes
//! and constraints have the same names, in another schema.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result, Trouble, trouble};
use crate::db::helper::Helper;
use crate::db::owed::Owed;
use crate::db::transaction::{GenericClient, Isolation, Transaction, begin};
use crate::records::quote_ident;
use sha2::{Digest, Sha256};

/// The new table, until it takes the log's place.
pub const NEXT: &str = "opsward.ops_next";
/// The former log, after a swap, until it is dropped.
pub const OLD: &str = "opsward.ops_old";
/// The log.
pub const OPS: &str = "public.ops";

/// What a table is like, attribute by attribute.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Traits(Vec<(String, String)>);

impl Traits {
    /// A hash of all of it.
    pub fn fingerprint(&self) -> String {
        let mut sha = Sha256::new();
        for (name, value) in &self.0 {
            sha.update(format!("{}:{name}={}:{value};", name.len(), value.len()));
        }
        sha.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
    }

    /// The first attribute in which another table differs, where one does.
    pub fn differs<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        let missing =
            |of: &Self, (name, value): &(String, String)| !of.0.iter().any(|(n, v)| n == name && v == value);
        let all = self.0.iter().filter(|one| missing(other, one));
        all.chain(other.0.iter().filter(|one| missing(self, one))).map(|(name, _)| name.as_str()).next()
    }
}

/// Reads what a table is like; `table` is one of this file's names.
pub async fn traits(client: &impl GenericClient, table: &str) -> Result<Traits> {
    let statement = client.prepare_cached(TRAITS).await.doing("read what the table is like")?;
    let rows = client.query(&statement, &[&table]).await.doing("read what the table is like")?;
    Ok(Traits(rows.iter().map(|r| (r.get(0), r.get(1))).collect()))
}

/// Which table `ops` is: its database, itself, its file.
pub async fn identity(client: &impl GenericClient) -> Result<String> {
    Ok(client.query_one(IDENTITY, &[]).await.doing("see which table ops is")?.get(0))
}

const IDENTITY: &str = "
    SELECT format('%s/%s/%s', d.oid, c.oid, c.relfilenode) FROM pg_class c, pg_database d
    WHERE c.oid = 'public.ops'::regclass AND d.datname = current_database()";

/// Invalid indexes are left out: a node is building them. So are our triggers:
/// they are dealt with by themselves. And so is the version that the server
/// itself gives each column (`pg_attver`, from PostgreSQL 15.20 on): it is
/// another one on every table, and cannot be set.
const TRAITS: &str = r#"
    WITH c AS (SELECT * FROM pg_class WHERE oid = $1::text::regclass)
    SELECT 'table' AS part,
           concat_ws(' | ', c.relowner::regrole,
                     (SELECT string_agg(a::text, ',' ORDER BY a::text)
                      FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a),
                     c.reloptions, t.reloptions, c.reltablespace,
                     a.amname,
                     -- A LOGGED copy of an UNLOGGED log is asked for.
                     CASE WHEN c.oid = to_regclass('opsward.ops_next') AND c.relpersistence = 'p'
                          THEN (SELECT o.relpersistence FROM pg_class o WHERE o.oid = 'public.ops'::regclass)
                          ELSE c.relpersistence END,
                     c.relreplident, c.relrowsecurity, c.relforcerowsecurity,
                     c.relispartition, c.reloftype,
                     obj_description(c.oid, 'pg_class'))
    FROM c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid LEFT JOIN pg_am a ON a.oid = c.relam
    UNION ALL
    SELECT 'column ' || a.attname,
           concat_ws(' | ', row_number() OVER (ORDER BY a.attnum), format_type(a.atttypid, a.atttypmod),
                     a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated,
                     a.attstorage, a.attcompression, a.attcollation, a.attstattarget,
                     (SELECT array_agg(o) FROM unnest(a.attoptions) o WHERE NOT starts_with(o, 'pg_attver=')),
                     (SELECT string_agg(g::text, ',' ORDER BY g::text) FROM aclexplode(a.attacl) g),
                     col_description(c.oid, a.attnum))
    FROM c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    UNION ALL
    SELECT 'index ' || i.relname,
           concat_ws(' | ', regexp_replace(pg_get_indexdef(i.oid), ' ON \S+ USING ', ' ON ops USING '),
                     x.indisprimary, x.indisunique, x.indimmediate, x.indisclustered, x.indisreplident,
                     i.reltablespace, obj_description(i.oid, 'pg_class'),
                     (SELECT string_agg(a.attnum || ':' || a.attstattarget, ',' ORDER BY a.attnum)
                      FROM pg_attribute a WHERE a.attrelid = i.oid AND a.attstattarget >= 0))
    FROM c JOIN pg_index x ON x.indrelid = c.oid AND x.indisvalid JOIN pg_class i ON i.oid = x.indexrelid
    UNION ALL
    SELECT 'constraint ' || k.conname,
           concat_ws(' | ', k.contype, pg_get_constraintdef(k.oid), k.convalidated, k.connoinherit,
                     obj_description(k.oid, 'pg_constraint'))
    FROM c JOIN pg_constraint k ON k.conrelid = c.oid
    UNION ALL
    SELECT 'trigger ' || t.tgname, regexp_replace(pg_get_triggerdef(t.oid), ' ON \S+ ', ' ON ops ')
    FROM c JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal
        AND NOT starts_with(t.tgname, 'opsward_')
    UNION ALL
    SELECT 'dependent ' || pg_describe_object(d.classid, d.objid, 0), ''
    FROM c JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
                            OR d.refclassid = 'pg_type'::regclass AND d.refobjid = c.reltype
    WHERE d.classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_proc'::regclass,
                        'pg_publication_rel'::regclass)
       OR d.classid = 'pg_constraint'::regclass
          AND d.objid NOT IN (SELECT k.oid FROM pg_constraint k WHERE k.conrelid = c.oid)
       OR d.classid = 'pg_class'::regclass AND d.objid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = c.oid)
    UNION ALL
    SELECT 'subscription ' || s.subname, '' FROM c JOIN pg_subscription_rel r ON r.srrelid = c.oid
    JOIN pg_subscription s ON s.oid = r.srsubid
    UNION ALL
    SELECT 'parent ' || inhparent::regclass, '' FROM c JOIN pg_inherits ON inhrelid = c.oid
    UNION ALL
    SELECT 'statistics ' || s.stxname, pg_get_statisticsobjdef(s.oid)
    FROM c JOIN pg_statistic_ext s ON s.stxrelid = c.oid
    UNION ALL
    SELECT 'label ' || l.provider, l.label
    FROM c JOIN pg_seclabel l ON l.objoid = c.oid AND l.classoid = 'pg_class'::regclass
    ORDER BY 1"#;

/// Makes the new table, empty, with every attribute of `ops`, but LOGGED where
/// that is asked for; says which attribute could not be carried, where there is
/// such a one. Then nothing is to be kept.
pub async fn make(tx: &Transaction<'_>, set_logged: bool) -> Result<std::result::Result<Traits, String>> {
    tx.batch_execute(DEFAULTS).await.doing("begin to make the new table")?;
    let rows = tx.query(SCRIPT, &[&set_logged]).await.doing("read how ops is made")?;
    for row in &rows {
        tx.batch_execute(row.get(0)).await.doing("make the new table")?;
    }
    let (of_ops, of_next) = (traits(tx, OPS).await?, traits(tx, NEXT).await?);
    match of_ops.differs(&of_next) {
        None => Ok(Ok(of_ops)),
        Some(part) => Ok(Err(part.to_owned())),
    }
}

/// What is not said of a table is as the server has it, not as somebody set it
/// for the database or the role.
const DEFAULTS: &str = "SET LOCAL default_tablespace = ''; SET LOCAL quote_all_identifiers = off";

/// Makes the new table, and takes it back: returns what a swap could not carry.
pub async fn rehearse(client: &mut Client) -> Result<Option<String>> {
    let tx = begin(client, Isolation::Write).await?;
    tx.batch_execute(BOUNDS).await.doing("try to make the new table")?;
    let made = match make(&tx, false).await {
        // What may not be dropped in the end is not to be made.
        Ok(Ok(_)) => match tx.batch_execute("DROP TABLE opsward.ops_next").await {
            Ok(()) => Ok(Ok(())),
            Err(error) => Err(error).doing("drop the new table again"),
        },
        Ok(Err(part)) => Ok(Err(part)),
        Err(error) => Err(error),
    };
    tx.rollback().await.doing("take the new table back")?;
    match made {
        Ok(made) => Ok(made.err()),
        Err(error) if error.code().is_some() && trouble(&error) == Trouble::Fatal => {
            Ok(Some(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

const BOUNDS: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '4s'";

/// Each statement with its place in the order. Privileges that the server gives
/// to each new table (`ALTER DEFAULT PRIVILEGES`) are taken away first.
const SCRIPT: &str = r#"
    WITH c AS (SELECT * FROM pg_class WHERE oid = 'public.ops'::regclass),
    options AS (
        SELECT array_to_string(array_agg(o), ', ') AS list FROM (
            SELECT unnest(reloptions) AS o FROM c
            UNION ALL
            SELECT 'toast.' || unnest(t.reloptions) FROM c JOIN pg_class t ON t.oid = c.reltoastrelid) all_of_it),
    acl AS (
        SELECT '' AS column_list, a.grantee, a.privilege, a.grantable, a.n FROM c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) WITH ORDINALITY
            AS a(grantor, grantee, privilege, grantable, n)
        WHERE c.relacl IS NOT NULL OR EXISTS (SELECT FROM pg_default_acl WHERE defaclobjtype = 'r')
        UNION ALL
        SELECT format(' (%I)', attname), a.grantee, a.privilege, a.grantable, 1000 * attnum + a.n
        FROM pg_attribute, aclexplode(attacl) WITH ORDINALITY AS a(grantor, grantee, privilege, grantable, n)
        WHERE attrelid = 'public.ops'::regclass AND attnum > 0 AND NOT attisdropped)
    SELECT statement FROM (
        SELECT 1 AS place, 0::bigint AS n, format(
            'CREATE %s TABLE opsward.ops_next (LIKE public.ops INCLUDING ALL EXCLUDING INDEXES
             EXCLUDING STATISTICS EXCLUDING IDENTITY) USING %I%s%s',
            CASE WHEN c.relpersistence = 'u' AND NOT $1::boolean THEN 'UNLOGGED' END, a.amname,
            (SELECT format(' WITH (%s)', list) FROM options WHERE list IS NOT NULL),
            (SELECT format(' TABLESPACE %I', spcname) FROM pg_tablespace s WHERE s.oid = c.reltablespace))
            AS statement
        FROM c JOIN pg_am a ON a.oid = c.relam
        UNION ALL
        SELECT 2, 0, format('ALTER TABLE opsward.ops_next OWNER TO %s', relowner::regrole) FROM c
        UNION ALL
        SELECT 3, x.indexrelid::bigint,
               replace(pg_get_indexdef(x.indexrelid), ' ON public.ops USING ', ' ON opsward.ops_next USING ')
        FROM c JOIN pg_index x ON x.indrelid = c.oid AND x.indisvalid
        UNION ALL
        SELECT 4, k.oid::bigint, format('ALTER TABLE opsward.ops_next ADD CONSTRAINT %I %s USING INDEX %I%s%s',
            k.conname, CASE k.contype WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END, k.conname,
            CASE WHEN k.condeferrable THEN ' DEFERRABLE' END,
            CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' END)
        FROM c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype IN ('p', 'u')
        UNION ALL
        SELECT 5, attnum, format('ALTER TABLE opsward.ops_next ALTER COLUMN %I SET STATISTICS %s',
                                 attname, attstattarget)
        FROM pg_attribute
        WHERE attrelid = 'public.ops'::regclass AND attnum > 0 AND NOT attisdropped AND attstattarget >= 0
        UNION ALL
        SELECT 5, 10000 + a.attnum, format('ALTER INDEX opsward.%I ALTER COLUMN %s SET STATISTICS %s',
                                           i.relname, a.attnum, a.attstattarget)
        FROM c JOIN pg_index x ON x.indrelid = c.oid AND x.indisvalid JOIN pg_class i ON i.oid = x.indexrelid
        JOIN pg_attribute a ON a.attrelid = i.oid AND a.attstattarget >= 0
        UNION ALL
        SELECT 6, attnum, format('ALTER TABLE opsward.ops_next ALTER COLUMN %I SET (%s)',
                                 attname, string_agg(o, ', '))
        FROM pg_attribute, unnest(attoptions) o
        WHERE attrelid = 'public.ops'::regclass AND attnum > 0 AND NOT attisdropped
          AND NOT starts_with(o, 'pg_attver=')
        GROUP BY attnum, attname
        UNION ALL
        SELECT 7, 0, format('COMMENT ON TABLE opsward.ops_next IS %L', obj_description(oid, 'pg_class'))
        FROM c WHERE obj_description(oid, 'pg_class') IS NOT NULL
        UNION ALL
        SELECT 8, 0, format('COMMENT ON INDEX opsward.%I IS %L', i.relname, obj_description(i.oid, 'pg_class'))
        FROM c JOIN pg_index x ON x.indrelid = c.oid AND x.indisvalid JOIN pg_class i ON i.oid = x.indexrelid
        WHERE obj_description(i.oid, 'pg_class') IS NOT NULL
        UNION ALL
        SELECT 9, 0, format('COMMENT ON CONSTRAINT %I ON opsward.ops_next IS %L',
                            k.conname, obj_description(k.oid, 'pg_constraint'))
        FROM c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype IN ('p', 'u')
        WHERE obj_description(k.oid, 'pg_constraint') IS NOT NULL
        UNION ALL
        SELECT 10, 0, format('ALTER TABLE opsward.ops_next REPLICA IDENTITY %s',
            CASE relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' ELSE 'DEFAULT' END)
        FROM c WHERE relreplident <> 'i'
        UNION ALL
        SELECT 10, 1, format(CASE WHEN x.indisreplident
                                  THEN 'ALTER TABLE opsward.ops_next REPLICA IDENTITY USING INDEX %I'
                                  ELSE 'ALTER TABLE opsward.ops_next CLUSTER ON %I' END, i.relname)
        FROM c JOIN pg_index x ON x.indrelid = c.oid AND (x.indisreplident OR x.indisclustered)
        JOIN pg_class i ON i.oid = x.indexrelid
        UNION ALL
        SELECT 11, 0, 'DO $revoke$
            DECLARE
                g record;
            BEGIN
                FOR g IN SELECT DISTINCT a.grantee FROM pg_class n,
                         aclexplode(coalesce(n.relacl, acldefault(''r'', n.relowner))) a
                         WHERE n.oid = ''opsward.ops_next''::regclass
                LOOP
                    EXECUTE format(''REVOKE ALL ON opsward.ops_next FROM %s'',
                                   CASE g.grantee WHEN 0 THEN ''PUBLIC'' ELSE g.grantee::regrole::text END);
                END LOOP;
            END $revoke$'
        FROM c
        WHERE relacl IS NOT NULL OR EXISTS (SELECT FROM pg_default_acl WHERE defaclobjtype = 'r')
        UNION ALL
        SELECT 12, n, format('GRANT %s%s ON opsward.ops_next TO %s%s', privilege, column_list,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
            CASE WHEN grantable THEN ' WITH GRANT OPTION' END)
        FROM acl) script
    ORDER BY place, n"#;

/// Readers of a new table would have to set its hint bits, and the last replay
/// would look over all that was noted.
pub const VACUUM_NEXT: &str = "VACUUM opsward.ops_next, opsward.captured";

/// Tells the planner of the new table.
///
/// # Errors
/// The database's; that it took too long among them.
pub async fn analyze(client: &impl GenericClient) -> Result<()> {
    client.batch_execute("ANALYZE opsward.ops_next").await.doing("analyze the new table")
}

/// Does most of both while rows are still added to the new table.
pub async fn make_ready(helper: &Helper) -> Result<()> {
    let client = helper.client()?;
    for sql in ["SET statement_timeout = 0", VACUUM_MOST, "RESET statement_timeout"] {
        client.batch_execute(sql).await.doing("vacuum the new table")?;
    }
    analyze(client).await
}

const VACUUM_MOST: &str = "VACUUM (TRUNCATE false) opsward.ops_next";

/// What the log's rows are read and written by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Columns {
    names: Vec<String>,
    owed: Owed,
}

impl Columns {
    /// All of them, quoted, after `prefix`.
    pub(in crate::db) fn list(&self, prefix: &str) -> String {
        self.joined(|c| format!("{prefix}{}", quote_ident(c)))
    }

    /// Bytes of a row as the census counts them, without indexes.
    pub(in crate::db) fn bytes(&self, prefix: &str) -> String {
        let one = |c: &str| format!(" + coalesce(pg_column_size({prefix}{}), 0)", quote_ident(c));
        let sum: String = self.names.iter().map(|c| one(c)).collect();
        format!("{}{sum}", crate::db::prune_sql::OVERHEAD)
    }

    /// `SET` of all but the key to what was to be inserted.
    pub(in crate::db) fn excluded(&self) -> String {
        let rest = self.names.iter().filter(|c| *c != "ulid").map(|c| quote_ident(c).to_string());
        rest.map(|c| format!("{c} = excluded.{c}")).collect::<Vec<_>>().join(", ")
    }

    /// What they tell of a row and the chain.
    pub(in crate::db) fn owed(&self) -> Owed {
        self.owed
    }

    fn joined(&self, one: impl Fn(&str) -> String) -> String {
        self.names.iter().map(|c| one(c)).collect::<Vec<_>>().join(", ")
    }
}

/// Reads the columns that can be written.
pub async fn columns(client: &impl GenericClient) -> Result<Columns> {
    let statement = client.prepare_cached(COLUMNS).await.doing("read the columns of ops")?;
    let names: Vec<String> = client.query_one(&statement, &[]).await.doing("read the columns of ops")?.get(0);
    Ok(Columns { owed: Owed::of_columns(&names), names })
}

const COLUMNS: &str = "
    SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = 'public.ops'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''";
