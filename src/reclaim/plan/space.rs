//! What a reclaim leaves and what it needs, in bytes.

use super::{Facts, OfTable};
use crate::db::traced::Seen;
use crate::reclaim::decide::Survivors;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A trace with its index entry, as measured after 270,000 of them: 139 to 157 bytes.
const TRACE_BYTES: u64 = 150;
/// A ULID in a list of what compaction drops.
const LISTED_BYTES: u64 = 32;
/// What compaction stores of a record that a later op covers.
const COVER_BYTES: u64 = 17;
/// WAL between two checkpoints that are asked for: two segments.
const LITTLE_WAL: u64 = 32 << 20;
/// In place works down to so many free bytes.
pub const IN_PLACE_FLOOR: u64 = 256 << 20;

/// Space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Space {
    /// The table with its TOAST now.
    pub table: u64,
    /// Its indexes now.
    pub indexes: u64,
    /// Both afterwards, about.
    pub afterwards: u64,
    /// Traces of what goes.
    pub traces: u64,
    /// Lists that compaction makes, until it is over.
    pub lists: u64,
    /// Free where the log and opsward's tables lie, where that is known.
    pub free: Option<u64>,
    /// Free where WAL goes, if that is another volume.
    pub wal_free: Option<u64>,
    /// What mode swap needs free.
    pub swap_needs: u64,
    /// What mode in-place needs free, as estimated.
    pub in_place_needs: u64,
    /// What mode in-place leaves free in any case: it does not begin below it.
    pub in_place_floor: u64,
}

impl Space {
    /// Bytes that would be given back, about.
    pub fn gain(&self) -> u64 {
        (self.table + self.indexes).saturating_sub(self.afterwards)
    }

    /// Bytes of the file that hold nothing, about, where all ops survive.
    pub fn is_mostly_free(&self) -> bool {
        self.gain() > (self.table + self.indexes) / 2
    }
}

/// Space for what becomes of the tables.
pub(super) fn space(facts: &Facts<'_>, tables: &[OfTable], survivors: &Survivors) -> Space {
    let sum = |of: fn(&OfTable) -> u64| tables.iter().map(of).sum::<u64>();
    let (rows, kept_rows) = (sum(|t| t.rows), sum(|t| t.kept_rows));
    let kept_bytes = sum(|t| t.kept_bytes);
    let part = kept_rows as f64 / rows.max(1) as f64;
    // An index of ULIDs in their order is no larger than the one that is there.
    let index = (facts.standing.index_bytes as f64 * part) as u64;
    let traced = |t: &&OfTable| crate::records::models().get(&t.table).is_some_and(|m| !m.append_only);
    let records =
        |t: &OfTable, rows: u64| (rows as f64 * records_a_row(facts.seen.get(&t.table), rows)) as u64;
    let traces: u64 =
        tables.iter().filter(traced).map(|t| records(t, t.rows - t.kept_rows) * TRACE_BYTES).sum();
    let compacted = || tables.iter().filter(|t| survivors.compact.contains_key(&t.table));
    let covers: u64 = compacted().filter(traced).map(|t| records(t, t.rows) * COVER_BYTES).sum();
    let covers = covers.min(facts.settings.reclaim_memory);
    let listed: u64 = compacted().map(|t| (t.rows - t.kept_rows) * LISTED_BYTES).sum();
    let volumes = facts.volumes;
    let (free, wal_free) = (volumes.data(), volumes.wal_alone().map(|volume| volume.free));
    let wal = if wal_free.is_some() { 0 } else { facts.standing.max_wal_bytes };
    let little_wal = if wal_free.is_some() { 0 } else { LITTLE_WAL };
    let floor = facts.settings.min_free_disk;
    let in_place_floor = floor.clamp(crate::work::WAL_SEGMENT, IN_PLACE_FLOOR);
    Space {
        table: facts.standing.table_bytes,
        indexes: facts.standing.index_bytes,
        afterwards: kept_bytes + index,
        traces,
        lists: covers + listed,
        free,
        wal_free,
        swap_needs: kept_bytes + index + traces + covers + listed + wal + floor,
        in_place_needs: traces + covers + little_wal + in_place_floor,
        in_place_floor,
    }
}

/// How many records so many rows of a table are about, for each row: what a sample of ranges of
/// the log saw. Within a range a record is counted once. Of what ranges have in common follows
/// how many they would have in all (Haas and Stokes' estimator, as ANALYZE uses it).
fn records_a_row(seen: Option<&Vec<Seen>>, rows: u64) -> f64 {
    let Some(seen) = seen.filter(|seen| !seen.is_empty()) else { return 1.0 };
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>() as f64;
    let (looked_at, items) = (sum(|s| s.rows), sum(|s| s.records.len() as u64));
    if items == 0.0 || rows == 0 {
        return 0.0;
    }
    let mut ranges_of: HashMap<i64, u32> = HashMap::new();
    for range in seen {
        let once: HashSet<i64> = range.records.iter().copied().collect();
        once.into_iter().for_each(|record| *ranges_of.entry(record).or_default() += 1);
    }
    let (distinct, single) = (ranges_of.len() as f64, ranges_of.values().filter(|n| **n == 1).count() as f64);
    let rows = rows as f64;
    let all_items = (rows * items / looked_at).max(items.min(rows));
    let records = items * distinct / (items - single + single * items / all_items);
    (records.min(all_items) / rows).min(1.0)
}

/// What was sampled, by table.
pub type Sampled = BTreeMap<String, Vec<Seen>>;

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges of 1,000 rows of a log of so many, each of whose rows is of the record `of` says.
    fn sampled(rows: u64, of: impl Fn(u64) -> u64) -> Vec<Seen> {
        let range = |n: u64| {
            let begin = n * rows / 16;
            let records: HashSet<i64> = (begin..begin + 1_000).map(|row| of(row) as i64).collect();
            Seen { rows: 1_000, records: records.into_iter().collect() }
        };
        (0..16).map(range).collect()
    }

    /// As good as random.
    fn mixed(n: u64) -> u64 {
        let n = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        n ^ (n >> 31)
    }

    #[test]
    fn records_are_told_from_rows() {
        let about = |of: &dyn Fn(u64) -> u64| {
            (300_000.0 * records_a_row(Some(&sampled(300_000, of)), 300_000)) as u64
        };
        // Each row another record; four rows in a row; all over the log; one alone.
        assert!((290_000..=300_000).contains(&about(&|row| row)));
        assert!((70_000..=80_000).contains(&about(&|row| row / 4)));
        let scattered = about(&|row| mixed(row) % 17_000);
        assert!((13_000..=21_000).contains(&scattered), "{scattered}");
        assert!(about(&|_| 1) <= 300, "{}", about(&|_| 1));
        assert_eq!(records_a_row(None, 10), 1.0, "nothing is known");
        assert_eq!(records_a_row(Some(&vec![Seen { rows: 9, records: Vec::new() }]), 10), 0.0);
    }
}
