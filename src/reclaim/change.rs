//! The one place where a step of a reclaim is committed.

use super::Result;
use super::decide::Checkpoint;
use crate::db::Transaction;
use crate::db::prune::Gone;
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

/// Adds what is gone to the sums of its tables.
pub(super) fn count(at: &mut Checkpoint, gone: &[Gone]) {
    for of in gone {
        let sum = at.gone.entry(of.table.clone()).or_default();
        sum.rows += of.rows;
        sum.bytes += of.bytes;
        sum.traces += of.traces;
        if of.rows == 0 {
            sum.stays = sum.stays.max(Some(of.highest));
        }
    }
}
