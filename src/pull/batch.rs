//! A page's ops on their way into the database, a bounded batch at a time.
//! While one batch is being applied the next is read: at most two of them are
//! in memory.

use super::apply::{self, Fitting, Outcome};
use super::decide::{self, Table};
use super::sweep::{Ended, Sweep};
use super::{Failure, Puller};
use crate::db::catalog::Relations;
use crate::db::pulls::{Hold, PageSums};
use crate::db::rejected::{self, Keeping, Refused};
use crate::records::{self, models};
use crate::values::{Host, Op, OpUlid, RejectReason};
use crate::wire::body::{Element, Envelope, read_envelope};
use futures_util::future::{BoxFuture, Either, select};
use jiff::Timestamp;

/// A batch is applied when it holds this many ops …
const BATCH_OPS: usize = 1_000;
/// … or this many bytes of them.
const BATCH_BYTES: usize = 1 << 20;
/// Where there was nothing before an op that is too large.
const BEGINNING: &str = "00000000000000000000000000";

pub(super) struct Batch<'a> {
    puller: &'a Puller,
    peer: &'a Host,
    relations: Relations,
    sweep: Sweep,
    ops: Vec<Fitting>,
    refused: Vec<Refused>,
    bytes: usize,
    under_way: Option<BoxFuture<'static, Result<Done, Failure>>>,
    last: Option<OpUlid>,
    hold: Option<Hold>,
    sums: PageSums,
}

/// A batch that is in the database, its refused ops kept.
struct Done {
    outcome: Outcome,
    keeping: Keeping,
    ulids: Vec<OpUlid>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(puller: &'a Puller, peer: &'a Host, relations: Relations, sweep: Sweep) -> Self {
        Self {
            puller,
            peer,
            relations,
            last: sweep.asked(),
            sweep,
            ops: Vec::new(),
            refused: Vec::new(),
            bytes: 0,
            under_way: None,
            hold: None,
            sums: PageSums::default(),
        }
    }

    /// Waits for `other` while the batch under way goes on.
    pub(super) async fn alongside<T>(&mut self, other: impl Future<Output = T>) -> Result<T, Failure> {
        let Some(under_way) = self.under_way.take() else {
            return Ok(other.await);
        };
        match select(under_way, Box::pin(other)).await {
            Either::Left((done, other)) => {
                self.count(done?);
                Ok(other.await)
            }
            Either::Right((output, under_way)) => {
                self.under_way = Some(under_way);
                Ok(output)
            }
        }
    }

    /// Takes one element of the page; `false` when the page ends here for us.
    pub(super) async fn take(&mut self, element: Element, now: Timestamp) -> Result<bool, Failure> {
        let now_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let envelope = read_envelope(&element, now_ms).map_err(|e| Failure::Peer(e.to_string()))?;
        self.bytes += element.bytes.len();
        match envelope {
            Envelope::Skip(ulid) => {
                self.puller.metrics.ops_skipped.inc();
                if let Some(ulid) = ulid {
                    self.sweep.received(ulid);
                    self.settle(ulid);
                }
            }
            Envelope::Refused { ulid, table, reason } => {
                self.refuse(ulid, table, reason, element.bytes);
            }
            Envelope::Op(op) => {
                if !self.sort(op, element.bytes, now) {
                    return Ok(false);
                }
            }
        }
        if self.ops.len() + self.refused.len() >= BATCH_OPS || self.bytes >= BATCH_BYTES {
            self.hand_over(now).await?;
        }
        Ok(true)
    }

