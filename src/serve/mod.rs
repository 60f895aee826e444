//! Contract 3: `GET /internal/crud/sweep?after=`.
//!
//! A request's way: `after` → one snapshot (minimum, floors, rows) → page
//! writer, until the decision says full → connection released → sent →
//! metrics. A whole page is in memory before its first byte waits on a
//! socket, so no snapshot ever waits on one.

mod build;
pub mod decide;
mod doors;
mod held;
mod request;
mod respond;

pub use held::BUDGET;

use crate::clock::Clock;
use crate::db::ops::Lent;
use crate::db::{Db, Kind, readers};
use crate::http::{self, Body, Conn, Handler};
use crate::metrics::Metrics;
use crate::values::{Host, OpUlid, PeerSet, is_plausible};
use build::{Built, NoPage, Order};
use doors::{Doors, Standing};
use futures_util::FutureExt;
use held::{Memory, Reserved};
use hyper::{Request, Response, StatusCode};
use request::{Ask, Refusal, Wants};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

/// Pages built at a time, each on a connection of its own: two keep two cores
/// busy, the third goes on while one of them scans for its first op.
pub const BUILDERS: usize = 3;
/// How long a request waits for its turn and for memory.
const TURN: Duration = Duration::from_secs(10);
/// How long a page may take once its turn has come, connecting included.
const BUILD: Duration = Duration::from_secs(9);
/// How long noting a reader may take; the page does not wait for it.
const NOTE: Duration = Duration::from_secs(3);

/// Seconds after which to ask again: the database takes some to come back,
/// a queue of pages is shorter by then.
const RETRY_AWAY: u16 = 30;
const RETRY_OVERLOADED: u16 = 5;
/// Misses of one kind are logged at most this often, in ms.
const TOLD_EVERY_MS: u64 = 60_000;

/// The public port's handler.
pub struct Serve {
    db: Db,
    self_host: Host,
    clock: Clock,
    metrics: Metrics,
    peers: watch::Receiver<Option<Arc<PeerSet>>>,
    doors: Doors,
    noting: Arc<Semaphore>,
    memory: Memory,
    /// When each kind of miss was last logged, in ms.
    told: Mutex<BTreeMap<&'static str, u64>>,
}

/// Why there is no page, as the asker and the metrics see it.
enum Miss {
    /// The database is away.
    Away(String),
    /// No turn, no memory or no lock in time.
    Overloaded(String),
    /// Anything else.
    Failed(String),
}

impl Serve {
    /// Serves the log of `db`, whose own host is `self_host`; readers among
    /// `peers` are noted.
    pub fn new(
        db: Db,
        self_host: Host,
        clock: Clock,
        metrics: Metrics,
        peers: watch::Receiver<Option<Arc<PeerSet>>>,
    ) -> Self {
        let memory = Memory::new(metrics.built_page_bytes.clone(), metrics.responses_dropped.clone());
        Self {
            db,
            self_host,
            clock,
            metrics,
            peers,
            doors: Doors::new(),
            noting: Arc::new(Semaphore::new(1)),
            memory,
            told: Mutex::default(),
        }
    }

    /// As a handler for `http::serve`.
    pub fn handler(self) -> Handler {
        let serve = Arc::new(self);
        Arc::new(move |request, conn| {
            let serve = serve.clone();
            async move { serve.answer(&request, &conn).await }.boxed()
        })
    }

    async fn answer<B>(&self, request: &Request<B>, conn: &Conn) -> Response<Body> {
        let (outcome, response) = match request::read(request) {
            Err(refusal) => refused(&refusal),
            Ok(ask) => {
                self.note_reader(&ask, conn);
                match self.page(&ask, conn).await {
                    Ok((built, reserved)) => self.sent(&ask, built, reserved),
                    Err(miss) => self.missed(&miss),
                }
            }
        };
        let served = &self.metrics.sweeps_served;
        served.with_label_values(&[outcome]).inc();
        respond::versioned(response)
    }

    /// Waits for a turn, then builds the page. The turn and the connection
    /// are free again when this returns.
    async fn page(&self, ask: &Ask, conn: &Conn) -> Result<(Built, Reserved), Miss> {
        let until = Instant::now() + TURN;
        let busy = || Miss::Overloaded("too many pages are being built".into());
        let peers = self.peers.borrow().clone();
        let entered = self.doors.enter(ask, conn, peers.as_deref()).ok_or_else(busy)?;
        let _turn = entered.turn(until).await.ok_or_else(busy)?;
        let expected = build::expected_bytes(ask.encoding);
        let reserved = self.memory.admit(conn, entered.standing, expected, until).await;
        let reserved = reserved.ok_or_else(busy)?;
        let _timer = self.metrics.serve_seconds.start_timer();
        let built = timeout(BUILD, self.build(ask, entered.standing, &reserved)).await;
        let late = || Miss::Away(format!("{} did not answer in time", self.db.shown()));
        Ok((built.unwrap_or_else(|_| Err(late()))?, reserved))
    }

