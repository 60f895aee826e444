//! Applies ops in batches, each one transaction with the outcome that applying
//! its ops one by one in order would have. A batch that fails is split until
//! the bad op stands alone.

use super::waves;
use crate::clock::Clock;
use crate::db::apply::{self, Failure};
use crate::db::rejected::Refused;
use crate::db::{self, Client, Doing};
use crate::records::{self, Model, Row};
use crate::values::{Op, RejectReason};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A transaction of ours never lives longer; a statement is bounded at 2 s.
const BATCH_TIME: Duration = Duration::from_millis(2_500);
/// How often a batch that met a lock is tried again.
const TRIES: u32 = 6;

/// An op with the model of its table and the bytes that it came as.
#[derive(Clone, Debug)]
pub struct Received {
    /// The op.
    pub op: Op,
    /// The model of its table.
    pub model: &'static Model,
    /// As received, to be kept whole if it is refused.
    pub bytes: Vec<u8>,
}

/// What became of ops.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Ops that were new and are applied now.
    pub applied: u64,
    /// Ops that were already in the log; their records are left alone.
    pub duplicates: u64,
    /// Ops that were refused.
    pub refused: Vec<Refused>,
}

/// An op whose records fit their table.
struct Fitting<'a> {
    received: &'a Received,
    rows: Vec<Row>,
}

/// Applies ops in their order.
///
/// # Errors
/// The database's, when it is nothing about a single op: what was committed
/// before stays, and finds itself a duplicate when it comes again.
pub async fn apply(client: &mut Client, ops: &[Received], clock: &Clock) -> db::Result<Outcome> {
    let now = clock.now();
    let mut outcome = Outcome::default();
    let mut fitting = Vec::with_capacity(ops.len());
    for received in ops {
        let op = &received.op;
        match records::convert(received.model, op.action, &op.data, now) {
            Ok(rows) => fitting.push(Fitting { received, rows }),
            Err(reason) => outcome.refused.push(refused(received, reason)),
        }
    }
    // Ranges still to be applied, the next one last.
    let mut ranges: Vec<_> = std::iter::once(0..fitting.len()).collect();
    while let Some(range) = ranges.pop() {
        if range.is_empty() {
            continue;
        }
        let batch = &fitting[range.clone()];
        match patiently(client, batch, now).await {
            Ok(new) => {
                outcome.applied += new;
                outcome.duplicates += batch.len() as u64 - new;
            }
            Err(error) => match apply::sort(&error) {
                Failure::BadOp if batch.len() == 1 => {
                    let reason = RejectReason::new("refused_by_database", error.to_string());
                    outcome.refused.push(refused(batch[0].received, reason));
                }
                Failure::BadOp | Failure::TooLong if batch.len() > 1 => {
                    let middle = range.start + batch.len() / 2;
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                }
                _ => return Err(error),
            },
        }
    }
    Ok(outcome)
}

/// An op as it is kept when it is refused.
pub fn refused(received: &Received, reason: RejectReason) -> Refused {
    Refused {
        ulid: Some(received.op.ulid),
        table: received.op.table.clone(),
        code: reason.code,
        detail: reason.detail,
        bytes: received.bytes.clone(),
    }
}

/// One batch; a lock of somebody else's is met by trying again a little later.
async fn patiently(client: &mut Client, batch: &[Fitting<'_>], now: Timestamp) -> db::Result<u64> {
    let mut tries = 1;
    loop {
        match once(client, batch, now).await {
            Err(e) if apply::sort(&e) == Failure::Contended && tries < TRIES => {
                sleep(Duration::from_millis(50) * 2u32.pow(tries)).await;
                tries += 1;
            }
            result => return result,
        }
    }
}

async fn once(client: &mut Client, batch: &[Fitting<'_>], now: Timestamp) -> db::Result<u64> {
    let began = Instant::now();
    let tx = apply::begin(client).await?;
    let ops: Vec<&Op> = batch.iter().map(|f| &f.received.op).collect();
    let mut new = apply::insert_ops(&tx, &ops).await?;
    let count = new.len() as u64;
    // Of one ULID twice in a batch the first is the new one.
    let fresh = batch.iter().filter(|f| new.remove(&f.received.op.ulid));
    let records = fresh.flat_map(|f| {
        f.rows
            .iter()
            .map(|row| (f.received.model, f.received.op.action, row))
    });
    let now = now.to_string();
    for step in waves::plan(records) {
        if began.elapsed() > BATCH_TIME {
            return Err(db::Error::TooLong("apply a batch"));
        }
        apply::act(&tx, step.model, step.action, &step.rows, &now).await?;
    }
    tx.commit().await.doing("commit a batch")?;
    Ok(count)
}
