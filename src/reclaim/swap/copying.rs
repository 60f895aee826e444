//! A range of the log is copied, and compared with its copy.

use super::super::change::count;
use super::super::{Change, Error, Result, Run};
use super::ready::Ready;
use super::second::{Fresh, Second, What};
use crate::db::clone::columns;
use crate::db::copy;
use std::sync::Arc;
use tokio::time::Instant;

/// Copies a range, while a second session deals with what was copied before; what came of
/// that is told by the same checkpoint. Nothing is copied while the second session is too far
/// behind, or does again what was not told.
pub(super) async fn copy_range(run: &mut Run<'_>) -> Result<()> {
    let what = Arc::new(What::of(&run.at, columns(&*run.lease.client()?).await?));
    let mut second = std::mem::take(&mut run.kept.second);
    // Where this fails, the second session is closed, and what it was at is done again.
    second.begin(run, &what).await?;
    match second.is_waited_for(&run.at) {
        true => tell(run, &mut second, &what).await?,
        false => copy_next(run, &mut second, &what).await?,
    }
    run.kept.second = second;
    Ok(())
}

/// Helps the second session, or waits for it, and tells what came of it.
async fn tell(run: &mut Run<'_>, second: &mut Second, what: &Arc<What>) -> Result<()> {
    if !second.waits() {
        // A transaction of the lease's would stand idle for so long.
        second.settle().await?;
    }
    let mut change = Change::begin(run.lease, &run.at).await?;
    second.assist(&change.tx, what).await?;
    second.told(&mut change.at, run.work.clock.now().as_millisecond());
    run.at = change.commit("leave the traces of a range").await?;
    Ok(())
}

async fn copy_next(run: &mut Run<'_>, second: &mut Second, what: &Arc<What>) -> Result<()> {
    let (begun, rows, now_ms) = (Instant::now(), run.kept.size.rows(), run.now_ms());
    let after = run.at.position.clone();
    let mut change = Change::begin(run.lease, &run.at).await?;
    let is_behind = second.is_behind();
    let copied = async {
        let range = copy::range(&change.tx, &after, rows).await?;
        // The last range is copied when all before it is dealt with.
        if is_behind && range.until.is_none() {
            return Ok::<_, Error>(None);
        }
        let copied = copy::copy(&change.tx, &what.doomed(), &range).await?;
        Ok(Some(Fresh { range, copied }))
    };
    let fresh = second.beside(copied, what).await?;
    second.ends = fresh.as_ref().is_none_or(|fresh| fresh.range.until.is_none());
    let Some(fresh) = fresh else { return Ok(()) };
    let took = begun.elapsed().max(second.told(&mut change.at, now_ms));
    change.at.done += fresh.range.rows;
    match &fresh.range.until {
        Some(until) => change.at.position.clone_from(until),
        None => {
            // Nothing follows in which the last range's traces could be left.
            count(&mut change.at, &what.traces(&change.tx, &fresh.range).await?);
            change.at.advance();
        }
    }
    run.at = change.commit("copy a range of the log").await?;
    run.work.metrics.reclaim_rows_copied.inc_by(fresh.copied);
    run.kept.size.took(fresh.range.rows as u32, took);
    run.kept.copied += fresh.copied;
    if run.kept.ready.is_none() && run.pacer.percent() == 100 && Ready::is_due(&run.at, run.kept.copied) {
        run.kept.ready = Some(Ready::begin(&run.work.db, run.kept.copied));
    }
    second.put(fresh, what);
    if run.pacer.percent() < 100 {
        // It rests with this session.
        second.settle().await?;
    }
    Ok(())
}

/// A range of the first part whose comparison is not fresh; after the last one
/// the copy is known to be what it has to be.
pub(super) async fn verify(run: &mut Run<'_>) -> Result<()> {
    let Some((part, after, until)) = run.at.comparison.stale() else {
        run.at.comparison.end(run.now_ms());
        return run.advance().await;
    };
    let begun = Instant::now();
    let now_ms = run.now_ms();
    let what = What::of(&run.at, columns(&*run.lease.client()?).await?);
    let mut change = Change::begin(run.lease, &run.at).await?;
    let range = copy::known_range(&change.tx, (after, until), run.kept.size.rows()).await?;
    trusted(&copy::verify(&change.tx, &what.doomed(), &range).await?)?;
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
