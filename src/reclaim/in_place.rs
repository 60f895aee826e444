//! Mode in-place: the log is thinned where it is, and cut off at its end.
//!
//! Every batch is a short transaction that leaves a plain table, so a kill
//! anywhere costs nothing, and an abort has nothing to undo. What was deleted
//! becomes free space by a VACUUM; rows of the last pages move into it, until
//! no more room is in front of them; a VACUUM cuts off the empty end. Rows
//! that were locked, or written at the end meanwhile, are met by the next pass.

mod space;

use super::compact;
use super::decide::{Checkpoint, Phase};
use super::{Change, Error, Result, Run, change};
use crate::db::activity::Old;
use crate::db::prune::{self, Batch, Doomed, Locked, Range, TableCut};
use crate::db::{self, Doing, Transaction, activity, maintain};
use crate::values::OpUlid;
use crate::work::{BatchSize, WaitFor};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// A transaction is steered to this: a node that starts waits for three of them
/// one after the other, and 200 ms is the worst that may be.
const TARGET: Duration = Duration::from_millis(50);
/// Rows of the first batch that deletes.
const FIRST_ROWS: u32 = 2_000;
/// Between two tries of a row that somebody else has locked, and how many
/// there are.
const RETRY_AFTER: Duration = Duration::from_millis(200);
const TRIES: u32 = 50;
/// Rows that were locked and are tried again at the end; others stay.
const LOCKED_KEPT: usize = 1_000;

/// What a process keeps between two batches; it is lost with it.
pub(super) struct Kept {
    phase: Option<Phase>,
    pub(super) size: BatchSize,
    pub(super) locked: Locked,
    /// Of what somebody else was in the way of.
    tries: u32,
    /// How far the TOAST table's values are moved.
    toast: Option<space::Moving>,
    /// Bytes that the last batch rewrote.
    written: u64,
    /// Indexes that are left as they are.
    left: Vec<String>,
    places: prune::Places,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            phase: None,
            size: BatchSize::new(FIRST_ROWS, 1, TARGET),
            locked: Locked::Wait,
            tries: 0,
            toast: None,
            written: 0,
            left: Vec::new(),
            places: prune::Places::default(),
        }
    }
}

impl Kept {
    fn of(phase: Phase, batch_limit: u32) -> Self {
        let size = match phase {
            Phase::Move => BatchSize::new(space::PAGES.0, space::PAGES.1, TARGET),
            _ => BatchSize::new(FIRST_ROWS, batch_limit, TARGET),
        };
        Self { phase: Some(phase), size, ..Self::default() }
    }
}

/// A batch of a phase's work.
pub(super) async fn step(run: &mut Run<'_>, phase: Phase) -> Result<()> {
    if run.place.phase != Some(phase) {
        let hindrances = db::preflight::hindrances(&*run.lease.client()?, true).await?;
        if !hindrances.is_empty() {
            return Err(Error::Undo(format!(
                "rows of ops can't just be deleted and moved by now: it has a {}",
                hindrances.join(", a ")
            )));
        }
        if matches!(phase, Phase::Delete | Phase::Compact) {
            db::guard::announce(run.lease, run.at.survivors.below()).await?;
        }
        run.place = Kept::of(phase, run.work.settings.bounding.batch_limit);
    }
    match phase {
        Phase::Delete => delete(run).await,
        Phase::Compact => compact::walk::step(run).await,
        Phase::Vacuum => space::vacuum(run).await,
        Phase::Rewrite => space::rewrite(run).await,
        Phase::Move => space::move_rows(run).await,
        Phase::Truncate => space::truncate(run).await,
        _ => space::reindex(run).await,
    }
}

/// The statement that drops what an interrupted REINDEX left.
pub(super) async fn leftover(run: &mut Run<'_>) -> Result<Option<String>> {
    Ok(db::in_place::leftovers(&*run.lease.client()?).await?.into_iter().next())
}

/// Those that are not written anew yet stay as they are.
pub(super) async fn leave_indexes(run: &mut Run<'_>, error: &db::Error) -> Result<()> {
    warn!(%error, "the disk is full: the other indexes stay as they are");
    let bloated = db::in_place::bloated(&*run.lease.client()?).await?;
    run.place.left.extend(bloated.into_iter().map(|index| index.name));
    Ok(())
}

/// Whether another session builds an index on the log; waits for it a while then.
pub(super) async fn others_build(run: &mut Run<'_>) -> Result<bool> {
    let builders = activity::builders(&*run.lease.client()?).await?;
    let Some(who) = builders.first() else { return Ok(false) };
    run.wait(WaitFor::Index, format!("the index build of {who}"), space::REST).await;
    Ok(true)
}

/// Drops the next of them, unless somebody waits behind it: then later.
pub(super) async fn drop_leftover(run: &mut Run<'_>) -> Result<()> {
    if others_build(run).await? {
        return Ok(());
    }
    let Some(drop) = leftover(run).await? else { return Ok(()) };
    // Neither a pause nor a closed window holds an abort up.
    let stop = run.work.stop.clone();
    if maintain::watched(run.lease, &run.work.db, &drop, &[], &stop).await? == maintain::Ended::Yielded {
        run.wait(WaitFor::Others, "the sessions that waited behind DROP INDEX".into(), space::REST).await;
    }
    Ok(())
}

/// Writes into the history how it came out.
pub(super) async fn end(run: &mut Run<'_>) -> Result<()> {
    let outcome = match &run.at.aborting {
        Some(why) => format!("ended early: {why}; what was deleted stays deleted"),
        None => "done".to_owned(),
    };
    Ok(prune::end(run.lease.client()?, &run.at.run, &outcome).await?)
}

