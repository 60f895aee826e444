//! Work that takes the lease. A command does it itself, or hands it to the
//! daemon that holds the lease; both come through `carry_out`.

use crate::bound::census::{self, Finished, Scope};
use crate::bound::decide::Facts;
use crate::bound::facts;
use crate::bound::guard;
use crate::bound::tick::{self, Pruned, TaskOutcome, Which};
use crate::db;
use crate::db::jobs;
use crate::db::lease::Lease;
use crate::reclaim::{self, Action};
use crate::show::{ExitCode, Failure};
use crate::values::Progress;
use crate::work::{Halt, Pacer, Stop, Work};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// A job as a command hands it to the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    /// The work.
    #[serde(flatten)]
    pub job: Job,
    /// What the command's settings say of deletion: the daemon's own count, and it tells where
    /// they differ.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// A piece of work with its arguments, as it stands in `opsward.jobs`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Job {
    /// Brings the census up to date.
    Census {
        /// What is counted.
        scope: Scope,
        /// `--pace`, 1 to 100.
        percent: Option<u8>,
    },
    /// One tick of the tasks that bound the log.
    Prune {
        /// Which.
        tasks: Vec<Which>,
        /// `--pace`, 1 to 100; else the pace in the database.
        percent: Option<u8>,
    },
    /// Gives the disk back.
    Reclaim(reclaim::Request),
}

impl Job {
    /// Which work it is: the word of its command.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Census { .. } => "census",
            Self::Prune { .. } => "prune",
            Self::Reclaim(_) => "reclaim",
        }
    }
}

/// How a job came out, as it stands in `opsward.jobs`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEnd {
    /// Its report.
    Report(Value),
    /// Why there is none.
    Trouble(Failure),
}

impl JobEnd {
    /// Tells which settings of the command are others than those that the job was done with.
    pub fn tell(&mut self, job: &Job, differ: &[[String; 3]]) {
        if differ.is_empty() || matches!(job, Job::Census { .. }) {
            return;
        }
        match self {
            Self::Report(report) => report["settings_differ"] = json!(differ),
            Self::Trouble(failure) => {
                let all: Vec<String> = differ.iter().map(one_differs).collect();
                failure.text.push_str(&format!("; the daemon has its own settings: {}", all.join(", ")));
            }
        }
    }
}

/// A setting, the command's and the daemon's.
pub fn one_differs([name, here, there]: &[String; 3]) -> String {
    format!("{name} is {here} here and {there} there")
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Db(error) => error.into(),
            Stop::Halt(Halt::Stopped) => {
                failed("stopped; what was done so far stays", "the same command goes on from there")
            }
            Stop::Halt(halt) => Self::refused(halt.to_string(), "what was done so far stays"),
        }
    }
}

impl From<reclaim::Error> for Failure {
    fn from(error: reclaim::Error) -> Self {
        let text = error.to_string();
        match error {
            reclaim::Error::Refused { why, fix } => Self::refused(why, fix),
            reclaim::Error::Db(error) => error.into(),
            reclaim::Error::Halted(_) => {
                failed(text, "`opsward reclaim --resume` goes on from there, `--abort` ends it")
            }
            reclaim::Error::Undo(_) => failed(text, ""),
        }
    }
}

fn failed(text: impl Into<String>, fix: &str) -> Failure {
    Failure::new(ExitCode::Failed, "job_failed", text).fix(fix)
}

/// How often a job's progress is written at first, and its abort is looked for.
const EVERY: Duration = Duration::from_secs(1);
/// The longest between two writings of progress.
const LEAST_OFTEN: Duration = Duration::from_secs(10);

/// Notes a job in `opsward.jobs` and does it: `status` tells of it whoever does it.
pub async fn begin(job: &Job, work: &Work, lease: &mut Lease) -> db::Result<JobEnd> {
    let args = serde_json::to_value(job).unwrap_or_default();
    let client = work.db.client().await?;
    // The holder of the lease does the only job: any other that was begun is lost.
    jobs::interrupted(&client, work.clock.now()).await?;
    let id = jobs::begin(&client, job.kind(), &args, work.clock.now()).await?;
    drop(client);
    let ended = carry_out(id, job, work, lease).await;
    let outcome = serde_json::to_value(&ended).unwrap_or_default();
    let noted = async { jobs::finish(&work.db.client().await?, id, &outcome, work.clock.now()).await };
    if let Err(error) = noted.await {
        warn!(%error, "how the job came out is not noted");
    }
    Ok(ended)
}

