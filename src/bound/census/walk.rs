//! One pass through the log, a slice at a time.

use crate::db::census::{self, Counts, EPOCH, Estimated};
use crate::db::census_pass::{self, Kind, Pass};
use crate::db::census_slice::{self, Range, Reading, Slice, Window};
use crate::db::lease::Lease;
use crate::db::{self, Doing, ops, stats};
use crate::values::{Lately, OpUlid, Progress};
use crate::work::{BatchSize, Pacer, Stop, Work};
use jiff::ToSpan;
use jiff::civil::Date;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// What a slice is steered to take.
const TARGET: Duration = Duration::from_millis(200);
/// Rows of the first slice, and the most of any: their ULIDs are in memory,
/// 27 bytes each.
const FIRST_ROWS: u32 = 2_000;
const MOST_ROWS: u32 = 50_000;
/// Bytes a second at gentle pace (contract 5), in proportion at others but
/// full pace, which knows no bound.
const GENTLE_RATE: f64 = (8 << 20) as f64;
/// How often what was counted is written: as much is lost when it is killed.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Slices that tell what is usual.
const RECENT_SLICES: usize = 15;

/// A pass under way.
pub(super) struct Walk<'w> {
    work: &'w Work,
    reading: &'w Reading,
    pub(super) pass: Pass,
    /// The day that is being counted.
    day: Date,
    /// A range that could not be read in time is halved, down to this.
    narrowed: Option<OpUlid>,
    /// All ULIDs up to this millisecond are counted. A key that is no ULID says nothing of time.
    passed_ms: u64,
    size: BatchSize,
    /// Seconds a row of the last slices.
    usual: VecDeque<f64>,
    /// No slice before this: the rate of bytes.
    due: Instant,
    row_bytes: f64,
    saved: Instant,
    began: Instant,
    lately: Lately,
    total: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) slices: u64,
}

impl<'w> Walk<'w> {
    /// A pass as it was written.
    pub(super) async fn new(work: &'w Work, reading: &'w Reading, pass: Pass) -> db::Result<Self> {
        let total = stats::figures(&work.db.client().await?).await?.ops_bytes;
        let now = Instant::now();
        Ok(Self {
            work,
            reading,
            day: pass.day,
            pass,
            narrowed: None,
            passed_ms: 0,
            size: BatchSize::new(FIRST_ROWS, MOST_ROWS, TARGET),
            usual: VecDeque::new(),
            due: now,
            row_bytes: 1_000.0,
            saved: now,
            began: now,
            lately: Lately::default(),
            total,
            rows: 0,
            bytes: 0,
            slices: 0,
        })
    }

    /// Goes on until `ends`; says whether the pass came to its end.
    pub(super) async fn walk(
        &mut self,
        lease: &mut Lease,
        pacer: &mut Pacer,
        ends: Instant,
    ) -> Result<bool, Stop> {
        loop {
            if self.pass.until.is_some_and(|until| self.day >= until) {
                self.open(lease).await?;
            }
            pacer.turn_reading(lease).await?;
            if let Some(wait) = self.due.checked_duration_since(Instant::now()) {
                pacer.idle(wait).await;
            }
            let is_over = self.step(lease, pacer.percent()).await?;
            if is_over {
                self.finish(lease).await?;
                return Ok(true);
            }
            let is_stretch_over = self.pass.until.is_some_and(|until| self.day >= until);
            let is_late = Instant::now() >= ends;
            if is_late || is_stretch_over || self.saved.elapsed() >= SAVE_EVERY {
                self.save(lease).await?;
                (self.work.tell)(self.progress());
            }
            if is_late {
                return Ok(false);
            }
        }
    }

    /// Counts one slice; says whether it was the last of the pass.
    async fn step(&mut self, lease: &mut Lease, percent: u8) -> Result<bool, Stop> {
        let now_ms = self.work.clock.now_ms();
        let window = Window::new(self.day, self.pass.until, now_ms);
        // Only a pass over all of the log looks beyond what is plausible.
        let is_open = window.is_last && self.pass.kind == Kind::Full && self.narrowed.is_none();
        let to = self.narrowed.unwrap_or(window.last);
        let rate = (percent < 100).then(|| GENTLE_RATE * f64::from(percent) / f64::from(db::pace::GENTLE));
        let fits = rate.map_or(f64::from(MOST_ROWS), |rate| rate / self.row_bytes);
        // One row could be the key '', after which everything begins.
        let rows = self.size.rows().min(fits as u32).max(2);
        let range = Range { after: &self.pass.position, to: (!is_open).then(|| to.as_str()), rows };
        let began = Instant::now();
        let slice = match census_slice::slice(lease.client()?, self.reading, &window, range).await {
            Err(e) if ops::is_out_of_time(&e) && self.narrow(&window, to) => return Ok(false),
            slice => slice?,
        };
        self.pace(&slice, began, rate);
        let is_short = slice.rows < u64::from(rows);
        self.take(slice);
        if !is_short {
            return Ok(false);
        }
        self.passed_ms = to.ms();
        self.pass.position = census_slice::later(lease.client()?, &self.pass.position, to).await?;
        if self.narrowed.take().is_some_and(|to| to < window.last) {
            return Ok(false);
        }
        self.day = window.next;
        Ok(window.is_last && self.pass.until.is_none())
    }

