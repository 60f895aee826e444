//! The sweep of one peer as a state machine with no I/O in it: it is told what
//! was asked, what came and what became of it, and says at the end where the
//! cursor goes. Contract 4, steps 1 to 6.

use super::decide::{CATCH_UP_AGE_MS, latest_storable};
use crate::values::{MAX_GAP_AHEAD_MS, OpUlid, SweepHeaders, is_plausible};

/// A sweep under way.
#[derive(Clone, Debug)]
pub struct Sweep {
    now_ms: u64,
    cursor: Option<OpUlid>,
    /// The minimum of a gap signal that may be honoured once all is applied.
    staged: Option<OpUlid>,
    floors: Vec<(String, OpUlid)>,
    last_scanned: Option<OpUlid>,
    limited: bool,
    settled: Option<OpUlid>,
    /// The page was not taken to its end; where known, before which op.
    stopped: Option<Option<OpUlid>>,
}

/// Where a sweep ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SweepEnd {
    /// The cursor to store; `None` where there is none yet.
    pub cursor: Option<OpUlid>,
    /// A gap that storing it crosses: from our cursor to the peer's minimum.
    pub gap: Option<(OpUlid, OpUlid)>,
    /// Floors of single tables that storing it crosses.
    pub table_gaps: Vec<(String, OpUlid)>,
    /// The next page should follow at once.
    pub more: bool,
}

impl Sweep {
    /// The peer answered a request that asked with `cursor`.
    pub fn answered(cursor: Option<OpUlid>, headers: SweepHeaders, now_ms: u64) -> Self {
        let gap_bound = OpUlid::last_of_ms(now_ms.saturating_add(MAX_GAP_AHEAD_MS));
        let staged = headers.gap_min.filter(|min| {
            headers.gap && is_plausible(*min, now_ms) && *min <= gap_bound && cursor.is_some_and(|c| *min > c)
        });
        let floors = headers
            .table_floors
            .into_iter()
            .filter(|(_, floor)| cursor.is_some_and(|c| *floor > c) && is_plausible(*floor, now_ms))
            .collect();
        Self {
            now_ms,
            cursor,
            staged,
            floors,
            last_scanned: headers.last_scanned.filter(|u| is_plausible(*u, now_ms)),
            limited: headers.limited,
            settled: None,
            stopped: None,
        }
    }

    /// The cursor that was asked with.
    pub fn asked(&self) -> Option<OpUlid> {
        self.cursor
    }

    /// An op was received, whatever becomes of it: one below the announced
    /// minimum proves the announcement wrong.
    pub fn received(&mut self, ulid: OpUlid) {
        if self.staged.is_some_and(|min| ulid < min) {
            self.staged = None;
        }
    }

    /// An op was applied, found to be there, skipped or refused for good.
    pub fn settled(&mut self, ulid: OpUlid) {
        self.settled = self.settled.max(Some(ulid));
    }

    /// The page is left before its end: the cursor stays before `ulid`, and
    /// what was settled so far counts.
    pub fn stopped_before(&mut self, ulid: Option<OpUlid>) {
        self.stopped = Some(ulid);
    }

