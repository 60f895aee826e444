//! Removes all that opsward made. Reads what versions of any age have in
//! common: the schema's name, and `opsward.owned`.

use super::connect::Client;
use super::error::{Doing, Result};
use super::presence::PRESENCE_LOCK;
use deadpool_postgres::GenericClient;

/// What there is to remove.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing of ours.
    Nothing,
    /// A schema of our name that no opsward made.
    Foreign,
    /// The schema, and what was made outside it: kind, name, and the statement
    /// that removes it, the last made first.
    Ours(Vec<Owned>),
}

/// A thing outside the schema.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owned {
    /// What it is: an index, a trigger.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The statement that removes it.
    pub drop_sql: String,
}

/// Looks for what there is to remove.
///
/// # Errors
/// The database's.
pub async fn find(client: &impl GenericClient) -> Result<Found> {
    let row = client.query_one(THERE, &[]).await.doing("look for the schema opsward")?;
    let (schema, ours): (bool, bool) = (row.get(0), row.get(1));
    if !schema {
        return Ok(Found::Nothing);
    }
    if !ours {
        return Ok(Found::Foreign);
    }
    let rows = client.query(OWNED, &[]).await.doing("read what is owned")?;
    let owned = rows.iter().map(|r| Owned { kind: r.get(0), name: r.get(1), drop_sql: r.get(2) });
    Ok(Found::Ours(owned.collect()))
}

const THERE: &str = "
    SELECT to_regnamespace('opsward') IS NOT NULL,
           to_regclass('opsward.migrations') IS NOT NULL AND to_regclass('opsward.owned') IS NOT NULL";
const OWNED: &str = "SELECT kind, name, drop_sql FROM opsward.owned ORDER BY made_at DESC, kind, name";

/// What came of a removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// All is gone.
    Done,
    /// A daemon is connected: nothing was done.
    DaemonConnected,
    /// More is owned than was shown: nothing was done.
    Changed,
}

/// Removes what was `shown`, and the schema, in one transaction.
///
/// # Errors
/// The database's; a lock that could not be had within 2 s among them.
/// Nothing was done then.
pub async fn remove(client: &mut Client, shown: &[Owned]) -> Result<Removal> {
    let tx = client.transaction().await.doing("begin to uninstall")?;
    tx.batch_execute("SET LOCAL lock_timeout = '2s'").await.doing("begin to uninstall")?;
    let row = tx.query_one(ALONE, &[&PRESENCE_LOCK]).await.doing("look for a daemon")?;
    if !row.get::<_, bool>(0) {
        return Ok(Removal::DaemonConnected);
    }
    match find(&tx).await? {
        Found::Ours(owned) if owned == shown => {}
        _ => return Ok(Removal::Changed),
    }
    for thing in shown {
        tx.batch_execute(&thing.drop_sql).await.doing("remove what is owned")?;
    }
    tx.batch_execute("DROP SCHEMA opsward CASCADE").await.doing("drop the schema opsward")?;
    tx.commit().await.doing("commit the uninstall")?;
    Ok(Removal::Done)
}

const ALONE: &str = "SELECT pg_try_advisory_xact_lock($1)";
