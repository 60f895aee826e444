//! The lease kept in the daemon, and the jobs that commands hand over: they
//! and the daemon's own bulk work take turns with it.

use crate::bound::census::{self, Finished, Scope};
use crate::bound::guard;
use crate::bound::tick::{self, TaskOutcome, Which};
use crate::bound::vacuum;
use crate::db::jobs;
use crate::db::lease::{Slot, Turn};
use crate::job::{Handed, JobEnd, carry_out};
use crate::pull::retry::apply_partial;
use crate::show::Failure;
use crate::supervisor::{Next, Outcome, Reports};
use crate::work::{Halt, Pacer, Stop, WaitFor, Waits, Work};
use futures_util::FutureExt;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often it is looked for a job, and progress written.
const EVERY: Duration = Duration::from_secs(1);
/// How often a lease that another opsward holds is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// How long one task of the daemon keeps its turn while others wait.
const TURN: Duration = Duration::from_secs(60);

/// How often it is looked whether `opsward resume` was said.
const PAUSED: Duration = Duration::from_secs(10);
/// How often it is looked whether there is disk again; each look may checkpoint,
/// which on a full disk is not for free.
const LITTLE_DISK: Duration = Duration::from_secs(600);
/// A window that opens later than this is looked at again before: clocks move.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// When work that was halted runs again: as soon as it may go on. Its schedule could miss a
/// short window.
fn after(halt: &Halt, now: Timestamp) -> Next {
    match halt {
        Halt::Stopped => Next::Scheduled,
        Halt::Paused(_) => Next::After(PAUSED),
        Halt::LittleDisk { .. } => Next::After(LITTLE_DISK),
        Halt::OutsideWindow(window) => {
            let opens = Duration::from_secs(window.opens_in(now.as_second()));
            Next::After(opens.clamp(EVERY, LONGEST_WAIT))
        }
    }
}

/// What every task of bulk work in the daemon shares.
#[derive(Clone)]
pub(super) struct Bulk {
    pub(super) slot: Slot,
    work: Work,
    reports: Reports,
    said_held: Arc<AtomicBool>,
    /// What tasks wait for.
    waits: Arc<Mutex<HashMap<&'static str, Waits>>>,
}

impl Bulk {
    pub(super) fn new(work: Work, reports: Reports) -> Self {
        Self { slot: Slot::default(), work, reports, said_held: Arc::default(), waits: Arc::default() }
    }

    /// The work of one run, which `stop` ends at the next batch.
    pub(super) fn work(&self, stop: CancellationToken) -> Work {
        Work { stop, ..self.work.clone() }
    }

    /// The same of a task of the daemon's own, whose report tells how far it is.
    fn work_of(&self, task: &'static str, stop: CancellationToken) -> Work {
        let reports = self.reports.clone();
        Work { tell: Arc::new(move |progress| reports.tell(task, progress)), ..self.work(stop) }
    }

    /// A turn with the lease; `None` while another opsward holds it.
    pub(super) async fn turn(&self) -> crate::db::Result<Option<Turn>> {
        match self.slot.turn(&self.work.db).await? {
            Ok(turn) => {
                self.said_held.store(false, Ordering::Relaxed);
                Ok(Some(turn))
            }
            Err(holder) => {
                if !self.said_held.swap(true, Ordering::Relaxed) {
                    let holder = holder.map_or("a session not to be seen".into(), |h| h.to_string());
                    warn!(%holder, "the lease is held elsewhere: nothing is counted or deleted here meanwhile");
                }
                Ok(None)
            }
        }
    }

    /// Keeps the lease, and does the next job that was handed over.
    pub(super) async fn next_job(self, stop: CancellationToken) -> Outcome {
        let Some(mut turn) = self.turn().await? else {
            return Ok(Next::After(AGAIN));
        };
        let client = self.work.db.client().await?;
        let now = self.work.clock.now();
        for id in jobs::expired(&client, now).await? {
            warn!(job = id, "a job that was not begun within a day is expired, and is not done");
        }
        if jobs::interrupted(&client, now).await? > 0 {
            info!("jobs that were begun and cut off are ended");
        }
        let Some(found) = jobs::claim(&client, now).await? else {
            return Ok(Next::After(EVERY));
        };
        drop(client);
        info!(job = found.id, kind = found.kind, "a job was handed over");
        let ended = match serde_json::from_value::<Handed>(found.args) {
            Ok(Handed { job, settings }) => {
                let mut ended = carry_out(found.id, &job, &self.work(stop), turn.lease()?).boxed().await;
                ended.tell(&job, &self.work.settings.differing(&settings));
                ended
            }
            Err(e) => JobEnd::Trouble(Failure::refused(
                format!("the daemon does not know this job: {e}"),
                "run the same version of opsward as the daemon",
            )),
        };
        match &ended {
            JobEnd::Report(_) => info!(job = found.id, "the job is done"),
            JobEnd::Trouble(t) => warn!(job = found.id, fix = t.fix, "the job ended: {}", t.text),
        }
        let client = self.work.db.client().await?;
        jobs::finish(&client, found.id, &serde_json::to_value(&ended)?, self.work.clock.now()).await?;
        Ok(Next::After(EVERY))
    }

