//! One table of two sides: sums by range, then the records of ranges that
//! differ.

use super::super::digest::{Error, Tell, records};
use super::Reference;
use crate::db::Db;
use crate::db::digest::{Record, by_keys};
use crate::records::Model;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};

/// Ranges of a table, each of 128 bits: 16 MiB. Ten million records are ten a
/// range, so that few records have to be looked at for one that differs.
const RANGE_BITS: u32 = 20;
/// Records that are looked at one by one, of a table: some 50 MB.
const MOST_RECORDS: u64 = 250_000;
/// Keys that are listed, of each kind and table.
const LISTED: usize = 20;

/// The range of a record: by its key alone, so that it is one on both sides.
fn range(key: &[String]) -> usize {
    let mut hash = Sha256::new();
    for part in key {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let first: [u8; 4] = hash.finalize()[..4].try_into().unwrap_or_default();
    (u32::from_be_bytes(first) >> (32 - RANGE_BITS)) as usize
}

/// One table on both sides.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// This validator's database.
    pub db: &'a Db,
    /// The other one.
    pub reference: &'a Reference,
    /// The table.
    pub model: &'static Model,
}

impl Side<'_> {
    async fn ours(&self, mut each: impl FnMut(Record), tell: Tell<'_>) -> Result<u64, Error> {
        let each = |record| {
            each(record);
            Ok::<(), Error>(())
        };
        records(self.db, self.model, each, |rows| tell(&self.model.table, rows, "here")).await
    }

    async fn theirs(&self, mut each: impl FnMut(Record), tell: Tell<'_>) -> Result<u64, Error> {
        match self.reference {
            Reference::File(digest) => {
                digest.records(&self.model.table, &mut each)?;
                Ok(digest.rows.get(&self.model.table).copied().unwrap_or(0))
            }
            Reference::Url(db) => {
                let each = |record| {
                    each(record);
                    Ok::<(), crate::db::Error>(())
                };
                let told = |rows| tell(&self.model.table, rows, "there");
                records(db, self.model, each, told).await.map_err(Error::Reference)
            }
        }
    }

    /// Reads both sides, and both again in the ranges that differ.
    ///
    /// # Errors
    /// A file that is not whole, or the databases'.
    pub(super) async fn candidates(&self, tell: Tell<'_>) -> Result<Candidates, Error> {
        // A sum that is zero on both sides is one; the key is in the hash.
        let mut sums = vec![0_u128; 1 << RANGE_BITS];
        let add = |record: Record| {
            let sum = &mut sums[range(&record.key)];
            *sum = sum.wrapping_add(record.hash);
        };
        let ours = self.ours(add, tell).await?;
        let subtract = |record: Record| {
            let sum = &mut sums[range(&record.key)];
            *sum = sum.wrapping_sub(record.hash);
        };
        let theirs = self.theirs(subtract, tell).await?;
        let differing: Vec<usize> = (0..sums.len()).filter(|range| sums[*range] != 0).collect();
        drop(sums);

        let in_range = ours.max(theirs).div_ceil(1 << RANGE_BITS).max(1);
        let looked_at = usize::try_from(MOST_RECORDS / in_range).unwrap_or(1).max(1);
        let unread = differing.len().saturating_sub(looked_at) as u64;
        let chosen: HashSet<usize> = differing.iter().copied().take(looked_at).collect();
        let mut candidates =
            Candidates { ours, theirs, ranges: differing.len() as u64, unread, ..Candidates::default() };
        if chosen.is_empty() {
            return Ok(candidates);
        }
        let keep = |record: Record, map: &mut BTreeMap<Vec<String>, u128>| {
            if chosen.contains(&range(&record.key)) {
                map.insert(record.key, record.hash);
            }
        };
        let (mut here, mut there) = (BTreeMap::new(), BTreeMap::new());
        self.ours(|record| keep(record, &mut here), tell).await?;
        self.theirs(|record| keep(record, &mut there), tell).await?;
        for (key, hash) in &here {
            let other = there.remove(key);
            if other != Some(*hash) {
                candidates.open.insert(key.clone(), (Some(*hash), other));
            }
        }
        candidates.open.extend(there.into_iter().map(|(key, hash)| (key, (None, Some(hash)))));
        candidates.differed = candidates.open.len() as u64;
        Ok(candidates)
    }
}

