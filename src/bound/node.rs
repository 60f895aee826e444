//! What the node's own pruner deletes: below its window, every row whatever it
//! is, and no byte goes back to the filesystem.

use super::decide::{DAY_MS, Facts, ms, window_of};
use crate::db::stats::Figures;
use crate::records::models;
use crate::values::{Notice, OpUlid, bytes, count, timestamp};
use jiff::Timestamp;
use serde::Serialize;

/// What the node's own pruner deletes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodePrunes {
    /// Ops born before this go at its next run.
    pub below: Timestamp,
    /// Its window, in seconds.
    pub keeps_seconds: u64,
    /// Nobody told its window: it is the one of a stock node.
    pub assumed: bool,
    /// How often it runs, in seconds; `null` where nobody told.
    pub every_seconds: Option<u64>,
    /// Rows that it deletes now, by the census.
    pub rows: u64,
    /// Bytes of them: they stay in the file.
    pub bytes: u64,
    /// Rows in the log that the chain has not got: it deletes them, too.
    pub owed: u64,
    /// When it deletes the first of those; 0 where that is due.
    pub owed_seconds: Option<u64>,
}

/// The window of the node's own pruner, in milliseconds; `None` where it has
/// none, or nobody knows that it has.
pub fn window(facts: &Facts) -> Option<u64> {
    facts.settings.node_keeps(facts.replication).map(ms)
}

/// What it deletes.
pub fn prunes(facts: &Facts) -> Option<NodePrunes> {
    let window = window(facts)?;
    let below_ms = facts.now_ms.saturating_sub(window);
    let below = OpUlid::first_of_ms(below_ms);
    let gone = facts.census.iter().filter(|of| of.newest.is_some_and(|newest| newest < below));
    let (rows, bytes) = gone.fold((0, 0), |(rows, bytes), of| (rows + of.rows, bytes + of.bytes));
    let owed: Vec<_> = facts.census.iter().filter(|of| of.owed > 0).collect();
    let first = owed.iter().filter_map(|of| of.oldest).min();
    Some(NodePrunes {
        below: timestamp(below_ms),
        keeps_seconds: window / 1_000,
        assumed: facts.settings.node_retention.is_none(),
        every_seconds: facts.settings.node_prune_interval.map(|every| every.as_secs()),
        rows,
        bytes,
        owed: owed.iter().map(|of| of.owed).sum(),
        owed_seconds: first.map(|first| (first.ms() + window).saturating_sub(facts.now_ms) / 1_000),
    })
}

/// What there is to say of it.
pub fn notices(facts: &Facts, figures: &Figures) -> Vec<Notice> {
    let Some(node) = prunes(facts) else { return Vec::new() };
    let mut found = Vec::new();
    let mut say = |code: &'static str, text: String| {
        found.push(Notice { code: code.into(), text, ..Notice::default() })
    };
    if node.rows > 0 {
        let told = if node.assumed { ", as a stock node does" } else { "" };
        say(
            "node_prunes",
            format!(
                "the node deletes what is older than {} by itself{told}; the file stays {}",
                node.below.strftime("%-d %b %Y"),
                bytes(figures.ops_bytes)
            ),
        );
    }
    if let Some(seconds) = node.owed_seconds {
        let when = match seconds / 86_400 {
            0 => "within a day".to_owned(),
            1 => "in a day".to_owned(),
            days => format!("in {days} days"),
        };
        say(
            "owed_pruned",
            format!(
                "{} that the chain has not got are in the log: the node deletes the first of them {when}, and \
                 nobody has them then; see the node's log for why they are not submitted",
                ops(node.owed)
            ),
        );
    }
    if let Some(text) = behind(facts, &node) {
        say("behind_node", text);
    }
    found
}

/// The node deletes before opsward does, or nobody guards: the way out.
fn behind(facts: &Facts, node: &NodePrunes) -> Option<String> {
    let days = node.keeps_seconds * 1_000 / DAY_MS;
    if facts.replication.has_chain() && days < 2 {
        return Some(format!(
            "the node keeps ops for {} h and leaves no memory of what it deletes, so that a block executed \
             again puts old state over new: no window of opsward's is shorter; give the node an \
             OPENAUDIO_OPS_RETENTION of 48h or more",
            node.keeps_seconds / 3_600
        ));
    }
    is_behind(facts, days).then(|| {
        let ahead = days - 1;
        let (rows, size) = older_than(facts, ahead);
        format!(
            "the node's pruner leaves no memory of what it deletes, so that a block executed again puts old \
             state over new: OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS={ahead} with \
             OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD=true deletes first and remembers ({}, {} now)",
            ops(rows),
            bytes(size)
        )
    })
}

