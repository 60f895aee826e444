//! The schema `opsward`, by versioned migrations under a lock.

use crate::db::{Client, Doing, Error, Result, rows, transaction::begin_rare};
use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;

/// The migrations, in order; a version is its place, from 1. Frozen once
/// released: the test of hashes fails when one changes.
pub const MIGRATIONS: &[(&str, &str)] = &[
    ("init", include_str!("../migrations/0001_init.sql")),
    ("bounding", include_str!("../migrations/0002_bounding.sql")),
    ("replay", include_str!("../migrations/0003_replay.sql")),
    ("reclaim", include_str!("../migrations/0004_reclaim.sql")),
    ("unvacuumed", include_str!("../migrations/0005_unvacuumed.sql")),
    ("triggers", include_str!("../migrations/0006_triggers.sql")),
    ("swap", include_str!("../migrations/0007_swap.sql")),
    ("in_place", include_str!("../migrations/0008_in_place.sql")),
    ("bound", include_str!("../migrations/0009_bound.sql")),
    ("node", include_str!("../migrations/0010_node.sql")),
    ("waiting", include_str!("../migrations/0011_waiting.sql")),
    ("remembered", include_str!("../migrations/0012_remembered.sql")),
    ("seen", include_str!("../migrations/0013_seen.sql")),
    ("told", include_str!("../migrations/0014_told.sql")),
    ("versions", include_str!("../migrations/0015_versions.sql")),
    ("announced", include_str!("../migrations/0016_announced.sql")),
    ("put_back", include_str!("../migrations/0017_put_back.sql")),
];

/// One number in Postgres' space of advisory locks: "opsward" in ASCII.
const MIGRATION_LOCK: i64 = 0x006f_7073_7761_7264;

/// The schema's version as this binary knows it.
pub const LATEST: i32 = MIGRATIONS.len() as i32;

/// The version of the schema in the database; 0 where there is none.
pub async fn version(client: &impl crate::db::transaction::GenericClient) -> Result<i32> {
    let row = client.query_opt(SCHEMA, &[]).await.doing("look for the schema opsward")?;
    let Some(row) = row else { return Ok(0) };
    let (owner, is_made, may, is_empty): (&str, bool, bool, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    if !may {
        return Err(Error::Denied(format!(
            "the schema opsward belongs to {owner}, and this role may not use it: \
             use that role in OPENAUDIO_DB_URL, or give this one its rights as docs/roles.sql does"
        )));
    }
    if !is_made {
        return if is_empty {
            Ok(0)
        } else {
            Err(Error::Unfit(format!(
                "the schema opsward of {owner} was made by no opsward: rename it, with ALTER SCHEMA opsward RENAME TO …"
            )))
        };
    }
    rows::one(client, VERSION, &[], "read the version of the schema opsward").await
}

/// By the catalog: a name in a schema that the role may not use would be an error.
const SCHEMA: &str = "
    SELECT n.nspowner::regrole::text, m.oid IS NOT NULL,
           CASE WHEN m.oid IS NULL THEN has_schema_privilege(n.oid, 'CREATE')
                ELSE has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(m.oid, 'SELECT') END,
           NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid)
    FROM pg_namespace n LEFT JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = 'migrations'
    WHERE n.nspname = 'opsward'";
const VERSION: &str = "SELECT coalesce(max(version), 0) FROM opsward.migrations";

/// Brings the schema up to this binary's version, where it is not.
///
/// # Errors
/// A newer schema (both versions named), a missing privilege (with the GRANT
/// that lifts it), or the database's.
pub async fn migrate(client: &mut Client) -> Result<()> {
    if version(&*client).await? == LATEST {
        return Ok(());
    }
    let tx = begin_rare(client).await?;
    // Another opsward may be migrating. Locks of the node's are waited for as briefly as ever.
    tx.batch_execute("SET LOCAL lock_timeout = '30s'").await.doing("lock for a migration")?;
    tx.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).await.doing("lock for a migration")?;
    tx.batch_execute("SET LOCAL lock_timeout = '4s'").await.doing("lock for a migration")?;
    let have = version(&tx).await?;
    if have > LATEST {
        return Err(Error::Unfit(format!(
            "the schema opsward is of version {have}, this opsward {} knows {LATEST}: run the newer one",
            env!("CARGO_PKG_VERSION")
        )));
    }
    if have == 0 {
        tx.batch_execute("CREATE SCHEMA IF NOT EXISTS opsward").await.map_err(no_create)?;
    }
    for (number, (name, sql)) in (1..).zip(MIGRATIONS).skip(have as usize) {
        tx.batch_execute(sql).await.doing("migrate the schema opsward")?;
        let hash = sha256_hex(sql.as_bytes());
        tx.execute(RECORD, &[&number, name, &hash, &env!("CARGO_PKG_VERSION")])
            .await
            .doing("record a migration")?;
    }
    tx.commit().await.doing("commit a migration")
}

const RECORD: &str =
    "INSERT INTO opsward.migrations (version, name, sha256, applied_by) VALUES ($1, $2, $3, $4)";

fn no_create(error: tokio_postgres::Error) -> Error {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Error::Unfit(
            "no permission to create the schema opsward: as a superuser run \
             GRANT CREATE ON DATABASE <the node's database> TO <opsward's role>, \
             or use the node's own role in OPENAUDIO_DB_URL"
                .into(),
        );
    }
    Error::of("create the schema opsward", error)
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