    /// All that was received is settled, and the body was read to its end.
    pub fn ended(self) -> SweepEnd {
        let bound = self.stopped.flatten();
        let below = |ulid: &OpUlid| bound.is_none_or(|b| *ulid < b);
        // What the headers say beyond the last op counts only if the page was read whole: it may
        // have been left before its first op.
        let scanned = self.last_scanned.filter(|u| self.stopped.is_none() && Some(*u) >= self.settled);
        let staged = self.staged.filter(|_| self.stopped.is_none());
        let reached = [staged, self.settled, scanned].into_iter().flatten().filter(below).max();
        // Do not enter a gap whose end cannot be stored yet: by the next page the peer's minimum
        // may lie below the cursor, and nobody would learn of the gap.
        let latest = latest_storable(self.now_ms);
        let reached = reached.filter(|_| staged.is_none_or(|min| min <= latest));
        let storable = reached.map(|u| u.min(latest));
        let cursor = self.cursor.max(storable);
        let crossed = |min: &OpUlid| self.cursor.is_some_and(|c| *min > c) && cursor >= Some(*min);
        let gap = self.staged.filter(crossed).zip(self.cursor).map(|(min, from)| (from, min));
        let table_gaps = self.floors.into_iter().filter(|(_, floor)| crossed(floor)).collect();
        let catching_up = self.settled.is_some_and(|u| u.ms() + CATCH_UP_AGE_MS < self.now_ms);
        let full = self.stopped == Some(None);
        SweepEnd {
            cursor,
            gap,
            table_gaps,
            more: cursor > self.cursor && (self.limited || catching_up || full) && bound.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_790_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn at(ms: u64) -> OpUlid {
        OpUlid::from_parts(ms, 5)
    }

    fn gap(min: OpUlid) -> SweepHeaders {
        SweepHeaders { gap: true, gap_min: Some(min), ..SweepHeaders::default() }
    }

    fn run(cursor: Option<OpUlid>, headers: SweepHeaders, ops: &[OpUlid]) -> SweepEnd {
        let mut sweep = Sweep::answered(cursor, headers, NOW);
        for op in ops {
            sweep.received(*op);
            sweep.settled(*op);
        }
        sweep.ended()
    }

    #[test]
    fn a_gap_is_crossed_once_and_only_with_a_cursor() {
        let (cursor, min, op) = (at(NOW - 30 * HOUR), at(NOW - 20 * HOUR), at(NOW - 20 * HOUR + 1));
        assert_eq!(run(Some(cursor), gap(min), &[op]).gap, Some((cursor, min)));
        assert_eq!(run(Some(cursor), gap(min), &[]).cursor, Some(min));
        assert_eq!(run(None, gap(min), &[op]).gap, None);
        // Not above the cursor; an op below it; too far ahead; implausible.
        assert_eq!(run(Some(op), gap(min), &[]).gap, None);
        assert_eq!(run(Some(cursor), gap(min), &[at(NOW - 21 * HOUR), op]).gap, None);
        assert_eq!(run(Some(cursor), gap(at(NOW + HOUR)), &[]).cursor, Some(cursor));
        assert_eq!(run(Some(cursor), gap(at(5)), &[]).cursor, Some(cursor));
    }

    #[test]
    fn a_gap_beyond_what_can_be_stored_is_not_entered() {
        let (cursor, min) = (at(NOW - HOUR), at(NOW - 1000));
        for ops in [&[][..], &[min]] {
            let ended = run(Some(cursor), gap(min), ops);
            assert_eq!((ended.gap, ended.cursor, ended.more), (None, Some(cursor), false));
        }
    }

    #[test]
    fn nothing_passes_an_op_that_is_held() {
        let (cursor, a, b) = (at(NOW - 9 * HOUR), at(NOW - 8 * HOUR), at(NOW - 7 * HOUR));
        let headers =
            SweepHeaders { last_scanned: Some(at(NOW - HOUR)), limited: true, ..Default::default() };
        let mut sweep = Sweep::answered(Some(cursor), headers, NOW);
        sweep.received(a);
        sweep.settled(a);
        sweep.received(b);
        sweep.stopped_before(Some(b));
        let ended = sweep.ended();
        assert_eq!((ended.cursor, ended.more), (Some(a), false));
    }

    #[test]
    fn a_page_left_before_its_first_op_crosses_no_gap() {
        let (cursor, min) = (at(NOW - 9 * HOUR), at(NOW - 8 * HOUR));
        let mut sweep = Sweep::answered(Some(cursor), gap(min), NOW);
        sweep.stopped_before(None);
        let ended = sweep.ended();
        assert_eq!((ended.cursor, ended.gap), (Some(cursor), None));
    }

    #[test]
    fn catching_up() {
        let cursor = Some(at(NOW - 9 * HOUR));
        assert!(run(cursor, SweepHeaders::default(), &[at(NOW - HOUR)]).more);
        assert!(!run(cursor, SweepHeaders::default(), &[at(NOW - 1000)]).more);
        assert!(!run(cursor, SweepHeaders::default(), &[]).more);
        let limited = SweepHeaders { limited: true, ..Default::default() };
        assert!(run(cursor, limited.clone(), &[at(NOW - 120_000)]).more);
        // A page that moved nothing is not asked for again at once.
        assert!(!run(cursor, limited, &[]).more);
        let scanned =
            SweepHeaders { limited: true, last_scanned: Some(at(NOW - HOUR)), ..Default::default() };
        assert!(run(cursor, scanned, &[]).more);
    }

    #[test]
    fn table_gaps_are_those_crossed() {
        let (cursor, op) = (at(NOW - 9 * HOUR), at(NOW - 5 * HOUR));
        let floors = vec![
            ("a".into(), at(NOW - 10 * HOUR)),
            ("b".into(), at(NOW - 6 * HOUR)),
            ("c".into(), at(NOW - HOUR)),
        ];
        let headers = SweepHeaders { table_floors: floors.clone(), ..Default::default() };
        assert_eq!(run(Some(cursor), headers.clone(), &[op]).table_gaps, [floors[1].clone()]);
        assert_eq!(run(None, headers, &[op]).table_gaps, []);
    }

    fn any_ulid() -> impl Strategy<Value = OpUlid> {
        prop_oneof![
            8 => (NOW - 40 * HOUR..NOW + 30 * HOUR).prop_map(at),
            1 => any::<u64>().prop_map(|ms| OpUlid::from_parts(ms & ((1 << 48) - 1), 9)),
        ]
    }

    proptest! {
        /// The cursor never goes back, never passes a held op, what was
        /// settled, scanned or announced, nor what may be stored; no gap that
        /// it crosses is left uncounted.
        #[test]
        fn the_cursor_is_sound(
            cursor in proptest::option::of((NOW - 40 * HOUR..NOW - HOUR).prop_map(at)),
            (gapped, limited) in any::<(bool, bool)>(),
            gap_min in proptest::option::of(any_ulid()),
            last_scanned in proptest::option::of(any_ulid()),
            ops in proptest::collection::vec((NOW - 40 * HOUR..NOW + 23 * HOUR).prop_map(at), 0..12),
            stop in proptest::option::of(0usize..12),
        ) {
            let headers = SweepHeaders { gap: gapped, gap_min, last_scanned, limited, table_floors: vec![] };
            let mut sweep = Sweep::answered(cursor, headers, NOW);
            let mut held = None;
            let mut settled = None;
            let mut lowest = None::<OpUlid>;
            for (i, op) in ops.iter().enumerate() {
                sweep.received(*op);
                lowest = Some(lowest.map_or(*op, |l| l.min(*op)));
                if stop == Some(i) {
                    sweep.stopped_before(Some(*op));
                    held = Some(*op);
                    break;
                }
                sweep.settled(*op);
                settled = settled.max(Some(*op));
            }
            let ended = sweep.ended();
            prop_assert!(ended.cursor >= cursor);
            if ended.cursor > cursor {
                let new = ended.cursor.unwrap();
                prop_assert!(new <= latest_storable(NOW));
                prop_assert!(held.is_none_or(|h| new < h));
                let announced = gap_min.filter(|m| gapped && cursor.is_some() && lowest.is_none_or(|l| l >= *m));
                prop_assert!(Some(new) <= settled.max(announced).max(last_scanned));
                let honest = announced.filter(|m| is_plausible(*m, NOW) && m.ms() <= NOW + MAX_GAP_AHEAD_MS);
                if let (Some(min), Some(from)) = (honest, cursor) {
                    prop_assert_eq!(ended.gap.is_some(), min > from && new >= min);
                }
            } else {
                prop_assert!(ended.gap.is_none() && !ended.more);
            }
        }
    }
}
