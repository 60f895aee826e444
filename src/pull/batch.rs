//! A page's ops on their way into the database, a bounded batch at a time.
//! While one batch is being applied the next is read: at most two of them are
//! in memory. Records are converted when their batch has its turn to be
//! applied, some thousands at a time.

use super::apply::{self, Applied, Fitting, Unapplied};
use super::decide;
use super::sweep::{Sweep, SweepEnd};
use super::{PullFailure, Puller};
use crate::db::Client;
use crate::db::catalog;
use crate::db::pulls::{Hold, PageSums};
use crate::db::rejected::{self, Keeping, Refused};
use crate::values::{Host, OWN_AHEAD_MS, Op, OpUlid, RejectReason, own_ahead, unix_ms};
use crate::wire::body::{Element, Envelope, read_envelope};
use futures_util::future::{BoxFuture, Either, select};
use jiff::Timestamp;
use std::pin::pin;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

/// A batch is applied when it holds this many ops …
const BATCH_OPS: usize = 1_000;
/// … or this many bytes of them.
const BATCH_BYTES: usize = 1 << 20;
/// What an op takes in memory besides its text, in bytes.
const OP_BYTES: usize = 400;
/// The budget is taken in steps of this many KiB.
const STEP_KIB: u32 = 64;
/// Converted records in memory at most, beyond those of one op: 26 columns are
/// about 700 bytes.
const ROWS: usize = 2_500;
/// A connection that carried a longer op is closed, because its buffers never shrink.
const LONG: usize = 256 << 10;
/// Placeholder ULID for a hold when the page's first op is too large.
const BEGINNING: &str = "00000000000000000000000000";

/// One element of the page, in its place.
enum Item {
    Op(Op),
    Refused(Refused),
    /// Of a table that every node skips.
    Skipped(OpUlid),
}

pub(super) struct Batch<'a> {
    puller: &'a Puller,
    peer: &'a Host,
    sweep: Sweep,
    items: Vec<Item>,
    bytes: usize,
    /// The part of the budget for all pulls that `items` take.
    reserved: Option<OwnedSemaphorePermit>,
    under_way: Option<BoxFuture<'static, Result<Done, PullFailure>>>,
    last: Option<OpUlid>,
    hold: Option<Hold>,
    sums: PageSums,
}

/// A batch that is in the database, its refused ops kept.
#[derive(Default)]
struct Done {
    outcome: Applied,
    keeping: Keeping,
    /// The highest ULID of what was applied, refused or skipped.
    settled: Option<OpUlid>,
    hold: Option<Hold>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(puller: &'a Puller, peer: &'a Host, sweep: Sweep) -> Self {
        Self {
            puller,
            peer,
            last: sweep.asked(),
            sweep,
            items: Vec::new(),
            bytes: 0,
            reserved: None,
            under_way: None,
            hold: None,
            sums: PageSums::default(),
        }
    }

    /// Waits for `other` while the batch under way goes on. Safe to cancel.
    pub(super) async fn alongside<T>(&mut self, other: impl Future<Output = T>) -> Result<T, PullFailure> {
        let mut other = pin!(other);
        if let Some(under_way) = &mut self.under_way {
            match select(under_way, other.as_mut()).await {
                Either::Left((done, _)) => {
                    self.under_way = None;
                    self.count(done?);
                }
                Either::Right((output, _)) => return Ok(output),
            }
        }
        Ok(other.await)
    }

