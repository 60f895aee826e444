//! From deleted rows to free disk: VACUUM, rows to the front, the end cut off,
//! indexes written anew.

use super::super::decide::Phase;
use super::super::walk::watched;
use super::super::{Change, Error, Result, Run};
use super::{drop_leftover, leftover, others_build};
use crate::db::activity::{self, Old};
use crate::db::{self, Doing, in_place, maintain};
use crate::work::WaitFor;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Pages of the first range that is emptied, and of the largest.
pub(super) const PAGES: (u32, u32) = (64, 2_048);
/// How often it is looked whether an old snapshot is gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Whoever waited behind a VACUUM has its turn (contract 6: at least 2 s).
pub(super) const REST: Duration = Duration::from_secs(2);
/// The same where it is over in a moment: a writer at the end of the table, a
/// snapshot of a short statement.
const SHORT_REST: Duration = Duration::from_millis(500);
/// Between two tries of a REINDEX, and how many there are.
const REINDEX_REST: Duration = Duration::from_secs(10);
const REINDEX_TRIES: u32 = 6;
/// Passes that give back less than a hundredth before the end stays as it is.
/// The rest before each is twice as long as before the one before it: what was
/// moved away, and what a writer put there, has to become free in between.
const FRUITLESS: u32 = 6;
/// Why a VACUUM did not do all: old transactions of other databases pass their
/// age on to whoever is in this one at that moment; the lock on the end of the
/// table is had only when nobody writes.
const SEEN: &str = "a moment in which no transaction sees deleted rows or keeps the end of ops locked";
/// Why a pass begins later.
const WRITTEN: &str = "the last pages of ops, to which rows were written, to become free";
/// Give up after this many VACUUMs that could not remove everything.
const SEEN_TRIES: u32 = 120;
/// Pages that are not worth another pass, nor another hundredth of the table.
const A_FEW: u64 = 32;
/// TOAST is written anew for at least these bytes, and a quarter of it.
const LEAST_TOAST: u64 = 1 << 20;
/// Pages of the log that tell how much it holds out of line.
const SAMPLE_PAGES: f64 = 2_000.0;

/// Waits a second where something older than the last change is still held, and
/// names who holds it: moved rows would not free what they leave.
pub(super) async fn held(run: &mut Run<'_>, old: Old) -> Result<bool> {
    let settled = match run.at.settled {
        Some(settled) => settled,
        None => {
            let next = in_place::next_xid(&*run.lease.client()?).await?;
            run.at.settled = Some(next);
            run.save().await?;
            next
        }
    };
    let Some(holder) = activity::holder(&*run.lease.client()?, settled, old).await? else {
        return Ok(false);
    };
    let what = format!("the end of {holder}; what was deleted can't be removed before");
    run.wait(WaitFor::Snapshot, what, LOOK_AGAIN).await;
    Ok(true)
}

/// Where this role may not VACUUM the table, the server only says so in a notice.
pub(super) async fn may_vacuum(run: &mut Run<'_>) -> Result<()> {
    if maintain::may_vacuum(run.lease.client()?).await? {
        return Ok(());
    }
    Err(Error::refused(
        "this role does not own public.ops and may not VACUUM it",
        "use the node's own role in OPENAUDIO_DB_URL, or see docs/roles.sql, level bound",
    ))
}

/// Deleted rows become free space, which the free space map knows.
pub(super) async fn vacuum(run: &mut Run<'_>) -> Result<()> {
    may_vacuum(run).await?;
    if held(run, Old::Any).await? {
        return Ok(());
    }
    maintain::tell_figures(run.lease).await?;
    if !watched(run, maintain::VACUUM).await? {
        run.wait(WaitFor::Others, "the sessions that waited behind VACUUM".into(), REST).await;
        return Ok(());
    }
    maintain::vacuumed(run.lease).await?;
    let dead = db::stats::figures(&*run.lease.client()?).await?.dead_rows;
    let gone: u64 = run.at.gone.values().map(|gone| gone.rows).sum();
    if dead > gone / 10 && run.place.tries < SEEN_TRIES {
        run.place.tries += 1;
        run.wait(WaitFor::Snapshot, SEEN.into(), SHORT_REST).await;
        return Ok(());
    }
    run.advance().await
}

/// The TOAST table while its values move to the front.
#[derive(Clone)]
pub(super) struct Moving {
    movable: in_place::Movable,
    /// Its bytes when it began.
    first: u64,
    /// What the log's rows hold out of line, as sampled.
    live: u64,
    /// Bytes that may be written before it has to be vacuumed: what is free in it.
    room: u64,
}

