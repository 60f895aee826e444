//! A second session beside the lease's. It writes nothing but opsward's own
//! tables, and ends with the work that it helps.

use crate::db::connect::{Client, Db};
use crate::db::error::{Doing, Error, Result};
use crate::db::lease::{ENDS_WITH_ITS_CLIENT, set_where_known};
use crate::db::transaction::{Isolation, Transaction, begin};
use deadpool::managed::Object;

/// The session; it is closed with this, not handed back to the pool.
pub struct Helper(Option<Client>);

impl Helper {
    /// Takes a connection of the pool.
    pub async fn open(db: &Db) -> Result<Self> {
        let client = db.client().await?;
        set_where_known(&client, ENDS_WITH_ITS_CLIENT, "open a second session").await?;
        Ok(Self(Some(client)))
    }

    /// The session, for what cannot be done in a transaction.
    pub(in crate::db) fn client(&self) -> Result<&Client> {
        self.0.as_ref().ok_or_else(|| Error::Away("the second session is closed".into()))
    }

    /// Begins a transaction of a batch. Its commit does not wait for the disk: it
    /// is of use only together with a later one of the lease's session.
    pub async fn begin(&mut self) -> Result<Transaction<'_>> {
        let client = self.0.as_mut().ok_or_else(|| Error::Away("the second session is closed".into()))?;
        let tx = begin(client, Isolation::Write).await?;
        tx.batch_execute(BOUNDS).await.doing("begin a batch beside the lease")?;
        Ok(tx)
    }
}

const BOUNDS: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '2s'; SET LOCAL synchronous_commit = off";

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}
