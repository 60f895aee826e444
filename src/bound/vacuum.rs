//! VACUUM of the log: what was deleted is reused, so that growth is bounded.
//! Throttled by the pace, and given up for a while when a session waits
//! behind it.

use crate::db::lease::Lease;
use crate::db::maintain::{self, Ended};
use crate::work::{Halt, Pacer, Stop, Work};
use serde::Serialize;
use std::time::Duration;
use tracing::info;

/// Tries after a run; what yields every time is left to the next run.
const TRIES: u32 = 3;
/// Between two tries: whoever waited has its turn.
const REST: Duration = Duration::from_secs(2);
/// The delay at the gentle pace, in ms: what autovacuum uses by default.
const GENTLE_DELAY_MS: f64 = 2.0;

/// What came of a VACUUM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Vacuumed {
    /// It did its work.
    Done,
    /// Another session waited behind it, at every try.
    Yielded,
    /// Told to stop, paused, or outside its window.
    Stopped,
    /// The role does not own the table.
    Denied,
}

impl Vacuumed {
    /// It in a word, for labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Yielded => "yielded",
            Self::Stopped => "stopped",
            Self::Denied => "denied",
        }
    }
}

/// The VACUUM that follows a run: tried again a few times where it yielded.
///
/// # Errors
/// The database's.
pub async fn after(work: &Work, lease: &mut Lease, pacer: &mut Pacer) -> Result<Vacuumed, Stop> {
    let mut vacuumed = Vacuumed::Yielded;
    for _ in 0..TRIES {
        vacuumed = once(work, lease, pacer).await?;
        if vacuumed != Vacuumed::Yielded {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(REST) => {}
            () = work.stop.cancelled() => break,
        }
    }
    Ok(vacuumed)
}

/// One VACUUM.
///
/// # Errors
/// The database's.
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
    let settings = [("vacuum_cost_delay", format!("{:.2}ms", delay_ms(pacer.percent())))];
    let ended = maintain::watched(lease, &work.db, maintain::VACUUM, &settings, &work.stop).await?;
    Ok(match ended {
        Ended::Done => Vacuumed::Done,
        Ended::Yielded => Vacuumed::Yielded,
        Ended::Stopped => Vacuumed::Stopped,
    })
}

/// The delay that makes VACUUM work `percent` of the time, as autovacuum's
/// does for the gentle pace; at most what the server allows.
fn delay_ms(percent: u8) -> f64 {
    let per_share = |percent: f64| (100.0 - percent) / percent;
    (GENTLE_DELAY_MS * per_share(f64::from(percent.clamp(1, 100))) / per_share(25.0)).min(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_follows_the_pace() {
        assert!((delay_ms(25) - 2.0).abs() < 1e-9);
        assert!(delay_ms(100).abs() < 1e-9);
        assert!(delay_ms(1) > 60.0 && delay_ms(1) <= 100.0);
    }
}
