//! `TaskReport`: what is known of one long-running task. The supervisor writes
//! it, `status` shows it.

use super::Progress;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a task is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Switched off; `note` says by what.
    Off,
    /// Waits for its next run.
    #[default]
    Waiting,
    /// Runs.
    Running,
    /// Failed; waits to be run again.
    BackingOff,
    /// Ended: done, or stopped.
    Ended,
}

/// What is known of one task.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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
    /// How far its run is, where that takes long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

impl TaskReport {
    /// A task that has not run yet.
    pub fn new(name: String, state: TaskState) -> Self {
        Self { name, state, ..Self::default() }
    }
}
