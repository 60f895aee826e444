//! Applies ops in batches, each one transaction with the outcome that applying
//! its ops one by one in order would have. A batch that fails is split until
//! the bad op stands alone.

use super::decide::{self, Unfit};
use super::late::{self, Late};
use super::replay::{self, Acting, Chosen};
use super::waves;
use crate::db::Transaction;
use crate::db::catalog::Relations;
use crate::db::pulls::Hold;
use crate::db::rejected::Refused;
use crate::db::{self, Client, Doing, Kind, apply, census, replay as traces};
use crate::records::{self, Model, Row, models};
use crate::values::{Op, OpUlid, RejectReason, unix_ms};
use jiff::Timestamp;
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long the transaction of a batch may take.
#[derive(Clone, Copy)]
struct Bound {
    /// One statement.
    statement: Duration,
    /// From its beginning to its last statement's beginning.
    whole: Duration,
}

/// A batch that takes longer is halved. No transaction of ours lives over 5 s.
const USUAL: Bound = Bound { statement: Duration::from_secs(2), whole: Duration::from_millis(2_500) };
/// A single op that took too long is tried with this bound; it includes the last statement.
const ALONE: Bound = Bound { statement: Duration::from_millis(4_500), whole: Duration::from_millis(4_500) };
/// Tries of a single slow op before it is refused: the database may only be busy.
const TRIES_ALONE: u32 = 2;
/// Tries of a batch that meets somebody else's lock.
const TRIES: u32 = 6;

/// An op whose records fit their table.
#[derive(Clone, Debug)]
pub struct Fitting {
    /// The op.
    pub op: Op,
    /// The model of its table.
    pub model: &'static Model,
    /// Its records, converted.
    pub rows: Vec<Row>,
    /// It is applied and not stored in the log.
    pub transient: bool,
    /// What is newer, where the op is applied out of its turn.
    pub late: Option<Late>,
}

/// An op that is not applied.
pub(super) enum Unapplied {
    Refused(Refused),
    /// The peer's cursor stays before it.
    Held(Hold),
}

impl Fitting {
    /// Fits an op's records to their table.
    ///
    /// # Errors
    /// They do not fit: the op as it is to be kept.
    pub fn new(op: Op, model: &'static Model, now: Timestamp) -> Result<Self, Refused> {
        match records::convert(model, op.action, &op.data, now) {
            Ok(rows) => Ok(Self { op, model, rows, transient: false, late: None }),
            Err(reason) => Err(refused(&op, reason)),
        }
    }

    /// Fits an op to the node's tables as they are now.
    ///
    /// # Errors
    /// It is refused, or held until an opsward understands it.
    pub(super) fn to(relations: &Relations, op: Op, now: Timestamp) -> Result<Self, Unapplied> {
        match decide::table(&op.table, models(), relations.columns(&op.table)) {
            Ok(model) => Self::new(op, model, now).map_err(Unapplied::Refused),
            Err(Unfit::Refused(reason)) => Err(Unapplied::Refused(refused(&op, reason))),
            // No node understands an op without records, whatever its table.
            Err(Unfit::Held(reason)) => Err(match records::check(&op.data) {
                Err(reason) => Unapplied::Refused(refused(&op, reason)),
                Ok(()) => Unapplied::Held(Hold { ulid: op.ulid, table: op.table, reason }),
            }),
        }
    }
}

/// An op as it is kept, whole, with the reason.
fn refused(op: &Op, reason: RejectReason) -> Refused {
    let bytes = op.data.whole().as_bytes().to_vec();
    Refused { ulid: Some(op.ulid), table: op.table.clone(), code: reason.code, detail: reason.detail, bytes }
}

/// What became of ops.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Ops that were new and are applied now.
    pub applied: u64,
    /// Ops that were already in the log; their records are left alone.
    pub duplicates: u64,
    /// Ops below a floor of which no record acts; they are not put into the log.
    pub replays: u64,
    /// Ops that the database refused.
    pub refused: Vec<Refused>,
}

impl Applied {
    /// Adds what became of further ops.
    pub fn add(&mut self, more: Self) {
        self.applied += more.applied;
        self.duplicates += more.duplicates;
        self.replays += more.replays;
        self.refused.extend(more.refused);
    }
}

