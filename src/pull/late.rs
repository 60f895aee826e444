//! A late op acts only on records of which nothing newer is known: neither in
//! the log above the op, nor in a trace.

use super::apply::Fitting;
use crate::db::newer::{self, Newest, Slice};
use crate::db::{self, Client, Doing, Isolation, Transaction, begin};
use crate::values::{Op, OpUlid};
use std::collections::HashMap;
use tokio::time::Instant;
use tracing::info;

/// Rows of the log that one statement looks through at most.
const MOST_ROWS: u32 = 10_000;
/// A statement over so few rows is not made smaller when it takes too long.
const LEAST_ROWS: u32 = 50;
/// How often a long walk says how far it is.
const TOLD_EVERY_S: u64 = 10;

/// What is known to be newer than some late ops.
pub struct Newer {
    tables: Vec<String>,
    /// The newest op known of each record that is looked for.
    newest: HashMap<String, Option<OpUlid>>,
    /// The log was read up to this key.
    upto: String,
}

/// What an op has to know to be applied late.
#[derive(Clone, Debug)]
pub struct Late {
    /// The trace key of each of its records.
    keys: Vec<Option<String>>,
    /// Places of records of which something newer is known.
    pub superseded: Vec<usize>,
    /// The log above this key is looked at again before the commit.
    above: String,
}

impl Newer {
    /// Looks through the traces, and through the log from the lowest of `ops` to its end.
    pub async fn read(client: &mut Client, ops: &[&Op]) -> db::Result<(Self, Vec<Vec<Option<String>>>)> {
        let keys = newer::keys(client, ops).await?;
        let mut tables: Vec<String> = ops.iter().map(|op| op.table.clone()).collect();
        tables.sort();
        tables.dedup();
        let newest = keys.iter().flatten().flatten().map(|key| (key.clone(), None)).collect();
        let upto = ops.iter().map(|op| op.ulid).min().map_or_else(String::new, |ulid| ulid.to_string());
        let mut found = Self { tables, newest, upto };
        let wanted: Vec<&str> = found.newest.keys().map(String::as_str).collect();
        let traces = newer::traces(client, &wanted).await?;
        found.note(traces);
        found.read_on(client).await?;
        Ok((found, keys))
    }

    /// Reads the log on to its end, in short transactions.
    pub async fn read_on(&mut self, client: &mut Client) -> db::Result<()> {
        if self.newest.is_empty() {
            return Ok(());
        }
        let mut rows = MOST_ROWS;
        let (mut told, mut read) = (Instant::now(), 0);
        loop {
            let tx = begin(client, Isolation::Read).await?;
            let slice = match self.slice(&tx, rows).await {
                Err(error) if error.is_too_long() && rows > LEAST_ROWS => {
                    rows /= 2;
                    continue;
                }
                slice => slice?,
            };
            tx.commit().await.doing("look for newer ops")?;
            read += slice.rows;
            let ended = slice.rows < u64::from(rows);
            self.note(slice.newest);
            self.upto = slice.last.unwrap_or_else(|| std::mem::take(&mut self.upto));
            if ended {
                return Ok(());
            }
            if told.elapsed().as_secs() >= TOLD_EVERY_S {
                told = Instant::now();
                info!(rows = read, at = self.upto, "looking through the log for newer state");
            }
        }
    }

    async fn slice(&self, tx: &Transaction<'_>, rows: u32) -> db::Result<Slice> {
        let tables: Vec<&str> = self.tables.iter().map(String::as_str).collect();
        let keys: Vec<&str> = self.newest.keys().map(String::as_str).collect();
        newer::slice(tx, (&tables, &keys), &self.upto, rows).await
    }

    fn note(&mut self, found: Vec<Newest>) {
        for (key, ulid) in found {
            let newest = self.newest.entry(key).or_default();
            *newest = (*newest).max(Some(ulid));
        }
    }

    /// What is known for an op whose records have these keys.
    pub fn late(&self, op: &Op, keys: &[Option<String>]) -> Late {
        let is_newer = |key: &Option<String>| {
            key.as_ref().and_then(|key| *self.newest.get(key)?).is_some_and(|newest| newest >= op.ulid)
        };
        let superseded = (0..keys.len()).filter(|place| is_newer(&keys[*place])).collect();
        Late { keys: keys.to_vec(), superseded, above: self.upto.clone() }
    }
}

/// Fails with `Overtaken` where the log got something newer after it was looked
/// through. The records are written by now: who writes them next waits for us.
pub(super) async fn not_overtaken(tx: &Transaction<'_>, batch: &[Fitting]) -> db::Result<()> {
    for fitting in batch {
        let Some(late) = &fitting.late else { continue };
        let acting = (0..late.keys.len()).filter(|place| !late.superseded.contains(place));
        let keys: Vec<&str> = acting.filter_map(|place| late.keys[place].as_deref()).collect();
        let slice = newer::slice(tx, (&[&fitting.op.table], &keys), &late.above, MOST_ROWS).await?;
        let is_newer = |(_, ulid): &Newest| *ulid > fitting.op.ulid;
        if slice.rows >= u64::from(MOST_ROWS) || slice.newest.iter().any(is_newer) {
            return Err(db::Error::Overtaken("apply a late op"));
        }
    }
    Ok(())
}
