//! A daemon's mark on its database: a session advisory lock in shared mode,
//! on a connection of its own. `uninstall` needs it for itself.

use crate::db::{Db, Doing, Error, GenericClient, Result, connect::Session, rows};
use deadpool::managed::Object;

/// One number in Postgres' space of advisory locks: "opswardP" in ASCII.
pub(in crate::db) const PRESENCE_LOCK: i64 = 0x6f70_7377_6172_6450;

/// The mark, held as long as this lives and its session does.
pub struct Presence(Session);

impl Presence {
    /// Takes the mark on a connection that is taken out of the pool.
    ///
    /// # Errors
    /// The database's; away when an uninstall holds the mark just now.
    pub async fn take(db: &Db) -> Result<Self> {
        let client = Object::take(db.client().await?);
        let row = client.query_one(TAKE, &[&PRESENCE_LOCK]).await.doing("mark the database as served")?;
        if !row.get::<_, bool>(0) {
            return Err(Error::Away("an uninstall is under way".into()));
        }
        Ok(Self(client))
    }

    /// Makes sure that the session still lives.
    ///
    /// # Errors
    /// It does not: the mark is gone with it.
    pub async fn check(&self) -> Result<()> {
        self.0.batch_execute("").await.doing("keep the database marked as served")
    }
}

const TAKE: &str = "SELECT pg_try_advisory_lock_shared($1)";

/// Whether no daemon is connected, and none can connect before this transaction ends.
pub(crate) async fn is_alone(client: &impl GenericClient) -> Result<bool> {
    rows::one(client, ALONE, &[&PRESENCE_LOCK], "look for a daemon").await
}

const ALONE: &str = "SELECT pg_try_advisory_xact_lock($1)";