/// Applies ops in their order, at `now`.
///
/// # Errors
/// A database error that no single op caused. Batches that were committed before stay; their
/// ops are duplicates when they come again.
pub async fn apply(client: &mut Client, ops: &[Fitting], now: Timestamp) -> db::Result<Applied> {
    let mut outcome = Applied::default();
    // Ranges still to be applied, the next one last.
    let mut ranges: Vec<_> = std::iter::once(0..ops.len()).collect();
    while let Some(range) = ranges.pop() {
        if range.is_empty() {
            continue;
        }
        let batch = &ops[range.clone()];
        match patiently(client, batch, now, USUAL).await {
            Ok(done) => outcome.add(done),
            Err(error) => match error.kind() {
                Kind::BadData if batch.len() == 1 => {
                    let reason = RejectReason::new("refused_by_database", error.to_string());
                    outcome.refused.push(refused(&batch[0].op, reason));
                }
                Kind::TooLong if batch.len() == 1 => alone(client, batch, now, &mut outcome).await?,
                Kind::BadData | Kind::TooLong if batch.len() > 1 => {
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

/// Tries one slow op with a longer bound, then refuses it.
async fn alone(client: &mut Client, op: &[Fitting], now: Timestamp, outcome: &mut Applied) -> db::Result<()> {
    let mut tries = 1;
    loop {
        match patiently(client, op, now, ALONE).await {
            Ok(done) => {
                outcome.add(done);
                return Ok(());
            }
            Err(error) => match error.kind() {
                Kind::TooLong if tries < TRIES_ALONE => tries += 1,
                kind @ (Kind::TooLong | Kind::BadData) => {
                    let code = if kind == Kind::TooLong { "too_slow" } else { "refused_by_database" };
                    outcome.refused.push(refused(&op[0].op, RejectReason::new(code, error.to_string())));
                    return Ok(());
                }
                _ => return Err(error),
            },
        }
    }
}

/// Applies one batch; tries again a little later while somebody else holds a lock.
async fn patiently(
    client: &mut Client,
    batch: &[Fitting],
    now: Timestamp,
    bound: Bound,
) -> db::Result<Applied> {
    let mut tries = 1;
    loop {
        match once(client, batch, now, bound).await {
            Err(e) if e.is_held_up() && tries < TRIES => {
                sleep(Duration::from_millis(50) * 2u32.pow(tries)).await;
                tries += 1;
            }
            result => return result,
        }
    }
}

/// One transaction; no op is refused in it.
async fn once(client: &mut Client, batch: &[Fitting], now: Timestamp, bound: Bound) -> db::Result<Applied> {
    let began = Instant::now();
    let tx = apply::begin(client, bound.statement).await?;
    let floors = traces::floors(&tx).await?;
    let (mut applied, mut replays) = (0, 0);
    for run in replay::runs(batch, &floors) {
        let low: Vec<&Op> = run.iter().map(|f| &f.op).filter(|op| floors.is_below(op)).collect();
        let chosen = replay::choose(run, &floors, traces::judge(&tx, &low).await?);
        replays += chosen.replays;
        let stored: Vec<&Op> =
            chosen.acting.iter().filter(|a| !a.fitting.transient).map(|a| &a.fitting.op).collect();
        let mut new = apply::insert_ops(&tx, &stored).await?;
        let late = census::late_days(new.iter().copied(), unix_ms(now));
        if !late.is_empty() {
            census::touch(&tx, &late).await?;
        }
        new.extend(new_transient(&tx, &chosen).await?);
        applied += new.len() as u64;
        not_overtaken(&tx, &chosen, &new, now).await?;
        // Where a batch holds one ULID twice, the first counts as new.
        let fresh = chosen.acting.iter().filter(|a| new.remove(&a.fitting.op.ulid));
        let records = fresh.flat_map(|a| a.rows().map(|row| (a.fitting.model, a.action, row)));
        let now = records::time_text(now);
        for step in waves::plan(records, &now) {
            let left = bound.whole.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(db::Error::TooLong("apply a batch"));
            }
            if left < bound.statement && bound.whole == ALONE.whole {
                apply::bound(&tx, left).await?;
            }
            apply::act(&tx, step.model, step.action, &step.rows, &now).await?;
        }
    }
    late::not_overtaken(&tx, batch).await?;
    tx.commit().await.doing("commit a batch")?;
    let duplicates = batch.len() as u64 - applied - replays;
    Ok(Applied { applied, duplicates, replays, refused: Vec::new() })
}

/// Those of the ops that are applied and not stored that are not in the log.
async fn new_transient(tx: &Transaction<'_>, chosen: &Chosen<'_>) -> db::Result<HashSet<OpUlid>> {
    let transient = chosen.acting.iter().filter(|a| a.fitting.transient).map(|a| a.fitting.op.ulid);
    let mut ulids: Vec<OpUlid> = transient.collect();
    if !ulids.is_empty() {
        let known = apply::known(tx, &ulids).await?;
        ulids.retain(|ulid| !known.contains(ulid));
    }
    Ok(ulids.into_iter().collect())
}

/// Judges old ops again after the insert. Another session may have deleted one between the
/// first judgement and the insert; the insert waited for its commit. From here on nobody can
/// delete it.
async fn not_overtaken(
    tx: &Transaction<'_>,
    chosen: &Chosen<'_>,
    new: &HashSet<OpUlid>,
    now: Timestamp,
) -> db::Result<()> {
    let bound = unix_ms(now).saturating_sub(decide::OLD_MS);
    let is_old = |a: &&Acting<'_>| a.fitting.op.ulid.ms() < bound && new.contains(&a.fitting.op.ulid);
    let old: Vec<&Acting<'_>> = chosen.acting.iter().filter(is_old).collect();
    let Some(lowest) = old.iter().map(|a| a.fitting.op.ulid).min() else {
        return Ok(());
    };
    traces::lower_watermark(tx, lowest).await?;
    let floors = traces::floors(tx).await?;
    let low: Vec<&Acting<'_>> = old.into_iter().filter(|a| floors.is_below(&a.fitting.op)).collect();
    let ops: Vec<&Op> = low.iter().map(|a| &a.fitting.op).collect();
    let again = traces::judge(tx, &ops).await?;
    match low.iter().zip(again).all(|(a, again)| a.judged.as_ref().is_some_and(|j| j.acting == again.acting))
    {
        true => Ok(()),
        false => Err(db::Error::Overtaken("apply a batch")),
    }
}
