//! The one place where a step of a reclaim is committed.

use super::Result;
use super::decide::Checkpoint;
use crate::db::Transaction;
use crate::db::{self, Doing, lease::Lease};

/// A change of the database and the checkpoint that tells of it: both are
/// committed, or neither is.
pub(super) struct Change<'a> {
    pub(super) tx: Transaction<'a>,
    pub(super) at: Checkpoint,
}

impl<'a> Change<'a> {
    pub(super) async fn begin(lease: &'a mut Lease, at: &Checkpoint) -> Result<Self> {
        Ok(Self { tx: lease.begin().await?, at: at.clone() })
    }

    /// Returns the checkpoint as it is from now on.
    pub(super) async fn commit(self, what: &'static str) -> Result<Checkpoint> {
        db::reclaim::save(&self.tx, &self.at.json()).await?;
        self.tx.commit().await.doing(what)?;
        Ok(self.at)
    }
}
