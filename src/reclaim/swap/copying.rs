//! A range of the log is copied, and compared with its copy.

use super::super::change::count;
use super::super::decide::Checkpoint;
use super::super::{Change, Error, Result, Run};
use super::follow::ceiling;
use crate::db::Doing;
use crate::db::Transaction;
use crate::db::clone::{Columns, columns};
use crate::db::copy::{self, Doomed, Range};
use crate::db::helper::Helper;
use crate::db::prune::Gone;
use tokio::time::Instant;

/// A range that this process copied, and how many rows of it.
pub(super) struct Fresh {
    range: Range,
    copied: u64,
}

/// Copies a range; meanwhile a second session deals with the one before it, which
/// is still in memory: what goes of it leaves traces, what stays is compared with
/// its copy. Both are told by one checkpoint. What another process copied, or what
/// failed, is dealt with in smaller parts before the next range is copied.
pub(super) async fn copy_range(run: &mut Run<'_>) -> Result<()> {
    let (begun, rows, now_ms) = (Instant::now(), run.kept.size.rows(), run.now_ms());
    let columns = columns(&*run.lease.client()?).await?;
    let at = run.at.clone();
    let doomed = doomed(&at, &columns);
    // A reset leaves no traces: the reference's records stand for what goes.
    let ceiling = at.reset.is_none().then(|| ceiling(&at));
    let (before, fresh) = (uncompared(&at), run.kept.fresh.take());
    if run.kept.helper.is_none() {
        run.kept.helper = Some(Helper::open(&run.work.db).await?);
    }
    let mut change = Change::begin(run.lease, &run.at).await?;
    let goes_on = before.is_none() || fresh.is_some();
    let copied = async {
        match goes_on {
            true => copy_next(&change.tx, &doomed, &at.position, rows).await.map(Some),
            false => Ok(None),
        }
    };
    let checked = async {
        match (before, run.kept.helper.as_mut()) {
            (Some(part), Some(helper)) => {
                check(helper, (&doomed, ceiling.as_deref()), part, fresh.ok_or(rows)).await.map(Some)
            }
            _ => Ok(None),
        }
    };
    let (copied, checked) = tokio::join!(copied, checked);
    if checked.is_err() {
        // The next one may find its session closed.
        run.kept.helper = None;
    }
    if let Some(checked) = checked? {
        count(&mut change.at, &checked.gone);
        change.at.comparison.add(checked.until, now_ms);
    }
    let fresh = copied?;
    if let Some(Fresh { range, .. }) = &fresh {
        change.at.done += range.rows;
        match &range.until {
            Some(until) => change.at.position.clone_from(until),
            None => {
                // Nothing follows in which the last range's traces could be left.
                count(&mut change.at, &traces(&change.tx, (&doomed, ceiling.as_deref()), range).await?);
                change.at.advance();
            }
        }
    }
    run.at = change.commit("copy a range of the log").await?;
    run.work.metrics.reclaim_rows_copied.inc_by(fresh.as_ref().map_or(0, |fresh| fresh.copied));
    let done = fresh.as_ref().map_or(rows, |fresh| fresh.range.rows as u32);
    run.kept.size.took(done, begun.elapsed());
    run.kept.fresh = fresh;
    Ok(())
}

/// What was copied and not yet compared: the key before it, and its last key.
fn uncompared(at: &Checkpoint) -> Option<(&str, &str)> {
    let before = at.comparison.last();
    (before != at.position).then_some((before, at.position.as_str()))
}

async fn copy_next(tx: &Transaction<'_>, doomed: &Doomed<'_>, after: &str, rows: u32) -> Result<Fresh> {
    let range = copy::range(tx, after, rows).await?;
    let copied = copy::copy(tx, doomed, &range).await?;
    Ok(Fresh { range, copied })
}

/// What came of a part that was dealt with.
struct Checked {
    until: String,
    gone: Vec<Gone>,
}

/// Leaves the traces of a part that was copied, and compares it with its copy:
/// all of what this process copied, or at most so many rows.
async fn check(
    helper: &mut Helper,
    (doomed, ceiling): (&Doomed<'_>, Option<&str>),
    (after, until): (&str, &str),
    part: std::result::Result<Fresh, u32>,
) -> Result<Checked> {
    let tx = helper.begin().await?;
    let (range, copied) = match part {
        Ok(Fresh { range, copied }) => (copy::again(&tx, range).await?, copied),
        Err(rows) => (copy::known_range(&tx, (after, Some(until)), rows).await?, 1),
    };
    let gone = traces(&tx, (doomed, ceiling), &range).await?;
    let rows: u64 = gone.iter().map(|gone| gone.rows).sum();
    // Where all of it goes there is nothing to compare.
    let all_goes = copied == 0 && rows == range.rows && copy::is_empty(&tx, &range).await?;
    if !all_goes {
        trusted(&copy::verify(&tx, doomed, &range).await?)?;
    }
    tx.commit().await.doing("commit the traces of a range")?;
    Ok(Checked { until: range.until.unwrap_or_else(|| until.to_owned()), gone })
}

/// Leaves the traces of a range, unless nothing of it can go.
async fn traces(
    tx: &Transaction<'_>,
    (doomed, ceiling): (&Doomed<'_>, Option<&str>),
    range: &Range,
) -> Result<Vec<Gone>> {
    // What was written to the range since it was found may hide what goes in it.
    match ceiling.is_none_or(|ceiling| range.is_above(ceiling)) {
        true => Ok(Vec::new()),
        false => Ok(copy::trace(tx, doomed, range).await?),
    }
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