    /// Counts for a while; what is not done follows after the others' turns.
    pub(super) async fn census(self, stop: CancellationToken) -> Outcome {
        let Some(mut turn) = self.turn().await? else {
            return Ok(Next::After(AGAIN));
        };
        let work = self.work_of("census", stop);
        let mut pacer = Pacer::new(&work, None);
        let report = census::run_once(&work, turn.lease()?, &mut pacer, Scope::Due, TURN).boxed().await;
        let is_all = match report {
            Ok(report) => report.finished == Finished::All,
            Err(Stop::Halt(_)) => false,
            Err(Stop::Db(error)) => return Err(error.into()),
        };
        let otherwise = if is_all { Next::Scheduled } else { Next::After(AGAIN) };
        Ok(self.next("census", turn.lease()?.pid(), &pacer, otherwise).await)
    }

    /// When a task runs again. What halted it is no failure: it is what the task waits for.
    async fn next(&self, task: &'static str, pid: i32, pacer: &Pacer, otherwise: Next) -> Next {
        let mut all = self.waits.lock().await;
        let waits = all.entry(task).or_insert_with(|| Waits::of(task));
        match pacer.halted() {
            None | Some(Halt::Stopped) => {
                if waits.told().is_some() {
                    waits.over(&self.work).await;
                }
                otherwise
            }
            Some(halt) => {
                let next = after(halt, self.work.clock.now());
                let pause = if let Next::After(pause) = next { pause } else { Duration::ZERO };
                waits.tell(&self.work, pid, (WaitFor::Turn, &halt.to_string()), pause).await;
                next
            }
        }
    }

    /// One tick of a task that bounds the log.
    pub(super) async fn tick(self, which: Which, stop: CancellationToken) -> Outcome {
        let Some(mut turn) = self.turn().await? else {
            return Ok(Next::After(AGAIN));
        };
        let work = self.work_of(which.word(), stop);
        let mut pacer = Pacer::new(&work, None);
        let lease = turn.lease()?;
        // Asked before the tick, so that the census is not counted for nothing.
        let ticked = match pacer.turn(lease).await {
            Ok(_) => tick::tick(&work, lease, &mut pacer, &[which], TURN).boxed().await,
            Err(halt @ Stop::Halt(Halt::LittleDisk { .. })) => {
                // What is due of it makes room.
                vacuum::after(&work, lease, &mut pacer).await.and(Err(halt))
            }
            Err(stop) => Err(stop),
        };
        let goes_on = match ticked {
            Ok(outcomes) => outcomes.iter().any(TaskOutcome::is_out_of_time),
            Err(Stop::Halt(_)) => false,
            Err(Stop::Db(error)) => return Err(error.into()),
        };
        let otherwise = if goes_on { Next::After(AGAIN) } else { Next::Scheduled };
        Ok(self.next(which.word(), turn.lease()?.pid(), &pacer, otherwise).await)
    }

    /// Puts the replay guard on the log or takes it away, as the setting says.
    pub(super) async fn guard(self, stop: CancellationToken) -> Outcome {
        let Some(mut turn) = self.turn().await? else {
            return Ok(Next::After(AGAIN));
        };
        let work = self.work_of("guard", stop);
        match work.settings.bounding.replay_guard {
            true => guard::ensure(&work, turn.lease()?).await?,
            false => guard::remove(&work, turn.lease()?).await?,
        };
        drop(turn);
        let applied = apply_partial(&mut work.db.client().await?, &work.clock).await?;
        if applied > 0 {
            info!(ops = applied, "ops that the replay guard kept from the node act in part");
        }
        Ok(Next::Scheduled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Window;

    #[test]
    fn what_was_halted_comes_as_soon_as_it_may() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let window = Halt::OutsideWindow(Window::parse("01:00-01:30").unwrap());
        let waits = |time: &str| match after(&window, at(time)) {
            Next::After(wait) => wait.as_secs(),
            next => panic!("{next:?}"),
        };
        assert_eq!(waits("2026-06-30T00:59:58Z"), 2);
        assert_eq!(waits("2026-06-30T00:59:59.9Z"), 1);
        assert_eq!(waits("2026-06-30T00:15:00Z"), 45 * 60);
        assert_eq!(waits("2026-06-30T01:30:00Z"), 3_600, "a clock may be set");
        let now = at("2026-06-30T00:00:00Z");
        let little = Halt::LittleDisk { free: 1, volume: "v".into(), floor: 2, whose: "it", cause: None };
        for halt in [Halt::Paused(now), little] {
            assert!(matches!(after(&halt, now), Next::After(wait) if wait <= LITTLE_DISK));
        }
        assert_eq!(after(&Halt::Stopped, now), Next::Scheduled);
    }
}
