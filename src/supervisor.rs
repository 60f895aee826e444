//! Contract 5, Supervision: every long-running task is started here. The
//! supervisor owns the loop, the jitter, the backoff, the catching of panics,
//! the counting and the reports; a task is a plain async function that does
//! one run and may say when to come again.

mod failures;
mod namespace;
mod report;
mod schedule;

pub use namespace::{Namespace, PROC_NET_DEV};
pub use report::Reports;
pub use schedule::{Next, Schedule};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::values::{TaskReport, TaskState};
use failures::{Failure, Failures};
use futures_util::FutureExt;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// A task that should never end counts as working after it has run this long.
const SETTLED: Duration = Duration::from_secs(30);

/// The end of one run: when to come again, or what went wrong.
pub type Outcome = anyhow::Result<Next>;

/// What a task is, apart from what it does.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its own name, shown in reports and logs.
    pub name: String,
    /// The label of its metrics; many tasks may share one.
    pub label: &'static str,
    /// When it runs.
    pub schedule: Schedule,
    /// When it is told to stop.
    pub stage: Stage,
}

/// The order in which tasks are told to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// First: takes in work from outside.
    Listener,
    /// Then: everything else.
    Worker,
}

impl Task {
    /// A worker whose name is its label.
    pub fn new(label: &'static str, schedule: Schedule) -> Self {
        Self { name: label.to_owned(), label, schedule, stage: Stage::Worker }
    }
}

/// Starts tasks, keeps them running, and stops them. Cloning shares.
#[derive(Clone)]
pub struct Supervisor {
    clock: Clock,
    metrics: Metrics,
    reports: Reports,
    tracker: TaskTracker,
    listeners: CancellationToken,
    workers: CancellationToken,
    running: Arc<Mutex<HashMap<u64, AbortHandle>>>,
}

/// A task that was started, to be stopped alone.
pub struct Handle {
    supervisor: Supervisor,
    id: u64,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Handle {
    /// Tells the task to stop.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Tells the task to stop, waits until it has (its transaction finished or
    /// rolled back), and forgets its report.
    pub async fn stop(self) {
        self.stop.cancel();
        self.ended.cancelled().await;
        self.supervisor.reports.remove(self.id);
    }
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new(clock: Clock, metrics: Metrics) -> Self {
        Self {
            clock,
            metrics,
            reports: Reports::default(),
            tracker: TaskTracker::new(),
            listeners: CancellationToken::new(),
            workers: CancellationToken::new(),
            running: Arc::default(),
        }
    }

    /// What is known of every task.
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// Cancelled when workers are told to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.workers.clone()
    }

    /// Notes a task that is off, and why: in the log and in reports.
    pub fn off(&self, name: &str, why: &str) {
        self.off_for_now(name, why);
    }

    /// Says that a task is off until [`Self::on`] is called with this number.
    pub fn off_for_now(&self, name: &str, why: &str) -> u64 {
        info!(task = name, "off: {why}");
        let mut report = TaskReport::new(name.to_owned(), TaskState::Off);
        report.note = Some(why.to_owned());
        self.reports.add(report)
    }

    /// Forgets that a task is off.
    pub fn on(&self, id: u64) {
        self.reports.remove(id);
    }

    /// Starts a task. `run` does one run; it is given a token that is
    /// cancelled when it must come to an end.
    pub fn start<F, R>(&self, task: Task, run: F) -> Handle
    where
        F: Fn(CancellationToken) -> R + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
    {
        let stop = match task.stage {
            Stage::Listener => self.listeners.child_token(),
            Stage::Worker => self.workers.child_token(),
        };
        let report = TaskReport::new(task.name.clone(), TaskState::Waiting);
        let id = self.reports.add(report);
        for counter in [&self.metrics.task_runs, &self.metrics.task_failures, &self.metrics.task_panics] {
            // The series exist from the start, at zero.
            counter.with_label_values(&[task.label]);
        }
        let ended = CancellationToken::new();
        let one = One { task, id, stop: stop.clone(), supervisor: self.clone() };
        let mark = Ended(self.clone(), id, ended.clone());
        let spawned = self.tracker.spawn(async move {
            let _mark = mark;
            one.keep_running(run).await;
        });
        self.lock().insert(id, spawned.abort_handle());
        // The task may have ended before its handle was entered.
        if ended.is_cancelled() {
            self.lock().remove(&id);
        }
        Handle { supervisor: self.clone(), id, stop, ended }
    }

