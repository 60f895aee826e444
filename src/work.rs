//! Contract 5, Pace: what bulk work gets (`Work`), and what it asks before each batch
//! (`Pacer`). All bulk work obeys pause, pace, maintenance window, free disk, WAL and the stop
//! signal through this one place.

mod batch_size;
mod space;
mod waits;

use crate::clock::Clock;
use crate::db::lease::Lease;
use crate::db::maintain::{self, Ended};
use crate::db::stats::Volumes;
use crate::db::{self, Db, order, pace, stats};
use crate::metrics::Metrics;
use crate::settings::{Settings, Window};
use crate::values::{Host, Progress, bytes};
pub use batch_size::BatchSize;
use space::{AMPLE, Floor, LAST_WAL, LOOK_EVERY, LOWEST, Lack, Pulse, is_much_wal, lack};
pub use space::{Room, WAL_SEGMENT};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;
pub use waits::{WaitFor, Waits};

/// The delay of a VACUUM at the gentle pace, in ms: what autovacuum uses by
/// default.
const GENTLE_DELAY_MS: f64 = 2.0;
/// So many sessions waiting for the disk slow the work down as far as it goes.
const MOST_WAITING: u32 = 4;
/// The longest pause between two batches.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// What bulk work gets. The lease is passed separately, because each statement borrows it.
#[derive(Clone)]
pub struct Work {
    /// Pooled connections, for reading and for watching.
    pub db: Db,
    pub settings: Arc<Settings>,
    /// This validator.
    pub own: Host,
    /// The time.
    pub clock: Clock,
    /// The metrics.
    pub metrics: Metrics,
    /// Cancelled when it has to stop at the next batch.
    pub stop: CancellationToken,
    /// Where progress goes.
    pub tell: Arc<dyn Fn(Progress) + Send + Sync>,
}

/// Why work stopped before it was done. Nothing is lost: the next run goes on from there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Halt {
    /// Told to stop.
    #[error("told to stop")]
    Stopped,
    /// `opsward pause`.
    #[error("paused since {0}; `opsward resume` lets it go on")]
    Paused(jiff::Timestamp),
    /// Outside the maintenance window.
    #[error("outside OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW={0}")]
    OutsideWindow(Window),
    /// Too little disk is free.
    #[error("too little disk: only {} are free on {volume}, {whose} asks for {}{}",
        bytes(*free), bytes(*floor), cause.as_ref().map(|cause| format!("; {cause}")).unwrap_or_default())]
    LittleDisk {
        /// Bytes free.
        free: u64,
        /// Where.
        volume: String,
        /// Bytes asked for.
        floor: u64,
        /// What asks for them.
        whose: &'static str,
        /// What takes the space, where it is known.
        cause: Option<String>,
    },
}

/// What is looked at before a batch.
type Look = (pace::Signs, Volumes);

/// The pace of one run.
pub struct Pacer {
    work: Work,
    /// `--pace` of a command, before the database's.
    percent: Option<u8>,
    floor: Floor,
    rested: Instant,
    looked: Option<(Instant, Look)>,
    /// The order of the log's keys was checked and is right.
    is_ordered: bool,
    pulse: Pulse,
    may_checkpoint: bool,
    halted: Option<Halt>,
}

