//! When a task runs next: pure, but for the randomness that is handed in.

use std::time::Duration;

/// The first wait after a failure; doubled by each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(2);
/// The longest wait after failures of a task that should never end.
const FOREVER_CAP: Duration = Duration::from_secs(60);
/// How far an interval is varied, either way: tasks started together part.
const JITTER: f64 = 0.05;

/// When a task runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Schedule {
    /// Again and again: first within `first` of its start, then `interval`
    /// after the end of each run that says nothing else.
    Every {
        /// From the end of a run to the start of the next, varied by 5 %.
        interval: Duration,
        /// The first run starts at a random moment in the second half of this.
        first: Duration,
    },
    /// From its start until it is told to stop; restarted when it ends before.
    Forever,
}

/// What a run says about the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// As the schedule says.
    Scheduled,
    /// After this wait.
    After(Duration),
    /// Never again.
    Done,
}

impl Schedule {
    /// The wait before the first run; `random` is uniform in 0..1.
    pub fn first(self, random: f64) -> Duration {
        match self {
            Self::Every { first, .. } => first.mul_f64(0.5 + random / 2.0),
            Self::Forever => Duration::ZERO,
        }
    }

    /// The wait after a run that ended well.
    pub fn regular(self, random: f64) -> Duration {
        match self {
            Self::Every { interval, .. } => interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * random),
            Self::Forever => BACKOFF_MIN,
        }
    }

    /// The wait after the `failures`th failure in a row, at most the interval:
    /// between half and all of an exponentially growing bound.
    pub fn backoff(self, failures: u32, random: f64) -> Duration {
        let cap = match self {
            Self::Every { interval, .. } => interval,
            Self::Forever => FOREVER_CAP,
        };
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1).min(30));
        let bound = BACKOFF_MIN.saturating_mul(doubled).min(cap);
        bound.mul_f64(0.5 + 0.5 * random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEN_MINUTES: Schedule =
        Schedule::Every { interval: Duration::from_secs(600), first: Duration::from_secs(5) };

    #[test]
    fn backoff_doubles_up_to_the_interval() {
        let waits: Vec<u64> = (1..=11).map(|n| TEN_MINUTES.backoff(n, 1.0).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(Schedule::Forever.backoff(99, 1.0), FOREVER_CAP);
    }

    proptest! {
        #[test]
        fn waits_stay_in_bounds(failures: u32, random in 0.0..1.0f64, ms in 1u64..10_000_000) {
            let interval = Duration::from_millis(ms);
            let schedule = Schedule::Every { interval, first: interval };
            let wait = schedule.backoff(failures, random);
            prop_assert!(wait <= interval && wait >= interval.min(BACKOFF_MIN) / 2);
            let first = schedule.first(random);
            prop_assert!(first <= interval && first >= interval / 2);
            let regular = schedule.regular(random);
            prop_assert!(regular >= interval.mul_f64(0.94) && regular <= interval.mul_f64(1.06));
        }
    }
}
