//! What of the log was compared with its copy, and when: a copy may spoil while
//! nobody looks.

use crate::values::words;
use serde::{Deserialize, Serialize};

/// A comparison older than this is made again before the swap: 15 minutes.
const FRESH_MS: i64 = 15 * 60_000;
/// Parts that were compared within the same minute are remembered as one.
const MINUTE_MS: i64 = 60_000;

words! {
    /// After the swap, snapshots from before it read an emptied log without an error.
    #[derive(Default)]
    pub enum OldSnapshots {
        /// The swap waits until they end.
        #[default]
        Wait = "wait",
        /// It does not wait.
        Ignore = "ignore",
    }
}

/// The parts that were compared, in the order of the log's key, from its start on
/// without a hole. Times are milliseconds since the Unix epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Comparison {
    parts: Vec<Part>,
    /// Parts compared before this are compared again.
    stale_ms: i64,
    /// When all was compared.
    ended_ms: i64,
}

/// It begins after the last key of the part before it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Part {
    /// Its last key; `None` is the end of the log.
    until: Option<String>,
    at_ms: i64,
}

/// A part that has to be compared, by its place in the list, with the key before
/// it ('' is the log's start) and its last key.
pub type Stale<'a> = (usize, &'a str, Option<&'a str>);

impl Comparison {
    /// Begins to compare whatever was not compared in the last 15 minutes.
    pub fn begin(&mut self, now_ms: i64) {
        self.stale_ms = now_ms - FRESH_MS;
        if self.parts.last().is_none_or(|last| last.until.is_some()) {
            self.parts.push(Part { until: None, at_ms: 0 });
        }
    }

    /// The first part that has to be compared.
    pub fn stale(&self) -> Option<Stale<'_>> {
        let n = self.parts.iter().position(|part| part.at_ms < self.stale_ms)?;
        Some((n, self.before(n), self.parts[n].until.as_deref()))
    }

    fn before(&self, part: usize) -> &str {
        let before = part.checked_sub(1).and_then(|n| self.parts.get(n));
        before.and_then(|before| before.until.as_deref()).unwrap_or_default()
    }

    /// The last key that was compared; '' is the log's start.
    pub fn last(&self) -> &str {
        self.before(self.parts.len())
    }

    /// The part after that key was compared.
    pub fn add(&mut self, until: String, now_ms: i64) {
        self.compared(self.parts.len(), Some(until), now_ms);
    }

    /// A part was compared from its start up to a key.
    pub fn compared(&mut self, part: usize, until: Option<String>, now_ms: i64) {
        match self.parts.get_mut(part) {
            Some(of) if of.until == until => of.at_ms = now_ms,
            _ => self.parts.insert(part, Part { until, at_ms: now_ms }),
        }
        let in_one_minute = |one: &Part, other: &Part| {
            one.at_ms >= self.stale_ms && one.at_ms / MINUTE_MS == other.at_ms / MINUTE_MS
        };
        if part > 0 && in_one_minute(&self.parts[part - 1], &self.parts[part]) {
            self.parts[part - 1].until = self.parts.remove(part).until;
        }
    }

    /// All was compared.
    pub fn end(&mut self, now_ms: i64) {
        self.ended_ms = now_ms;
    }

    /// Whether that is too long ago for a swap.
    pub fn is_old(&self, now_ms: i64) -> bool {
        now_ms - self.ended_ms > FRESH_MS || now_ms < self.ended_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(until: Option<&str>, at_ms: i64) -> Part {
        Part { until: until.map(Into::into), at_ms }
    }

    #[test]
    fn what_was_compared_long_ago_is_compared_again_part_by_part() {
        let (mut of, now) = (Comparison::default(), 10 * FRESH_MS);
        of.begin(now);
        assert_eq!(of.stale(), Some((0, "", None)));
        of.compared(0, Some("b".into()), now);
        assert_eq!(of.stale(), Some((1, "b", None)));
        // Within the same minute it is one part.
        of.compared(1, Some("c".into()), now + 1);
        assert_eq!(of.parts, [part(Some("c"), now), part(None, 0)]);
        of.compared(1, Some("d".into()), now + MINUTE_MS);
        of.compared(2, None, now + 2 * MINUTE_MS);
        assert_eq!((of.stale(), of.parts.len()), (None, 3));
        // Later, only what is not fresh.
        of.begin(now + FRESH_MS + 1);
        assert_eq!(of.stale(), Some((0, "", Some("c"))));
        of.compared(0, Some("c".into()), now + FRESH_MS + 1);
        assert_eq!(of.stale(), None);
        of.end(now);
        assert!(!of.is_old(now + FRESH_MS) && of.is_old(now + FRESH_MS + 1));
    }

    /// A comparison that takes longer than its result is fresh ends all the same.
    #[test]
    fn a_comparison_of_hours_ends() {
        let (mut of, mut now) = (Comparison::default(), 10 * FRESH_MS);
        of.begin(now);
        for n in 0..100 {
            let (part, ..) = of.stale().unwrap();
            now += MINUTE_MS;
            of.compared(part, (n < 99).then(|| format!("{n:03}")), now);
        }
        assert_eq!(of.stale(), None);
    }
}