/// Does the job `id` of `opsward.jobs` and writes its progress meanwhile. A reclaim also stops
/// at its next batch when somebody hands over its abort: the abort needs the lease, and would
/// wait for hours while the reclaim is paused.
pub async fn carry_out(id: i64, job: &Job, work: &Work, lease: &mut Lease) -> JobEnd {
    let (told, progress) = watch::channel(Progress::default());
    let tell = work.tell.clone();
    let own = Work {
        stop: work.stop.child_token(),
        tell: Arc::new(move |progress: Progress| {
            tell(progress.clone());
            let _ = told.send(progress);
        }),
        ..work.clone()
    };
    let report = async {
        let (begun, mut written) = (Instant::now(), (Instant::now(), Progress::default()));
        loop {
            sleep(EVERY).await;
            // A job may take days: it keeps no session for this.
            let Ok(client) = &work.db.client().await else { continue };
            let goes_on = matches!(job, Job::Reclaim(request) if request.action != Action::Abort);
            if goes_on && !own.stop.is_cancelled() && jobs::abort_waits(client).await.unwrap_or(false) {
                info!("the reclaim is told to stop: its abort was handed over");
                own.stop.cancel();
            }
            let now = progress.borrow().clone();
            if is_due(&written.1, &now, written.0.elapsed(), begun.elapsed()) {
                // The job goes on even when its progress cannot be written.
                let value = serde_json::to_value(&now).unwrap_or_default();
                if let Err(error) = jobs::progress(client, id, &value).await {
                    debug!(%error, "the progress of a job is not written");
                }
                written = (Instant::now(), now);
            }
        }
    };
    // On the heap: the future of a job is too large for a stack.
    beside(perform(job, &own, lease).boxed(), report.boxed()).await
}

/// Whether progress is written: what is new of it at once, a mere count less often the longer
/// the job takes. An old snapshot keeps each version, and who looks for the last reads them all.
fn is_due(written: &Progress, now: &Progress, since: Duration, age: Duration) -> bool {
    let is_new = (&written.phase, &written.waiting) != (&now.phase, &now.waiting);
    is_new || written != now && since >= (age / 60).min(LEAST_OFTEN)
}

/// Runs `work` to its end and `other` beside it. Neither waits for the other: a job goes on
/// while its progress is being written.
async fn beside<T>(work: impl Future<Output = T>, other: impl Future<Output = Infallible>) -> T {
    tokio::select! {
        done = work => done,
        never = other => match never {},
    }
}

/// Does a job's work on the lease; the report is the command's.
async fn perform(job: &Job, work: &Work, lease: &mut Lease) -> JobEnd {
    let report = match job {
        Job::Census { scope, percent } => count(work, lease, *scope, *percent).boxed().await,
        Job::Prune { tasks, percent } => {
            prune(work, lease, tasks, *percent).boxed().await.map(|pruned| json!(pruned))
        }
        Job::Reclaim(request) => give_back(work, lease, request).boxed().await,
    };
    report.map_or_else(JobEnd::Trouble, JobEnd::Report)
}

async fn prune(
    work: &Work,
    lease: &mut Lease,
    tasks: &[Which],
    percent: Option<u8>,
) -> Result<Pruned, Failure> {
    let mut pacer = Pacer::new(work, percent);
    match tick::tick(work, lease, &mut pacer, tasks, PRUNE_RUN).boxed().await {
        Ok(outcomes) => {
            let is_cut = outcomes.iter().any(TaskOutcome::is_halted);
            let interrupted = is_cut && work.stop.is_cancelled();
            Ok(Pruned { tasks: outcomes, interrupted, ..Pruned::default() })
        }
        Err(Stop::Halt(Halt::Stopped)) => Err(Stop::Halt(Halt::Stopped).into()),
        Err(Stop::Halt(halt)) => Ok(Pruned { halted: Some(halt.to_string()), ..Pruned::default() }),
        Err(Stop::Db(error)) => Err(error.into()),
    }
}

/// A reclaim. It asks the gate what may go when it begins (not when it was handed over), and
/// again before anything is lost.
async fn give_back(work: &Work, lease: &mut Lease, request: &reclaim::Request) -> Result<Value, Failure> {
    let deletes = match request.action {
        reclaim::Action::Start => true,
        reclaim::Action::Abort => false,
        _ => db::reclaim::unfinished(&*lease.client()?).await?.is_some(),
    };
    if deletes && let Some(blocker) = guard::first(work, lease).await? {
        return Err(Failure::refused(blocker.text, blocker.fix));
    }
    let gate = gate_of_reclaim(work, reclaim::gate::of).await?;
    let request = reclaim::Request { gate, ..request.clone() };
    let ask = || {
        let work = work.clone();
        async move {
            let mut gate = gate_of_reclaim(&work, reclaim::gate::still).await?;
            gate.blockers.extend(guard::gone(&work).await?);
            Ok(gate)
        }
        .boxed()
    };
    let report = to_its_end(work, lease, request, &ask).boxed().await?;
    census::show(lease, &work.metrics).await?;
    Ok(json!(report))
}

