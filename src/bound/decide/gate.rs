//! How far anything may go: peers, readers and clocks; the chain; both.

use super::{ClockFact, DAY_MS, Facts, HOUR_MS, PeerFact, ReaderFact, blocker, chain, least_window, ms};
use crate::settings::Archive;
use crate::values::{Blocker, BoundBy, Host, Notice, OpUlid, is_plausible, own_ahead};

/// How far the median of the peers' clocks may be from ours (contract 5).
const CLOCK_MS: u64 = 5 * 60_000;
/// Fewer peers than this say nothing of our clock (contract 5).
const CLOCK_PEERS: usize = 3;
/// What a peer's clock was found to be counts for so long, or two rounds of
/// pulling: ours may have been set since. One found in the future was, too.
const CLOCK_FRESH_MS: u64 = 30 * 60_000;
/// A peer that left the set counts for so long (contract 4).
const REMOVED_COUNTS_MS: u64 = 7 * DAY_MS;
/// A peer that had nothing for us for so long is shown as stalled (contract 5).
const STALLED_MS: u64 = DAY_MS;

/// How far anything may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gate {
    /// The slowest peer and the highest ULID that may be cut at for it.
    pub peer: Option<(OpUlid, Host)>,
    /// The highest ULID that may be cut at for the chain.
    pub chain: Option<OpUlid>,
    /// Readers with what each still needs.
    pub readers: Vec<(OpUlid, Host)>,
    /// What blocks everything.
    pub blockers: Vec<Blocker>,
    /// Overrides in force and peers that are stalled.
    pub notices: Vec<Notice>,
}

/// How far everything may go, and why not further.
pub fn gate(facts: &Facts) -> Gate {
    let mut gate =
        Gate { peer: None, chain: None, readers: Vec::new(), blockers: Vec::new(), notices: Vec::new() };
    gate.blockers.extend(archive(facts));
    if facts.replication.has_peers() {
        gate.peers(facts);
    }
    if facts.replication.has_chain() {
        match chain::bound(facts) {
            Ok(bound) => gate.chain = Some(bound),
            Err(blocker) => gate.blockers.push(blocker),
        }
    }
    if let Some(ahead) = facts.own_ahead {
        gate.blockers.push(blocker(
            facts,
            ("own_op_ahead", ""),
            own_ahead(ahead),
            "where this machine's clock is wrong, set it right (NTP); where it is right, somebody else wrote \
                 the op, and this ends by itself; no setting lifts it",
        ));
    }
    gate
}

/// From where on a reset keeps every row, or why there must be none. Peers are
/// its own matter: it proves what they have read.
///
/// # Errors
/// What stands in the way.
pub fn reset_from(facts: &Facts) -> Result<OpUlid, Blocker> {
    if let Some(blocker) = archive(facts) {
        return Err(blocker);
    }
    let window = OpUlid::first_of_ms(facts.now_ms.saturating_sub(least_window(facts)));
    Ok(if facts.replication.has_chain() { window.min(chain::bound(facts)?) } else { window })
}

/// The operator's word that history stays.
fn archive(facts: &Facts) -> Option<Blocker> {
    let set = &facts.settings;
    let stays = matches!(set.node_archive, Some(Archive::Kept | Archive::Meant));
    (stays && !set.delete_archived).then(|| {
        blocker(
            facts,
            ("archive", ""),
            "OPENAUDIO_ARCHIVE says that the node's whole history stays".into(),
            "set OPENAUDIO_MEDIORUM_OPS_DELETE_ARCHIVED=true to delete all the same",
        )
    })
}

impl Gate {
    /// Peers and readers, and what the peers' clocks say of ours.
    fn peers(&mut self, facts: &Facts) {
        match &facts.peers {
            None => self.blockers.push(blocker(
                facts,
                ("peers_unknown", ""),
                "the set of peers was never found".into(),
                "see `opsward doctor`, or set OPENAUDIO_MEDIORUM_PEERS (`none` for no peers)",
            )),
            Some(peers) => {
                for peer in peers.iter().filter(|peer| peer.host != facts.own) {
                    self.count(facts, peer);
                }
                let is_peer = |host: &Host| *host != facts.own && peers.iter().any(|peer| peer.host == *host);
                for row in facts.ignored_rows.iter().filter(|row| is_peer(&Host::normalise(&row.host))) {
                    self.notices.push(Notice {
                        code: "cursor_spelling".into(),
                        subject: row.host.clone(),
                        text: row.text(),
                        fix: row.fix.clone(),
                    });
                }
                for reader in facts.readers.iter().filter(|reader| is_peer(&reader.host)) {
                    self.hold(facts, reader);
                }
            }
        }
        self.clock(facts);
    }