/// The records of a table that differ, as far as they were looked at.
#[derive(Default)]
pub(super) struct Candidates {
    ours: u64,
    theirs: u64,
    ranges: u64,
    unread: u64,
    differed: u64,
    passed: u64,
    /// Keys, with the hash here and there where there is such a record.
    open: BTreeMap<Vec<String>, (Option<u128>, Option<u128>)>,
}

impl Candidates {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.open.len() as u64
    }

    /// Whether more differs than is looked at: no settling mends that.
    pub(super) fn is_hopeless(&self) -> bool {
        self.unread > 0
    }

    /// Whether a record differs, and if so whether the reference has it.
    pub(super) fn there(&self, key: &[String]) -> Option<bool> {
        self.open.get(key).map(|(_, there)| there.is_some())
    }

    /// Lets a record pass that changed here since the reference was taken.
    pub(super) fn let_pass(&mut self, key: &[String]) {
        self.passed += u64::from(self.open.remove(key).is_some());
    }

    /// Reads what differs again, by key.
    pub(super) async fn look_again(&mut self, side: &Side<'_>) -> Result<(), Error> {
        if self.open.is_empty() {
            return Ok(());
        }
        let keys: Vec<Vec<String>> = self.open.keys().cloned().collect();
        let mut here = hashes(by_keys(&side.db.client().await?, side.model, &keys).await?);
        let mut there = match side.reference {
            Reference::File(_) => None,
            Reference::Url(db) => {
                let client = db.client().await.map_err(Error::Reference)?;
                let read = by_keys(&client, side.model, &keys).await.map_err(Error::Reference)?;
                Some(hashes(read))
            }
        };
        for (key, pair) in &mut self.open {
            pair.0 = here.remove(key);
            if let Some(there) = &mut there {
                pair.1 = there.remove(key);
            }
        }
        self.open.retain(|_, (here, there)| here != there);
        Ok(())
    }

    /// What is left in the end.
    pub(super) fn found(self, table: &str) -> Found {
        let listed = |kind: fn(&(Option<u128>, Option<u128>)) -> bool| {
            let mut keys = self.open.iter().filter(|(_, pair)| kind(pair)).map(|(key, _)| key.clone());
            let first: Vec<Vec<String>> = keys.by_ref().take(LISTED).collect();
            Listed { records: (first.len() + keys.count()) as u64, first }
        };
        Found {
            table: table.to_owned(),
            rows_here: self.ours,
            rows_there: self.theirs,
            ranges_differed: self.ranges,
            ranges_not_looked_into: self.unread,
            settled: self.differed - self.passed - self.len(),
            changed_here_since: self.passed,
            missing_here: listed(|pair| pair.0.is_none()),
            missing_there: listed(|pair| pair.1.is_none()),
            differing: listed(|pair| pair.0.is_some() && pair.1.is_some()),
        }
    }
}

fn hashes(records: Vec<Record>) -> BTreeMap<Vec<String>, u128> {
    records.into_iter().map(|record| (record.key, record.hash)).collect()
}

/// What was found of one table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Found {
    /// Its name.
    pub table: String,
    /// Its records here, when they were first read.
    pub rows_here: u64,
    /// Its records in the reference.
    pub rows_there: u64,
    /// Ranges of keys that differed at first.
    pub ranges_differed: u64,
    /// Those of them that were too many to be looked into.
    pub ranges_not_looked_into: u64,
    /// Records that differed at first and agreed when they were read again.
    pub settled: u64,
    /// Records that differ as an op did that the reference had not read: of a
    /// file only.
    pub changed_here_since: u64,
    /// Records that only the reference has.
    pub missing_here: Listed,
    /// Records that only this validator has.
    pub missing_there: Listed,
    /// Records that differ.
    pub differing: Listed,
}

/// How many records, and the keys of the first of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Listed {
    /// All of them.
    pub records: u64,
    /// The texts of their keys' columns.
    pub first: Vec<Vec<String>>,
}

impl Found {
    /// Whether nothing differs.
    pub fn matches(&self) -> bool {
        self.differs() == 0 && self.ranges_not_looked_into == 0
    }

    /// Records that differ, as far as they were looked at.
    pub fn differs(&self) -> u64 {
        self.missing_here.records + self.missing_there.records + self.differing.records
    }
}