/// How often a reclaim tries to take the lease anew while it gets no further: half a minute.
const RECONNECTS: u32 = 8;
/// The pause before the first of these tries; each is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Runs a reclaim. Where the server ended its session (it restarts, or took a stalled machine
/// for a client that hangs), the reclaim goes on from its checkpoint.
async fn to_its_end(
    work: &Work,
    lease: &mut Lease,
    mut request: reclaim::Request,
    ask: reclaim::Ask<'_>,
) -> reclaim::Result<reclaim::Report> {
    let (mut tries, mut reached) = (0, Value::Null);
    loop {
        let error = match reclaim::run(work, lease, &request, ask).boxed().await {
            Err(reclaim::Error::Db(error)) if error.is_away() => error,
            ended => return ended,
        };
        warn!(%error, "the reclaim lost a session");
        loop {
            let pause = FIRST_PAUSE.saturating_mul(1 << tries);
            if tries == RECONNECTS || work.stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return Err(error.into());
            }
            tries += 1;
            match go_on(work, lease, &mut request).await {
                Ok(Some(checkpoint)) => {
                    if checkpoint != reached {
                        (tries, reached) = (0, checkpoint);
                    }
                    break;
                }
                Ok(None) => return Err(error.into()),
                Err(error) => debug!(%error, "the reclaim does not go on yet"),
            }
        }
        info!("the reclaim goes on from its checkpoint");
    }
}

/// Takes the lease anew where it was lost, and asks for what the checkpoint needs; `None` where
/// there is no checkpoint to go on from.
async fn go_on(work: &Work, lease: &mut Lease, request: &mut reclaim::Request) -> db::Result<Option<Value>> {
    let Some((checkpoint, _)) = db::reclaim::load(&work.db.client().await?).await? else {
        return Ok(None);
    };
    // What was lost may be another session than the lease's.
    if lease.check().await.is_err() {
        // Its old session may be ending still.
        *lease = Lease::take(&work.db).await?.map_err(|_| db::Error::Away("the lease is held".into()))?;
    }
    if request.action != Action::Abort {
        request.action = Action::Resume;
        request.gate = gate_of_reclaim(work, reclaim::gate::of).await?;
    }
    Ok(Some(checkpoint))
}

/// What the gate of retention lets a reclaim drop now.
pub async fn gate_of_reclaim(
    work: &Work,
    of: impl FnOnce(&Facts) -> reclaim::Gate,
) -> db::Result<reclaim::Gate> {
    let client = work.db.client().await?;
    let facts = facts::gather(&client, &work.settings, &work.own, work.clock.now()).await?;
    Ok(of(&facts))
}

/// One run of `opsward prune`.
const PRUNE_RUN: Duration = Duration::from_secs(3600);
/// One run of a census that takes turns with others; they follow each other.
const CENSUS_RUN: Duration = Duration::from_secs(60);

async fn count(work: &Work, lease: &mut Lease, scope: Scope, percent: Option<u8>) -> Result<Value, Failure> {
    let mut pacer = Pacer::new(work, percent);
    loop {
        let report = census::run_once(work, lease, &mut pacer, scope, CENSUS_RUN).await?;
        if report.finished == Finished::All {
            return Ok(serde_json::to_value(report).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_a_long_job_is_written_less_often() {
        let of = |phase: &str, done: u64| Progress { phase: phase.into(), done, ..Progress::default() };
        let secs = Duration::from_secs;
        let due = |now: Progress, since: u64, age: u64| is_due(&of("copy", 1), &now, secs(since), secs(age));
        assert!(due(of("copy", 2), 1, 60) && !due(of("copy", 1), 60, 60));
        assert!(!due(of("copy", 2), 9, 36_000) && due(of("copy", 2), 10, 36_000));
        assert!(due(of("verify", 1), 1, 36_000));
        assert!(due(Progress { waiting: Some("a lock".into()), ..of("copy", 1) }, 1, 36_000));
    }

    /// Each waits for the other's next step.
    #[tokio::test]
    async fn a_job_goes_on_while_its_progress_is_written() {
        let (to_job, mut from_report) = tokio::sync::mpsc::channel(1);
        let (to_report, mut from_job) = tokio::sync::mpsc::channel(1);
        let job = async {
            for _ in 0..3 {
                from_report.recv().await;
                to_report.send(()).await.unwrap();
            }
            7
        };
        let report = async {
            loop {
                to_job.send(()).await.unwrap();
                from_job.recv().await;
            }
        };
        assert_eq!(beside(job, report).await, 7);
    }
}
