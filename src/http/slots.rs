//! The connections of a listener. When all slots are taken, a new connection closes an idle
//! one: the oldest of the address that has the most idle ones. So half-open connections shut
//! nobody out. There is no limit per address, because behind a proxy all share one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
pub(super) struct Slots(Arc<Shared>);

struct Shared {
    limit: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    next: u64,
    by_id: BTreeMap<u64, Entry>,
}

struct Entry {
    from: IpAddr,
    asks: Arc<AtomicBool>,
    end: CancellationToken,
}

/// A connection's slot, free again when this is dropped.
pub(super) struct Slot {
    slots: Slots,
    id: u64,
    /// Whether a request is being answered.
    pub(super) asks: Arc<AtomicBool>,
    /// Ends the connection.
    pub(super) end: CancellationToken,
}

impl Slots {
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Shared { limit: limit.max(1), taken: Mutex::default(), freed: Notify::new() }))
    }

    /// A slot for a connection from an address; `end` will end it.
    pub(super) async fn take(&self, from: IpAddr, end: CancellationToken) -> Slot {
        loop {
            let mut freed = std::pin::pin!(self.0.freed.notified());
            freed.as_mut().enable();
            {
                let mut taken = self.taken();
                if taken.by_id.len() < self.0.limit {
                    taken.next += 1;
                    let (id, asks) = (taken.next, Arc::new(AtomicBool::new(false)));
                    let entry = Entry { from: prefix(from), asks: asks.clone(), end: end.clone() };
                    taken.by_id.insert(id, entry);
                    return Slot { slots: self.clone(), id, asks, end };
                }
                if let Some(idle) = taken.to_end() {
                    idle.end.cancel();
                }
            }
            freed.await;
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Of the idle connections, the oldest of the address that has the most of them. `None`
    /// while another one is being closed.
    fn to_end(&self) -> Option<&Entry> {
        if self.by_id.values().any(|entry| entry.end.is_cancelled()) {
            return None;
        }
        let idle = || self.by_id.values().filter(|entry| !entry.asks.load(Ordering::Relaxed));
        let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
        idle().for_each(|entry| *by_address.entry(entry.from).or_default() += 1);
        let most = by_address.values().max()?;
        idle().find(|entry| by_address.get(&entry.from) == Some(most))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.taken().by_id.remove(&self.id);
        self.slots.0.freed.notify_waiters();
    }
}

/// Addresses of version 6 count by their network: one host has a /64 of them.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_of_the_busiest_address_goes() {
        let slots = Slots::new(4);
        let take = async |from: &str| slots.take(from.parse().unwrap(), CancellationToken::new()).await;
        let honest = take("192.0.2.1").await;
        let asks = take("192.0.2.2").await;
        asks.asks.store(true, Ordering::Relaxed);
        let first = take("2001:db8::1").await;
        let second = take("2001:db8::2").await;
        let ended = first.end.clone();
        let waiting = async {
            ended.cancelled().await;
            drop(first);
        };
        let (new, ()) = tokio::join!(take("192.0.2.3"), waiting);
        assert!(![&honest, &asks, &second, &new].iter().any(|slot| slot.end.is_cancelled()));
    }
}
