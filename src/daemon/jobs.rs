//! The lease kept in the daemon, and the jobs that commands hand over: they
//! and the daemon's own bulk work take turns with it.

use crate::bound::census::{self, Finished, Scope};
use crate::bound::guard;
use crate::bound::tick::{self, Which};
use crate::db::lease::{Slot, Turn};
use crate::db::{self, Client, jobs};
use crate::job::{Ended, Job, Trouble, carry_out};
use crate::supervisor::{Next, Outcome};
use crate::values::Progress;
use crate::work::{Pacer, Patience, Stop, Work};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How often it is looked for a job, and progress written.
const EVERY: Duration = Duration::from_secs(1);
/// How often a lease that another opsward holds is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// How long one task of the daemon keeps its turn while others wait.
const TURN: Duration = Duration::from_secs(60);

/// A run that has to end before it is done is no failure: it comes again.
fn halted<T>(result: Result<T, Stop>) -> anyhow::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(Stop::Halt(halt)) => {
            info!("bulk work waits: {halt}");
            Ok(None)
        }
        Err(Stop::Db(error)) => Err(error.into()),
    }
}

/// What every task of bulk work in the daemon shares.
#[derive(Clone)]
pub(super) struct Bulk {
    pub(super) slot: Slot,
    work: Work,
    said_held: Arc<AtomicBool>,
}

impl Bulk {
    pub(super) fn new(work: Work) -> Self {
        Self { slot: Slot::default(), work, said_held: Arc::default() }
    }

    /// The work of one run, which `stop` ends at the next batch.
    pub(super) fn work(&self, stop: CancellationToken) -> Work {
        Work { stop, ..self.work.clone() }
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
        if jobs::interrupted(&client, now).await? > 0 {
            info!("jobs that were begun and cut off are ended");
        }
        let Some(found) = jobs::claim(&client, now).await? else {
            return Ok(Next::After(EVERY));
        };
        info!(job = found.id, kind = found.kind, "a job was handed over");
        let ended = match serde_json::from_value::<Job>(found.args) {
            Ok(job) => self.carry_out(&client, (found.id, &job), &mut turn, stop).await?,
            Err(e) => Ended::Trouble(Trouble::refused(
                format!("the daemon does not know this job: {e}"),
                "run the same version of opsward as the daemon",
            )),
        };
        match &ended {
            Ended::Report(_) => info!(job = found.id, "the job is done"),
            Ended::Trouble(t) => warn!(job = found.id, fix = t.fix, "the job ended: {}", t.text),
        }
        jobs::finish(&client, found.id, &serde_json::to_value(&ended)?, self.work.clock.now()).await?;
        Ok(Next::After(EVERY))
    }

    /// Counts for a while; what is not done follows after the others' turns.
    pub(super) async fn census(self, stop: CancellationToken) -> Outcome {
        let Some(mut turn) = self.turn().await? else {
            return Ok(Next::After(AGAIN));
        };
        let work = self.work(stop);
        let mut pacer = Pacer::new(&work, None, Patience::End);
        let report = census::run_once(&work, turn.lease()?, &mut pacer, Scope::Due, TURN).await;
        Ok(match halted(report)? {
            Some(report) if report.finished != Finished::All => Next::After(AGAIN),
            _ => Next::Scheduled,
        })
    }

    /// One tick of a task that bounds the log.
    pub(super) async fn tick(self, which: Which, stop: CancellationToken) -> Outcome {
        let Some(mut turn) = self.turn().await? else {
            return Ok(Next::After(AGAIN));
        };
        let work = self.work(stop);
        let mut pacer = Pacer::new(&work, None, Patience::End);
        halted(tick::tick(&work, turn.lease()?, &mut pacer, &[which]).await)?;
        Ok(Next::Scheduled)
    }

    /// Puts the replay guard on the log or takes it away, as the setting says.
    pub(super) async fn guard(self, stop: CancellationToken) -> Outcome {
        let Some(mut turn) = self.turn().await? else {
            return Ok(Next::After(AGAIN));
        };
        let work = self.work(stop);
        match work.settings.bounding.replay_guard {
            true => guard::ensure(&work, turn.lease()?).await?,
            false => guard::remove(&work, turn.lease()?).await?,
        };
        Ok(Next::Scheduled)
    }

    async fn carry_out(
        &self,
        client: &Client,
        (id, job): (i64, &Job),
        turn: &mut Turn,
        stop: CancellationToken,
    ) -> db::Result<Ended> {
        let (told, mut progress) = watch::channel(Progress::default());
        let work = Work {
            stop,
            tell: Arc::new(move |progress| {
                let _ = told.send(progress);
            }),
            ..self.work.clone()
        };
        let mut whole = std::pin::pin!(carry_out(job, &work, turn.lease()?));
        loop {
            tokio::select! {
                ended = &mut whole => return Ok(ended),
                () = tokio::time::sleep(EVERY) => {
                    if progress.has_changed().unwrap_or(false) {
                        // The job goes on though nobody can be told how far it is.
                        let now = serde_json::to_value(&*progress.borrow_and_update()).unwrap_or_default();
                        if let Err(error) = jobs::progress(client, id, &now).await {
                            debug!(%error, "the progress of a job is not written");
                        }
                    }
                }
            }
        }
    }
}
