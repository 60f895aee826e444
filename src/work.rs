//! Contract 5, Pace: what bulk work is handed, and what it asks before each
//! batch. Pause, pace, the maintenance window, free disk, WAL and the signal
//! to stop are obeyed here, for every task alike.

use crate::clock::Clock;
use crate::db::lease::Lease;
use crate::db::{self, Db, pace, stats};
use crate::metrics::Metrics;
use crate::settings::{Settings, Window};
use crate::values::{Host, Progress};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A CHECKPOINT is asked for when WAL since the last one passes this part of
/// the free space (contract 5: a quarter; without, a full volume fills up).
const WAL_PART: u64 = 4;
/// WAL below this is not worth a checkpoint: one segment of it.
const LEAST_WAL: u64 = 16 << 20;
/// Whatever is set, so much stays free: the server makes WAL by segments of
/// 16 MiB, and goes down where it cannot (seen on a full volume).
pub const WAL_SEGMENT: u64 = 16 << 20;
/// Before giving up for lack of disk, so little WAL is worth a checkpoint, too.
const LAST_WAL: u64 = 1 << 20;
/// How often the signs are read: batches may be shorter.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The delay of a VACUUM at the gentle pace, in ms: what autovacuum uses by
/// default.
const GENTLE_DELAY_MS: f64 = 2.0;
/// The longest pause between two batches.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// What bulk work is handed. The lease comes apart: it is borrowed anew for
/// each statement.
#[derive(Clone)]
pub struct Work {
    /// Pooled connections, for reading and for watching.
    pub db: Db,
    /// The settings.
    pub settings: Arc<Settings>,
    /// This validator.
    pub own: Host,
    /// The time.
    pub clock: Clock,
    /// Where it is counted.
    pub metrics: Metrics,
    /// Cancelled when it has to stop at the next batch.
    pub stop: CancellationToken,
    /// Where progress goes.
    pub tell: Arc<dyn Fn(Progress) + Send + Sync>,
}

/// Why work ends before it is done. Nothing is lost: it goes on from there.
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
    #[error("only {free} bytes are free on the database's volume, {whose} asks for {floor}")]
    LittleDisk {
        /// Bytes free.
        free: u64,
        /// Bytes asked for.
        floor: u64,
        /// What asks for them.
        whose: &'static str,
    },
}

/// What is done when work is paused or outside its window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// It ends, to come again at its next tick.
    End,
    /// It waits where it stands.
    Wait,
}