    /// Stops everything, in order: listeners take nothing more, then tasks are
    /// told, then all are waited for, at most until `bound` has passed; what
    /// still runs then is cut off. Returns the names of those.
    pub async fn stop(&self, bound: Duration) -> Vec<String> {
        let deadline = Instant::now() + bound;
        self.tracker.close();
        info!("stopping: listeners take nothing more");
        self.listeners.cancel();
        info!(tasks = self.lock().len(), "stopping: tasks are told");
        self.workers.cancel();
        if timeout_at(deadline, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let late: Vec<String> = {
            let running = self.lock();
            running.values().for_each(AbortHandle::abort);
            self.reports.names(|id| running.contains_key(&id))
        };
        warn!(tasks = ?late, "cut off: still ran after {} s", bound.as_secs());
        self.tracker.wait().await;
        late
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, AbortHandle>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a task as ended when it is dropped, whatever ended it.
struct Ended(Supervisor, u64, CancellationToken);

impl Drop for Ended {
    fn drop(&mut self) {
        self.2.cancel();
        self.0.lock().remove(&self.1);
        self.0.reports.change(self.1, |r| {
            r.state = TaskState::Ended;
            r.next_run = None;
        });
    }
}

/// One task in its loop.
struct One {
    task: Task,
    id: u64,
    stop: CancellationToken,
    supervisor: Supervisor,
}

impl One {
    async fn keep_running<F, R>(&self, run: F)
    where
        F: Fn(CancellationToken) -> R,
        R: Future<Output = Outcome>,
    {
        let schedule = self.task.schedule;
        let mut failures = Failures::default();
        let mut wait = schedule.first(fastrand::f64());
        let mut state = TaskState::Waiting;
        while self.wait(wait, state).await {
            self.change(|r, now| {
                (r.state, r.last_start, r.next_run) = (TaskState::Running, Some(now), None);
            });
            let outcome = match self.once(&run, &mut failures).await {
                Ok(Ok(Next::Scheduled)) if schedule == Schedule::Forever && !self.stop.is_cancelled() => {
                    Err(Failure::of_error("it ended by itself"))
                }
                Ok(Ok(next)) => Ok(next),
                // The outermost message says it all: the errors of the database and of pulling do.
                Ok(Err(error)) => Err(Failure::of_error(error.to_string())),
                Err(payload) => Err(Failure::of_panic(payload.as_ref())),
            };
            self.count(&outcome);
            (wait, state) = match outcome {
                Ok(Next::Done) => return,
                Ok(next) => {
                    failures.recovered(&self.task.name);
                    let regular = || schedule.regular(fastrand::f64());
                    let wait = match next {
                        Next::After(wait) => wait,
                        Next::Scheduled | Next::Done => regular(),
                    };
                    (wait, TaskState::Waiting)
                }
                // A failure while the task is told to stop is an interruption.
                Err(failure) if self.stop.is_cancelled() && !failure.panicked => {
                    debug!(task = self.task.name, "interrupted: {}", failure.text);
                    return;
                }
                Err(failure) => {
                    let wait = schedule.backoff(failures.in_a_row + 1, fastrand::f64());
                    failures.another(&self.task.name, failure, wait);
                    (wait, TaskState::BackingOff)
                }
            };
        }
    }

    /// One run. A task that should never end works again once it has run for
    /// a while.
    async fn once<F, R>(&self, run: &F, failures: &mut Failures) -> std::thread::Result<Outcome>
    where
        F: Fn(CancellationToken) -> R,
        R: Future<Output = Outcome>,
    {
        // The call itself is inside the catch: it may panic before its first await.
        let whole = AssertUnwindSafe(async { run(self.stop.child_token()).await });
        let mut whole = std::pin::pin!(whole.catch_unwind());
        if self.task.schedule == Schedule::Forever {
            tokio::select! {
                ended = &mut whole => return ended,
                () = sleep(SETTLED) => {
                    failures.recovered(&self.task.name);
                    self.change(|r, now| {
                        (r.last_success, r.last_error, r.failures_in_a_row) = (Some(now), None, 0);
                    });
                }
            }
        }
        whole.await
    }

    /// Waits; false when the task is told to stop.
    async fn wait(&self, wait: Duration, state: TaskState) -> bool {
        self.change(|r, now| {
            r.state = state;
            r.next_run = now.checked_add(wait).ok();
        });
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = sleep(wait) => true,
        }
    }

    fn count(&self, outcome: &Result<Next, Failure>) {
        let label = [self.task.label];
        let metrics = &self.supervisor.metrics;
        metrics.task_runs.with_label_values(&label).inc();
        match outcome {
            Ok(_) => metrics
                .task_last_success
                .with_label_values(&label)
                .set(self.supervisor.clock.now().as_second()),
            Err(failure) => {
                metrics.task_failures.with_label_values(&label).inc();
                if failure.panicked {
                    metrics.task_panics.with_label_values(&label).inc();
                }
            }
        }
        self.change(|r, now| {
            r.runs += 1;
            (r.last_end, r.progress) = (Some(now), None);
            match outcome {
                Ok(_) => (r.last_success, r.last_error, r.failures_in_a_row) = (Some(now), None, 0),
                Err(failure) => {
                    r.failures += 1;
                    r.panics += u64::from(failure.panicked);
                    r.failures_in_a_row += 1;
                    r.last_error = Some(failure.text.clone());
                }
            }
        });
    }

    fn change(&self, how: impl FnOnce(&mut TaskReport, jiff::Timestamp)) {
        let now = self.supervisor.clock.now();
        self.supervisor.reports.change(self.id, |r| how(r, now));
    }
}

#[cfg(test)]
mod tests;