/// A batch of what is stored out of line, written anew into free space in
/// front. Only the keys' order meets each row once.
pub(super) async fn rewrite(run: &mut Run<'_>) -> Result<()> {
    let Some(toast) = in_place::toast(&*run.lease.client()?).await? else { return run.advance().await };
    let moving = match run.place.toast.take() {
        Some(moving) => moving,
        None => match begin_rewrite(run, &toast).await? {
            Some(moving) => moving,
            None => return run.advance().await,
        },
    };
    let moving = run.place.toast.insert(moving).clone();
    // What a batch writes at most, by the one before it.
    if moving.room < run.place.written {
        return make_room(run, &toast, moving).await;
    }
    let (begun, rows) = (Instant::now(), run.place.size.rows());
    let mut change = Change::begin(run.lease, &run.at).await?;
    let done = in_place::rewrite(&change.tx, &moving.movable, &run.at.position, rows).await?;
    change.at.done += done.scanned;
    match done.last {
        Some(last) => change.at.position = last,
        None => change.at.advance(),
    }
    run.at = change.commit("commit rewritten rows").await?;
    run.place.size.took(u32::try_from(done.scanned).unwrap_or(u32::MAX).max(1), begun.elapsed());
    run.place.written = done.bytes;
    run.place.toast = Some(Moving { room: moving.room.saturating_sub(done.bytes), ..moving });
    Ok(())
}

/// What there is to move, where that is worth it: a quarter of the TOAST table is free.
async fn begin_rewrite(run: &mut Run<'_>, toast: &in_place::Toast) -> Result<Option<Moving>> {
    if toast.bytes <= LEAST_TOAST {
        return Ok(None);
    }
    let movable = in_place::movable(&*run.lease.client()?).await?;
    let pages = in_place::size(&*run.lease.client()?).await?.pages;
    let percent = (100.0 * SAMPLE_PAGES / pages.max(1) as f64).min(100.0) as f32;
    let tx = run.lease.begin().await?;
    let live = in_place::out_of_line(&tx, &movable, percent).await?.min(toast.bytes);
    tx.rollback().await.doing("end a sample")?;
    let free = toast.bytes - live;
    info!(toast = toast.name, bytes = toast.bytes, live, "values stored out of line");
    let is_worth_it = free > LEAST_TOAST && free > toast.bytes / 4;
    Ok(is_worth_it.then_some(Moving { movable, first: toast.bytes, live, room: free }))
}

/// What was rewritten becomes free, unless that takes longer than it is worth.
async fn make_room(run: &mut Run<'_>, toast: &in_place::Toast, moving: Moving) -> Result<()> {
    if held(run, Old::Any).await? {
        return Ok(());
    }
    if !watched(run, &toast.vacuum()).await? {
        run.wait(WaitFor::Others, "the sessions that waited behind VACUUM".into(), REST).await;
        return Ok(());
    }
    run.at.settled = None;
    let room = toast.bytes.saturating_sub(moving.live);
    if toast.bytes > moving.first + moving.first / 50 || room < run.place.written {
        warn!(toast = toast.name, "it has no room for its own rows in front, and stays as it is");
        return run.advance().await;
    }
    run.place.toast = Some(Moving { room, ..moving });
    Ok(())
}

/// A range of pages at the end, emptied; the end of it all where no room is
/// left in front.
pub(super) async fn move_rows(run: &mut Run<'_>) -> Result<()> {
    let to = match run.at.position.parse::<u64>() {
        Ok(page) => page,
        Err(_) => {
            let pages = in_place::size(&*run.lease.client()?).await?.pages;
            (run.at.total, run.at.position) = (Some(pages), pages.to_string());
            run.save().await?;
            pages
        }
    };
    if held(run, Old::Any).await? {
        return Ok(());
    }
    if to == 0 {
        return moved(run, to).await;
    }
    let (begun, pages) = (Instant::now(), run.place.size.rows());
    let from = to.saturating_sub(u64::from(pages));
    let mut change = Change::begin(run.lease, &run.at).await?;
    let range = in_place::empty_pages(&change.tx, from, to).await?;
    change.at.position = range.from.to_string();
    change.at.done += to - range.from;
    run.at = change.commit("commit moved rows").await?;
    if range.locked > 0 {
        info!(rows = range.locked, from, "locked rows stay for the next pass");
    }
    if range.stuck > 0 {
        return moved(run, range.from).await;
    }
    run.place.size.took(u32::try_from(to - range.from).unwrap_or(u32::MAX), begun.elapsed());
    Ok(())
}

