//! What the supervisor knows of its tasks, for `status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a task is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Switched off; `note` says by what.
    Off,
    /// Waits for its next run.
    Waiting,
    /// Runs.
    Running,
    /// Failed; waits to be run again.
    BackingOff,
    /// Ended: done, or stopped.
    Ended,
}

/// What is known of one task.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskReport {
    /// Its name, one of its own.
    pub name: String,
    /// Where it is.
    pub state: TaskState,
    /// Why it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Runs that ended, well or not.
    pub runs: u64,
    /// Runs that ended with an error or a panic.
    pub failures: u64,
    /// Runs that ended with a panic.
    pub panics: u64,
    /// Failures since the last run that ended well.
    pub failures_in_a_row: u32,
    /// When the last run began.
    pub last_start: Option<Timestamp>,
    /// When the last run ended.
    pub last_end: Option<Timestamp>,
    /// When a run last ended well.
    pub last_success: Option<Timestamp>,
    /// What the last run failed of; `None` after one that ended well.
    pub last_error: Option<String>,
    /// When it runs next.
    pub next_run: Option<Timestamp>,
}

impl TaskReport {
    /// A task that has not run yet.
    pub fn new(name: String, state: TaskState) -> Self {
        Self {
            name,
            state,
            note: None,
            runs: 0,
            failures: 0,
            panics: 0,
            failures_in_a_row: 0,
            last_start: None,
            last_end: None,
            last_success: None,
            last_error: None,
            next_run: None,
        }
    }
}

/// The reports of all tasks, in the order they were started. Cloning shares.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<BTreeMap<u64, TaskReport>>>);

impl Reports {
    /// Every task that is there, and those that ended by themselves.
    pub fn all(&self) -> Vec<TaskReport> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn add(&self, report: TaskReport) -> u64 {
        let mut map = self.lock();
        let id = map.last_key_value().map_or(0, |(id, _)| id + 1);
        map.insert(id, report);
        id
    }

    pub(super) fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    pub(super) fn names(&self, which: impl Fn(u64) -> bool) -> Vec<String> {
        let map = self.lock();
        let those = map.iter().filter(|(id, _)| which(**id));
        those.map(|(_, r)| r.name.clone()).collect()
    }

    /// Changes one report; nothing when it was forgotten.
    pub(super) fn change(&self, id: u64, how: impl FnOnce(&mut TaskReport)) {
        if let Some(report) = self.lock().get_mut(&id) {
            how(report);
        }
    }

    // A panic while it was locked leaves a report that is complete enough.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, TaskReport>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
