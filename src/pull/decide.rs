//! The choices of pulling that need no I/O: where a sweep starts, what a table
//! is to us, what happens to the node's cursor, when to come again.

use crate::records::{Model, Models, Row};
use crate::values::{Action, Host, NodeWrite, Op, OpUlid, RejectReason, StoredCursors, is_plausible};
use std::collections::BTreeMap;
use std::time::Duration;

/// Cursors are stored no later than this before now: a plausible op 20 h
/// ahead would hide 20 h of ops behind it.
pub const CURSOR_MARGIN_MS: u64 = 60_000;
/// So far ahead of ours a peer's clock may be (contract 5).
const SKEW_MS: u64 = 5 * 60_000;
/// A page whose last op is older than this is followed at once by the next.
pub const CATCH_UP_AGE_MS: u64 = 15 * 60_000;
/// The least pause between two pages of one peer: nodes serve one at a time.
pub const LEAST_PAUSE: Duration = Duration::from_secs(2);

/// A floor may be raised above an op older than this while the op is applied: floors stay two
/// hours behind now, and one of them is kept for clocks that differ.
pub const OLD_MS: u64 = 3_600_000;

/// Where a sweep starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// The cursor to ask with; `None` reads the log from its beginning.
    pub cursor: Option<OpUlid>,
    /// The node's row was removed or emptied by an operator since we saw it:
    /// our own cursor is to be dropped.
    pub reset: bool,
}

/// Where a sweep starts, given what is stored: our own cursor, seeded from the
/// node's where we have none.
pub fn start(stored: &StoredCursors, now_ms: u64) -> Start {
    let filled = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
    if stored.own.is_some() && filled(&stored.node_seen) && !filled(&stored.node) {
        return Start { cursor: None, reset: true };
    }
    // Where the node's row lies ahead, nobody knows what was read below it: that log is read anew.
    let node = stored.node.as_ref().filter(|t| usable(t, now_ms).is_some_and(|u| u.ms() <= now_ms + SKEW_MS));
    let source = stored.own.as_ref().or(node);
    let cursor = source.and_then(|t| usable(t, now_ms)).map(|u| u.min(latest_storable(now_ms)));
    Start { cursor, reset: false }
}

/// The cursor that a text holds, where it is one that can be true.
fn usable(text: &str, now_ms: u64) -> Option<OpUlid> {
    OpUlid::parse(text).filter(|u| is_plausible(*u, now_ms))
}

/// The highest cursor that is stored at `now_ms`.
pub fn latest_storable(now_ms: u64) -> OpUlid {
    OpUlid::last_of_ms(now_ms.saturating_sub(CURSOR_MARGIN_MS))
}

/// A peer's clock less ours, in milliseconds, by the `Date` of its answer.
pub fn clock_offset_ms(date: &str, now: jiff::Timestamp) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    Some(theirs.as_millisecond() - now.as_millisecond())
}

/// What happens to the node's row: `read` is what it held when the sweep
/// began, `found` what it holds now, locked.
pub fn node_write(read: Option<&str>, found: Option<&str>, cursor: OpUlid, now_ms: u64) -> NodeWrite {
    let filled = |text: Option<&str>| text.is_some_and(|t| !t.is_empty());
    if filled(read) && !filled(found) {
        return NodeWrite::Reset;
    }
    match found.and_then(|t| usable(t, now_ms)) {
        Some(theirs) if theirs >= cursor => NodeWrite::Leave,
        _ => NodeWrite::Set,
    }
}

/// Whether the value that was replaced in the node's row was implausible.
pub fn healed(before: Option<&str>, now_ms: u64) -> bool {
    before.is_some_and(|t| !t.is_empty() && usable(t, now_ms).is_none())
}

/// Why an op of a table is not applied.
#[derive(Clone, Debug)]
pub enum Unfit {
    /// No node of today understands it.
    Refused(RejectReason),
    /// The node may understand it, we do not: why, and what lifts it.
    Held(String),
}

/// Tables that nodes of 2023 replicated. Their relations are still there, and
/// nothing reads them: an op of one is kept as refused, it does not hold a peer.
const PAST: [&str; 2] = ["server_healths", "log_lines"];

/// The model of a table, where its relation has the columns that the model says.
///
/// # Errors
/// Never guesses: what the node may understand and we do not is held.
pub fn table<'m>(name: &str, models: &'m Models, columns: Option<&[String]>) -> Result<&'m Model, Unfit> {
    let refused = |code, detail: String| Err(Unfit::Refused(RejectReason::new(code, detail)));
    match (models.get(name), columns) {
        (None, _) if PAST.contains(&name) => {
            refused("table_of_the_past", "no node of today writes or reads this table".into())
        }
        (None, None) => refused("table", format!("there is no table {name:?}")),
        (None, Some(_)) => Err(Unfit::Held(format!(
            "the node's database has a relation {name} that this opsward has no model of: a newer opsward may have one"
        ))),
        (Some(_), None) => Err(Unfit::Held(format!(
            "the node's database has no relation {name}: start the node once so that it makes its tables"
        ))),
        (Some(model), Some(columns)) => {
            model.fitting(columns).map_err(|why| Unfit::Held(format!("{why}: a newer opsward may know it")))
        }
    }
}

