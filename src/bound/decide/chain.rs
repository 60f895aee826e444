//! How far anything may go where ops come by the chain: the time of the last
//! block that the node has read.

use super::{DAY_MS, Facts, HOUR_MS, YOUNGEST_MS, blocker, ms};
use crate::values::{Blocker, OpUlid};

/// Without the guard a block that is executed again puts old state over new:
/// blocks are kept for 7 to 10 days (contract 10).
const UNGUARDED_MS: u64 = 10 * DAY_MS;
/// A node that read no block for so long is behind or stuck (contract 10).
const BEHIND_MS: u64 = HOUR_MS;
/// How far a block may lie ahead of our clock.
const AHEAD_MS: u64 = 5 * 60_000;

/// How far the node has read the chain. Texts are as stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChainFact {
    /// There is a table `core_blocks`.
    pub has_blocks: bool,
    /// The GRANT that lets this role read it, where it may not.
    pub grant: Option<String>,
    /// What the node's cursor holds; `None` where there is none.
    pub cursor: Option<String>,
    /// The newest block: its chain and its height.
    pub tip: Option<(String, u64)>,
    /// The time of the block at the cursor on that chain, in milliseconds
    /// since the Unix epoch.
    pub read_until_ms: Option<u64>,
}

impl ChainFact {
    /// The height that the node has read, where its cursor is one.
    pub fn height(&self) -> Option<u64> {
        let digits = self.cursor.as_deref()?;
        let is_height = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| is_height)
    }
}

/// No window is shorter, in milliseconds.
pub fn least_window(facts: &Facts) -> u64 {
    if facts.replication.has_chain() && !facts.guarded { UNGUARDED_MS } else { YOUNGEST_MS }
}

/// The highest ULID that may be cut at, or what stands in the way.
pub(super) fn bound(facts: &Facts) -> Result<OpUlid, Blocker> {
    let at = read_until(facts)?;
    Ok(OpUlid::first_of_ms(at.min(facts.now_ms).saturating_sub(ms(facts.settings.cursor_margin))))
}

const NO_BLOCKS: &str = "there is no table core_blocks with height, chain_id and created_at: when the node \
    read which block is unknown";
const NO_CHAIN: &str = "see the node's log; where its ops do not come by the chain, \
    OPENAUDIO_MEDIORUM_REPLICATION=peers says so";

/// The time up to which the node has read the chain.
fn read_until(facts: &Facts) -> Result<u64, Blocker> {
    let chain = &facts.chain;
    let stop = |code, text: String, fix: &str| Err(blocker(facts, (code, ""), text, fix));
    let unknown = |text: &str, fix: &str| stop("chain_unknown", text.to_owned(), fix);
    if !chain.has_blocks {
        return unknown(NO_BLOCKS, NO_CHAIN);
    }
    if let Some(grant) = &chain.grant {
        return unknown("core_blocks may not be read", &format!("as the owner: {grant}"));
    }
    let Some((id, tip)) = &chain.tip else {
        return unknown(
            "core_blocks is empty: the node has no block yet",
            "wait until it has joined the chain",
        );
    };
    let Some(cursor) = chain.cursor.as_deref().filter(|text| !text.is_empty()) else {
        return unknown(
            "cursors has no core_mediorum_blocks: how far the node read the chain is unknown",
            "wait until the node's syncer has written it; see the node's log where it does not",
        );
    };
    let Some(height) = chain.height() else {
        return unknown(
            &format!("core_mediorum_blocks is {cursor:?}, which is no height"),
            "the node writes a decimal number there: see who else writes to cursors",
        );
    };
    if height > *tip {
        return stop(
            "chain_changed",
            format!(
                "core_mediorum_blocks is {height}, above the newest block {tip} of {id}: a new chain began"
            ),
            "wait until the node reads the new chain; it may take a newer release of the node, or its \
             core_mediorum_blocks set to a height of the new chain; no setting lifts it",
        );
    }
    let Some(at) = chain.read_until_ms else {
        return unknown(
            &format!("core_blocks has no time for block {height} of {id}, which core_mediorum_blocks names"),
            "wait until the node has that block and its time, or read on beyond it",
        );
    };
    if at > facts.now_ms.saturating_add(AHEAD_MS) {
        let ahead = (at - facts.now_ms) / 1_000;
        return stop(
            "clock_off",
            format!("block {height} of {id} lies {ahead} s ahead of this clock"),
            "set this machine's clock right (NTP); no setting lifts it",
        );
    }
    let age = facts.now_ms.saturating_sub(at);
    if age > BEHIND_MS {
        return stop(
            "chain_behind",
            format!(
                "the node read the chain up to block {height} of {id}, {} min ago: its syncer is behind or stuck",
                age / 60_000
            ),
            "let it catch up, or restart the node; no setting lifts it",
        );
    }
    Ok(at)
}
