//! The gate: what may be deleted now, from facts alone.
//!
//! Facts → [`gate`] (how far anything may go, or what stands in the way) →
//! [`retention`] and [`dormant`], each *prune below X, bound by …* or *skip,
//! because of …* with every reason.

use crate::records::models;
use crate::settings::{Bounding, Keep};
use crate::values::{Blocker, BoundBy, Host, Notice, OpUlid, TableDay, is_plausible};
use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

const HOUR_MS: u64 = 3_600_000;
/// Milliseconds of a day.
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// Nothing younger is ever deleted: floors are never above (contract 5).
pub const YOUNGEST_MS: u64 = 2 * HOUR_MS;
/// A size never shortens the window below this (contract 5).
const LEAST_WINDOW_MS: u64 = 7 * DAY_MS;
/// How far the median of the peers' clocks may be from ours (contract 5).
const CLOCK_MS: u64 = 5 * 60_000;
/// Fewer peers than this say nothing of our clock (contract 5).
const CLOCK_PEERS: usize = 3;
/// A peer that had nothing for us for so long is shown as stalled (contract 5).
const STALLED_MS: u64 = DAY_MS;
/// The one table without a model that is cleaned up: every node skips it.
const BLOBS: &str = "blobs";

/// What is to be deleted of one table: its ops below a ULID.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Cut {
    /// The table, as ops name it.
    pub table: String,
    /// The lowest ULID that stays.
    pub below: OpUlid,
}

/// All that a decision is made from.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The settings.
    pub settings: Bounding,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// This validator.
    pub own: Host,
    /// The active peers and those that vanished within 7 days; `None` when no
    /// set was ever known.
    pub peers: Option<Vec<PeerFact>>,
    /// Who read from here within 24 h.
    pub readers: Vec<ReaderFact>,
    /// The peers' clocks less ours, in milliseconds, as last seen.
    pub clock_offsets_ms: Vec<i64>,
    /// An op of this host lies over an hour ahead: its ULID.
    pub own_ahead: Option<OpUlid>,
    /// The census, or a sample.
    pub census: Vec<TableDay>,
    /// The log was counted whole once.
    pub census_whole: bool,
    /// Since when each blocker stands, by code and subject.
    pub since: BTreeMap<(String, String), Timestamp>,
}

/// A peer, as far as the gate is concerned. Texts are as stored: nothing of
/// them is believed yet.
#[derive(Clone, Debug)]
pub struct PeerFact {
    /// Who.
    pub host: Host,
    /// When it was first seen, in milliseconds since the Unix epoch.
    pub first_seen_ms: u64,
    /// Our own cursor.
    pub own: Option<String>,
    /// What the node's row holds, and held in the last 30 minutes; '' for NULL.
    pub node: Vec<String>,
    /// The node's row was removed since it was read: an operator's reset.
    pub reset: bool,
    /// Since when it answers `[]` at one cursor, in milliseconds.
    pub empty_since_ms: Option<u64>,
}

/// A registered peer that read from here.
#[derive(Clone, Debug)]
pub struct ReaderFact {
    /// Who.
    pub host: Host,
    /// The lowest `after` it asked with; `None` holds nothing.
    pub lowest: Option<OpUlid>,
}

/// A cut, and what keeps it from going further.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Bounded {
    /// What is deleted.
    #[serde(flatten)]
    pub cut: Cut,
    /// What bounds it.
    pub bound_by: BoundBy,
}

/// What a task does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// It deletes below each cut; there may be none.
    Prune {
        /// One a table.
        cuts: Vec<Bounded>,
    },
    /// It deletes nothing.
    Skip {
        /// All that stands in the way.
        blockers: Vec<Blocker>,
    },
}

/// How far anything may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gate {
    /// The slowest peer and the highest ULID that may be cut at for it.
    pub peer: Option<(OpUlid, Host)>,
    /// Readers with what each still needs.
    pub readers: Vec<(OpUlid, Host)>,
    /// What blocks everything.
    pub blockers: Vec<Blocker>,
    /// Overrides in force and peers that are stalled.
    pub notices: Vec<Notice>,
}

/// How far everything may go, and why not further.
pub fn gate(facts: &Facts) -> Gate {
    let mut gate = Gate { peer: None, readers: Vec::new(), blockers: Vec::new(), notices: Vec::new() };
    match &facts.peers {
        None => gate.blockers.push(blocker(
            facts,
            ("peers_unknown", ""),
            "the set of peers was never found".into(),
            "see `opsward doctor`, or set OPENAUDIO_MEDIORUM_PEERS (`none` for no peers)",
        )),
        Some(peers) => {
            for peer in peers.iter().filter(|peer| peer.host != facts.own) {
                gate.count(facts, peer);
            }
            let is_peer = |host: &Host| *host != facts.own && peers.iter().any(|peer| peer.host == *host);
            for reader in facts.readers.iter().filter(|reader| is_peer(&reader.host)) {
                gate.hold(facts, reader);
            }
        }
    }
    gate.clock(facts);
    gate
}

