//! What bounds the log, as `status` shows it.

use crate::db::overview::Overview;
use crate::db::waiting::WaitStatus;
use crate::settings::Settings;
use crate::show::format::{bytes, count, far};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What bounds the log: what the database knows of it, and what the settings say.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BoundingStatus {
    #[serde(flatten)]
    pub known: Overview,
    /// The maintenance window, where one is set.
    pub window: Option<String>,
    /// Whether bulk work may run at this time of day.
    pub in_window: bool,
    /// Retention is set without the replay guard, or the guard is not on the log.
    #[serde(default)]
    pub unguarded: bool,
    /// The replay guard is switched on.
    #[serde(default)]
    pub guard_set: bool,
    /// A reclaim that was begun and has not ended, in a sentence.
    pub unfinished_reclaim: Option<String>,
}

impl BoundingStatus {
    /// From own state and the settings.
    pub fn new(known: Overview, settings: &Settings, now: Timestamp) -> Self {
        let set = &settings.bounding;
        let retains = set.retention_days > 0 || set.retention_bytes > 0;
        Self {
            window: set.window.map(|w| w.to_string()),
            in_window: set.window.is_none_or(|w| w.contains(now.as_second())),
            unguarded: retains && !(set.replay_guard && known.guarded),
            guard_set: set.replay_guard,
            unfinished_reclaim: known.reclaim.as_ref().map(|r| {
                let done = if r.held { "waits for `opsward reclaim --swap`" } else { "has not ended" };
                format!("mode {}, phase {}, {done}; it last did something at {}", r.mode, r.phase, r.since)
            }),
            known,
        }
    }

    /// A reclaim that was killed leaves its job behind, but not the lease.
    pub fn reclaim_is_at_work(&self) -> bool {
        self.known.lease.is_some() && self.known.job.as_ref().is_some_and(|job| job.kind == "reclaim")
    }

    /// What is waited for: once, though several tasks wait for it.
    fn waited_for(&self) -> Vec<(&'static str, String)> {
        let mut all: Vec<(&WaitStatus, Vec<&str>)> = Vec::new();
        for wait in &self.known.waits {
            match all.iter_mut().find(|(first, _)| first.what == wait.what) {
                Some((_, works)) => works.push(&wait.work),
                None => all.push((wait, vec![&wait.work])),
            }
        }
        let line = |(w, works): &(&WaitStatus, Vec<&str>)| {
            ("waits", format!("{}, since {:.0}: {}", works.join(", "), w.since, w.what))
        };
        all.iter().map(line).collect()
    }

    /// The census and the pace as a person reads them.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let census = self.known.census.as_ref().map_or("not yet".to_owned(), |c| {
            let about = if c.estimated { "about " } else { "" };
            let days = c.oldest.as_ref().zip(c.newest.as_ref());
            let days = days.map_or(String::new(), |(oldest, newest)| format!(", {oldest} to {newest}"));
            format!("{about}{} rows, {about}{}{days}", count(c.rows), bytes(c.bytes))
        });
        let mut pace = match (self.known.paused_at, self.in_window) {
            (Some(at), _) => format!("PAUSED since {at}"),
            (None, false) => "waits for its window".to_owned(),
            (None, true) => format!("{} % of the time", self.known.percent),
        };
        if let Some(window) = &self.window {
            pace.push_str(&format!("; window {window}"));
        }
        let mut facts = vec![("census", census), ("pace", pace)];
        if let Some(job) = &self.known.job {
            let far = job.progress.as_ref().map_or("waits for its turn".to_owned(), far);
            let waiting = job.progress.as_ref().and_then(|p| p.waiting.as_ref());
            let waiting = waiting.filter(|_| self.known.waits.is_empty());
            let rest = match (&self.known.lease, waiting) {
                (None, _) if job.progress.is_some() => "; cut off, nobody does it now".to_owned(),
                (_, Some(what)) => format!("; waiting: {what}"),
                (_, None) => String::new(),
            };
            facts.push(("job", format!("{} {}: {far}{rest}", job.kind, job.id)));
        }
        facts.extend(self.waited_for());
        if let Some(unfinished) = &self.unfinished_reclaim {
            facts.push(("reclaim", unfinished.clone()));
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::status::JobStatus;
    use crate::values::Progress;

    #[test]
    fn what_several_tasks_wait_for_is_told_once_and_a_job_that_nobody_does_waits_for_nothing() {
        let wait = |work: &str, what: &str| WaitStatus {
            work: work.into(),
            what: what.into(),
            since: Timestamp::UNIX_EPOCH,
        };
        let progress = Progress {
            phase: "copy".into(),
            unit: "rows".into(),
            waiting: Some("paused".into()),
            ..Progress::default()
        };
        let job = JobStatus { id: 7, kind: "reclaim".into(), progress: Some(progress) };
        let known = Overview { job: Some(job), ..Overview::default() };
        let mut status = BoundingStatus { known, ..BoundingStatus::default() };
        let told = |status: &BoundingStatus| {
            let all = status.facts().into_iter().filter(|(name, _)| matches!(*name, "job" | "waits"));
            all.map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert_eq!(told(&status), ["reclaim 7: copy: 0 rows; cut off, nobody does it now"]);
        status.known.lease = Some("opsward".into());
        assert_eq!(told(&status), ["reclaim 7: copy: 0 rows; waiting: paused"]);
        status.known.waits = vec![wait("census", "a"), wait("index", "b"), wait("retention", "a")];
        let expected = [
            "reclaim 7: copy: 0 rows",
            "census, retention, since 1970-01-01T00:00:00Z: a",
            "index, since 1970-01-01T00:00:00Z: b",
        ];
        assert_eq!(told(&status), expected);
    }
}
