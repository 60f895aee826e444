//! Deleting ops in batches, under the lease, with floors, traces and history.
//!
//! A run goes over the primary key once, batch by batch; rows that another
//! session has locked are skipped and tried again at its end. It stops between
//! two batches when it is told to, paused, or out of time, and what it did
//! stays: the next run begins where it ended.

use super::skipped::Skipped;
use super::vacuum::{self, Vacuumed};
use crate::db::lease::Lease;
use crate::db::prune::{self, Batch, Doomed, Locked, Places, Range, Run, TableCut};
use crate::db::{self, Error, guard, maintain};
use crate::values::{Lately, OpUlid, Progress, latest_plausible};
use crate::work::{BatchSize, Pacer, Stop, Work};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// What a batch is steered to. A node's own statement waits this long at most.
const TARGET: Duration = Duration::from_millis(100);
/// Rows of the first batch.
const FIRST_ROWS: u32 = 2_000;
/// Rows that go between two VACUUMs at most (contract 5).
const VACUUM_EVERY: u64 = 10_000_000;
/// Wait this long before retrying a VACUUM that was cancelled in mid-run.
const VACUUM_AGAIN: Duration = Duration::from_secs(60);
/// A dormant table is looked at for recent ops every so many batches.
const LOOK_EVERY: u64 = 50;
/// How often it is remembered how far it got, a row a table: each leaves a version that an old
/// snapshot keeps. Whatever is cut off reads so much again.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Failed batches in a row after which a run gives up.
const TRIES: u32 = 20;

/// What a run deletes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// The run's id, one of its own.
    pub run: String,
    /// The task, as history and metrics name it.
    pub task: &'static str,
    /// One a table.
    pub cuts: Vec<TableCut>,
    /// A table with an op from here on is left alone: dormant cleanup.
    pub active_since: Option<OpUlid>,
    /// Rows that the census says go.
    pub expected: Option<u64>,
}

/// How a run came to its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ended", content = "why", rename_all = "snake_case")]
pub enum Ended {
    /// Nothing is left to delete, but rows that stayed locked: so many.
    Done {
        /// Rows that another session had locked.
        locked: u64,
    },
    /// Its time is over; it goes on at the next tick.
    OutOfTime,
    /// It may not go on, in words.
    Halted(String),
}

impl Ended {
    /// It in words, as the history has it.
    pub fn words(&self) -> String {
        match self {
            Self::Done { locked: 0 } => "done".into(),
            Self::Done { locked } => format!("done; {locked} rows were locked by another session"),
            Self::OutOfTime => "out of time, goes on".into(),
            // The way out holds as long as the reason does, which the history outlives.
            Self::Halted(why) => why.split(';').next().unwrap_or_default().to_owned(),
        }
    }
}

/// What went of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sum {
    /// Rows.
    pub rows: u64,
    /// Bytes of them, without indexes.
    pub bytes: u64,
    /// Traces that were not there before.
    pub traces: u64,
}

/// What a run did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// By table.
    pub tables: BTreeMap<String, Sum>,
    /// Tables that became active, so that the rest of them stays.
    pub active: Vec<String>,
    /// Rows looked at.
    pub scanned: u64,
    /// Batches.
    pub batches: u64,
    /// The longest transaction.
    pub longest_ms: u64,
    /// Who held the rows that stayed locked, where that was to be seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locked_by: Vec<String>,
    /// How it ended.
    #[serde(flatten)]
    pub ended: Ended,
    /// What came of the VACUUM after it; `None` where none was due.
    pub vacuum: Option<Vacuumed>,
}

impl Report {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|sum| sum.rows).sum()
    }
}

/// Deletes until nothing is left of the order, `budget` is over, or it may not
/// go on; then VACUUMs.
///
/// # Errors
/// A cut that may not be, a lost lease, or the database's: batches that are
/// committed stay, and the history says how it ended.
pub async fn run(
    work: &Work,
    lease: &mut Lease,
    pacer: &mut Pacer,
    order: &Order,
    budget: Duration,
) -> Result<Report, Stop> {
    prune::check(&order.cuts, work.clock.now_ms())?;
    guard::announce(lease, order.cuts.iter().map(|cut| (&cut.table, cut.below))).await?;
    let mut deleting = Deleting::new(work, order, budget);
    let mut ended = deleting.all(lease, pacer).await;
    if deleting.report.batches > 0
        && !matches!(ended, Err(Stop::Db(_)) | Ok(Ended::Done { .. }))
        && let Err(error) = deleting.sweep(lease).await
    {
        ended = Err(error.into());
    }
    let ended = match ended {
        Ok(ended) => Ok(ended),
        Err(Stop::Halt(halt)) => Ok(Ended::Halted(halt.to_string())),
        Err(Stop::Db(error)) => Err(error),
    };
    deleting.skipped.over(work).await;
    let mut report = deleting.report;
    let mut words = ended.as_ref().map_or_else(|error| error.to_string(), Ended::words);
    if matches!(ended, Ok(Ended::Done { locked: 1.. })) && !deleting.skipped.by.is_empty() {
        words.push_str(&format!(": {}", deleting.skipped.by.join("; ")));
        report.locked_by = deleting.skipped.by;
    }
    if !report.tables.is_empty() {
        // On a connection of the pool: the lease's may be what was lost.
        let client = work.db.client().await.map_err(Stop::Db);
        match client {
            Ok(client) => prune::end(&client, &order.run, &words).await?,
            Err(error) if ended.is_ok() => return Err(error),
            Err(_) => {}
        }
    }
    report.ended = ended?;
    // Where it goes on, the next turn sees to it.
    if report.ended != Ended::OutOfTime {
        report.vacuum = vacuum::after(work, lease, pacer).await?;
    }
    info!(
        task = order.task,
        rows = report.rows(),
        batches = report.batches,
        longest_ms = report.longest_ms,
        ended = words,
        "deleted"
    );
    Ok(report)
}

