//! A page's ops on their way into the database, a bounded batch at a time.

use super::apply::{self, Received};
use super::decide::{self, Table};
use super::sweep::{Ended, Sweep};
use super::{Failure, Puller};
use crate::db::catalog::Relations;
use crate::db::pulls::{Hold, PageSums};
use crate::db::rejected::{self, Refused};
use crate::records::models;
use crate::values::{Host, Op, OpUlid, RejectReason};
use crate::wire::body::{Element, Envelope, read_envelope};

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
    ops: Vec<Received>,
    refused: Vec<Refused>,
    bytes: usize,
    last: Option<OpUlid>,
    hold: Option<Hold>,
    sums: PageSums,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        puller: &'a Puller,
        peer: &'a Host,
        relations: Relations,
        sweep: Sweep,
    ) -> Self {
        let asked = sweep.asked();
        Self {
            puller,
            peer,
            relations,
            sweep,
            ops: Vec::new(),
            refused: Vec::new(),
            bytes: 0,
            last: asked,
            hold: None,
            sums: PageSums::default(),
        }
    }

    /// Takes one element of the page; `false` when the page ends here for us.
    pub(super) async fn take(&mut self, element: Element, now_ms: u64) -> Result<bool, Failure> {
        self.bytes += element.bytes.len();
        if element.too_deep {
            let reason = RejectReason::new("nesting", "it is nested deeper than 128 levels");
            self.refuse(None, String::new(), reason, element.bytes);
        } else {
            match read_envelope(&element.bytes, now_ms) {
                Envelope::Skip(ulid) => {
                    self.puller.metrics.ops_skipped.inc();
                    ulid.into_iter().for_each(|u| self.settle(u));
                }
                Envelope::Refused {
                    ulid,
                    table,
                    reason,
                } => self.refuse(ulid, table, reason, element.bytes),
                Envelope::Op(op) => {
                    if !self.sort(op, element.bytes) {
                        return Ok(false);
                    }
                }
            }
        }
        if self.ops.len() + self.refused.len() >= BATCH_OPS || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(true)
    }

    fn sort(&mut self, op: Op, bytes: Vec<u8>) -> bool {
        self.sweep.received(op.ulid);
        match decide::table(&op.table, models(), &self.relations) {
            Table::Known(model) => self.ops.push(Received { op, model, bytes }),
            Table::Nowhere => {
                let reason =
                    RejectReason::new("table", format!("there is no table {:?}", op.table));
                self.refuse(Some(op.ulid), op.table, reason, bytes);
            }
            Table::Hold(reason) => {
                self.sweep.stopped_before(Some(op.ulid));
                self.hold = Some(Hold {
                    ulid: op.ulid,
                    table: op.table,
                    reason,
                });
                return false;
            }
        }
        true
    }

    fn settle(&mut self, ulid: OpUlid) {
        self.sweep.received(ulid);
        self.sweep.settled(ulid);
        self.last = self.last.max(Some(ulid));
    }

    fn refuse(
        &mut self,
        ulid: Option<OpUlid>,
        table: String,
        reason: RejectReason,
        bytes: Vec<u8>,
    ) {
        if let Some(ulid) = ulid {
            self.sweep.received(ulid);
        }
        self.refused.push(Refused {
            ulid,
            table,
            code: reason.code,
            detail: reason.detail,
            bytes,
        });
    }

    /// The page goes on, but not for us: what was taken so far counts. With a
    /// reason, the peer is held there.
    pub(super) async fn stop_here(&mut self, held: Option<String>) -> Result<(), Failure> {
        self.flush().await?;
        self.sweep.stopped_before(None);
        if let Some(reason) = held {
            let ulid = self.last.or_else(|| OpUlid::parse(BEGINNING));
            self.hold = ulid.map(|ulid| Hold {
                ulid,
                table: String::new(),
                reason: format!("after this op {reason}"),
            });
        }
        Ok(())
    }

    /// Applies and keeps what was taken since the last time.
    async fn flush(&mut self) -> Result<(), Failure> {
        if !self.ops.is_empty() {
            let ops = std::mem::take(&mut self.ops);
            let outcome = self.apply(&ops).await?;
            self.sums.applied += outcome.applied as i64;
            self.sums.duplicates += outcome.duplicates as i64;
            self.puller.metrics.ops_applied.inc_by(outcome.applied);
            self.puller.metrics.ops_duplicate.inc_by(outcome.duplicates);
            self.refused.extend(outcome.refused);
            ops.iter().for_each(|r| self.settle(r.op.ulid));
        }
        if !self.refused.is_empty() {
            let refused = std::mem::take(&mut self.refused);
            let client = self.puller.db.client().await?;
            let unkept =
                rejected::keep(&client, self.peer, &refused, self.puller.clock.now()).await?;
            self.sums.rejected += refused.len() as i64;
            self.sums.rejected_unkept += unkept;
            for op in refused {
                self.puller
                    .metrics
                    .ops_rejected
                    .with_label_values(&[op.code])
                    .inc();
                op.ulid.into_iter().for_each(|u| self.settle(u));
            }
        }
        self.bytes = 0;
        Ok(())
    }

    async fn apply(&self, ops: &[Received]) -> Result<apply::Outcome, Failure> {
        let _turn = self
            .puller
            .appliers
            .acquire()
            .await
            .map_err(|_| Failure::Stopped)?;
        let mut client = self.puller.db.client().await?;
        Ok(apply::apply(&mut client, ops, &self.puller.clock).await?)
    }

    /// All of the page is settled: where it ended, its sums, and the hold.
    pub(super) async fn finish(mut self) -> Result<(Ended, PageSums, Option<Hold>), Failure> {
        self.flush().await?;
        Ok((self.sweep.ended(), self.sums, self.hold))
    }
}