/// Whether an op is a retry of another host's transcoding that nodes with ops on
/// the chain apply and do not store: each of its records is an upload that is
/// busy or failed, after more than five errors, without a `320` result.
pub fn is_transient(op: &Op, model: &Model, rows: &[Row], own: &Host) -> bool {
    let place = |name: &str| model.columns.iter().position(|c| c.name == name);
    let places = (place("status"), place("error_count"), place("transcode_results"));
    let (Some(status), Some(errors), Some(results)) = places else {
        return false;
    };
    let is_retry = |row: &Row| {
        let text = |place: usize| row.values.get(place).and_then(Option::as_deref).unwrap_or_default();
        let results: BTreeMap<String, String> = serde_json::from_str(text(results)).unwrap_or_default();
        ["busy", "error"].contains(&text(status))
            && text(errors).parse::<i64>().is_ok_and(|errors| errors > MOST_ERRORS)
            && !results.contains_key("320")
    };
    op.action == Action::Update && Host::normalise(&op.host) != *own && rows.iter().all(is_retry)
}

/// A node stores retries up to this many errors.
const MOST_ERRORS: i64 = 5;

/// The pause before the next page while catching up: at least as long as the last page took.
pub fn pause(took: Duration) -> Duration {
    took.max(LEAST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_790_000_000_000;

    fn at(ms: u64) -> OpUlid {
        OpUlid::from_parts(ms, 5)
    }

    fn stored(own: Option<OpUlid>, seen: Option<&str>, node: Option<&str>) -> StoredCursors {
        StoredCursors {
            own: own.map(|u| u.to_string()),
            node_seen: seen.map(Into::into),
            node: node.map(Into::into),
            ignored: Vec::new(),
        }
    }

    #[test]
    fn a_sweep_starts_from_our_own_cursor_or_the_nodes() {
        let (old, new) = (at(NOW - 10_000_000), at(NOW - 5_000_000));
        let cursor = |s: &StoredCursors| start(s, NOW).cursor;
        assert_eq!(cursor(&stored(None, None, None)), None);
        assert_eq!(cursor(&stored(None, None, Some(""))), None);
        assert_eq!(cursor(&stored(None, None, Some("01BEFORE"))), None);
        assert_eq!(cursor(&stored(None, None, Some(new.as_str()))), Some(new));
        assert_eq!(cursor(&stored(Some(old), None, Some(new.as_str()))), Some(old));
        // Ahead by no more than clocks differ, or our own: capped. The node's further ahead may
        // have been there for hours, and implausible ones tell nothing: none.
        assert_eq!(cursor(&stored(None, None, Some(at(NOW + 60_000).as_str()))), Some(latest_storable(NOW)));
        assert_eq!(cursor(&stored(Some(at(NOW + 3_600_000)), None, None)), Some(latest_storable(NOW)));
        assert_eq!(cursor(&stored(None, None, Some(at(NOW + 3_600_000).as_str()))), None);
        assert_eq!(cursor(&stored(None, None, Some("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"))), None);
    }

    #[test]
    fn an_operators_reset_is_seen_between_sweeps() {
        let own = Some(at(NOW - 10_000_000));
        let reset = |seen, node| start(&stored(own, seen, node), NOW).reset;
        assert!(reset(Some("x"), None));
        assert!(reset(Some("x"), Some("")));
        assert!(!reset(None, None));
        assert!(!reset(Some(""), Some("")));
        assert!(!reset(Some("x"), Some("y")));
    }

    #[test]
    fn the_nodes_row_is_never_lowered_but_healed() {
        let (low, mid, high) = (at(NOW - 3_000_000), at(NOW - 2_000_000), at(NOW - 1_000_000));
        let write = |read: Option<&str>, found: Option<&str>| node_write(read, found, mid, NOW);
        assert_eq!(write(None, None), NodeWrite::Set);
        assert_eq!(write(None, Some("")), NodeWrite::Set);
        assert_eq!(write(Some(low.as_str()), Some(low.as_str())), NodeWrite::Set);
        assert_eq!(write(Some(low.as_str()), Some(high.as_str())), NodeWrite::Leave);
        assert_eq!(write(Some("garbage"), Some("garbage")), NodeWrite::Set);
        assert!(healed(Some("garbage"), NOW) && !healed(Some(low.as_str()), NOW) && !healed(Some(""), NOW));
        assert_eq!(write(Some(low.as_str()), None), NodeWrite::Reset);
        assert_eq!(write(Some(low.as_str()), Some("")), NodeWrite::Reset);
    }
}