    /// A peer that counts.
    fn count(&mut self, facts: &Facts, peer: &PeerFact) {
        let set = &facts.settings;
        if set.ignore_peers.contains(&peer.host) {
            let text = format!("{} holds nothing: OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS", peer.host);
            return self.note("ignored_peer", &peer.host, text);
        }
        let cursor = cursor(peer, facts.now_ms);
        let behind_ms = facts.now_ms.saturating_sub(cursor.map_or(peer.first_seen_ms, |c| c.ms()));
        if !set.max_peer_lag.is_zero() && behind_ms > ms(set.max_peer_lag) {
            let text = format!(
                "{} is {} h behind and holds nothing: OPENAUDIO_MEDIORUM_OPS_RETENTION_MAX_PEER_LAG",
                peer.host,
                behind_ms / HOUR_MS
            );
            return self.note("lagging_peer", &peer.host, text);
        }
        if peer.empty_since_ms.is_some_and(|since| since + STALLED_MS <= facts.now_ms) {
            let text = format!("{} has had nothing for us at one cursor for over 24 h", peer.host);
            self.note("peer_stalled", &peer.host, text);
        }
        if let Some(removed) = peer.removed_ms {
            let left_ms = (removed + REMOVED_COUNTS_MS).saturating_sub(facts.now_ms);
            let text = format!(
                "{} is no longer a peer and counts for {} h more, as it may come back: \
                 OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS lets it go at once",
                peer.host,
                left_ms.div_ceil(HOUR_MS)
            );
            self.note("peer_removed", &peer.host, text);
        }
        let Some(cursor) = cursor else {
            let is = if peer.removed_ms.is_some() { "removed" } else { "active" };
            self.blockers.push(blocker(
                facts,
                ("peer_without_cursor", peer.host.as_str()),
                format!("there is no usable cursor for the {is} peer {}", peer.host),
                "wait until it was read from, or let it go by OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS \
                 or OPENAUDIO_MEDIORUM_OPS_RETENTION_MAX_PEER_LAG",
            ));
            return;
        };
        let bound = OpUlid::first_of_ms(cursor.ms().saturating_sub(ms(set.cursor_margin)));
        let lower = (bound, peer.host.clone());
        if self.peer.as_ref().is_none_or(|slowest| lower < *slowest) {
            self.peer = Some(lower);
        }
    }

    /// A reader that counts.
    fn hold(&mut self, facts: &Facts, reader: &ReaderFact) {
        let Some(lowest) = reader.lowest.filter(|u| is_plausible(*u, facts.now_ms)) else {
            return;
        };
        if facts.settings.ignore_peers.contains(&reader.host) {
            let text = format!(
                "the reader {} holds nothing: OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS",
                reader.host
            );
            return self.note("ignored_reader", &reader.host, text);
        }
        if !facts.settings.reader_hold.is_zero() {
            self.readers.push((lowest, reader.host.clone()));
        }
    }

    /// Ours is what the peers' say it is not, or nobody has said for a while.
    fn clock(&mut self, facts: &Facts) {
        let peers = facts.peers.iter().flatten().filter(|peer| peer.host != facts.own);
        let told: Vec<(&Host, ClockFact)> =
            peers.filter_map(|peer| Some((&peer.host, peer.clock?))).collect();
        let fresh_ms = CLOCK_FRESH_MS.max(ms(facts.pulled_every).saturating_mul(2));
        let is_fresh = |clock: &ClockFact| clock.found_ms.abs_diff(facts.now_ms) <= fresh_ms;
        let mut offsets: Vec<i64> =
            told.iter().filter(|(_, clock)| is_fresh(clock)).map(|(_, clock)| clock.offset_ms).collect();
        offsets.sort_unstable();
        let median = offsets.get(offsets.len() / 2).copied().unwrap_or(0);
        // Of a peer that is to be ignored nobody waits for word.
        let ignored = |host: &Host| facts.settings.ignore_peers.contains(host);
        let known = told.iter().filter(|(host, clock)| is_fresh(clock) || !ignored(host)).count();
        if offsets.len() < CLOCK_PEERS && known >= CLOCK_PEERS {
            self.blockers.push(blocker(
                facts,
                ("clock_unknown", ""),
                format!(
                    "of {known} peers whose clocks are known only {} told theirs within {} minutes: \
                     this machine's may have been set since",
                    offsets.len(),
                    fresh_ms / 60_000
                ),
                "let the daemon pull (OPENAUDIO_MEDIORUM_SWEEP_PEERS=true); without it, run `opsward sweep` \
                 right before; OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS is for peers that are gone",
            ));
        }
        if offsets.len() >= CLOCK_PEERS && median.unsigned_abs() > CLOCK_MS {
            self.blockers.push(blocker(
                facts,
                ("clock_off", ""),
                format!(
                    "this clock is {} s from the median of the peers' clocks",
                    median.unsigned_abs() / 1_000
                ),
                "set this machine's clock right (NTP); no setting lifts it",
            ));
        }
    }

    fn note(&mut self, code: &'static str, host: &Host, text: String) {
        self.notices.push(Notice { code: code.into(), subject: host.to_string(), text, ..Notice::default() });
    }

    /// The cut of a window, and what bounds it: the lowest of the window, the
    /// slowest peer, the chain, and what each reader holds, at most `hold_ms`
    /// longer.
    pub fn bound(&self, facts: &Facts, window_ms: u64, by: BoundBy) -> (OpUlid, BoundBy) {
        let window = facts.now_ms.saturating_sub(window_ms.max(least_window(facts)));
        let longest = OpUlid::first_of_ms(window.saturating_sub(ms(facts.settings.reader_hold)));
        let mut lowest = (OpUlid::first_of_ms(window), by);
        for (needed, host) in &self.readers {
            let held = (*needed).max(longest);
            if held < lowest.0 {
                lowest = (held, BoundBy::Reader(host.clone()));
            }
        }
        if let Some((bound, host)) = self.peer.as_ref().filter(|(bound, _)| *bound < lowest.0) {
            lowest = (*bound, BoundBy::Peer(host.clone()));
        }
        match self.chain {
            Some(bound) if bound < lowest.0 => (bound, BoundBy::Chain),
            _ => lowest,
        }
    }
}

/// The lower of our cursor and the lowest the node's row had: it can go back
/// to what the node read before. One that was empty then begins anew.
fn cursor(peer: &PeerFact, now_ms: u64) -> Option<OpUlid> {
    if peer.reset || peer.node.iter().any(|text| text.trim().is_empty()) {
        return None;
    }
    let usable = |text: &String| OpUlid::parse(text).filter(|u| is_plausible(*u, now_ms));
    peer.own.iter().chain(&peer.node).filter_map(usable).min()
}