    /// Logs a page that could not be built; nothing else does. The client only learns that it
    /// should ask again.
    fn missed(&self, miss: &Miss) -> (&'static str, Response<Body>) {
        let (outcome, why, response) = match miss {
            Miss::Away(error) => ("away", error, respond::later("the database is away", RETRY_AWAY)),
            Miss::Overloaded(reason) => {
                ("overloaded", reason, respond::later("overloaded", RETRY_OVERLOADED))
            }
            Miss::Failed(error) => {
                let words = "the log could not be read";
                ("failed", error, http::error(StatusCode::INTERNAL_SERVER_ERROR, words))
            }
        };
        if self.is_due(outcome) {
            tracing::warn!(outcome, error = %why, "a page could not be served; more of this kind are counted, and told once a minute");
        } else {
            tracing::debug!(outcome, error = %why, "a page could not be served");
        }
        (outcome, response)
    }

    /// Whether to log this kind of miss now. Clients decide how often one happens, so the log is
    /// limited.
    fn is_due(&self, outcome: &'static str) -> bool {
        let now = self.clock.now_ms();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.get(outcome).copied();
        let due = last.is_none_or(|at| now.saturating_sub(at) >= TOLD_EVERY_MS);
        if due {
            told.insert(outcome, now);
        }
        due
    }

    async fn build(&self, ask: &Ask, standing: Standing, reserved: &Reserved) -> Result<Built, Miss> {
        let client = self.db.client().await.map_err(|e| miss(e.into()))?;
        let mut lent = Lent::new(client);
        let (now_ms, budget) = (self.clock.now_ms(), standing.budget());
        let order = Order { ask, self_host: &self.self_host, budget, now_ms };
        let built = build::build(&mut lent, &order, reserved).await;
        let built = built.map_err(miss)?;
        lent.give_back();
        Ok(built)
    }

    /// The response of a page, counted.
    fn sent(&self, ask: &Ask, built: Built, reserved: Reserved) -> (&'static str, Response<Body>) {
        let rows = built.writer.ops();
        let left_out = &self.metrics.rows_left_out;
        left_out.with_label_values(&["gossip"]).inc_by(built.gossip);
        let unappliable = left_out.with_label_values(&["unappliable"]);
        unappliable.inc_by(built.unappliable);
        self.metrics.rows_served.inc_by(rows as u64);
        if built.gap.is_some() {
            self.metrics.gap_signals_sent.inc();
        }
        let mut response = respond::page_headers(&built, ask.encoding);
        let chunks = built.writer.finish();
        let bytes: usize = chunks.iter().map(Vec::len).sum();
        self.metrics.bytes_served.inc_by(bytes as u64);
        respond::set_length(&mut response, bytes);
        if ask.wants == Wants::Page {
            *response.body_mut() = Body::chunks(reserved.hold(chunks));
        }
        (if rows == 0 { "empty" } else { "ok" }, response)
    }

    /// Notes a registered peer that asks in `opsward.readers`, in parallel with the page. An
    /// implausible `after` is not stored and holds nothing back.
    fn note_reader(&self, ask: &Ask, conn: &Conn) {
        let peers = self.peers.borrow().clone();
        let agent = ask.agent.as_ref().filter(|_| ask.wants == Wants::Page);
        let registered = |host: &&Host| peers.as_ref().is_some_and(|p| p.contains(host));
        let Some(host) = agent.filter(registered).cloned() else {
            return;
        };
        let now_ms = self.clock.now_ms();
        let after = ask.after.filter(|after| is_plausible(*after, now_ms));
        let (db, clock, noting) = (self.db.clone(), self.clock.clone(), self.noting.clone());
        conn.beside(async move {
            let noted = timeout(NOTE, note(&db, &clock, &noting, (&host, after))).await;
            if let Err(error) = noted.unwrap_or_else(|_| Err("out of time".into())) {
                tracing::warn!(%host, %error, "a reader could not be noted");
            }
        });
    }
}

async fn note(
    db: &Db,
    clock: &Clock,
    noting: &Semaphore,
    (host, after): (&Host, Option<OpUlid>),
) -> Result<(), String> {
    // One at a time: pages come first.
    let _turn = noting.acquire().await.map_err(|e| e.to_string())?;
    let mut lent = Lent::new(db.client().await.map_err(|e| e.to_string())?);
    let client = lent.client().map_err(|e| e.to_string())?;
    let noted = readers::seen(client, host, after, clock.now()).await;
    noted.map_err(|e| e.to_string())?;
    lent.give_back();
    Ok(())
}

fn miss(failure: NoPage) -> Miss {
    match failure {
        NoPage::Memory => Miss::Overloaded(failure.to_string()),
        NoPage::Db(e) if e.kind() == Kind::Locked => Miss::Overloaded("ops is locked".into()),
        NoPage::Db(e) if e.is_too_long() || e.is_away() || e.is_denied() => Miss::Away(e.to_string()),
        NoPage::Db(e) => Miss::Failed(e.to_string()),
    }
}

fn refused(refusal: &Refusal) -> (&'static str, Response<Body>) {
    match refusal {
        Refusal::NotFound => ("not_found", http::error(StatusCode::NOT_FOUND, "not found")),
        Refusal::Method => ("method", http::read_only("method not allowed")),
        Refusal::After(words) => ("bad_request", http::error(StatusCode::BAD_REQUEST, words)),
    }
}
