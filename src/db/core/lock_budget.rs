//! How long the node's writers may be kept waiting: 200 ms in any second, over
//! all tasks of a process (contract 10). Today's node makes a block a second,
//! and none while it waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Waiting for locks and holding them, in any second.
pub const AT_MOST: Duration = Duration::from_millis(200);
const SECOND: Duration = Duration::from_secs(1);
/// With less left a try is not worth it: a lock is waited for as long.
const LEAST: Duration = Duration::from_millis(100);
/// What a lock under way may still take until it is given back.
const LAST: Duration = Duration::from_millis(50);

/// What was used of it within the last second: when each lock ended, and how
/// long it took.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Mutex<VecDeque<(Instant, Duration)>>>);

/// A lock under way: what it takes is counted when this is dropped.
pub struct Spent(Budget, Instant);

impl Budget {
    /// Waits until enough of it is left, and says how much.
    pub async fn wait(&self) -> Duration {
        loop {
            match self.left(Instant::now(), LEAST) {
                Ok(left) => return left,
                Err(wait) => sleep(wait).await,
            }
        }
    }

    /// Counts a wait that was seen just now, and says whether hardly anything is left.
    pub fn saw(&self, wait: Duration) -> bool {
        let now = Instant::now();
        self.used(now, wait);
        self.left(now, LAST).is_err()
    }

    /// How long until enough of it is left; `None` where it is.
    pub fn pause(&self) -> Option<Duration> {
        self.left(Instant::now(), LEAST).err()
    }

    /// Counts from now on.
    pub fn spend(&self) -> Spent {
        Spent(self.clone(), Instant::now())
    }

    /// What is left, at least `least`, or how long it takes until something is given back.
    fn left(&self, now: Instant, least: Duration) -> Result<Duration, Duration> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while used.front().is_some_and(|(ended, _)| *ended + SECOND <= now) {
            used.pop_front();
        }
        let left = AT_MOST.saturating_sub(used.iter().map(|(_, took)| *took).sum());
        match used.front() {
            Some((ended, _)) if left < least => Err(*ended + SECOND - now),
            _ => Ok(left),
        }
    }

    fn used(&self, ended: Instant, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back((ended, took));
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        self.0.used(Instant::now(), self.1.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_second_has_200_ms() {
        let (budget, begun) = (Budget::default(), Instant::now());
        let ms = Duration::from_millis;
        let left = |at: u64| budget.left(begun + ms(at), LEAST);
        assert_eq!(left(0), Ok(ms(200)));
        budget.used(begun + ms(30), ms(30));
        assert_eq!(left(30), Ok(ms(170)));
        budget.used(begun + ms(150), ms(100));
        // 70 ms are too few: the first gives its 30 back after a second.
        assert_eq!(left(200), Err(ms(830)));
        assert_eq!(left(1_030), Ok(ms(100)));
        assert_eq!(left(1_150), Ok(ms(200)));
        // One that took longer than it may.
        budget.used(begun + ms(2_000), ms(900));
        assert_eq!(left(2_500), Err(ms(500)));
        assert_eq!(left(3_000), Ok(ms(200)));
    }
}
