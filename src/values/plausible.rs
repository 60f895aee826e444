//! Plausible: a ULID whose time can be true. Anything else is never stored as
//! a cursor, never honoured, and counts for no decision.

use super::OpUlid;

/// 2023-01-01T00:00:00Z in milliseconds: mediorum's oldest ops are of March 2023.
pub const EARLIEST_MS: u64 = 1_672_531_200_000;

/// The lowest plausible ULID, as text: a bound for scans.
pub const EARLIEST_ULID: &str = "01GNNA1J000000000000000000";

/// How far ahead of now a plausible time may lie: 24 h.
pub const MAX_AHEAD_MS: u64 = 24 * 3_600_000;

/// How far ahead of now the minimum of a gap header may lie: 30 minutes.
pub const MAX_GAP_AHEAD_MS: u64 = 30 * 60_000;

/// Whether a ULID's time lies between 2023-01-01 and `now_ms` + 24 h.
pub fn is_plausible(ulid: OpUlid, now_ms: u64) -> bool {
    (EARLIEST_MS..=now_ms.saturating_add(MAX_AHEAD_MS)).contains(&ulid.ms())
}

/// The highest plausible ULID at `now_ms`.
pub fn latest_plausible(now_ms: u64) -> OpUlid {
    OpUlid::last_of_ms(now_ms.saturating_add(MAX_AHEAD_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let now = 1_790_000_000_000;
        let at = |ms| is_plausible(OpUlid::from_parts(ms, 7), now);
        assert!(!at(EARLIEST_MS - 1));
        assert!(at(EARLIEST_MS));
        assert!(at(now + MAX_AHEAD_MS));
        assert!(!at(now + MAX_AHEAD_MS + 1));
        assert_eq!(OpUlid::first_of_ms(EARLIEST_MS).as_str(), EARLIEST_ULID);
    }
}
