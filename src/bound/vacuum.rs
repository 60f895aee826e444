//! VACUUM of the log: what was deleted is reused, so that growth is bounded.
//! Throttled by the pace, and given up for a while when a session waits
//! behind it.

use crate::db::lease::Lease;
use crate::db::maintain::{self, Ended};
use crate::values::{Progress, words};
use crate::work::{Halt, Pacer, Room, Stop, WaitFor, Waits, Work};
use std::time::Duration;
use tracing::info;

/// Tries after a run; what yields every time is left to the next run, whether
/// that deletes anything or not.
const TRIES: u32 = 3;
/// Between two tries: whoever waited has its turn.
const REST: Duration = Duration::from_secs(2);

words! {
    /// What came of a VACUUM.
    pub enum Vacuumed {
        /// It did its work.
        Done = "done",
        /// Another session waited behind it, at every try.
        Yielded = "yielded",
        /// Told to stop, paused, or outside its window.
        Stopped = "stopped",
        /// The role does not own the table.
        Denied = "denied",
    }
}

/// The VACUUM after deletions of this run or earlier ones, where it pays: tried
/// again a few times where it yielded. `None` where none is due.
pub async fn after(work: &Work, lease: &mut Lease, pacer: &mut Pacer) -> Result<Option<Vacuumed>, Stop> {
    let (mut vacuumed, mut waits) = (Vacuumed::Yielded, Waits::of("VACUUM"));
    if !maintain::vacuum_pays(&work.db.client().await?).await? {
        waits.over(work).await;
        return Ok(None);
    }
    for _ in 0..TRIES {
        vacuumed = once(work, lease, pacer).await?;
        if vacuumed != Vacuumed::Yielded {
            waits.over(work).await;
            break;
        }
        let what = (WaitFor::Others, "the sessions that waited behind VACUUM");
        waits.tell(work, lease.pid(), what, REST).await;
        tokio::select! {
            () = tokio::time::sleep(REST) => {}
            () = work.stop.cancelled() => break,
        }
    }
    Ok(Some(vacuumed))
}

/// One VACUUM.
pub async fn once(work: &Work, lease: &mut Lease, pacer: &mut Pacer) -> Result<Vacuumed, Stop> {
    let vacuumed = vacuum(work, lease, pacer).await?;
    work.metrics.vacuums.with_label_values(&[vacuumed.word()]).inc();
    // That it is denied is warned of once, at start.
    info!(outcome = vacuumed.word(), "VACUUM of ops");
    Ok(vacuumed)
}

async fn vacuum(work: &Work, lease: &mut Lease, pacer: &mut Pacer) -> Result<Vacuumed, Stop> {
    match pacer.turn(lease).await {
        // VACUUM gives room to new rows: a full disk is no reason against it.
        Ok(_) | Err(Stop::Halt(Halt::LittleDisk { .. })) => {}
        Err(Stop::Halt(_)) => return Ok(Vacuumed::Stopped),
        Err(error) => return Err(error),
    }
    if !maintain::may_vacuum(&work.db.client().await?).await? {
        return Ok(Vacuumed::Denied);
    }
    (work.tell)(Progress { phase: "VACUUM of ops".into(), ..Progress::default() });
    let settings = [("vacuum_cost_delay", format!("{:.2}ms", pacer.cost_delay_ms()))];
    Ok(match pacer.watch(lease, maintain::VACUUM, &settings, Room::Makes).await? {
        Ended::Done => {
            maintain::vacuumed(lease).await?;
            Vacuumed::Done
        }
        Ended::Yielded => Vacuumed::Yielded,
        Ended::Stopped => Vacuumed::Stopped,
    })
}
