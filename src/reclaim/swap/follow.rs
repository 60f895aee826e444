//! The new table follows the log: what writers note is replayed, again and
//! again, until the swap. Snapshots from before it are waited for.

use super::super::decide::{Checkpoint, OldSnapshots, Phase};
use super::super::{Change, Result, Run};
use super::copying::trusted;
use crate::db;
use crate::db::activity::{self, Old};
use crate::db::clone::columns;
use crate::db::copy::{self, Copied};
use crate::db::short_lock::{Behind, Brief, briefly};
use crate::work::WaitFor;
use std::time::Duration;
use tokio::time::Instant;
use tracing::debug;

/// Noted keys replayed at once.
const KEYS: u32 = 2_000;
/// How often writes are replayed while something else is done.
const REPLAY_EVERY: Duration = Duration::from_secs(5);
/// The same, while it waits to go on.
const KEEP_UP_EVERY: Duration = Duration::from_secs(60);
/// How often the checkpoint is written though nothing was to be replayed: the
/// capture ends itself where nobody attends to it for 24 h.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Bytes of the list of noted keys from which on it is emptied as a whole.
const LONG_LIST: u64 = 16 << 20;
/// Where old snapshots took longer to end than this, younger ones are waited
/// for, too: rows were replayed meanwhile. Short statements never hold it up.
const FRESH_SNAPSHOT: Duration = Duration::from_secs(5);
/// Whoever holds an old snapshot for so long is named in status and log.
const NAMED_AFTER: Duration = Duration::from_secs(1);
/// Between two looks whether an old snapshot is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Fewer keys than this left: the swap's last replay takes them.
pub(super) const NEARLY_ALL: usize = 100;

pub(super) fn is_behind(run: &Run<'_>) -> bool {
    run.kept.replayed.is_none_or(|at| at.elapsed() > REPLAY_EVERY)
}

/// Replays a part of what was noted while the copy is at something else;
/// returns how many keys there were.
pub(super) async fn follows(run: &mut Run<'_>) -> Result<usize> {
    let keys = replay(run).await?;
    if keys < KEYS as usize {
        run.kept.replayed = Some(Instant::now());
        shorten(run).await?;
    }
    Ok(keys)
}

/// Replays what is noted while nothing else may be done: it stays little, and
/// the capture knows that it is attended to.
pub(in crate::reclaim) async fn keep_up(run: &mut Run<'_>) -> Result<()> {
    // Its transaction is not to stay open meanwhile.
    run.kept.second.settle().await?;
    let lately = run.kept.kept_up.is_some_and(|at| at.elapsed() < KEEP_UP_EVERY);
    if run.at.phase.follows() && !lately && follows(run).await? < KEYS as usize {
        run.kept.kept_up = Some(Instant::now());
    }
    Ok(())
}

/// Replays a part of what was noted; returns how many keys there were.
pub(super) async fn replay(run: &mut Run<'_>) -> Result<usize> {
    let (at, ceiling) = (run.at.clone(), ceiling(&run.at));
    let columns = columns(&*run.lease.client()?).await?;
    let change = Change::begin(run.lease, &run.at).await?;
    let keys = copy::replay(&change.tx, &columns, copied(&at), (&ceiling, KEYS)).await?;
    let is_told = run.kept.told.is_some_and(|at| at.elapsed() < TELL_EVERY);
    if keys.is_empty() && is_told {
        return Ok(0);
    }
    trusted(&copy::recheck(&change.tx, &columns, copied(&at), &keys).await?)?;
    run.at = change.commit("replay what was written").await?;
    run.kept.told = Some(Instant::now());
    Ok(keys.len())
}

/// How far the copy is that what was written is replayed to.
pub(super) fn copied(at: &Checkpoint) -> Copied<'_> {
    match at.phase {
        Phase::Judge => Copied::To(""),
        Phase::Copy => Copied::To(&at.position),
        _ => Copied::All,
    }
}

/// Under an old snapshot nothing that was taken from the list of noted keys can
/// be removed from it: where the list has grown, it is emptied as a whole,
/// before it is so long that the capture ends itself.
pub(super) async fn shorten(run: &mut Run<'_>) -> Result<()> {
    if copy::noted_bytes(&*run.lease.client()?).await? < LONG_LIST {
        return Ok(());
    }
    let (at, ceiling) = (run.at.clone(), ceiling(&run.at));
    let columns = columns(&*run.lease.client()?).await?;
    let mut differ = Vec::new();
    let came = briefly(run.lease, (&["opsward.captured"], Behind::Everybody), async |tx| {
        let keys = copy::empty_list(tx, &columns, copied(&at), (&ceiling, KEYS)).await?;
        differ = copy::recheck(tx, &columns, copied(&at), &keys).await?;
        match differ.is_empty() {
            true => Ok(()),
            false => Err(db::Error::Overtaken("empty the list of noted keys")),
        }
    });
    if let Brief::Held(who) | Brief::Refused(who) = came.await? {
        debug!(%who, "the list of noted keys is long, and could not be emptied yet");
    }
    trusted(&differ)
}

pub(super) async fn follow(run: &mut Run<'_>) -> Result<()> {
    if replay(run).await? < NEARLY_ALL {
        run.advance().await?;
    }
    Ok(())
}

/// Below it something goes.
pub(super) fn ceiling(at: &Checkpoint) -> String {
    let cuts = at.survivors.cuts.values().chain(at.survivors.compact.values());
    cuts.max().map(ToString::to_string).unwrap_or_default()
}

/// Waits for snapshots from before the youngest copied row: after the swap they
/// would read an emptied log. Who holds the oldest is named.
pub(super) async fn wait_for_snapshots(run: &mut Run<'_>) -> Result<bool> {
    if run.at.old_snapshots == OldSnapshots::Ignore {
        return Ok(false);
    }
    let client = run.lease.client()?;
    let (since, xid) = match run.kept.settled {
        Some(settled) => settled,
        None => (Instant::now(), db::in_place::next_xid(&*client).await?),
    };
    let holder = activity::holder(&*client, xid, Old::Snapshot).await?;
    run.kept.settled = Some((since, xid)).filter(|_| holder.is_some() || since.elapsed() < FRESH_SNAPSHOT);
    let Some(holder) = holder else {
        if run.kept.settled.is_none() {
            // It took long: others may be older than what was replayed since.
            run.kept.replayed = None;
        }
        // It may still wait for what it waited for.
        run.waited = run.waits.told().is_some();
        return Ok(run.kept.settled.is_none());
    };
    if since.elapsed() < NAMED_AFTER {
        run.waited = true;
        run.pacer.idle(LOOK_AGAIN).await;
        return Ok(true);
    }
    wait_for_reader(run, &holder).await;
    Ok(true)
}

pub(super) async fn wait_for_reader(run: &mut Run<'_>, who: &str) {
    let way_out = "--old-snapshots ignore swaps all the same, and then it reads an emptied log";
    run.wait(WaitFor::Snapshot, format!("the end of {who}; {way_out}"), LOOK_AGAIN).await;
}

/// Replays what was noted up to now; returns the transaction before which no snapshot may be
/// from to see all of it.
pub(super) async fn replay_all(run: &mut Run<'_>) -> Result<u64> {
    while replay(run).await? == KEYS as usize {}
    Ok(db::in_place::next_xid(&*run.lease.client()?).await?)
}