/// The pace of one run.
pub struct Pacer {
    work: Work,
    /// `--pace` of a command, before the database's.
    percent: Option<u8>,
    patience: Patience,
    /// Bytes that must be free, and what asks for them.
    floor: (u64, &'static str),
    rested: Instant,
    looked: Option<(Instant, pace::Signs, Option<u64>)>,
    may_checkpoint: bool,
    /// Ends the statement that is attended.
    end: CancellationToken,
}

/// Why a run ended early, or what went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// It is to end here.
    #[error(transparent)]
    Halt(#[from] Halt),
    /// The database's.
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl Pacer {
    /// A pace for one run; `percent` is the command's own word, 1 to 100.
    pub fn new(work: &Work, percent: Option<u8>, patience: Patience) -> Self {
        let floor = lifted(work.settings.bounding.min_free_disk, "OPENAUDIO_MEDIORUM_MIN_FREE_DISK");
        Self {
            work: work.clone(),
            percent,
            patience,
            floor,
            rested: Instant::now(),
            looked: None,
            may_checkpoint: true,
            end: work.stop.child_token(),
        }
    }

    /// Lowers the free-disk floor: for work whose purpose is to give disk back.
    pub fn with_floor(mut self, bytes: u64) -> Self {
        if bytes < self.floor.0 {
            self.floor = lifted(bytes, "work that gives disk back");
        }
        self
    }

    /// Before each batch: rests as long as the pace asks for the time worked
    /// since the last turn, makes the server checkpoint where WAL would fill
    /// the volume, and says whether the work may go on. Returns the free bytes
    /// where they are known.
    ///
    /// # Errors
    /// It may not, or the database's.
    pub async fn turn(&mut self, lease: &mut Lease) -> Result<Option<u64>, Stop> {
        let worked = self.rested.elapsed();
        loop {
            if self.work.stop.is_cancelled() {
                return Err(Halt::Stopped.into());
            }
            let (signs, free) = self.look().await?;
            match self.halt(&signs, free) {
                Some(Halt::LittleDisk { .. })
                    if signs.wal_bytes > LAST_WAL && self.checkpoint(lease.client()?).await? =>
                {
                    // WAL may have been what filled it; look once more.
                    let (signs, free) = self.look().await?;
                    if let Some(halt) = self.halt(&signs, free) {
                        return Err(halt.into());
                    }
                    continue;
                }
                Some(Halt::Paused(_) | Halt::OutsideWindow(_)) if self.patience == Patience::Wait => {
                    self.looked = None;
                    self.sleep(Duration::from_secs(1)).await;
                    continue;
                }
                Some(halt) => return Err(halt.into()),
                None => {}
            }
            if let Some(free) = free
                && signs.wal_bytes > (free / WAL_PART).max(LEAST_WAL)
            {
                self.checkpoint(lease.client()?).await?;
            }
            let percent = u32::from(self.percent.unwrap_or(signs.percent).clamp(1, 100));
            let rest = (worked * (100 - percent) / percent).min(LONGEST_REST);
            self.sleep(rest).await;
            self.rested = Instant::now();
            return Ok(free);
        }
    }

    /// The share of time at work, 1 to 100, as it was at the last turn.
    pub fn percent(&self) -> u8 {
        let signs = self.looked.as_ref().map_or(pace::GENTLE, |(_, signs, _)| signs.percent);
        self.percent.unwrap_or(signs).clamp(1, 100)
    }

    /// Rests right after a turn, beyond what the pace asks for.
    pub async fn idle(&mut self, wait: Duration) {
        self.sleep(wait).await;
        self.rested = Instant::now();
    }

    /// What ends the next statement that is attended: the signal to stop, and
    /// that the disk is all but full.
    pub fn ending(&mut self) -> CancellationToken {
        self.end = self.work.stop.child_token();
        self.end.clone()
    }

    /// Attends a long statement on the lease's connection: makes the server
    /// checkpoint meanwhile where WAL would fill the volume, and has it end
    /// where that is not enough.
    pub async fn attend<T>(&mut self, statement: impl Future<Output = T>) -> T {
        let done = tokio::select! {
            done = statement => done,
            never = self.keep_room() => match never {},
        };
        // It had its own throttle: no rest is due for it.
        self.rested = Instant::now();
        done
    }

    async fn keep_room(&mut self) -> std::convert::Infallible {
        loop {
            sleep(LOOK_EVERY).await;
            let looked: db::Result<()> = async {
                let (signs, free) = self.look().await?;
                let is_full = free.is_some_and(|free| free < WAL_SEGMENT);
                if is_full || free.is_some_and(|free| signs.wal_bytes > (free / WAL_PART).max(LEAST_WAL)) {
                    let mut client = self.work.db.client().await?;
                    self.checkpoint(&mut client).await?;
                }
                if is_full && self.look().await?.1.is_some_and(|free| free < WAL_SEGMENT) {
                    warn!("the disk is all but full: what is being done ends here");
                    self.end.cancel();
                }
                Ok(())
            }
            .await;
            if let Err(error) = looked {
                warn!(%error, "the disk is not watched for a moment");
            }
        }
    }

    /// The delay that makes a VACUUM work as large a share of the time as the
    /// pace says, as autovacuum's does for the gentle pace; at most what the
    /// server allows. In milliseconds.
    pub fn cost_delay_ms(&self) -> f64 {
        delay_ms(self.percent())
    }

    /// Bytes free on the database's volume, where that is known.
    ///
    /// # Errors
    /// The database's.
    pub async fn free(&mut self) -> db::Result<Option<u64>> {
        Ok(self.look().await?.1)
    }

    async fn look(&mut self) -> db::Result<(pace::Signs, Option<u64>)> {
        if let Some((at, signs, free)) = &self.looked
            && at.elapsed() < LOOK_EVERY
        {
            return Ok((signs.clone(), *free));
        }
        let signs = pace::signs(&self.work.db.client().await?).await?;
        let settings = &self.work.settings;
        let free =
            stats::free_disk(settings.pgdata_path.as_deref(), &settings.db, signs.data_directory.as_deref())
                .map(|(bytes, _)| bytes);
        self.looked = Some((Instant::now(), signs.clone(), free));
        Ok((signs, free))
    }

    fn halt(&self, signs: &pace::Signs, free: Option<u64>) -> Option<Halt> {
        let window = self.work.settings.bounding.window;
        let now = self.work.clock.now().as_second();
        match (signs.paused_at, window, free) {
            (Some(at), ..) => Some(Halt::Paused(at)),
            (_, Some(window), _) if !window.contains(now) => Some(Halt::OutsideWindow(window)),
            (.., Some(free)) if free < self.floor.0 => {
                let (floor, whose) = self.floor;
                Some(Halt::LittleDisk { free, floor, whose })
            }
            _ => None,
        }
    }

    async fn checkpoint(&mut self, client: &mut db::Client) -> db::Result<bool> {
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

/// A floor is never below what the server needs.
fn lifted(bytes: u64, whose: &'static str) -> (u64, &'static str) {
    match bytes < WAL_SEGMENT {
        true => (WAL_SEGMENT, "the server's WAL"),
        false => (bytes, whose),
    }
}

fn delay_ms(percent: u8) -> f64 {
    let per_share = |percent: f64| (100.0 - percent) / percent;
    (GENTLE_DELAY_MS * per_share(f64::from(percent.clamp(1, 100))) / per_share(f64::from(pace::GENTLE)))
        .min(100.0)
}

/// Steers a batch to a duration: grows by half at most, shrinks at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchSize {
    rows: u32,
    most: u32,
    target: Duration,
}

impl BatchSize {
    /// Begins with `first` rows, never over `most`, aiming at `target` a batch.
    pub fn new(first: u32, most: u32, target: Duration) -> Self {
        Self { rows: first.min(most).max(1), most: most.max(1), target }
    }

    /// Rows of the next batch.
    pub fn rows(self) -> u32 {
        self.rows
    }

    /// Learns from a batch of so many rows.
    pub fn took(&mut self, rows: u32, time: Duration) {
        let per_row = time.as_secs_f64() / f64::from(rows.max(1));
        let fits = (self.target.as_secs_f64() / per_row.max(1e-9)).min(f64::from(self.most));
        let grown = f64::from(self.rows) * 1.5 + 1.0;
        self.rows = (fits.min(grown) as u32).clamp(1, self.most);
    }

    /// A batch ran out of its time: a quarter of it is tried next.
    pub fn too_long(&mut self) {
        self.rows = (self.rows / 4).max(1);
    }
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
    fn batches_are_steered() {
        let mut size = BatchSize::new(1_000, 10_000, Duration::from_millis(100));
        size.took(1_000, Duration::from_millis(10));
        assert_eq!(size.rows(), 1_501);
        for _ in 0..20 {
            size.took(size.rows(), Duration::from_micros(10) * size.rows());
        }
        assert_eq!(size.rows(), 10_000);
        size.took(10_000, Duration::from_secs(1));
        assert_eq!(size.rows(), 1_000);
        size.too_long();
        assert_eq!(size.rows(), 250);
        size.took(0, Duration::from_secs(9));
        assert_eq!(size.rows(), 1);
    }
}
