//! Serving's choices: when a page is full, what its headers say, and whose
//! connection goes when memory is short. Pure.

use crate::values::OpUlid;
use std::time::Duration;

/// Rows that a page scans; one that holds no op yet goes on in slices of this.
pub const SLICE_ROWS: usize = 10_000;
/// What reading a page may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Rows that a page without an op scans at most: at about a microsecond a row
    /// that is left out at the source, well within the time to read.
    pub scan_on_rows: usize,
    /// How long a page is read.
    pub reading: Duration,
}

impl Budget {
    /// For a registered peer: a node cannot get past an empty page, so its page holds an op if any is in reach.
    pub const PEER: Self = Self { scan_on_rows: 500_000, reading: READING };
    /// For anybody else.
    pub const STRANGER: Self = Self { scan_on_rows: 2 * SLICE_ROWS, reading: Duration::from_secs(1) };
}

/// Most bytes of JSON in a page; its first op may be larger.
pub const BODY_BYTES: usize = 64 * 1024 * 1024;
/// How long a page is read at most.
pub const READING: Duration = Duration::from_secs(3);

/// Rows of a page's first fetch, before anything is known of their size.
const FIRST_FETCH: usize = 64;
/// Bytes that one fetch aims at: a page that ends early still has to receive what is on its
/// way.
const FETCH_BYTES: usize = 4 * 1024 * 1024;

/// What ended a page before the log did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Rows scanned.
    Rows,
    /// Bytes of body.
    Bytes,
    /// Time to read.
    Time,
    /// Memory for built pages.
    Memory,
}

/// How far a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Rows scanned.
    pub scanned: usize,
    /// Ops in the page.
    pub ops: usize,
    /// Bytes of JSON in the page.
    pub bytes: usize,
    /// Time since reading began.
    pub elapsed: Duration,
}

/// The row at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Candidate {
    /// An op, and what it would add to the page in bytes.
    Op(usize),
    /// A row that is left out.
    LeftOut,
}

/// Whether the row at hand is still of this page; `Some` names what ends the
/// page before it.
pub fn full(page: Progress, row: Candidate, budget: Budget) -> Option<Limit> {
    match (page.ops, row) {
        // At least one op is always served, however large or late.
        (0, Candidate::Op(_)) => None,
        (0, Candidate::LeftOut) if page.scanned >= budget.scan_on_rows => Some(Limit::Rows),
        // Each page gets past a row at least.
        (0, Candidate::LeftOut) if page.scanned > 0 && page.elapsed >= budget.reading => Some(Limit::Time),
        (0, Candidate::LeftOut) => None,
        // A slice is finished where the first op was found in it.
        _ if page.scanned.is_multiple_of(SLICE_ROWS) => Some(Limit::Rows),
        _ if page.elapsed >= budget.reading => Some(Limit::Time),
        (_, Candidate::Op(bytes)) if page.bytes.saturating_add(bytes) > BODY_BYTES => Some(Limit::Bytes),
        _ => None,
    }
}

/// How many rows to fetch next, after `rows` that brought `bytes`.
pub fn next_fetch(rows: usize, bytes: usize) -> usize {
    if rows == 0 {
        return FIRST_FETCH;
    }
    let average = (bytes / rows).max(1);
    (FETCH_BYTES / average).clamp(1, SLICE_ROWS)
}

/// The shortest timeout of a part, so that a page that began late still reads a row.
const LEAST_PART: Duration = Duration::from_millis(250);

/// When a part of a scan is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Nothing is under way.
    First,
    /// The one before it is still arriving.
    Later,
}

/// How long a part may take that is asked for `elapsed` after reading began.
/// A later one begins when the one before it ends: half of what was left when
/// it was asked for keeps the transaction under 5 s.
pub fn part_time(elapsed: Duration, part: Part, budget: Budget) -> Duration {
    let left = budget.reading.saturating_sub(elapsed);
    let bound = match part {
        Part::First => left,
        Part::Later => left / 2,
    };
    bound.max(LEAST_PART)
}

