//! What bulk work waits for: told from here in `status`, log and metrics alike.

use super::Work;
use crate::db::waiting;
use jiff::Timestamp;
use std::time::Duration;
use tracing::{debug, info};

/// What is waited for: a label of the metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitFor {
    /// A lock that another session holds.
    Lock,
    /// Whatever keeps deleted rows: a snapshot, a slot, a standby.
    Snapshot,
    /// Another session's build of an index.
    Index,
    /// The sessions that waited behind VACUUM or REINDEX.
    Others,
    /// The operator's word, or the maintenance window.
    Turn,
}

impl WaitFor {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Lock, Self::Snapshot, Self::Index, Self::Others, Self::Turn];

    /// It in a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Snapshot => "snapshot",
            Self::Index => "index",
            Self::Others => "others",
            Self::Turn => "turn",
        }
    }
}

/// The waits of one piece of work.
pub struct Waits {
    name: &'static str,
    told: Option<(String, Timestamp)>,
}

impl Waits {
    /// Of the work of this name.
    pub fn of(name: &'static str) -> Self {
        Self { name, told: None }
    }

    /// Tells that it waits for `pause` from now, `pid` being the lease's session; returns
    /// since when it waits for the same.
    pub async fn tell(
        &mut self,
        work: &Work,
        pid: i32,
        (wait, what): (WaitFor, &str),
        pause: Duration,
    ) -> Timestamp {
        work.metrics.waits.with_label_values(&[wait.word()]).inc_by(pause.as_secs_f64());
        if let Some((told, since)) = self.told.as_mut().filter(|(told, _)| whom(told) == whom(what)) {
            what.clone_into(told);
            return *since;
        }
        info!("{} waits: {what}", self.name);
        let now = work.clock.now();
        let noted = async { waiting::note(&work.db.client().await?, self.name, (what, pid), now).await };
        let since = noted.await.unwrap_or_else(|error| {
            debug!(%error, "a wait is not noted");
            now
        });
        self.told = Some((what.to_owned(), since));
        since
    }

    /// It goes on.
    pub async fn over(&mut self, work: &Work) {
        self.told = None;
        let ended = async { waiting::over(&work.db.client().await?, self.name).await };
        if let Err(error) = ended.await {
            debug!(%error, "the end of a wait is not noted");
        }
    }

    /// What it waits for now, and since when.
    pub fn told(&self) -> Option<&(String, Timestamp)> {
        self.told.as_ref()
    }
}

/// The rest says what they are at just now.
fn whom(what: &str) -> &str {
    what.split(": ").next().unwrap_or(what)
}