    /// Takes one element of the page; `false` when no more of the page is wanted.
    pub(super) async fn take(&mut self, element: Element, now: Timestamp) -> Result<bool, PullFailure> {
        if self.hold.is_some() {
            return Ok(false);
        }
        let now_ms = unix_ms(now);
        let envelope = read_envelope(&element, now_ms).map_err(|e| PullFailure::Peer(e.to_string()))?;
        let (size, ulid) = (element.bytes.len() + OP_BYTES, envelope.ulid());
        if let Some(ulid) = ulid {
            self.sweep.received(ulid);
        }
        let item = match envelope {
            Envelope::Skip(ulid) => {
                self.puller.metrics.ops_skipped.inc();
                ulid.map(Item::Skipped)
            }
            Envelope::Refused { ulid, table, reason: RejectReason { code, detail } } => {
                Some(Item::Refused(Refused { ulid, table, code, detail, bytes: element.bytes }))
            }
            Envelope::Op(op) => {
                drop(element);
                self.tell_own_ahead(&op, now_ms);
                Some(Item::Op(op))
            }
        };
        if let Some(item) = item {
            self.reserve(size, now).await?;
            self.bytes += size;
            self.items.push(item);
        }
        if self.items.len() >= BATCH_OPS || self.bytes >= BATCH_BYTES {
            self.hand_over(now).await?;
        }
        Ok(self.hold.is_none())
    }

    /// Logs which peer sent an op of this host from the future: it blocks deletion.
    fn tell_own_ahead(&self, op: &Op, now_ms: u64) {
        if op.ulid.ms() > now_ms + OWN_AHEAD_MS && Host::normalise(&op.host) == self.puller.own {
            warn!(peer = %self.peer, "a peer sent it: {}", own_ahead(op.ulid));
        }
    }

    /// Reserves `bytes` more of the memory budget, and waits until they are free. A large op
    /// reserves only a part of its size: there is one at a time.
    async fn reserve(&mut self, bytes: usize, now: Timestamp) -> Result<(), PullFailure> {
        let bytes = bytes.min(4 * super::LARGE_OP);
        let has = self.reserved.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * 1024;
        if self.bytes.min(BATCH_BYTES) + bytes <= has {
            return Ok(());
        }
        let step = u32::try_from(bytes / 1024 + 1).unwrap_or(STEP_KIB).max(STEP_KIB);
        let budget = self.puller.budget.clone();
        let more = match budget.clone().try_acquire_many_owned(step) {
            Ok(more) => more,
            Err(_) => {
                // Hand over first: a pull that waits must not keep memory that another waits for.
                self.hand_over(now).await?;
                let more = self.alongside(budget.acquire_many_owned(step)).await?;
                more.map_err(|_| PullFailure::Stopped)?
            }
        };
        match &mut self.reserved {
            Some(reserved) => reserved.merge(more),
            None => self.reserved = Some(more),
        }
        Ok(())
    }

    /// Leaves the rest of the page unread; what was taken so far counts. With a reason, the peer
    /// is held there.
    pub(super) async fn stop_here(
        &mut self,
        held: Option<String>,
        now: Timestamp,
    ) -> Result<(), PullFailure> {
        self.flush(now).await?;
        if self.hold.is_some() {
            return Ok(());
        }
        self.sweep.stopped_before(None);
        if let Some(reason) = held {
            let ulid = self.last.or_else(|| OpUlid::parse(BEGINNING));
            let reason = format!("after this op, {reason}");
            self.hold = ulid.map(|ulid| Hold { ulid, table: String::new(), reason });
        }
        Ok(())
    }

    /// Starts to apply and keep what was taken, once the batch before is done.
    pub(super) async fn hand_over(&mut self, now: Timestamp) -> Result<(), PullFailure> {
        if let Some(under_way) = &mut self.under_way {
            let done = under_way.await;
            self.under_way = None;
            self.count(done?);
        }
        let (mut items, reserved) = (std::mem::take(&mut self.items), self.reserved.take());
        self.bytes = 0;
        if self.hold.is_some() {
            items.clear();
        }
        if !items.is_empty() {
            let (puller, peer) = (self.puller.clone(), self.peer.clone());
            self.under_way = Some(Box::pin(async move {
                let _reserved = reserved;
                carry_out(&puller, &peer, items, now).await
            }));
        }
        Ok(())
    }