/// The minimum that a page may name: never above the first plausible row that
/// it scanned, which may lie below the watermark.
pub fn minimum(found: Option<OpUlid>, first_scanned: Option<OpUlid>) -> Option<OpUlid> {
    match (found, first_scanned) {
        (Some(found), Some(first)) => Some(found.min(first)),
        // The search for the minimum ended among implausible rows: it is unknown.
        (found, _) => found,
    }
}

/// The gap to signal: `after` lies below the log's minimum. An empty `after`
/// is a first contact, an empty log has no minimum.
pub fn gap(after: Option<OpUlid>, minimum: Option<OpUlid>) -> Option<OpUlid> {
    let (after, minimum) = (after?, minimum?);
    (after < minimum).then_some(minimum)
}

/// How a built page is being sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sending {
    /// Since it was handed over.
    pub elapsed: Duration,
    /// Bytes taken by the socket.
    pub sent: usize,
    /// Since the socket last took a chunk, or since it was handed over.
    pub idle: Duration,
}

/// How long a page is sent before its speed is judged.
pub const GRACE: Duration = Duration::from_millis(200);

impl Sending {
    /// Bytes a second: the average, and no more than one chunk in the time
    /// that it has been stuck. A burst into the kernel's buffer at the start
    /// does not make a stuck reader a fast one.
    fn rate(&self, chunk: usize) -> f64 {
        let per_second = |bytes: usize, time: Duration| bytes as f64 / time.as_secs_f64().max(1e-3);
        per_second(self.sent, self.elapsed).min(per_second(chunk, self.idle))
    }
}