struct Deleting<'a> {
    work: &'a Work,
    order: &'a Order,
    run: Run,
    /// What is left of the order: tables that became active are not.
    cuts: Vec<TableCut>,
    size: BatchSize,
    locked: Locked,
    skipped: Skipped,
    until: Instant,
    /// Rows deleted since a VACUUM came to its end, by earlier runs too.
    since_vacuum: u64,
    /// No VACUUM in the middle of the run before this.
    vacuum_from: Instant,
    failures: u32,
    /// Where the next batch begins.
    from: String,
    /// When that was last remembered.
    swept: Instant,
    began: Instant,
    lately: Lately,
    report: Report,
}

impl<'a> Deleting<'a> {
    fn new(work: &'a Work, order: &'a Order, budget: Duration) -> Self {
        let most = work.settings.bounding.batch_limit;
        Self {
            work,
            order,
            run: Run {
                id: order.run.clone(),
                task: order.task,
                began_at: work.clock.now(),
                places: Places::default(),
            },
            cuts: order.cuts.clone(),
            size: BatchSize::new(FIRST_ROWS, most, TARGET),
            locked: Locked::Wait,
            skipped: Skipped::of(order.task),
            until: Instant::now() + budget,
            since_vacuum: 0,
            vacuum_from: Instant::now(),
            failures: 0,
            from: String::new(),
            swept: Instant::now(),
            began: Instant::now(),
            lately: Lately::default(),
            report: Report {
                tables: BTreeMap::new(),
                active: Vec::new(),
                scanned: 0,
                batches: 0,
                longest_ms: 0,
                locked_by: Vec::new(),
                ended: Ended::OutOfTime,
                vacuum: None,
            },
        }
    }

    async fn all(&mut self, lease: &mut Lease, pacer: &mut Pacer) -> Result<Ended, Stop> {
        let tables: Vec<&str> = self.order.cuts.iter().map(|cut| cut.table.as_str()).collect();
        let client = self.work.db.client().await?;
        self.since_vacuum = maintain::unvacuumed(&client).await?;
        self.from = prune::begin_at(&client, &tables).await?;
        self.size = self.size.beginning_at(&self.from);
        drop(client);
        loop {
            let Some(until) = self.cuts.iter().map(|cut| cut.below).max() else {
                return Ok(Ended::Done { locked: 0 });
            };
            if Instant::now() >= self.until {
                return Ok(Ended::OutOfTime);
            }
            pacer.turn(lease).await?;
            if self.since_vacuum >= VACUUM_EVERY && Instant::now() >= self.vacuum_from {
                match vacuum::once(self.work, lease, pacer).await? {
                    Vacuumed::Done => self.since_vacuum = 0,
                    _ => self.vacuum_from = Instant::now() + VACUUM_AGAIN,
                }
                continue;
            }
            if self.swept.elapsed() > SWEEP_EVERY {
                self.sweep(lease).await?;
            }
            let end = self.size.until(&self.from, until);
            let range = Range { from: self.from.clone(), until: end, rows: self.size.rows() };
            let began = Instant::now();
            match self.batch(lease, &range).await {
                Ok(batch) => {
                    self.learn(lease, &batch, began.elapsed()).await;
                    match batch.next {
                        Some(next) => self.from = next,
                        None if end < until => self.from = end.to_string(),
                        None => return self.locked_ones(lease, pacer).await,
                    }
                }
                Err(error) => self.recover(lease, error).await?,
            }
        }
    }

    async fn batch(&mut self, lease: &mut Lease, range: &Range) -> db::Result<Batch> {
        let tx = lease.begin().await?;
        if let Some(since) = self.order.active_since
            && self.report.batches.is_multiple_of(LOOK_EVERY)
        {
            let latest = latest_plausible(self.work.clock.now_ms());
            let tables: Vec<&str> = self.cuts.iter().map(|cut| cut.table.as_str()).collect();
            let active = prune::active(&tx, &tables, since, latest).await?;
            self.cuts.retain(|cut| !active.contains(&cut.table));
            self.report.active.extend(active);
        }
        let batch = prune::batch(&tx, &self.run, range, Doomed::Below(&self.cuts), self.locked).await?;
        tx.commit().await.map_err(|e| Error::of("commit a batch", e))?;
        Ok(batch)
    }