/// No row can move any more: the table could end at page `end`.
async fn moved(run: &mut Run<'_>, end: u64) -> Result<()> {
    run.at.advance();
    let total = run.at.total.unwrap_or(end);
    // After a round that gained much, one that moves hardly a page has nothing to cut off.
    if run.at.rounds > 0 && run.at.pass == 0 && total.saturating_sub(end) <= little(total) {
        return run.advance().await;
    }
    run.at.position = end.to_string();
    // A snapshot from before now sees rows in the pages to be cut off.
    run.at.settled = None;
    run.save().await
}

/// The empty end goes, unless something is in it again: then another pass.
pub(super) async fn truncate(run: &mut Run<'_>) -> Result<()> {
    if held(run, Old::Any).await? {
        return Ok(());
    }
    maintain::tell_figures(run.lease).await?;
    if !watched(run, maintain::VACUUM_AND_TRUNCATE).await? {
        // Writers are left alone for a moment; what else waited has its turn.
        let pause = run.lease.pause().unwrap_or(REST);
        run.wait(WaitFor::Others, "the sessions that waited behind VACUUM".into(), pause).await;
        return Ok(());
    }
    let pages = in_place::size(&*run.lease.client()?).await?.pages;
    let before = run.at.total.unwrap_or(pages);
    let end = run.at.position.parse::<u64>().unwrap_or(0);
    let (gained, left) = (before.saturating_sub(pages), pages.saturating_sub(end));
    let little = little(before);
    if run.place.tries < SEEN_TRIES && is_kept(run, (end, pages, little)).await? {
        // To move rows again would only take more room.
        run.place.tries += 1;
        run.wait(WaitFor::Snapshot, SEEN.into(), SHORT_REST).await;
        return Ok(());
    }
    info!(before, pages, end, "the end of the table was cut off");
    let is_done = gained <= little && left <= little;
    run.at.pass = if gained > little { 0 } else { run.at.pass + 1 };
    run.at.rounds += 1;
    if is_done || run.at.pass >= FRUITLESS {
        if !is_done {
            warn!(
                pages = left,
                "the end of the table could not be cut off: rows were written to it each time"
            );
        }
        return run.advance().await;
    }
    run.at.phase = Phase::Move;
    run.at.position.clear();
    (run.at.done, run.at.settled) = (0, None);
    let fruitless = run.at.pass;
    run.save().await?;
    if fruitless > 0 {
        run.wait(WaitFor::Snapshot, WRITTEN.into(), SHORT_REST * 2_u32.pow(fruitless)).await;
    }
    Ok(())
}

/// Pages that are not worth another round.
fn little(pages: u64) -> u64 {
    (pages / 100).max(A_FEW)
}

/// Whether a VACUUM left what it could have taken: an empty end, for the lock on
/// the table, or rows that were moved away, for a snapshot.
async fn is_kept(run: &mut Run<'_>, (end, pages, little): (u64, u64, u64)) -> Result<bool> {
    let client = run.lease.client()?;
    if pages.saturating_sub(end) > little && in_place::is_empty(&*client, end, pages).await? {
        return Ok(true);
    }
    // Some seven rows fill a page.
    Ok(db::stats::figures(client).await?.dead_rows > pages / 8 + A_FEW * 8)
}

/// The next index that is larger than it has to be; after the last one it is
/// all done.
pub(super) async fn reindex(run: &mut Run<'_>) -> Result<()> {
    if others_build(run).await? {
        return Ok(());
    }
    if leftover(run).await?.is_some() {
        return drop_leftover(run).await;
    }
    let bloated = in_place::bloated(&*run.lease.client()?).await?;
    let Some(index) = bloated.into_iter().find(|index| !run.place.left.contains(&index.name)) else {
        return run.advance().await;
    };
    let floor = run.work.settings.bounding.min_free_disk.min(super::super::plan::IN_PLACE_FLOOR);
    let needs = 2 * index.anew + floor;
    if let Some(free) = run.pacer.free().await?.filter(|free| *free < needs) {
        warn!(index = index.name, free, needs, "too little disk is free to write it anew: it stays as it is");
        run.place.left.push(index.name);
        return Ok(());
    }
    let is_done = watched(run, &in_place::reindex(&index)).await?;
    run.place.tries = if is_done { 0 } else { run.place.tries + 1 };
    if is_done || run.place.tries >= REINDEX_TRIES {
        if !is_done {
            warn!(index = index.name, "other sessions waited behind each REINDEX: it stays as it is");
        }
        run.place.left.push(index.name);
        return Ok(());
    }
    run.wait(WaitFor::Others, "the sessions that waited behind REINDEX".into(), REINDEX_REST).await;
    Ok(())
}
