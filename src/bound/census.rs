//! How much of the log there is, by table and UTC day: counted by slices of
//! the primary key, at a pace.
//!
//! A *full* pass walks the whole log: the first time, and every week since the
//! node's own late writes are seen by nobody. Between them a pass over *days*
//! counts those that were marked (late ops, deletions) and the recent ones.
//! Both stop at any slice and go on from where they were last written. Only
//! what holds the lease counts or deletes, so nothing is deleted by us while a
//! slice is read; a day deleted from between two of its slices is given up and
//! counted again (`census::subtract`).

mod walk;

use crate::db::census::{self, EPOCH, Entry, Estimated};
use crate::db::census_pass::{self, Kind, Pass};
use crate::db::census_slice::{self, Reading};
use crate::db::lease::Lease;
use crate::db::{self, Doing, known, order};
use crate::metrics::Metrics;
use crate::records::models;
use crate::values::{EARLIEST_MS, signed};
use crate::work::{Pacer, Stop, Work};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::Instant;
use walk::Walk;

/// All of the log is counted again this often.
const FULL_EVERY: Duration = Duration::from_secs(7 * 86_400);
/// The recent days are counted again this often, where nobody asks for it.
const DAYS_EVERY: Duration = Duration::from_secs(3_600);

/// What is to be counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// What is due: for the daemon, however often it asks.
    Due,
    /// The days that may have changed, now: for a command that reads the census.
    Now,
    /// All of the log; one that is under way is ended.
    Full,
}

/// How far a run came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finished {
    /// There is more to do: run it again.
    More,
    /// Every day that may have changed is counted; a pass over all of the log
    /// that has been counted before goes on: run it again.
    Days,
    /// There is nothing left to do.
    All,
}

/// What a run did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct CensusReport {
    /// How far it came.
    pub finished: Finished,
    /// Rows that were counted in this run.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Slices they were read in.
    pub slices: u64,
    /// Whether it began with a sample.
    pub estimated: bool,
}

/// Counts for at most `budget`, or one slice where that is longer.
///
/// # Errors
/// It may not go on, or the database's. What was counted before is kept.
pub async fn run_once(
    work: &Work,
    lease: &mut Lease,
    pacer: &mut Pacer,
    scope: Scope,
    budget: Duration,
) -> Result<CensusReport, Stop> {
    let ends = Instant::now() + budget;
    known::settle(&work.db.client().await?, work.clock.now_ms()).await?;
    order::check(lease.client()?).await?;
    let reading = Reading::of_catalog(lease.client()?).await?;
    let passes = census_pass::load(lease.client()?).await?;
    let of = |kind| passes.iter().find(|p| p.kind == kind).cloned();
    let (mut full, mut days) = (of(Kind::Full), of(Kind::Days));
    let mut report = CensusReport { finished: Finished::All, rows: 0, bytes: 0, slices: 0, estimated: false };
    let mut done = Vec::new();
    while let Some(kind) = next(scope, full.as_ref(), days.as_ref(), work.clock.now(), &done) {
        if kind == Kind::Full && full.is_none() {
            estimate(work, lease, &reading).await?;
            report.estimated = true;
        }
        let old = if kind == Kind::Full { full.take() } else { days.take() };
        let pass = match old {
            Some(pass) if pass.finished_at.is_none() => pass,
            old => begin(work, lease, kind, old).await?,
        };
        let is_repeated = pass.last_finished_at.is_some();
        let mut walk = Walk::new(work, &reading, pass).await?;
        let walked = walk.walk(lease, pacer, ends).await;
        report.rows += walk.rows;
        report.bytes += walk.bytes;
        report.slices += walk.slices;
        if let Err(Stop::Halt(_)) = &walked {
            walk.save(lease).await?;
        }
        if !walked? {
            let days_are = kind == Kind::Full && is_repeated && scope != Scope::Full;
            report.finished = if days_are { Finished::Days } else { Finished::More };
            break;
        }
        match kind {
            Kind::Full => full = Some(walk.pass),
            Kind::Days => days = Some(walk.pass),
        }
        done.push(kind);
    }
    show(lease, &work.metrics).await?;
    if report.finished == Finished::All {
        work.metrics.census_progress.set(1.0);
        work.metrics.census_finished.set(work.clock.now().as_second());
    }
    Ok(report)
}

