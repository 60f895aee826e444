//! Contract 4: what this node lacks is read from its peers.
//!
//! The straight line of one page: cursor → request → body bytes → elements →
//! ops → `Sweep` (no I/O) → `apply`, a transaction a batch → outcome → cursor,
//! compare-and-set → record and metrics.

pub mod apply;
mod batch;
pub mod client;
pub mod decide;
pub mod discover;
mod late;
pub mod replay;
pub mod retry;
pub mod route;
pub mod sweep;
pub mod waves;

use crate::clock::Clock;
use crate::db::pulls::{Hold, PageSums};
use crate::db::{self, Db, cursors, pulls};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::values::{Host, NodeWrite, OpUlid};
use crate::wire::body::{BodyError, Element, Limits, Scanner};
use batch::Batch;
use client::{Page, PageError};
use std::sync::Arc;
use std::time::Duration;
use sweep::{Sweep, SweepEnd};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What one page may be at most: an op of 32 MiB is three times the largest
/// page, 20,000 ops twice what a node sends.
const LIMITS: Limits = Limits { op_bytes: 32 << 20, body_bytes: 256 << 20, ops: 20_000, depth: 128 };
/// Batches being applied at a time: the node needs the rest of the machine.
const APPLIED_AT_ONCE: usize = 2;
/// An op over this size is read by one peer at a time.
const LARGE_OP: usize = 64 << 10;
/// How long a peer may keep the others waiting with a large op.
const LARGE_OP_TIME: Duration = Duration::from_secs(20);
/// Ops of all peers together that wait to be applied, in KiB. What pulling
/// takes at most is this; up to some 200 KiB a peer for its connection and the
/// op that is being read; the records of two batches, about 4 MiB each; and one
/// large op with its records: under 128 MiB with 60 peers.
const BUDGET_KIB: usize = 12 << 10;
/// A peer that sends nothing for so long has what it sent applied: it must not
/// keep a part of the budget.
const IDLE: Duration = Duration::from_millis(250);
/// How long reading and applying one page may take in all.
const WHOLE_PAGE: Duration = Duration::from_secs(300);

/// Pulls pages; one for all peers. Cloning shares its bounds.
#[derive(Clone)]
pub struct Puller {
    db: Db,
    own: Host,
    http: reqwest::Client,
    clock: Clock,
    metrics: Metrics,
    appliers: Arc<Semaphore>,
    large_op: Arc<Semaphore>,
    budget: Arc<Semaphore>,
}

fn slow_op() -> PullFailure {
    let seconds = LARGE_OP_TIME.as_secs();
    PullFailure::Peer(format!("an op of over {LARGE_OP} bytes did not arrive within {seconds} s"))
}

/// Why a page was not taken. What was applied of it stays; those ops are duplicates next time.
#[derive(Debug, thiserror::Error)]
pub enum PullFailure {
    /// The peer failed.
    #[error("{0}")]
    Peer(String),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
    /// We are stopping.
    #[error("stopped")]
    Stopped,
}

impl From<PageError> for PullFailure {
    fn from(error: PageError) -> Self {
        Self::Peer(error.to_string())
    }
}

/// What one page brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pulled {
    /// The cursor that was asked with.
    pub from: Option<OpUlid>,
    /// The cursor now.
    pub to: Option<OpUlid>,
    /// Sums of its ops, and the gap that it crossed.
    pub sums: PageSums,
    /// Gaps of single tables that it crossed.
    pub table_gaps: Vec<(String, OpUlid)>,
    /// Before which op the cursor stays, and why.
    pub hold: Option<Hold>,
    /// When the next page is due at once: the pause before it.
    pub next: Option<Duration>,
    /// The peer's clock, as its answer said it.
    pub date: Option<String>,
}

impl Puller {
    /// A puller for the node `own`.
    pub fn new(db: Db, own: Host, http: reqwest::Client, clock: Clock, metrics: Metrics) -> Self {
        Self {
            db,
            own,
            http,
            clock,
            metrics,
            appliers: Arc::new(Semaphore::new(APPLIED_AT_ONCE)),
            large_op: Arc::new(Semaphore::new(1)),
            budget: Arc::new(Semaphore::new(BUDGET_KIB)),
        }
    }