    /// Remembers how far it got: the next run begins there, or where the first row was
    /// skipped. Where something is in the way, the next run reads a little more.
    async fn sweep(&mut self, lease: &mut Lease) -> db::Result<()> {
        let to = self.skipped.first.map_or_else(|| self.from.clone(), |skipped| skipped.to_string());
        let tx = lease.begin().await?;
        self.swept = Instant::now();
        match prune::swept(&tx, &self.cuts, &to).await {
            Ok(()) => tx.commit().await.map_err(|e| Error::of("remember how far it got", e)),
            Err(error) if !error.is_contended() => Err(error),
            Err(_) => Ok(()),
        }
    }

    async fn learn(&mut self, lease: &Lease, batch: &Batch, took: Duration) {
        self.size.took(u32::try_from(batch.scanned).unwrap_or(u32::MAX), took);
        self.locked = Locked::Wait;
        self.failures = 0;
        self.skipped.learn(self.work, lease, batch).await;
        self.count(batch, took);
    }

    fn count(&mut self, batch: &Batch, took: Duration) {
        let metrics = &self.work.metrics;
        for gone in &batch.gone {
            let sum = self.report.tables.entry(gone.table.clone()).or_default();
            sum.rows += gone.rows;
            sum.bytes += gone.bytes;
            sum.traces += gone.traces;
            let labels = [self.order.task, gone.table.as_str()];
            metrics.rows_deleted.with_label_values(&labels).inc_by(gone.rows);
            metrics.bytes_deleted.with_label_values(&labels).inc_by(gone.bytes);
        }
        metrics.batch_seconds.observe(took.as_secs_f64());
        self.since_vacuum += batch.rows();
        self.report.scanned += batch.scanned;
        self.report.batches += 1;
        self.report.longest_ms =
            self.report.longest_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let done = self.report.rows();
        // More than was counted: how much there is nobody knows.
        let total = self.order.expected.filter(|total| *total >= done);
        let at = self.began.elapsed();
        (self.work.tell)(Progress {
            phase: format!("deleting ({})", self.order.task),
            done,
            total,
            unit: "rows".into(),
            eta_seconds: total.and_then(|total| self.lately.eta(at, (total - done) as f64)),
            waiting: self.skipped.waits.told().map(|(what, _)| what.clone()),
            waiting_since: self.skipped.waits.told().map(|(_, since)| *since),
        });
    }

    /// A failed batch left nothing; the same rows are tried again otherwise.
    async fn recover(&mut self, lease: &mut Lease, error: Error) -> Result<(), Stop> {
        self.failures += 1;
        if !error.is_contended() || self.failures > TRIES {
            return Err(error.into());
        }
        debug!(%error, "a batch is tried again");
        match error.kind() {
            db::Kind::TooLong => self.size.too_long(),
            // Somebody has the whole table, not a row of it: that passes.
            _ if self.locked == Locked::Skip => self.skipped.table(self.work, lease).await?,
            _ => self.locked = Locked::Skip,
        }
        Ok(())
    }

    /// Tries once more what was locked when its batch came.
    async fn locked_ones(&mut self, lease: &mut Lease, pacer: &mut Pacer) -> Result<Ended, Stop> {
        let mut still = self.skipped.unkept;
        for ulid in std::mem::take(&mut self.skipped.ulids) {
            pacer.turn(lease).await?;
            let until = OpUlid::first_of_ms(ulid.ms() + 1);
            self.locked = Locked::Skip;
            let began = Instant::now();
            match self.batch(lease, &Range { from: ulid.to_string(), until, rows: 100 }).await {
                Ok(batch) => {
                    if still == 0 && !batch.skipped.is_empty() {
                        self.skipped.named(self.work, lease, &batch.skipped).await;
                    }
                    still += batch.skipped.len() as u64;
                    self.count(&batch, began.elapsed());
                }
                Err(error) if error.is_held_up() => still += 1,
                Err(error) => return Err(error.into()),
            }
        }
        if still > 0 {
            warn!(rows = still, task = self.order.task, by = ?self.skipped.by, "rows stayed locked");
        }
        self.settle(lease, still == 0).await?;
        Ok(Ended::Done { locked: still })
    }

    /// The end of a whole run: where the log begins, and how far all is swept.
    async fn settle(&mut self, lease: &mut Lease, all: bool) -> db::Result<()> {
        let Some(until) = self.cuts.iter().map(|cut| cut.below).max() else {
            return Ok(());
        };
        let now_ms = self.work.clock.now_ms();
        let swept = self.skipped.first.filter(|_| !all).unwrap_or(until);
        let tx = lease.begin().await?;
        prune::swept(&tx, &self.cuts, swept.as_str()).await?;
        let settled = prune::settle(&tx, until, now_ms).await;
        match settled {
            Ok(()) => tx.commit().await.map_err(|e| Error::of("move the watermark", e)),
            // Too many dead entries: after a VACUUM it will be found.
            Err(error) if error.is_too_long() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