/// Which pass is next; `done` are those that this run has ended.
fn next(
    scope: Scope,
    full: Option<&Pass>,
    days: Option<&Pass>,
    now: Timestamp,
    done: &[Kind],
) -> Option<Kind> {
    let last = |pass: Option<&Pass>| pass.and_then(|p| p.last_finished_at);
    let is_old = |at: Option<Timestamp>, every: Duration| {
        at.is_none_or(|at| now.as_second() - at.as_second() >= every.as_secs() as i64 || at > now)
    };
    let under_way = |pass: Option<&Pass>| pass.is_some_and(|p| p.finished_at.is_none());
    if last(full).is_none() || (scope == Scope::Full && !done.contains(&Kind::Full)) {
        return Some(Kind::Full);
    }
    if done.contains(&Kind::Full) {
        // The recent days were its last.
        return None;
    }
    // A full pass ended with them too.
    let counted = last(days).max(last(full));
    let days_due = scope == Scope::Now || under_way(days) || is_old(counted, DAYS_EVERY);
    if days_due && !done.contains(&Kind::Days) {
        return Some(Kind::Days);
    }
    let full_due = under_way(full) || is_old(last(full), FULL_EVERY);
    (scope == Scope::Due && full_due).then_some(Kind::Full)
}

/// Begins a pass, in the place of the one before it.
async fn begin(work: &Work, lease: &mut Lease, kind: Kind, old: Option<Pass>) -> db::Result<Pass> {
    let first = census::day_of(EARLIEST_MS);
    let pass = Pass {
        kind,
        began_at: work.clock.now(),
        finished_at: None,
        last_finished_at: old.and_then(|p| p.last_finished_at),
        position: String::new(),
        day: first,
        // No stretch of days is open yet.
        until: (kind == Kind::Days).then_some(first),
        spoiled: None,
        counts: Default::default(),
        rows: 0,
        bytes: 0,
    };
    let tx = lease.begin().await?;
    if kind == Kind::Full {
        // A full pass recounts every day, so drop all marks.
        census::forget_touched(&tx, EPOCH, jiff::civil::Date::MAX).await?;
    }
    census_pass::save(&tx, &pass).await?;
    tx.commit().await.doing("begin a census")?;
    Ok(pass)
}

/// The first answer, from a sample; days that are counted stay.
async fn estimate(work: &Work, lease: &mut Lease, reading: &Reading) -> db::Result<()> {
    let counts = census_slice::estimate(lease.client()?, reading, work.clock.now_ms()).await?;
    let now = work.clock.now();
    let tx = lease.begin().await?;
    census::put(&tx, &counts, Estimated::Yes, now).await?;
    tx.commit().await.doing("write an estimate")
}

/// Sums of the census by table.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Total {
    /// The table, as ops name it; NULL is ''.
    pub table: String,
    /// Ops.
    pub rows: u64,
    /// Their bytes in the table and its TOAST.
    pub bytes: u64,
    /// The lowest plausible ULID.
    pub oldest: Option<crate::values::OpUlid>,
    /// The highest.
    pub newest: Option<crate::values::OpUlid>,
    /// Ops owed to the chain.
    pub owed: u64,
    /// Ops whose ULID is no plausible one; part of `rows` and `bytes`.
    pub implausible: u64,
    /// Whether days of it are from a sample.
    pub estimated: bool,
}