/// The node deletes before opsward does, or nobody guards.
fn is_behind(facts: &Facts, days: u64) -> bool {
    let later = |table: &str| window_of(facts, table).is_none_or(|window| window >= days * DAY_MS);
    facts.replication.has_chain()
        && (!facts.settings.replay_guard || models().iter().any(|model| later(&model.table)))
}

fn older_than(facts: &Facts, days: u64) -> (u64, u64) {
    let below = OpUlid::first_of_ms(facts.now_ms.saturating_sub(days * DAY_MS));
    let gone = facts.census.iter().filter(|of| of.newest.is_some_and(|newest| newest < below));
    gone.fold((0, 0), |(rows, bytes), of| (rows + of.rows - of.owed.min(of.rows), bytes + of.bytes))
}

fn ops(n: u64) -> String {
    if n == 1 { "1 op".into() } else { format!("{} ops", count(n)) }
}

#[cfg(test)]
mod tests {
    use super::super::decide::tests::{NOW, day, with};
    use super::*;
    use crate::settings::Archive;
    use crate::values::Replication;
    use std::time::Duration;

    const GB: u64 = 1 << 30;

    fn figures(ops_bytes: u64) -> Figures {
        Figures {
            server_version: String::new(),
            ops_bytes,
            index_bytes: 0,
            dead_rows: 0,
            data_directory: None,
        }
    }

    fn chained(change: impl FnOnce(&mut Facts)) -> Facts {
        with(|f| {
            f.replication = Replication::Chain;
            f.census = vec![day("uploads", 40, 5 * GB), day("uploads", 3, 4 * GB)];
            change(f);
        })
    }

    fn codes(facts: &Facts) -> Vec<&'static str> {
        notices(facts, &figures(90 * GB)).into_iter().map(|n| crate::values::fixed(n.code)).collect()
    }

    #[test]
    fn the_node_deletes_and_the_file_stays() {
        let facts = chained(|_| {});
        let node = prunes(&facts).unwrap();
        assert_eq!((node.rows, node.bytes, node.assumed), (1, 5 * GB, true));
        assert_eq!(node.below, timestamp(NOW - 30 * DAY_MS));
        let text = &notices(&facts, &figures(90 * GB))[0].text;
        assert!(text.contains("deletes what is older than 22 Aug "), "{text}");
        assert!(text.contains("the file stays 90.0 GiB"), "{text}");
    }

    #[test]
    fn its_own_settings_count_where_they_are_told() {
        let told = chained(|f| f.settings.node_retention = Some(Duration::from_secs(60 * 86_400)));
        assert_eq!(prunes(&told).map(|node| (node.rows, node.assumed)), Some((0, false)));
        let archive = |said| prunes(&chained(|f| f.settings.node_archive = Some(said))).is_some();
        // The node knows one word for it.
        assert_eq!([Archive::Kept, Archive::Meant, Archive::Pruned].map(archive), [false, true, true]);
        assert_eq!(prunes(&with(|_| {})), None);
    }

    #[test]
    fn owed_ops_are_counted_with_the_day() {
        let facts = chained(|f| {
            f.census[1].owed = 12;
            f.census[1].rows = 12;
        });
        let said = notices(&facts, &figures(0)).into_iter().find(|n| n.code == "owed_pruned").unwrap();
        assert!(said.text.contains("12 ops that the chain has not got"), "{}", said.text);
        assert!(said.text.contains("in 27 days"), "{}", said.text);
    }

    #[test]
    fn a_window_a_day_shorter_is_ahead_of_the_node() {
        let set =
            |days, guard| chained(|f| (f.settings.retention_days, f.settings.replay_guard) = (days, guard));
        assert_eq!(codes(&set(30, true)), ["node_prunes", "behind_node"]);
        assert_eq!(codes(&set(29, false)), ["node_prunes", "behind_node"]);
        assert_eq!(codes(&set(29, true)), ["node_prunes"]);
        let text = &notices(&set(0, false), &figures(90 * GB))[1].text;
        assert!(text.contains("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS=29"), "{text}");
        assert!(text.contains("(1 op, 5.0 GiB now)"), "{text}");
    }

    #[test]
    fn no_window_is_ahead_of_a_node_that_keeps_less_than_two_days() {
        for hours in [0, 1, 36, 47] {
            let facts = chained(|f| {
                (f.settings.retention_days, f.settings.replay_guard) = (1, true);
                f.settings.node_retention = Some(Duration::from_secs(hours * 3_600));
            });
            let said = notices(&facts, &figures(0)).into_iter().find(|n| n.code == "behind_node").unwrap();
            assert!(said.text.contains(&format!("keeps ops for {hours} h")), "{}", said.text);
            assert!(said.text.contains("OPENAUDIO_OPS_RETENTION of 48h"), "{}", said.text);
        }
    }
}