    /// Applies and keeps what was taken, and waits for it.
    pub(super) async fn flush(&mut self, now: Timestamp) -> Result<(), PullFailure> {
        self.hand_over(now).await?;
        // Nothing is left to start: this waits for the last batch.
        self.hand_over(now).await
    }

    fn count(&mut self, done: Done) {
        let Done { outcome, keeping, settled, hold } = done;
        let metrics = &self.puller.metrics;
        metrics.ops_applied.inc_by(outcome.applied);
        metrics.ops_duplicate.inc_by(outcome.duplicates);
        metrics.ops_replayed.inc_by(outcome.replays);
        for refused in &outcome.refused {
            metrics.ops_rejected.with_label_values(&[refused.code]).inc();
        }
        self.sums.applied += outcome.applied as i64;
        self.sums.duplicates += outcome.duplicates as i64;
        self.sums.replays += outcome.replays as i64;
        self.sums.rejected += outcome.refused.len() as i64;
        self.sums.rejected_new += keeping.kept + keeping.unkept;
        self.sums.rejected_unkept += keeping.unkept;
        if let Some(ulid) = settled {
            self.sweep.settled(ulid);
            self.last = self.last.max(Some(ulid));
        }
        if let Some(hold) = hold {
            self.sweep.stopped_before(Some(hold.ulid));
            self.hold = Some(hold);
        }
    }

    /// All of the page is settled: where it ended, its sums, and the hold.
    pub(super) async fn finish(
        mut self,
        now: Timestamp,
    ) -> Result<(SweepEnd, PageSums, Option<Hold>), PullFailure> {
        self.flush(now).await?;
        Ok((self.sweep.ended(), self.sums, self.hold))
    }
}

/// Applies ops, then keeps the refused ones. Stops before the first op that the node may
/// understand and opsward does not. Reads the node's tables anew for each batch.
async fn carry_out(
    puller: &Puller,
    peer: &Host,
    items: Vec<Item>,
    now: Timestamp,
) -> Result<Done, PullFailure> {
    let _turn = puller.appliers.acquire().await.map_err(|_| PullFailure::Stopped)?;
    let mut client = puller.db.client().await?;
    let relations = catalog::relations(&client).await?;
    let on_chain = relations.columns("ops").is_some_and(|c| c.iter().any(|c| c == "core_tx_status"));
    let mut done = Done::default();
    let (mut ops, mut rows) = (Vec::new(), 0);
    let longest = items.iter().map(Item::bytes).max().unwrap_or(0);
    for item in items {
        let ulid = match &item {
            Item::Op(op) => Some(op.ulid),
            Item::Refused(refused) => refused.ulid,
            Item::Skipped(ulid) => Some(*ulid),
        };
        match item {
            Item::Op(op) => match Fitting::to(&relations, op, now) {
                Ok(mut op) => {
                    let is_transient =
                        |f: &Fitting| decide::is_transient(&f.op, f.model, &f.rows, &puller.own);
                    op.transient = on_chain && is_transient(&op);
                    rows += op.rows.len();
                    ops.push(op);
                }
                Err(Unapplied::Refused(refused)) => done.outcome.refused.push(refused),
                Err(Unapplied::Held(hold)) => {
                    done.hold = Some(hold);
                    break;
                }
            },
            Item::Refused(refused) => done.outcome.refused.push(refused),
            Item::Skipped(_) => {}
        }
        done.settled = done.settled.max(ulid);
        if rows >= ROWS {
            done.outcome.add(apply::apply(&mut client, &std::mem::take(&mut ops), now).await?);
            rows = 0;
        }
    }
    done.outcome.add(apply::apply(&mut client, &ops, now).await?);
    if !done.outcome.refused.is_empty() {
        done.keeping = rejected::keep(&mut client, peer, &done.outcome.refused, now).await?;
    }
    if longest > LONG {
        drop(Client::take(client));
    }
    Ok(done)
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Op(op) => op.data.whole().len(),
            Self::Refused(refused) => refused.bytes.len(),
            Self::Skipped(_) => 0,
        }
    }
}
