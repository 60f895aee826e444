//! Rows that another session has locked: a run passes them over, names who holds them, and
//! tries them once more at its end.

use crate::db::clone::OPS;
use crate::db::lease::Lease;
use crate::db::prune::{self, Batch};
use crate::db::short_lock::{Behind, holders};
use crate::values::OpUlid;
use crate::work::{Halt, Stop, WaitFor, Waits, Work};
use std::time::Duration;
use tracing::debug;

/// Skipped rows that are remembered: the next run finds the others.
const KEPT: usize = 10_000;
/// Between two tries of a table that is locked.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Of so many it is looked who holds them.
const LOOKED_AT: usize = 20;

/// What a run passed over, and for whom it waits.
pub(super) struct Skipped {
    pub(super) ulids: Vec<OpUlid>,
    /// The lowest.
    pub(super) first: Option<OpUlid>,
    /// Those that were too many to remember.
    pub(super) unkept: u64,
    /// Who held the last of them.
    pub(super) by: Vec<String>,
    pub(super) waits: Waits,
}

impl Skipped {
    /// Of the task of this name.
    pub(super) fn of(task: &'static str) -> Self {
        Self { ulids: Vec::new(), first: None, unkept: 0, by: Vec::new(), waits: Waits::of(task) }
    }

    /// Remembers what a batch passed over, and tells who holds it.
    pub(super) async fn learn(&mut self, work: &Work, lease: &Lease, batch: &Batch) {
        self.first = self.first.into_iter().chain(batch.skipped.iter().copied()).min();
        let kept = KEPT.saturating_sub(self.ulids.len()).min(batch.skipped.len());
        self.ulids.extend(&batch.skipped[..kept]);
        self.unkept += (batch.skipped.len() - kept) as u64;
        if !batch.skipped.is_empty() {
            self.named(work, lease, &batch.skipped).await;
        } else if self.first.is_none() {
            self.over(work).await;
        }
    }

    /// Tells who holds rows.
    pub(super) async fn named(&mut self, work: &Work, lease: &Lease, rows: &[OpUlid]) {
        let rows = &rows[..rows.len().min(LOOKED_AT)];
        let found = async { prune::lockers(&work.db.client().await?, rows).await };
        self.by = found.await.unwrap_or_else(|error| {
            debug!(%error, "who holds rows of the log is not known");
            Vec::new()
        });
        let what = match self.by.is_empty() {
            true => "rows of public.ops that another session has locked".to_owned(),
            false => format!("rows of public.ops, locked by {}", self.by.join("; ")),
        };
        self.waits.tell(work, lease.pid(), (WaitFor::Lock, &what), Duration::ZERO).await;
    }

    /// Tells who holds the whole table, and waits a moment.
    pub(super) async fn table(&mut self, work: &Work, lease: &mut Lease) -> Result<(), Stop> {
        let who = holders(&*lease.client()?, (&[OPS], Behind::Everybody)).await?;
        self.waits.tell(work, lease.pid(), (WaitFor::Lock, &who.to_string()), RETRY_AFTER).await;
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => Ok(()),
            () = work.stop.cancelled() => Err(Halt::Stopped.into()),
        }
    }

    /// Nothing is waited for.
    pub(super) async fn over(&mut self, work: &Work) {
        if self.waits.told().is_some() {
            self.waits.over(work).await;
        }
    }
}
