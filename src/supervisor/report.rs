//! What the supervisor knows of its tasks, for `status`.

use crate::values::{Progress, TaskReport, TaskState};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

    /// Notes how far the run of a task is.
    pub fn tell(&self, name: &str, progress: Progress) {
        let mut map = self.lock();
        let task = map.values_mut().find(|r| r.name == name && r.state == TaskState::Running);
        if let Some(task) = task {
            task.progress = Some(progress);
        }
    }

    /// Changes one report; nothing when it was forgotten.
    pub(super) fn change(&self, id: u64, how: impl FnOnce(&mut TaskReport)) {
        if let Some(report) = self.lock().get_mut(&id) {
            how(report);
        }
    }

    // After a panic under the lock the reports are still good enough to show.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, TaskReport>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