/// Sums the census up by table.
pub fn totals(entries: &[Entry], implausible: &[census::Implausible]) -> Vec<Total> {
    let mut totals: Vec<Total> = Vec::new();
    let mut of = |table: &str, add: &dyn Fn(&mut Total)| {
        let at = totals.iter().position(|t| t.table == table).unwrap_or_else(|| {
            totals.push(Total { table: table.to_owned(), ..Total::default() });
            totals.len() - 1
        });
        add(&mut totals[at]);
    };
    for e in entries {
        of(&e.table, &|t| {
            t.rows += e.rows;
            t.bytes += e.bytes;
            t.owed += e.owed;
            t.oldest = Some(t.oldest.map_or(e.oldest, |o| o.min(e.oldest)));
            t.newest = t.newest.max(Some(e.newest));
            t.estimated |= e.estimated;
        });
    }
    for i in implausible {
        of(&i.table, &|t| {
            t.rows += i.rows;
            t.bytes += i.bytes;
            t.owed += i.owed;
            t.implausible += i.rows;
        });
    }
    totals
}

/// The census as metrics, tables without a model together.
///
/// # Errors
/// The database's.
pub async fn show(lease: &mut Lease, metrics: &Metrics) -> db::Result<()> {
    let client = lease.client()?;
    let totals = totals(&census::load(client).await?, &census::implausible(client).await?);
    let tables = models().iter().map(|m| Some(m.table.as_str())).chain([None]);
    for table in tables {
        let is_it = |t: &&Total| match table {
            Some(table) => t.table == table,
            None => models().get(&t.table).is_none(),
        };
        let sum = |of: fn(&Total) -> u64| signed(totals.iter().filter(is_it).map(of).sum::<u64>());
        let label = [table.unwrap_or("other")];
        metrics.census_rows.with_label_values(&label).set(sum(|t| t.rows));
        metrics.census_bytes.with_label_values(&label).set(sum(|t| t.bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(kind: Kind, finished: Option<i64>, last: Option<i64>) -> Pass {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        Pass {
            kind,
            began_at: at(0),
            finished_at: finished.map(at),
            last_finished_at: last.map(at),
            position: String::new(),
            day: EPOCH,
            until: None,
            spoiled: None,
            counts: Default::default(),
            rows: 0,
            bytes: 0,
        }
    }

    #[test]
    fn what_comes_next() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        let week = FULL_EVERY.as_secs() as i64;
        let is = |scope, full: Option<&Pass>, days: Option<&Pass>, done: &[Kind]| {
            next(scope, full, days, now, done)
        };
        let fresh = pass(Kind::Full, Some(9_999_000), Some(9_999_000));
        let old = pass(Kind::Full, Some(9_990_000), Some(9_990_000));
        let stale = pass(Kind::Full, Some(10_000_000 - week), Some(10_000_000 - week));
        let again = pass(Kind::Full, None, Some(9_990_000));
        let first = pass(Kind::Full, None, None);
        let days = pass(Kind::Days, Some(9_999_900), Some(9_999_900));
        let begun = pass(Kind::Days, None, Some(9_999_900));
        for scope in [Scope::Due, Scope::Now, Scope::Full] {
            assert_eq!(is(scope, None, None, &[]), Some(Kind::Full));
            assert_eq!(is(scope, Some(&first), Some(&days), &[]), Some(Kind::Full));
            assert_eq!(is(scope, Some(&fresh), None, &[Kind::Full]), None);
        }
        assert_eq!(is(Scope::Due, Some(&fresh), None, &[]), None, "it ended with the recent days");
        assert_eq!(is(Scope::Now, Some(&fresh), None, &[]), Some(Kind::Days));
        assert_eq!(is(Scope::Now, Some(&stale), Some(&days), &[Kind::Days]), None);
        assert_eq!(is(Scope::Due, Some(&old), None, &[]), Some(Kind::Days));
        assert_eq!(is(Scope::Due, Some(&old), Some(&days), &[]), None);
        assert_eq!(is(Scope::Due, Some(&old), Some(&begun), &[]), Some(Kind::Days));
        assert_eq!(is(Scope::Due, Some(&stale), Some(&days), &[]), Some(Kind::Full));
        assert_eq!(is(Scope::Due, Some(&again), Some(&days), &[]), Some(Kind::Full));
        assert_eq!(is(Scope::Full, Some(&fresh), Some(&days), &[]), Some(Kind::Full));
    }
}