    /// An op of sound envelope: into the batch, refused, or held before.
    fn sort(&mut self, op: Op, bytes: Vec<u8>, now: Timestamp) -> bool {
        self.sweep.received(op.ulid);
        match decide::table(&op.table, models(), self.relations.columns(&op.table)) {
            Table::Known(model) => match Fitting::new(op, model, bytes, now) {
                Ok(fitting) => self.ops.push(fitting),
                Err(refused) => self.refused.push(refused),
            },
            Table::Nowhere => {
                let reason = RejectReason::new("table", format!("there is no table {:?}", op.table));
                self.refuse(Some(op.ulid), op.table, reason, bytes);
            }
            Table::Hold(reason) => {
                // No node understands an op without records, whatever its table.
                if let Err(reason) = records::check(&op.data) {
                    self.refuse(Some(op.ulid), op.table, reason, bytes);
                    return true;
                }
                self.sweep.stopped_before(Some(op.ulid));
                self.hold = Some(Hold { ulid: op.ulid, table: op.table, reason });
                return false;
            }
        }
        true
    }

    fn refuse(&mut self, ulid: Option<OpUlid>, table: String, reason: RejectReason, bytes: Vec<u8>) {
        if let Some(ulid) = ulid {
            self.sweep.received(ulid);
        }
        self.refused.push(Refused { ulid, table, code: reason.code, detail: reason.detail, bytes });
    }

    fn settle(&mut self, ulid: OpUlid) {
        self.sweep.settled(ulid);
        self.last = self.last.max(Some(ulid));
    }

    /// The page goes on, but not for us: what was taken so far counts. With a
    /// reason, the peer is held there.
    pub(super) async fn stop_here(&mut self, held: Option<String>, now: Timestamp) -> Result<(), Failure> {
        self.flush(now).await?;
        self.sweep.stopped_before(None);
        if let Some(reason) = held {
            let ulid = self.last.or_else(|| OpUlid::parse(BEGINNING));
            let reason = format!("after this op, {reason}");
            self.hold = ulid.map(|ulid| Hold { ulid, table: String::new(), reason });
        }
        Ok(())
    }

    /// Starts to apply and keep what was taken, once the batch before is done.
    async fn hand_over(&mut self, now: Timestamp) -> Result<(), Failure> {
        if let Some(under_way) = self.under_way.take() {
            let done = under_way.await?;
            self.count(done);
        }
        let (ops, refused) = (std::mem::take(&mut self.ops), std::mem::take(&mut self.refused));
        self.bytes = 0;
        if !(ops.is_empty() && refused.is_empty()) {
            self.under_way =
                Some(Box::pin(carry_out(self.puller.clone(), self.peer.clone(), ops, refused, now)));
        }
        Ok(())
    }

    async fn flush(&mut self, now: Timestamp) -> Result<(), Failure> {
        self.hand_over(now).await?;
        // With nothing left to start, this waits for the last one.
        self.hand_over(now).await
    }

    fn count(&mut self, done: Done) {
        let Done { outcome, keeping, ulids } = done;
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
        let refused: Vec<OpUlid> = outcome.refused.iter().filter_map(|r| r.ulid).collect();
        ulids.into_iter().chain(refused).for_each(|ulid| self.settle(ulid));
    }

    /// All of the page is settled: where it ended, its sums, and the hold.
    pub(super) async fn finish(mut self, now: Timestamp) -> Result<(Ended, PageSums, Option<Hold>), Failure> {
        self.flush(now).await?;
        Ok((self.sweep.ended(), self.sums, self.hold))
    }
}

/// Applies ops and keeps the refused ones, in this order.
async fn carry_out(
    puller: Puller,
    peer: Host,
    ops: Vec<Fitting>,
    refused: Vec<Refused>,
    now: Timestamp,
) -> Result<Done, Failure> {
    let _turn = puller.appliers.acquire().await.map_err(|_| Failure::Stopped)?;
    let mut client = puller.db.client().await?;
    let mut outcome = apply::apply(&mut client, &ops, now).await?;
    outcome.refused.extend(refused);
    let keeping = match outcome.refused.is_empty() {
        true => Keeping::default(),
        false => rejected::keep(&client, &peer, &outcome.refused, now).await?,
    };
    Ok(Done { outcome, keeping, ulids: ops.iter().map(|f| f.op.ulid).collect() })
}
