//! How much of the log a batch covers.

use crate::values::{EARLIEST_ULID, OpUlid};
use std::time::Duration;

/// Milliseconds of the log that a first batch covers at most.
const FIRST_REACH_MS: u64 = 86_400_000;

/// Steers a batch to a duration: grows by half at most, shrinks at once. Deleted rows that an
/// old snapshot keeps take their time as well: where few rows take long, a batch covers less
/// of the log, by the time of its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchSize {
    rows: u32,
    most: u32,
    target: Duration,
    /// Milliseconds of the log that a batch covers at most.
    reach: Option<u64>,
    /// What the last one was to cover; 0 where it is not bounded by its keys.
    covered: u64,
}

impl BatchSize {
    /// Begins with `first` rows, never over `most`, aiming at `target` a batch.
    pub fn new(first: u32, most: u32, target: Duration) -> Self {
        Self { rows: first.min(most).max(1), most: most.max(1), target, reach: None, covered: 0 }
    }

    /// The same for a log that is known to begin at `from`: what others deleted right there
    /// is dead, and may be millions of entries of the index.
    pub fn beginning_at(self, from: &str) -> Self {
        Self { reach: (from != EARLIEST_ULID).then_some(FIRST_REACH_MS), ..self }
    }

    /// Rows of the next batch.
    pub fn rows(self) -> u32 {
        self.rows
    }

    /// Where the next batch ends that begins at a key.
    pub fn until(&mut self, from: &str, until: OpUlid) -> OpUlid {
        let Some(from) = OpUlid::parse(from).map(|ulid| ulid.ms()) else { return until };
        let reach = self.reach.map(|reach| OpUlid::first_of_ms(from.saturating_add(reach)));
        let end = reach.unwrap_or(until).min(until);
        self.covered = end.ms().saturating_sub(from).max(1);
        end
    }

    /// Learns from a batch of so many rows.
    pub fn took(&mut self, rows: u32, time: Duration) {
        if self.covered > 0 && rows < self.rows / 2 {
            // Its keys bound it, which says nothing of rows.
            self.reach = match time > self.target {
                true => Some((self.covered / 2).max(1)),
                false => self.reach.map(|r| r.saturating_mul(if time < self.target / 10 { 8 } else { 2 })),
            };
            return;
        }
        if time < self.target {
            self.reach = self.reach.map(|reach| reach.saturating_mul(2));
        }
        let per_row = time.as_secs_f64() / f64::from(rows.max(1));
        let fits = (self.target.as_secs_f64() / per_row.max(1e-9)).min(f64::from(self.most));
        let grown = f64::from(self.rows) * 1.5 + 1.0;
        self.rows = (fits.min(grown) as u32).clamp(1, self.most);
    }

    /// A batch ran out of its time: a quarter of it is tried next.
    pub fn too_long(&mut self) {
        self.rows = (self.rows / 4).max(1);
        if self.covered > 0 {
            self.reach = Some((self.covered / 4).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_steered() {
        let mut size = BatchSize::new(1_000, 10_000, Duration::from_millis(100));
        size.took(1_000, Duration::from_millis(10));
        assert_eq!(size.rows(), 1_501);
        for _ in 0..20 {
            size.took(size.rows(), Duration::from_micros(10) * size.rows());
        }
        assert_eq!(size.rows(), 10_000);
        size.took(10_000, Duration::from_secs(1));
        assert_eq!(size.rows(), 1_000);
        size.too_long();
        assert_eq!(size.rows(), 250);
        size.took(0, Duration::from_secs(9));
        assert_eq!(size.rows(), 1);
    }

    #[test]
    fn dead_rows_are_crossed_in_short_stretches() {
        let [from, until] = [1_000, 1_000_000].map(OpUlid::first_of_ms);
        let mut size = BatchSize::new(1_000, 10_000, Duration::from_millis(100));
        assert_eq!(size.until(from.as_str(), until), until);
        size.too_long();
        assert_eq!((size.rows(), size.until(from.as_str(), until).ms()), (250, 250_750));
        // So much time for no row: it was not the rows.
        size.took(0, Duration::from_secs(1));
        assert_eq!((size.rows(), size.until(from.as_str(), until).ms()), (250, 125_875));
        for _ in 0..3 {
            size.took(250, Duration::from_millis(1));
        }
        assert_eq!((size.rows() > 250, size.until(from.as_str(), until)), (true, until));
        for _ in 0..60 {
            size.too_long();
            size.until(from.as_str(), until);
        }
        assert_eq!(size.until(from.as_str(), until).ms(), 1_001, "it always goes on");
    }
}
