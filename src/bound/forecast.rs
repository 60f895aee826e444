//! What comes if all goes on as in the last week: how the log grows, where it
//! settles, when the disk is full, when a reader falls into a gap.

use super::decide::{DAY_MS, Facts, age_ms, ms, window_of};
use super::node;
use super::plan::Surroundings;
use crate::db::stats::Figures;
use crate::records::models;
use crate::values::{Host, TableDay, is_plausible};
use serde::Serialize;
use std::collections::BTreeMap;

/// Whole days that growth is measured over.
const DAYS: u64 = 7;
/// What disk a byte of the table takes at most, indexes included: more is
/// bloat, and no measure of growth.
const MOST_OVERHEAD: f64 = 1.5;

/// What comes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Forecast {
    /// Whole days that growth was measured over; a table that is younger, over
    /// its own.
    pub days: u64,
    /// Rows a day.
    pub rows_per_day: u64,
    /// Bytes a day on disk, indexes included.
    pub bytes_per_day: u64,
    /// Free bytes on the database's volume.
    pub free_bytes: Option<u64>,
    /// Bytes inside the table `ops` that deletion left: used before the volume's.
    pub reusable_bytes: u64,
    /// When both are used up, if nothing is deleted; none in the next ten years.
    pub seconds_until_full: Option<u64>,
    /// What the log settles at under these settings, on disk; tables that
    /// nothing bounds count as they are now.
    pub settles_at_bytes: u64,
    /// What tables that nothing bounds grow by a day, on disk.
    pub unbounded_bytes_per_day: u64,
    /// When each reader falls into a gap if it asks no more.
    pub readers: Vec<ReaderGap>,
}

/// When a reader falls into a gap.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ReaderGap {
    /// Who.
    pub host: Host,
    /// Seconds left; 0 when it is there.
    pub seconds: u64,
}

/// A time further off than ten years is none.
const FAR_SECONDS: u64 = 3_650 * 86_400;

/// Per table: rows and bytes of the last whole days, how many days those are,
/// and bytes in all.
#[derive(Default)]
struct Sums {
    rows: u64,
    bytes: u64,
    days: u64,
    all_bytes: u64,
}

impl Sums {
    fn a_day(&self, sum: u64) -> f64 {
        sum as f64 / self.days.max(1) as f64
    }
}

/// What comes.
pub fn forecast(facts: &Facts, around: &Surroundings) -> Forecast {
    let mut tables: BTreeMap<&str, Sums> = BTreeMap::new();
    for of in &facts.census {
        let sums = tables.entry(&of.table).or_default();
        sums.all_bytes += of.bytes;
        // How many days ago it ended.
        let ago = age_ms(of.day, facts.now_ms) / DAY_MS;
        // A table that is older than the last days was silent in some of them.
        if of.oldest.is_some() {
            sums.days = sums.days.max(ago.min(DAYS));
        }
        if (1..=DAYS).contains(&ago) {
            sums.rows += of.rows;
            sums.bytes += of.bytes;
        }
    }
    let overhead = overhead(&around.figures);
    let disk = |bytes: f64| (bytes * overhead) as u64;
    let (mut settles, mut unbounded) = (0.0, 0.0);
    for (table, sums) in &tables {
        match [window_of(facts, table), node::window(facts)].into_iter().flatten().min() {
            Some(window) => settles += sums.a_day(sums.bytes) * window as f64 / DAY_MS as f64,
            None => {
                settles += sums.all_bytes as f64;
                unbounded += sums.a_day(sums.bytes);
            }
        }
    }
    let bytes_per_day = disk(tables.values().map(|t| t.a_day(t.bytes)).sum());
    let reusable_bytes = reusable(facts, &around.figures);
    // What is empty in the table is so in its indexes, too.
    let room = |free: u64| free.saturating_add(disk(reusable_bytes as f64));
    let full = |free: u64| {
        (bytes_per_day > 0)
            .then(|| (room(free) as f64 / bytes_per_day as f64 * (DAY_MS / 1_000) as f64) as u64)
            .filter(|seconds| *seconds < FAR_SECONDS)
    };
    Forecast {
        days: tables.values().map(|t| t.days).max().unwrap_or(0),
        rows_per_day: tables.values().map(|t| t.a_day(t.rows)).sum::<f64>() as u64,
        bytes_per_day,
        free_bytes: around.free_bytes,
        reusable_bytes,
        seconds_until_full: around.free_bytes.and_then(full),
        settles_at_bytes: disk(settles),
        unbounded_bytes_per_day: disk(unbounded),
        readers: readers(facts),
    }
}

/// What a byte of the table takes on disk, its part of the indexes included.
/// Deletion leaves room in both alike.
pub(super) fn overhead(figures: &Figures) -> f64 {
    (1.0 + figures.index_bytes as f64 / figures.ops_bytes.max(1) as f64).min(MOST_OVERHEAD)
}

/// What is neither live, by the census, nor dead.
fn reusable(facts: &Facts, figures: &Figures) -> u64 {
    let sum = |of: fn(&TableDay) -> u64| facts.census.iter().map(of).sum::<u64>();
    let (rows, live) = (sum(|of| of.rows), sum(|of| of.bytes));
    let dead = figures.dead_rows.saturating_mul(live / rows.max(1));
    if live == 0 { 0 } else { figures.ops_bytes.saturating_sub(live.saturating_add(dead)) }
}

/// A reader is held for, until the shortest window and the hold have passed
/// what it asked for last.
fn readers(facts: &Facts) -> Vec<ReaderGap> {
    if !facts.replication.has_peers() {
        return Vec::new();
    }
    let windows = models().iter().filter_map(|model| window_of(facts, &model.table));
    let Some(window) = windows.min() else {
        return Vec::new();
    };
    let set = &facts.settings;
    let gap = |reader: &super::decide::ReaderFact| {
        let lowest = reader.lowest.filter(|u| is_plausible(*u, facts.now_ms))?;
        let hold = if set.ignore_peers.contains(&reader.host) { 0 } else { ms(set.reader_hold) };
        let until = lowest.ms().saturating_add(window).saturating_add(hold);
        Some(ReaderGap { host: reader.host.clone(), seconds: until.saturating_sub(facts.now_ms) / 1_000 })
    };
    facts.readers.iter().filter_map(gap).collect()
}