    /// A puller as the settings say.
    ///
    /// # Errors
    /// TLS cannot be set up; says why.
    pub fn of_settings(
        settings: &Settings,
        db: Db,
        own: Host,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, String> {
        Ok(Self::new(db, own, client::of_settings(settings)?, clock, metrics))
    }

    /// Pulls one page of `peer`, records what came of it and counts it. `stop`
    /// ends it between two batches.
    ///
    /// # Errors
    /// The peer's or the database's; recorded where the database allows it.
    pub async fn run_once(&self, peer: &Host, stop: &CancellationToken) -> Result<Pulled, PullFailure> {
        let began = Instant::now();
        let result = self.page(peer, stop).await;
        self.record(peer, &result).await;
        result.map(|pulled| Pulled { next: pulled.next.map(|_| decide::pause(began.elapsed())), ..pulled })
    }

    async fn page(&self, peer: &Host, stop: &CancellationToken) -> Result<Pulled, PullFailure> {
        let client = self.db.client().await?;
        let stored = cursors::load(&client, peer).await?;
        let start = decide::start(&stored, self.clock.now_ms());
        for row in &stored.ignored {
            warn!(%peer, fix = row.fix, "{}", row.text());
        }
        if start.reset {
            self.reset(peer, &client).await?;
        }
        if let (None, Some(cursor)) = (&stored.own, start.cursor) {
            cursors::seed(&client, peer, cursor, stored.node.as_deref(), self.clock.now()).await?;
        }
        drop(client);

        let ask = Page::ask(&self.http, peer, start.cursor, &self.own);
        let mut page = stoppable(stop, ask).await?.map_err(PullFailure::Peer)?;
        let answered_at = self.clock.now();
        let sweep = Sweep::answered(start.cursor, page.headers.clone(), self.clock.now_ms());
        let mut batch = Batch::new(self, peer, sweep);
        self.read(&mut page, &mut batch, stop).await?;
        let (ended, mut sums, hold) = batch.finish(self.clock.now()).await?;
        let read_node = if start.reset { None } else { stored.node.as_deref() };
        let to = self.store(peer, &ended, read_node).await?;
        // Counted only once the cursor stands at or above what it crosses.
        sums.gap = ended.gap.filter(|_| to.is_some());
        let was_empty = hold.is_none() && sums.applied + sums.duplicates + sums.rejected == 0;
        sums.empty_after = (was_empty && to == start.cursor)
            .then(|| start.cursor.map_or_else(String::new, |cursor| cursor.to_string()));
        sums.clock_offset_ms = page.date().and_then(|date| decide::clock_offset_ms(date, answered_at));
        let table_gaps = ended.table_gaps.into_iter().filter(|_| to.is_some()).collect();
        Ok(Pulled {
            from: start.cursor,
            to,
            sums,
            table_gaps,
            hold,
            next: ended.more.then_some(Duration::ZERO),
            date: page.date().map(str::to_owned),
        })
    }

    /// Body bytes → elements → batch, until the array ends or a bound is met.
    async fn read(
        &self,
        page: &mut Page,
        batch: &mut Batch<'_>,
        stop: &CancellationToken,
    ) -> Result<(), PullFailure> {
        let mut scanner = Scanner::new(LIMITS);
        let mut elements = Vec::new();
        let mut large = None;
        let began = Instant::now();
        loop {
            if scanner.pending() > LARGE_OP && large.is_none() {
                large = Some(self.large_op(batch, stop).await?);
            }
            let read_on = self.read_on(page, batch, &mut scanner, &mut elements);
            let read = match &large {
                None => stoppable(stop, read_on).await??,
                Some((_, since)) => {
                    let in_time = timeout_at(*since + LARGE_OP_TIME, read_on);
                    stoppable(stop, in_time).await?.map_err(|_| slow_op())??
                }
            };
            let now = self.clock.now();
            for element in elements.drain(..) {
                if !batch.take(element, now).await? {
                    return Ok(());
                }
            }
            match read {
                Ok(true) if scanner.is_full() => return batch.stop_here(None, now).await,
                Ok(true) => {}
                Ok(false) => break,
                // An op that we cannot hold is no reason to lose those before it.
                Err(PageError::Body(e @ BodyError::OpTooLong(_))) => {
                    return batch.stop_here(Some(e.to_string()), now).await;
                }
                Err(PageError::Body(BodyError::TooLong(_))) if scanner.found() > 0 => {
                    return batch.stop_here(None, now).await;
                }
                Err(e) => return Err(e.into()),
            }
            match &large {
                // Give the turn to the next peer once this op's memory is free.
                Some(_) if scanner.pending() <= LARGE_OP => {
                    batch.flush(now).await?;
                    large = None;
                }
                Some((_, since)) if since.elapsed() > LARGE_OP_TIME => return Err(slow_op()),
                _ => {}
            }
            if began.elapsed() > WHOLE_PAGE && scanner.found() > 0 {
                return batch.stop_here(None, now).await;
            }
        }
        scanner.finish().map_err(|e| PullFailure::Peer(e.to_string()))
    }

    /// Waits for the turn to read a large op; returns it and when it began. Hands over the batch
    /// first, so that the pull before this one never waits for its memory.
    async fn large_op(
        &self,
        batch: &mut Batch<'_>,
        stop: &CancellationToken,
    ) -> Result<(OwnedSemaphorePermit, Instant), PullFailure> {
        batch.hand_over(self.clock.now()).await?;
        let turn = batch.alongside(self.large_op.clone().acquire_owned());
        let turn = stoppable(stop, turn).await??.map_err(|_| PullFailure::Stopped)?;
        Ok((turn, Instant::now()))
    }

    /// Reads the page on while the batch under way is applied. While the peer
    /// sends nothing, what came from it before is handed over.
    async fn read_on(
        &self,
        page: &mut Page,
        batch: &mut Batch<'_>,
        scanner: &mut Scanner,
        elements: &mut Vec<Element>,
    ) -> Result<Result<bool, PageError>, PullFailure> {
        let mut read_on = std::pin::pin!(page.read_on(scanner, elements));
        loop {
            match timeout(IDLE, batch.alongside(read_on.as_mut())).await {
                Ok(read) => return read,
                Err(_) => batch.hand_over(self.clock.now()).await?,
            }
        }
    }

    /// Writes the cursor and returns it; `None` if it was dropped.
    async fn store(
        &self,
        peer: &Host,
        ended: &SweepEnd,
        read: Option<&str>,
    ) -> Result<Option<OpUlid>, PullFailure> {
        let Some(cursor) = ended.cursor else {
            return Ok(None);
        };
        let now_ms = self.clock.now_ms();
        let mut client = self.db.client().await?;
        let decide = |found: Option<&str>| decide::node_write(read, found, cursor, now_ms);
        let written = cursors::write(&mut client, peer, cursor, self.clock.now(), decide).await?;
        match written.node {
            NodeWrite::Reset => {
                self.reset(peer, &client).await?;
                return Ok(None);
            }
            NodeWrite::Set if decide::healed(written.node_before.as_deref(), now_ms) => {
                self.metrics.cursors_healed.inc();
                warn!(%peer, before = ?written.node_before, after = %cursor, "the node's cursor was implausible and is replaced");
            }
            NodeWrite::Set | NodeWrite::Leave => {}
        }
        Ok(Some(cursor))
    }

    async fn reset(&self, peer: &Host, client: &db::Client) -> Result<(), PullFailure> {
        cursors::drop_own(client, peer).await?;
        self.metrics.cursors_reset.inc();
        info!(%peer, "the node's cursor was removed by an operator: the peer's log is read anew");
        Ok(())
    }

    /// Counts, logs and keeps what came of a page.
    async fn record(&self, peer: &Host, result: &Result<Pulled, PullFailure>) {
        let outcome = match result {
            Ok(p) if p.hold.is_some() => "held",
            Ok(_) => "ok",
            Err(PullFailure::Stopped) => return,
            Err(_) => "failed",
        };
        self.metrics.sweeps_pulled.with_label_values(&[peer.as_str(), outcome]).inc();
        if let Ok(pulled) = result {
            self.count(peer, pulled);
        }
        let away = matches!(result, Err(PullFailure::Db(error)) if error.is_away());
        if let Err(error) = self.keep(peer, result, outcome).await
            // The failure itself says so already.
            && !away
        {
            warn!(%peer, %error, "what came of a pull could not be recorded");
        }
    }

    fn count(&self, peer: &Host, pulled: &Pulled) {
        if let Some((from, to)) = pulled.sums.gap {
            self.metrics.gap_advances.inc();
            warn!(%peer, %from, %to, "the peer's log begins later than our cursor: ops between are gone for good");
        }
        for (table, floor) in &pulled.table_gaps {
            // Tables are bounded by the models: others share one label.
            let label = crate::records::models().get(table).map_or("other", |m| m.table.as_str());
            self.metrics.table_gaps.with_label_values(&[label]).inc();
            warn!(%peer, table, %floor, "the peer has pruned ops of this table that we had not read");
        }
        // Log an op only when it is refused for the first time: peers send it with every page.
        if pulled.sums.rejected_new > 0 {
            warn!(%peer, ops = pulled.sums.rejected_new, unkept = pulled.sums.rejected_unkept, "ops were refused: see `opsward rejected list`");
        }
    }

    async fn keep(&self, peer: &Host, result: &Result<Pulled, PullFailure>, outcome: &str) -> db::Result<()> {
        let client = self.db.client().await?;
        let now = self.clock.now();
        match result {
            Ok(pulled) => {
                pulls::succeeded(&client, peer, &pulled.sums, outcome, now).await?;
                let new = pulls::hold(&client, peer, pulled.hold.as_ref(), now).await?;
                if let (Some(hold), true) = (&pulled.hold, new) {
                    warn!(%peer, ulid = %hold.ulid, table = hold.table, reason = hold.reason, "the cursor stays before an op that is not understood");
                }
                self.metrics.peers_held.set(pulls::held(&client).await?);
            }
            Err(failure) => pulls::failed(&client, peer, &failure.to_string(), now).await?,
        }
        Ok(())
    }
}

/// Cancels a future when opsward stops.
async fn stoppable<T>(stop: &CancellationToken, future: impl Future<Output = T>) -> Result<T, PullFailure> {
    stop.run_until_cancelled(future).await.ok_or(PullFailure::Stopped)
}
