//! `Progress`: how far long work is, for a terminal, a job's row and `status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// How far long work is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, in a word or two.
    pub phase: String,
    /// How much is done, in `unit`.
    pub done: u64,
    /// How much there is to do, if that is known.
    pub total: Option<u64>,
    /// `rows`, `bytes` or `pages`.
    pub unit: String,
    /// How long the rest takes at the rate of the last minutes ([`Lately`]).
    pub eta_seconds: Option<u64>,
    /// What it waits for, when it waits.
    pub waiting: Option<String>,
    /// Since when it waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Timestamp>,
}

/// How fast work went lately, for how long its rest takes.
#[derive(Clone, Debug, Default)]
pub struct Lately(VecDeque<(Duration, f64)>);

impl Lately {
    /// So far back is measured: bursts and rests follow each other within it.
    const WINDOW: Duration = Duration::from_secs(600);
    const EVERY: Duration = Duration::from_secs(1);
    /// With less to go by, nothing is said: seconds, and parts that were done.
    const LEAST: Duration = Duration::from_secs(5);
    const PARTS: usize = 3;

    /// Seconds that the rest takes, where `left` of the work is left so long after it began;
    /// `None` where too little was done lately to tell.
    pub fn eta(&mut self, at: Duration, left: f64) -> Option<u64> {
        let is_new = self.0.back().is_none_or(|(last, before)| *last + Self::EVERY <= at && left < *before);
        if is_new {
            self.0.push_back((at, left));
        }
        while self.0.get(1).is_some_and(|(next, _)| *next + Self::WINDOW <= at) {
            self.0.pop_front();
        }
        let (from, before) = *self.0.front()?;
        let (took, done) = (at.saturating_sub(from), before - left);
        let is_enough = took >= Self::LEAST && self.0.len() > Self::PARTS && done > 0.0;
        is_enough.then(|| (took.as_secs_f64() / done * left) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_the_last_minutes_say() {
        let (mut lately, secs) = (Lately::default(), Duration::from_secs);
        let mut told = Vec::new();
        for second in 0..=6 {
            told.push(lately.eta(secs(second), 1_000.0 - 10.0 * second as f64));
        }
        assert_eq!(told, [None, None, None, None, None, Some(95), Some(94)]);
        // It was slow for long, and is fast now: only that counts.
        let mut lately = Lately::default();
        for second in (0..=3_600).step_by(60) {
            lately.eta(secs(second), 1_000_000.0 - second as f64);
        }
        for second in (3_660..=4_800).step_by(60) {
            let eta = lately.eta(secs(second), 900_000.0 - 100.0 * (second - 3_660) as f64);
            assert!(second < 4_320 || eta.is_some_and(|eta| eta < 9_000), "{second} {eta:?}");
        }
        // Nothing gets done: nothing is said of it in the end.
        assert_eq!(lately.eta(secs(9_000), 786_000.0), None);
    }
}
