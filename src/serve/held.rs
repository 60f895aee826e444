//! The memory budget for built pages: what is reserved while a page grows, and what is held
//! until the client's socket took it.
//!
//! Each chunk of a page counts until it is dropped, also in hyper's queue. When the budget is
//! full, the slowest connections are closed.

use super::decide::{self, GRACE, Sending};
use super::doors::Standing;
use crate::http::Conn;
use crate::values::signed;
use crate::wire::page::CHUNK;
use bytes::Bytes;
use prometheus::{IntCounterVec, IntGauge};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Bytes for all pages together. One page alone may take more.
pub const BUDGET: usize = 48 * 1024 * 1024;
/// The part of the budget that strangers may use. They never close a peer's connection either.
const FOR_STRANGERS: usize = BUDGET / 3 * 2;

/// The memory of one public port. Cloning shares it.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

struct Shared {
    pages: Mutex<Pages>,
    freed: Notify,
    held: IntGauge,
    dropped: IntCounterVec,
}

#[derive(Default)]
struct Pages {
    next: u64,
    by_id: BTreeMap<u64, Page>,
}

struct Page {
    conn: Conn,
    standing: Standing,
    bytes: usize,
    sending: Option<Since>,
    dying: bool,
}

struct Since {
    handed: Instant,
    last: Instant,
    sent: usize,
}

impl Memory {
    /// An unused budget that shows itself in `held` and counts the
    /// connections that it ends in `dropped`.
    pub fn new(held: IntGauge, dropped: IntCounterVec) -> Self {
        Self(Arc::new(Shared { pages: Mutex::default(), freed: Notify::new(), held, dropped }))
    }

    /// Reserves `bytes` for a page that answers on `conn`, waiting until
    /// `until`; `None` where there was no room.
    pub async fn admit(
        &self,
        conn: &Conn,
        standing: Standing,
        bytes: usize,
        until: Instant,
    ) -> Option<Reserved> {
        let reserved = {
            let mut pages = self.0.pages();
            pages.next += 1;
            let page = Page { conn: conn.clone(), standing, bytes: 0, sending: None, dying: false };
            let id = pages.next;
            pages.by_id.insert(id, page);
            Reserved { shared: self.0.clone(), id, standing }
        };
        reserved.grow(bytes, until).await.then_some(reserved)
    }
}

impl Shared {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the slowest connections until `missing` bytes will come free: strangers' first, and
    /// never a peer's for a stranger.
    fn end_slowest(&self, pages: &mut Pages, missing: usize, wanted_by: Standing, now: Instant) {
        let mut coming: usize = pages.by_id.values().filter(|p| p.dying).map(|p| p.bytes).sum();
        while coming < missing {
            let slowest = |standing| {
                let (ids, sending) = pages.candidates(standing, now);
                decide::slowest(&sending, CHUNK).and_then(|place| ids.get(place).copied())
            };
            let mut id = slowest(Standing::Stranger);
            if wanted_by == Standing::Peer {
                id = id.or_else(|| slowest(Standing::Peer));
            }
            let Some(page) = id.and_then(|id| pages.by_id.get_mut(&id)) else {
                return;
            };
            page.dying = true;
            page.conn.kill();
            coming += page.bytes;
            self.dropped.with_label_values(&["slow"]).inc();
        }
    }
}

impl Pages {
    fn others(&self, id: u64) -> usize {
        let others = self.by_id.iter().filter(|(other, _)| **other != id);
        others.map(|(_, page)| page.bytes).sum()
    }

    /// Pages being sent to clients of this standing: ids and progress.
    fn candidates(&self, standing: Standing, now: Instant) -> (Vec<u64>, Vec<Sending>) {
        let live = self.by_id.iter().filter(|(_, page)| !page.dying && page.standing == standing);
        live.filter_map(|(id, page)| {
            let since = page.sending.as_ref()?;
            let sending = Sending {
                elapsed: now.saturating_duration_since(since.handed),
                sent: since.sent,
                idle: now.saturating_duration_since(since.last),
            };
            Some((*id, sending))
        })
        .unzip()
    }

    /// The earliest time at which another page's speed can be judged.
    fn next_judged(&self, now: Instant) -> Option<Instant> {
        let sending = self.by_id.values().filter_map(|p| p.sending.as_ref());
        let judged = sending.map(|since| since.handed + GRACE);
        judged.filter(|at| *at > now).min()
    }
}

/// Memory of one page, given back when it is dropped.
pub struct Reserved {
    shared: Arc<Shared>,
    id: u64,
    standing: Standing,
}

impl Reserved {
    /// Raises the reservation to `bytes`; closes the slowest connections if it must. False if there
    /// was no room by `until`.
    pub async fn grow(&self, bytes: usize, until: Instant) -> bool {
        loop {
            let mut freed = std::pin::pin!(self.shared.freed.notified());
            freed.as_mut().enable();
            let now = Instant::now();
            let wake = {
                let mut pages = self.shared.pages();
                let wanted = pages.others(self.id).saturating_add(bytes);
                let budget = match self.standing {
                    Standing::Peer => BUDGET,
                    Standing::Stranger => FOR_STRANGERS,
                };
                if wanted == bytes || wanted <= budget {
                    if let Some(page) = pages.by_id.get_mut(&self.id) {
                        page.bytes = bytes;
                    }
                    return true;
                }
                self.shared.end_slowest(&mut pages, wanted - budget, self.standing, now);
                pages.next_judged(now)
            };
            if now >= until {
                return false;
            }
            let wake = wake.map_or(until, |at| at.min(until));
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// The page is built: holds its chunks until each was sent.
    pub fn hold(self, chunks: Vec<Vec<u8>>) -> Vec<Bytes> {
        let bytes = chunks.iter().map(Vec::capacity).sum();
        let now = Instant::now();
        if let Some(page) = self.shared.pages().by_id.get_mut(&self.id) {
            page.bytes = bytes;
            page.sending = Some(Since { handed: now, last: now, sent: 0 });
        }
        self.shared.held.add(signed(bytes));
        // What was reserved beyond the page is free again.
        self.shared.freed.notify_waiters();
        let page = Arc::new(self);
        let held = |bytes| Chunk { bytes, page: page.clone() };
        chunks.into_iter().map(|bytes| Bytes::from_owner(held(bytes))).collect()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let page = self.shared.pages().by_id.remove(&self.id);
        if page.is_some_and(|p| p.sending.is_some() && !p.dying && p.conn.is_overdue()) {
            self.shared.dropped.with_label_values(&["deadline"]).inc();
        }
        self.shared.freed.notify_waiters();
    }
}

/// A chunk that is still to be sent.
struct Chunk {
    bytes: Vec<u8>,
    page: Arc<Reserved>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let shared = &self.page.shared;
        shared.held.sub(signed(self.bytes.capacity()));
        if let Some(page) = shared.pages().by_id.get_mut(&self.page.id) {
            page.bytes = page.bytes.saturating_sub(self.bytes.capacity());
            if let Some(since) = &mut page.sending {
                since.sent += self.bytes.len();
                since.last = Instant::now();
            }
        }
        shared.freed.notify_waiters();
    }
}