impl Gate {
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
        let Some(cursor) = cursor else {
            self.blockers.push(blocker(
                facts,
                ("peer_without_cursor", peer.host.as_str()),
                format!("there is no usable cursor for the active peer {}", peer.host),
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

    fn clock(&mut self, facts: &Facts) {
        let mut offsets = facts.clock_offsets_ms.clone();
        offsets.sort_unstable();
        let median = offsets.get(offsets.len() / 2).copied().unwrap_or(0);
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
        if let Some(ahead) = facts.own_ahead {
            self.blockers.push(blocker(
                facts,
                ("own_op_ahead", ""),
                format!("op {ahead} of this host lies over an hour ahead of now"),
                "set this machine's clock right (NTP); no setting lifts it",
            ));
        }
    }

    fn note(&mut self, code: &'static str, host: &Host, text: String) {
        self.notices.push(Notice { code, subject: host.to_string(), text });
    }

    /// The cut of a window, and what bounds it: the lowest of the window, the
    /// slowest peer and what each reader holds, at most `hold_ms` longer.
    pub fn bound(&self, facts: &Facts, window_ms: u64, by: BoundBy) -> (OpUlid, BoundBy) {
        let window = facts.now_ms.saturating_sub(window_ms.max(YOUNGEST_MS));
        let longest = OpUlid::first_of_ms(window.saturating_sub(ms(facts.settings.reader_hold)));
        let mut lowest = (OpUlid::first_of_ms(window), by);
        for (needed, host) in &self.readers {
            let held = (*needed).max(longest);
            if held < lowest.0 {
                lowest = (held, BoundBy::Reader(host.clone()));
            }
        }
        match &self.peer {
            Some((bound, host)) if *bound < lowest.0 => (*bound, BoundBy::Peer(host.clone())),
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

/// What retention does.
pub fn retention(facts: &Facts) -> Decision {
    let set = &facts.settings;
    let mut blockers = gate(facts).blockers;
    if set.retention_days == 0 && set.retention_bytes == 0 {
        blockers
            .insert(0, off(facts, "retention", "OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS to the days to keep"));
    } else if set.retention_days == 0 {
        blockers.extend(uncounted(facts));
    }
    decided(facts, blockers, |gate| {
        let cut = |table: &str| {
            let by = if set.tables.contains_key(table) { BoundBy::Age } else { window(facts).1 };
            Some(gate.bound(facts, window_of(facts, table)?, by))
        };
        models().iter().filter_map(|model| Some((model.table.clone(), cut(&model.table)?))).collect()
    })
}

/// What dormant cleanup does. Its cuts come from the census: whoever deletes
/// looks into the log once more, as a single recent op protects a table.
pub fn dormant(facts: &Facts) -> Decision {
    let set = &facts.settings;
    let mut blockers = gate(facts).blockers;
    blockers.extend(uncounted(facts));
    if !set.dormant_cleanup {
        blockers.insert(0, off(facts, "dormant cleanup", "OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP=true"));
    }
    if set.keep_dormant {
        blockers.insert(
            0,
            blocker(
                facts,
                ("keep_dormant", ""),
                "OPENAUDIO_MEDIORUM_KEEP_DORMANT_OPS vetoes it".into(),
                "unset OPENAUDIO_MEDIORUM_KEEP_DORMANT_OPS",
            ),
        );
    }
    let threshold = ms(set.dormant_threshold).max(DAY_MS);
    decided(facts, blockers, |gate| {
        let cut = |table: &String| match set.tables.get(table) {
            Some(Keep::All | Keep::Compact) => None,
            Some(Keep::Days(days)) => {
                Some(gate.bound(facts, threshold.max(u64::from(*days) * DAY_MS), BoundBy::Age))
            }
            None => Some(gate.bound(facts, threshold, BoundBy::Age)),
        };
        dormant_tables(facts).into_iter().filter_map(|table| Some((table.clone(), cut(&table)?))).collect()
    })
}

/// Tables with a model, and `blobs`, whose newest op is older than the threshold.
fn dormant_tables(facts: &Facts) -> Vec<String> {
    let silent =
        OpUlid::first_of_ms(facts.now_ms.saturating_sub(ms(facts.settings.dormant_threshold).max(DAY_MS)));
    let mut newest: BTreeMap<&str, Option<OpUlid>> = BTreeMap::new();
    for of in facts.census.iter().filter(|of| of.rows > 0) {
        let newest = newest.entry(&of.table).or_default();
        *newest = (*newest).max(of.newest.filter(|u| is_plausible(*u, facts.now_ms)));
    }
    let known = |table: &str| table == BLOBS || models().get(table).is_some();
    let dormant =
        newest.into_iter().filter(|(table, newest)| known(table) && newest.is_some_and(|n| n < silent));
    dormant.map(|(table, _)| table.to_owned()).collect()
}

type Bounds = Vec<(String, (OpUlid, BoundBy))>;

fn decided(facts: &Facts, blockers: Vec<Blocker>, bounds: impl FnOnce(&Gate) -> Bounds) -> Decision {
    if !blockers.is_empty() {
        return Decision::Skip { blockers };
    }
    let bounded = |(table, (below, bound_by))| Bounded { cut: Cut { table, below }, bound_by };
    Decision::Prune { cuts: bounds(&gate(facts)).into_iter().map(bounded).collect() }
}

/// The window of a table by retention, in milliseconds; `None` keeps all of it.
pub fn window_of(facts: &Facts, table: &str) -> Option<u64> {
    let set = &facts.settings;
    let on = set.retention_days > 0 || set.retention_bytes > 0;
    match set.tables.get(table) {
        _ if !on || models().get(table).is_none() => None,
        Some(Keep::All | Keep::Compact) => None,
        Some(Keep::Days(days)) => Some(u64::from(*days) * DAY_MS),
        None => window(facts).0,
    }
}

/// The window of tables that say nothing of their own, in milliseconds, and
/// whether a size shortened it; `None` keeps everything.
fn window(facts: &Facts) -> (Option<u64>, BoundBy) {
    let age = match facts.settings.retention_days {
        0 => None,
        days => Some(u64::from(days) * DAY_MS),
    };
    match size_window(facts) {
        Some((size, _)) if age.is_none_or(|age| size < age) => (Some(size), BoundBy::Size),
        _ => (age, BoundBy::Age),
    }
}

/// The longest window, in whole UTC days, under which the log stays below the
/// size that is set, and whether 7 days are enough for it. `None` where it
/// does, no size is set, or nothing was counted.
fn size_window(facts: &Facts) -> Option<(u64, bool)> {
    let set = &facts.settings;
    if set.retention_bytes == 0 || uncounted(facts).is_some() {
        return None;
    }
    let mut left = set.retention_bytes;
    let mut by_day: BTreeMap<Date, u64> = BTreeMap::new();
    for of in &facts.census {
        let shortened = models().get(&of.table).is_some() && !set.tables.contains_key(&of.table);
        let gone = matches!(set.tables.get(&of.table), Some(Keep::Days(days))
            if age_ms(of.day, facts.now_ms) > u64::from(*days) * DAY_MS + DAY_MS);
        match (shortened, gone) {
            (true, _) => *by_day.entry(of.day).or_default() += of.bytes,
            (false, true) => {}
            (false, false) => left = left.saturating_sub(of.bytes),
        }
    }
    for (day, bytes) in by_day.into_iter().rev() {
        if bytes > left {
            let end = age_ms(day, facts.now_ms).saturating_sub(DAY_MS);
            return Some((end.max(LEAST_WINDOW_MS), end >= LEAST_WINDOW_MS));
        }
        left -= bytes;
    }
    None
}

/// What there is to say of the size to stay under.
pub fn size_notice(facts: &Facts) -> Option<Notice> {
    if facts.settings.retention_bytes == 0 {
        return None;
    }
    let notice = |code, text: &str| Some(Notice { code, subject: String::new(), text: text.into() });
    match (uncounted(facts), size_window(facts)) {
        (Some(why), _) => notice(
            "size_not_counted",
            &format!("OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES does not count yet: {}", why.text),
        ),
        (None, Some((_, false))) => notice(
            "size_not_reached",
            "7 days are more than OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES: they are kept nevertheless",
        ),
        _ => None,
    }
}

/// What is missing of a census that may be acted on.
fn uncounted(facts: &Facts) -> Option<Blocker> {
    let fix =
        "let the daemon finish its census (OPENAUDIO_MEDIORUM_OPS_CENSUS=true), or run `opsward census`";
    if facts.census.is_empty() && !facts.census_whole {
        return Some(blocker(facts, ("no_census", ""), "the log was not counted yet".into(), fix));
    }
    let estimated = !facts.census_whole || facts.census.iter().any(|of| of.estimated);
    estimated.then(|| {
        blocker(facts, ("census_estimated", ""), "the log was sampled, not yet counted whole".into(), fix)
    })
}

fn off(facts: &Facts, task: &str, setting: &str) -> Blocker {
    blocker(facts, ("off", task), format!("{task} is off"), &format!("set {setting}"))
}

fn blocker(facts: &Facts, (code, subject): (&'static str, &str), text: String, fix: &str) -> Blocker {
    let now = || i64::try_from(facts.now_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let since = facts.since.get(&(code.to_owned(), subject.to_owned())).copied();
    Blocker {
        code,
        subject: subject.to_owned(),
        text,
        fix: fix.to_owned(),
        since: since.or_else(now).unwrap_or_default(),
    }
}

/// How long ago a UTC day began, in milliseconds.
pub fn age_ms(day: Date, now_ms: u64) -> u64 {
    let began = day.to_zoned(jiff::tz::TimeZone::UTC).map_or(0, |at| at.timestamp().as_millisecond());
    now_ms.saturating_sub(u64::try_from(began).unwrap_or(0))
}

/// A duration in milliseconds.
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