    /// Too long a slice: fewer rows, and half the time of its range, where dead
    /// entries of the index are what takes long. `false` at the end of it.
    fn narrow(&mut self, window: &Window, to: OpUlid) -> bool {
        self.size.too_long();
        let at = OpUlid::parse(&self.pass.position).map_or(0, |ulid| ulid.ms());
        let from = at.max(self.passed_ms).max(window.first_ms());
        let middle = from + to.ms().saturating_sub(from) / 2;
        self.narrowed = (middle > from).then(|| OpUlid::last_of_ms(middle)).or(self.narrowed);
        middle > from || self.size.rows() > 1
    }

    fn take(&mut self, slice: Slice) {
        self.rows += slice.rows;
        self.bytes += slice.bytes;
        self.slices += 1;
        self.pass.rows += slice.rows;
        self.pass.bytes += slice.bytes;
        self.day = self.day.max(slice.counts.latest().unwrap_or(self.day));
        if let Some(last) = slice.last {
            self.pass.position = last;
        }
        let mut counts = slice.counts;
        if self.pass.kind == Kind::Days {
            counts.retain(|day| day != EPOCH);
        }
        self.pass.counts.merge(counts);
    }

    /// Learns from a slice; rests longer after one that took twice as long as
    /// usual, since others need the disk then.
    fn pace(&mut self, slice: &Slice, began: Instant, rate: Option<f64>) {
        let took = began.elapsed();
        let rows = u32::try_from(slice.rows).unwrap_or(u32::MAX);
        self.due = began;
        if rows == 0 {
            return;
        }
        self.size.took(rows, took);
        self.row_bytes = (slice.bytes as f64 / f64::from(rows)).max(1.0);
        let per_row = took.as_secs_f64() / f64::from(rows);
        let mut sorted: Vec<f64> = self.usual.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let is_slow = sorted.get(sorted.len() / 2).is_some_and(|usual| per_row > 2.0 * usual);
        if self.usual.len() == RECENT_SLICES {
            self.usual.pop_front();
        }
        self.usual.push_back(per_row);
        if let Some(rate) = rate {
            let wait = Duration::from_secs_f64(slice.bytes as f64 / rate);
            self.due = began + if is_slow { 2 * wait.max(4 * took) } else { wait };
        }
    }

    /// Opens the next stretch of days: the next marked one, or the recent ones.
    async fn open(&mut self, lease: &mut Lease) -> db::Result<()> {
        let recent = census::recent_from(self.work.clock.now_ms());
        let tx = lease.begin().await?;
        let marked = census::touched(&tx, self.day, recent).await?;
        let (first, until) = marked.map_or((recent, None), |day| (day, Some(day.saturating_add(1.day()))));
        census::forget_touched(&tx, first, until.unwrap_or(Date::MAX)).await?;
        (self.day, self.pass.day, self.pass.until) = (first, first, until);
        self.passed_ms = 0;
        self.pass.position = OpUlid::last_of_ms(census::day_ms(first).saturating_sub(1)).to_string();
        census_pass::save(&tx, &self.pass).await?;
        tx.commit().await.doing("begin days of the census")
    }

    /// Writes the days that are behind, and where the pass stands.
    pub(super) async fn save(&mut self, lease: &mut Lease) -> db::Result<()> {
        let (day, from) = (self.day, self.pass.day);
        self.write(lease, |d| d != EPOCH && d < day, (from, day)).await
    }

    async fn finish(&mut self, lease: &mut Lease) -> db::Result<()> {
        let now = self.work.clock.now();
        (self.pass.finished_at, self.pass.last_finished_at) = (Some(now), Some(now));
        let from = self.pass.day;
        self.write(lease, |_| true, (from, Date::MAX)).await
    }

    async fn write(
        &mut self,
        lease: &mut Lease,
        is_done: impl Fn(Date) -> bool,
        (from, below): (Date, Date),
    ) -> db::Result<()> {
        let mut done: Counts = self.pass.counts.take(is_done);
        let spoiled = self.pass.spoiled;
        done.retain(|day| Some(day) != spoiled);
        self.pass.day = self.day;
        self.pass.spoiled = spoiled.filter(|day| *day >= self.day);
        let now = self.work.clock.now();
        let tx = lease.begin().await?;
        census::clear(&tx, from, below, spoiled).await?;
        if self.pass.kind == Kind::Full && self.pass.finished_at.is_some() {
            census::clear(&tx, EPOCH, EPOCH.saturating_add(1.day()), None).await?;
        }
        census::put(&tx, &done, Estimated::No, now).await?;
        census_pass::save(&tx, &self.pass).await?;
        tx.commit().await.doing("write the census")?;
        self.saved = Instant::now();
        Ok(())
    }

    fn progress(&mut self) -> Progress {
        let is_full = self.pass.kind == Kind::Full;
        let total = is_full.then(|| self.total.max(self.pass.bytes));
        let eta = total.and_then(|t| self.lately.eta(self.began.elapsed(), (t - self.pass.bytes) as f64));
        if let Some(total) = total {
            self.work.metrics.census_progress.set(self.pass.bytes as f64 / (total as f64).max(1.0));
        }
        Progress {
            phase: if is_full { "counting the log" } else { "counting days that changed" }.into(),
            done: self.pass.bytes,
            total,
            unit: "bytes".into(),
            eta_seconds: eta,
            ..Progress::default()
        }
    }
}