/// Why a run ended early, or what went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Told to stop, paused, outside the window, or too little disk.
    #[error(transparent)]
    Halt(#[from] Halt),
    /// The database's.
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl Pacer {
    /// A pace for one run; `percent` is the command's own word, 1 to 100.
    pub fn new(work: &Work, percent: Option<u8>) -> Self {
        let floor = Floor::new(work.settings.bounding.min_free_disk, "OPENAUDIO_MEDIORUM_MIN_FREE_DISK");
        Self {
            work: work.clone(),
            percent,
            floor,
            rested: Instant::now(),
            looked: None,
            is_ordered: false,
            pulse: Pulse::default(),
            may_checkpoint: true,
            halted: None,
        }
    }

    /// Lowers the free-disk floor: for work whose purpose is to give disk back.
    pub fn with_floor(mut self, bytes: u64) -> Self {
        if bytes < self.floor.bytes {
            self.floor = Floor::new(bytes, "work that gives disk back");
        }
        self
    }

    /// Before each batch: rests as long as the pace asks for the time worked
    /// since the last turn, makes the server checkpoint where WAL would fill
    /// the volume, and says whether the work may go on. Returns the free bytes
    /// where they are known.
    ///
    /// # Errors
    /// The work may not go on, or the database failed.
    pub async fn turn(&mut self, lease: &mut Lease) -> Result<Option<u64>, Stop> {
        self.turn_above(lease, self.floor).await
    }

    /// As [`Pacer::turn`], for work that hardly writes: it may go on as long as
    /// the server can.
    ///
    /// # Errors
    /// It may not, or the database's.
    pub async fn turn_reading(&mut self, lease: &mut Lease) -> Result<Option<u64>, Stop> {
        self.turn_above(lease, LOWEST).await
    }

    /// Why the last turn was refused or the last statement ended early.
    pub fn halted(&self) -> Option<&Halt> {
        self.halted.as_ref()
    }

    async fn turn_above(&mut self, lease: &mut Lease, floor: Floor) -> Result<Option<u64>, Stop> {
        let turned = self.wait_turn(lease, floor).await;
        self.halted = match &turned {
            Err(Stop::Halt(halt)) => Some(halt.clone()),
            _ => None,
        };
        turned
    }

    async fn wait_turn(&mut self, lease: &mut Lease, floor: Floor) -> Result<Option<u64>, Stop> {
        let worked = self.rested.elapsed();
        if !self.is_ordered {
            order::check(&self.work.db.client().await?).await?;
            self.is_ordered = true;
        }
        loop {
            if self.work.stop.is_cancelled() {
                return Err(Halt::Stopped.into());
            }
            let look = self.look().await?;
            let (signs, volumes) = &look;
            self.pulse.learn(signs.lsn);
            match self.halt(&look, floor, self.pulse) {
                Some(Halt::LittleDisk { .. })
                    if signs.wal_bytes > LAST_WAL && self.checkpoint(lease.client()?).await? =>
                {
                    // WAL may have filled the volume: look again after the checkpoint.
                    let look = self.look().await?;
                    if let Some(halt) = self.halt(&look, floor, self.pulse) {
                        return Err(named(halt, lease.client()?).await.into());
                    }
                    continue;
                }
                Some(halt) => return Err(named(halt, lease.client()?).await.into()),
                None => {}
            }
            if is_much_wal(signs, volumes) {
                self.checkpoint(lease.client()?).await?;
            }
            let percent = gentler(self.percent.unwrap_or(signs.percent).clamp(1, 100), signs.waiting);
            let rest = (worked * (100 - percent) / percent).min(LONGEST_REST);
            self.sleep(rest).await;
            self.rested = Instant::now();
            return Ok(volumes.least());
        }
    }

    /// The share of time at work, 1 to 100, as it was at the last turn.
    pub fn percent(&self) -> u8 {
        let signs = self.looked.as_ref().map_or(pace::GENTLE, |(_, (signs, _))| signs.percent);
        self.percent.unwrap_or(signs).clamp(1, 100)
    }

    /// Rests right after a turn, beyond what the pace asks for.
    pub async fn idle(&mut self, wait: Duration) {
        self.sleep(wait).await;
        self.rested = Instant::now();
    }

    /// Runs a long statement on the lease's connection, watched for who waits
    /// behind it; makes the server checkpoint meanwhile where WAL would fill
    /// the volume. What ends a run between two batches ends this one, too.
    pub async fn watch(
        &mut self,
        lease: &mut Lease,
        statement: &str,
        settings: &[(&str, String)],
        room: Room,
    ) -> db::Result<Ended> {
        let (db, stop) = (self.work.db.clone(), self.work.stop.child_token());
        // A statement that makes room goes on as long as the server itself has enough.
        let floor = if room == Room::Takes { self.floor } else { LOWEST };
        let ended = tokio::select! {
            ended = maintain::watched(lease, &db, statement, settings, &stop) => ended,
            never = self.attend(floor, &stop) => match never {},
        };
        if matches!(ended, Ok(Ended::Stopped)) && self.work.stop.is_cancelled() {
            self.halted = Some(Halt::Stopped);
        }
        // The statement had its own throttle, so no rest is due for it, and its WAL says nothing
        // about the WAL of a batch.
        self.rested = Instant::now();
        self.pulse.forget();
        ended
    }

    async fn attend(&mut self, floor: Floor, end: &CancellationToken) -> Infallible {
        let mut said = false;
        loop {
            sleep(LOOK_EVERY).await;
            match self.must_end(floor).await {
                Ok(Some(halt)) => {
                    self.halted = Some(halt);
                    end.cancel();
                }
                Ok(None) => {}
                Err(error) if !std::mem::replace(&mut said, true) => {
                    warn!(%error, "pause, window and disk are not watched for a moment");
                }
                Err(_) => {}
            }
        }
    }

    /// Why a statement that is under way must end.
    async fn must_end(&mut self, floor: Floor) -> db::Result<Option<Halt>> {
        let mut look = self.look().await?;
        let (signs, volumes) = &look;
        let is_little = volumes.least().is_some_and(|free| free < floor.bytes) && signs.wal_bytes > LAST_WAL;
        if is_little || is_much_wal(signs, volumes) {
            let client = self.work.db.client().await?;
            self.checkpoint(&client).await?;
            look = self.look().await?;
        }
        match self.halt(&look, floor, Pulse::default()) {
            Some(halt) => Ok(Some(named(halt, &self.work.db.client().await?).await)),
            None => Ok(None),
        }
    }

    /// The delay that makes a VACUUM work as large a share of the time as the
    /// pace says, as autovacuum's does for the gentle pace; at most what the
    /// server allows. In milliseconds.
    pub fn cost_delay_ms(&self) -> f64 {
        delay_ms(self.percent())
    }

    /// Bytes free on the database's volume, where that is known.
    pub async fn free(&mut self) -> db::Result<Option<u64>> {
        Ok(self.look().await?.1.least())
    }

    async fn look(&mut self) -> db::Result<Look> {
        if let Some((at, look)) = &self.looked
            && at.elapsed() < LOOK_EVERY
            && look.1.least().is_none_or(|free| free >= AMPLE)
        {
            return Ok(look.clone());
        }
        let signs = pace::signs(&self.work.db.client().await?).await?;
        let settings = &self.work.settings;
        let volumes = stats::volumes(settings.pgdata_path.as_deref(), &settings.db, &signs.places);
        let look = (signs, volumes);
        self.looked = Some((Instant::now(), look.clone()));
        Ok(look)
    }

    fn halt(&self, (signs, volumes): &Look, floor: Floor, pulse: Pulse) -> Option<Halt> {
        let window = self.work.settings.bounding.window;
        let now = self.work.clock.now().as_second();
        if let Some(at) = signs.paused_at {
            return Some(Halt::Paused(at));
        }
        if let Some(window) = window.filter(|window| !window.contains(now)) {
            return Some(Halt::OutsideWindow(window));
        }
        lack(volumes, floor, pulse).map(|Lack { volume, free }| Halt::LittleDisk {
            free,
            volume,
            floor: floor.bytes,
            whose: floor.whose,
            cause: None,
        })
    }

    async fn checkpoint(&mut self, client: &db::Client) -> db::Result<bool> {
        if self.may_checkpoint && !pace::checkpoint(client).await? {
            // Warned of once, at start.
            self.may_checkpoint = false;
        }
        self.looked = None;
        Ok(self.may_checkpoint)
    }

    async fn sleep(&self, wait: Duration) {
        tokio::select! {
            () = sleep(wait) => {}
            () = self.work.stop.cancelled() => {}
        }
    }
}

/// Says what takes the space, where that can be told.
async fn named(mut halt: Halt, client: &db::Client) -> Halt {
    if let Halt::LittleDisk { cause, .. } = &mut halt {
        *cause = pace::hoard(client).await.ok().flatten();
    }
    halt
}

/// The share of time at work, where so many sessions of others wait for the disk: they go first,
/// unless the pace is full.
fn gentler(percent: u8, waiting: u32) -> u32 {
    let percent = u32::from(percent);
    if percent == 100 { percent } else { (percent / (1 + waiting.min(MOST_WAITING))).max(1) }
}

fn delay_ms(percent: u8) -> f64 {
    let per_share = |percent: f64| (100.0 - percent) / percent;
    (GENTLE_DELAY_MS * per_share(f64::from(percent.clamp(1, 100))) / per_share(f64::from(pace::GENTLE)))
        .min(100.0)
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

    #[test]
    fn who_waits_for_the_disk_goes_first() {
        assert_eq!((gentler(25, 0), gentler(25, 1), gentler(25, 4), gentler(25, 99)), (25, 12, 5, 5));
        assert_eq!((gentler(3, 9), gentler(100, 9)), (1, 100));
    }
}
