//! A range of the log is copied, and compared with its copy.

use super::super::decide::Checkpoint;
use super::super::{Change, Error, Result, Run};
use super::follow::ceiling;
use crate::db::clone::{Columns, columns};
use crate::db::copy::{self, Doomed};
use tokio::time::Instant;

pub(super) async fn copy_range(run: &mut Run<'_>) -> Result<()> {
    let begun = Instant::now();
    let columns = columns(&*run.lease.client()?).await?;
    let mut change = Change::begin(run.lease, &run.at).await?;
    let range = copy::range(&change.tx, &run.at.position, run.kept.size.rows()).await?;
    let doomed = doomed(&run.at, &columns);
    let copied = copy::copy(&change.tx, &doomed, &range).await?;
    // What was written to the range since it was found may hide what goes in it.
    // A reset leaves no traces: the reference's records stand for what goes.
    if run.at.reset.is_none() && !range.is_above(&ceiling(&run.at)) {
        for gone in copy::trace(&change.tx, &doomed, &range).await? {
            let sum = change.at.gone.entry(gone.table).or_default();
            sum.rows += gone.rows;
            sum.bytes += gone.bytes;
            sum.traces += gone.traces;
        }
    }
    change.at.done += range.rows;
    match &range.until {
        Some(until) => change.at.position.clone_from(until),
        None => change.at.advance(),
    }
    run.at = change.commit("copy a range of the log").await?;
    run.kept.size.took(range.rows as u32, begun.elapsed());
    run.work.metrics.reclaim_rows_copied.inc_by(copied);
    Ok(())
}

pub(super) fn doomed<'a>(at: &'a Checkpoint, columns: &'a Columns) -> Doomed<'a> {
    Doomed { cuts: &at.survivors.cuts, listed: !at.survivors.compact.is_empty(), columns }
}

/// A range of the first part whose comparison is not fresh; after the last one
/// the copy is known to be what it has to be.
pub(super) async fn verify(run: &mut Run<'_>) -> Result<()> {
    let Some((part, after, until)) = run.at.comparison.stale() else {
        run.at.comparison.end(run.now_ms());
        return run.advance().await;
    };
    let begun = Instant::now();
    let (now_ms, columns) = (run.now_ms(), columns(&*run.lease.client()?).await?);
    let mut change = Change::begin(run.lease, &run.at).await?;
    let range = copy::known_range(&change.tx, (after, until), run.kept.size.rows()).await?;
    trusted(&copy::verify(&change.tx, &doomed(&run.at, &columns), &range).await?)?;
    change.at.done += range.rows;
    change.at.comparison.compared(part, range.until, now_ms);
    run.at = change.commit("compare a range of the log").await?;
    run.kept.size.took(range.rows as u32, begun.elapsed());
    Ok(())
}

/// The copy has to be what it has to be, or it is undone, and nothing is swapped.
pub(super) fn trusted(differ: &[String]) -> Result<()> {
    match differ.is_empty() {
        true => Ok(()),
        false => Err(Error::Undo(format!(
            "the copy differs from ops, nothing was swapped; the first ops that do: {}",
            differ.join(", ")
        ))),
    }
}