/// Whose connection goes when memory is short: the slowest of those that can
/// be judged, by place.
pub fn slowest(pages: &[Sending], chunk: usize) -> Option<usize> {
    let judged = pages.iter().enumerate().filter(|(_, p)| p.elapsed >= GRACE);
    judged.min_by(|(_, a), (_, b)| a.rate(chunk).total_cmp(&b.rate(chunk))).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(page: Progress, row: Candidate) -> Option<Limit> {
        super::full(page, row, Budget::PEER)
    }

    fn part_time(elapsed: Duration, part: Part) -> Duration {
        super::part_time(elapsed, part, Budget::PEER)
    }

    fn page(scanned: usize, ops: usize, bytes: usize, ms: u64) -> Progress {
        Progress { scanned, ops, bytes, elapsed: Duration::from_millis(ms) }
    }

    #[test]
    fn limits_end_a_page_that_holds_an_op() {
        let op = Candidate::Op(1_000);
        assert_eq!(full(page(9_999, 1, 0, 0), op), None);
        assert_eq!(full(page(10_000, 1, 0, 0), op), Some(Limit::Rows));
        assert_eq!(full(page(10_000, 1, 0, 0), Candidate::LeftOut), Some(Limit::Rows));
        assert_eq!(full(page(5, 1, 0, 2_999), op), None);
        assert_eq!(full(page(5, 1, 0, 3_000), op), Some(Limit::Time));
        assert_eq!(full(page(5, 1, BODY_BYTES - 1_000, 0), op), None);
        assert_eq!(full(page(5, 1, BODY_BYTES - 999, 0), op), Some(Limit::Bytes));
        assert_eq!(full(page(5, 1, BODY_BYTES, 0), Candidate::LeftOut), None);
    }

    #[test]
    fn a_page_without_an_op_scans_on_to_its_budget() {
        let out = Candidate::LeftOut;
        assert_eq!(full(page(10_000, 0, 0, 0), out), None);
        assert_eq!(full(page(499_999, 0, 0, 0), out), None);
        assert_eq!(full(page(500_000, 0, 0, 0), out), Some(Limit::Rows));
        assert_eq!(full(page(20_000, 0, 0, 3_000), out), Some(Limit::Time));
        assert_eq!(full(page(0, 0, 0, 9_000), out), None);
        // The slice in which the first op was found is finished.
        assert_eq!(full(page(25_000, 1, 0, 0), Candidate::Op(1)), None);
        assert_eq!(full(page(30_000, 1, 0, 0), Candidate::Op(1)), Some(Limit::Rows));
    }

    /// With half a second for the lock, the slowest two parts in a row end
    /// before a transaction is 5 s old.
    #[test]
    fn parts_keep_a_transaction_short() {
        let ms = Duration::from_millis;
        assert_eq!(part_time(ms(0), Part::First), READING);
        assert_eq!(part_time(ms(9_000), Part::First), LEAST_PART);
        for asked in 0..3_000 {
            let one = part_time(ms(asked), Part::First);
            let two = part_time(ms(asked), Part::Later);
            assert!(ms(asked) + one + two <= ms(4_500));
        }
    }

    #[test]
    fn gaps() {
        let at = OpUlid::first_of_ms;
        assert_eq!(gap(Some(at(1)), Some(at(2))), Some(at(2)));
        assert_eq!(gap(Some(at(2)), Some(at(2))), None);
        assert_eq!(gap(Some(at(3)), Some(at(2))), None);
        assert_eq!(gap(None, Some(at(2))), None);
        assert_eq!(gap(Some(at(1)), None), None);
    }

    #[test]
    fn the_minimum_is_not_above_the_first_row() {
        let at = OpUlid::first_of_ms;
        assert_eq!(minimum(Some(at(5)), Some(at(3))), Some(at(3)));
        assert_eq!(minimum(Some(at(5)), Some(at(7))), Some(at(5)));
        assert_eq!(minimum(Some(at(5)), None), Some(at(5)));
        assert_eq!(minimum(None, Some(at(3))), None);
    }

    #[test]
    fn a_stuck_reader_is_slower_than_an_honest_one() {
        let ms = Duration::from_millis;
        let stuck = Sending { elapsed: ms(300), sent: 2_500_000, idle: ms(299) };
        let honest = Sending { elapsed: ms(300), sent: 400_000, idle: ms(20) };
        let fresh = Sending { elapsed: ms(10), sent: 0, idle: ms(10) };
        assert_eq!(slowest(&[honest, stuck, fresh], 65_536), Some(1));
        assert_eq!(slowest(&[fresh], 65_536), None);
        assert_eq!(slowest(&[], 65_536), None);
    }

    proptest! {
        /// Whatever the rows and however slow they come, a page ends within
        /// its limits, and holds an op where one is in reach.
        #[test]
        fn a_page_keeps_its_limits(
            rows in prop::collection::vec((any::<bool>(), 0usize..(80 << 20), 0u64..400), 1..60),
            skip in 0usize..12_000,
        ) {
            let mut page = Progress { scanned: skip, ..Progress::default() };
            let mut first = 0;
            let mut ended = None;
            for (is_op, bytes, ms) in &rows {
                page.elapsed += Duration::from_millis(*ms);
                let row = if *is_op { Candidate::Op(*bytes) } else { Candidate::LeftOut };
                ended = full(page, row);
                if ended.is_some() {
                    break;
                }
                page.scanned += 1;
                if *is_op {
                    if page.ops == 0 {
                        first = *bytes;
                    }
                    page.ops += 1;
                    page.bytes += bytes;
                }
            }
            prop_assert!(page.bytes <= BODY_BYTES.max(first));
            prop_assert!(page.scanned > skip || skip > 0);
            if ended.is_none() {
                prop_assert_eq!(page.scanned, skip + rows.len());
            }
            if rows.iter().any(|(is_op, ..)| *is_op) && ended != Some(Limit::Time) {
                prop_assert!(page.ops > 0);
            }
        }

        #[test]
        fn a_fetch_is_never_empty_nor_too_much(rows: u16, bytes: u32) {
            let next = next_fetch(rows.into(), bytes as usize);
            prop_assert!((1..=SLICE_ROWS).contains(&next));
        }
    }
}