/// The history's name for it.
pub(super) fn task(run: &Run<'_>) -> prune::Run {
    let began_at = jiff::Timestamp::from_millisecond(run.at.began_ms).unwrap_or_default();
    prune::Run { id: run.at.run.clone(), task: "reclaim", began_at, places: run.place.places.clone() }
}

/// What lies below the cuts, from the oldest on; then what was locked.
async fn delete(run: &mut Run<'_>) -> Result<()> {
    if run.at.position.is_empty() {
        space::may_vacuum(run).await?;
        // Of these nobody knows when they let go: before anything is lost, they have to.
        if space::held(run, Old::Remote).await? {
            return Ok(());
        }
        run.at.settled = None;
    }
    let cuts: Vec<TableCut> = run.at.survivors.cuts.iter().map(cut).collect();
    let Some(until) = cuts.iter().map(|cut| cut.below).max() else {
        return run.advance().await;
    };
    if run.at.position.is_empty() {
        prune::check(&cuts, run.work.clock.now_ms())?;
        let tables: Vec<&str> = cuts.iter().map(|cut| cut.table.as_str()).collect();
        run.at.position = prune::begin_at(run.lease.client()?, &tables).await?;
    }
    // Set at the end of the range, and equal to no key in it. A key that is no ULID may sort on the
    // other side of `until` by its bytes: only the database orders keys.
    if run.at.position == until.as_str() {
        return delete_locked(run, &cuts).await;
    }
    let end = run.place.size.until(&run.at.position, until);
    let range = Range { from: run.at.position.clone(), until: end, rows: run.place.size.rows() };
    let (task, locked, begun) = (task(run), run.place.locked, Instant::now());
    let mut change = Change::begin(run.lease, &run.at).await?;
    let batch = prune::batch(&change.tx, &task, &range, Doomed::Below(&cuts), locked).await?;
    count(&mut change.at, &batch);
    let room = LOCKED_KEPT.saturating_sub(change.at.locked.len());
    change.at.locked.extend(batch.skipped.iter().take(room));
    change.at.position = batch.next.clone().unwrap_or_else(|| end.to_string());
    run.at = change.commit("commit a batch").await?;
    learned(run, batch.scanned, &[batch], begun);
    Ok(())
}

fn cut((table, below): (&String, &OpUlid)) -> TableCut {
    TableCut { table: table.clone(), below: *below, bound_by: "reclaim".into() }
}

pub(super) fn count(at: &mut Checkpoint, batch: &Batch) {
    at.done += batch.scanned;
    change::count(at, &batch.gone);
}

/// A batch of so many rows is committed.
pub(super) fn learned(run: &mut Run<'_>, rows: u64, done: &[Batch], begun: Instant) {
    run.place.size.took(u32::try_from(rows).unwrap_or(u32::MAX), begun.elapsed());
    run.place.locked = Locked::Wait;
    for gone in done.iter().flat_map(|batch| &batch.gone) {
        let labels = ["reclaim", gone.table.as_str()];
        run.work.metrics.rows_deleted.with_label_values(&labels).inc_by(gone.rows);
        run.work.metrics.bytes_deleted.with_label_values(&labels).inc_by(gone.bytes);
    }
}

/// Rows that were locked when their batch came, one at a time.
async fn delete_locked(run: &mut Run<'_>, cuts: &[TableCut]) -> Result<()> {
    let Some(ulid) = run.at.locked.last().copied() else { return run.advance().await };
    let range = Range { from: ulid.to_string(), until: OpUlid::first_of_ms(ulid.ms() + 1), rows: 100 };
    let task = task(run);
    let mut change = Change::begin(run.lease, &run.at).await?;
    change.at.locked.pop();
    let batch = prune::batch(&change.tx, &task, &range, Doomed::Below(cuts), Locked::Skip).await?;
    count(&mut change.at, &batch);
    if batch.skipped.contains(&ulid) {
        run.place.tries += 1;
        if run.place.tries <= TRIES {
            drop(change);
            // The others first.
            run.at.locked.rotate_right(1);
            run.wait(WaitFor::Lock, format!("a lock on the row {ulid}"), RETRY_AFTER).await;
            return Ok(());
        }
        warn!(%ulid, "the row stayed locked by another session, and stays in the log");
    }
    run.at = change.commit("commit a batch").await?;
    Ok(())
}

/// Deletes what nobody needs of a part of the log, from the oldest on.
pub(super) async fn delete_listed(
    tx: &Transaction<'_>,
    task: &prune::Run,
    drops: &[OpUlid],
    locked: Locked,
) -> Result<Vec<Batch>> {
    let (Some(first), Some(last)) = (drops.iter().min(), drops.iter().max()) else { return Ok(Vec::new()) };
    // What the walk set for itself would cost here.
    tx.batch_execute("SET LOCAL enable_hashjoin = on").await.doing("begin to delete what nobody needs")?;
    let (mut from, mut batches) = (first.to_string(), Vec::new());
    loop {
        let range = Range { from, until: OpUlid::first_of_ms(last.ms() + 1), rows: 100_000 };
        let batch = prune::batch(tx, task, &range, Doomed::Listed(drops), locked).await?;
        let next = batch.next.clone();
        batches.push(batch);
        match next {
            Some(next) => from = next,
            None => return Ok(batches),
        }
    }
}
