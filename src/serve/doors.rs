//! Who is served first: registered peers before strangers. A stranger never gets the last
//! builder, and each stranger's address has few requests at a time. Behind a proxy the address
//! is the one that the proxy names.

use super::request::Ask;
use super::{BUILDERS, decide::Budget};
use crate::http::Conn;
use crate::values::{Host, PeerSet};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

/// Requests of one stranger's address at a time, waiting ones included.
const PER_ADDRESS: usize = 4;

/// How a client is treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// A registered peer.
    Peer,
    /// Anybody else.
    Stranger,
}

impl Standing {
    /// What a page for such a one may cost.
    pub fn budget(self) -> Budget {
        match self {
            Self::Peer => Budget::PEER,
            Self::Stranger => Budget::STRANGER,
        }
    }
}

pub(super) struct Doors {
    builders: Semaphore,
    strangers: Semaphore,
    asking: Mutex<Asking>,
}

#[derive(Default)]
struct Asking {
    hosts: HashSet<Host>,
    addresses: HashMap<IpAddr, usize>,
}

/// A request that was let in, until it is dropped.
pub(super) struct Entered<'a> {
    doors: &'a Doors,
    pub(super) standing: Standing,
    host: Option<Host>,
    address: Option<IpAddr>,
}

/// The turn to build a page.
pub(super) struct Turn<'a> {
    _builder: SemaphorePermit<'a>,
    _stranger: Option<SemaphorePermit<'a>>,
}

impl Doors {
    pub(super) fn new() -> Self {
        Self {
            builders: Semaphore::new(BUILDERS),
            strangers: Semaphore::new(BUILDERS - 1),
            asking: Mutex::default(),
        }
    }

    /// Admits a request; `None` if its address has too many already. While no peers are known,
    /// every client counts as a peer. A node asks for one page at a time, so a second request in
    /// its name counts as a stranger's.
    pub(super) fn enter(&self, ask: &Ask, conn: &Conn, peers: Option<&PeerSet>) -> Option<Entered<'_>> {
        let entered = |standing, host, address| Entered { doors: self, standing, host, address };
        let Some(peers) = peers else {
            return Some(entered(Standing::Peer, None, None));
        };
        let mut asking = self.asking();
        if let Some(host) = ask.agent.clone().filter(|host| peers.contains(host))
            && asking.hosts.insert(host.clone())
        {
            return Some(entered(Standing::Peer, Some(host), None));
        }
        let address = address(conn.from(), ask.forwarded);
        if let Some(address) = address {
            let count = asking.addresses.entry(address).or_default();
            if *count >= PER_ADDRESS {
                return None;
            }
            *count += 1;
        }
        Some(entered(Standing::Stranger, None, address))
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Entered<'a> {
    /// Waits for the turn to build until `until`.
    pub(super) async fn turn(&self, until: Instant) -> Option<Turn<'a>> {
        let doors = self.doors;
        let acquired = async {
            let stranger = match self.standing {
                Standing::Peer => None,
                Standing::Stranger => Some(doors.strangers.acquire().await.ok()?),
            };
            Some(Turn { _builder: doors.builders.acquire().await.ok()?, _stranger: stranger })
        };
        timeout_at(until, acquired).await.ok().flatten()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut asking = self.doors.asking();
        if let Some(host) = &self.host {
            asking.hosts.remove(host);
        }
        if let Some(address) = self.address
            && let Some(count) = asking.addresses.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                asking.addresses.remove(&address);
            }
        }
    }
}

/// The client's address: the other end's, or the one that a proxy there names. `None` if the
/// proxy names none.
fn address(from: IpAddr, forwarded: Option<IpAddr>) -> Option<IpAddr> {
    let nearby = match from.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    if nearby { forwarded } else { Some(from) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_proxy_the_address_is_the_one_it_names() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let stranger = Some(ip("203.0.113.9"));
        for proxy in ["127.0.0.1", "172.17.0.1", "::1", "fd00::1", "::ffff:10.0.0.1"] {
            assert_eq!(address(ip(proxy), stranger), stranger, "{proxy}");
            assert_eq!(address(ip(proxy), None), None, "{proxy}");
        }
        assert_eq!(address(ip("198.51.100.7"), stranger), Some(ip("198.51.100.7")));
    }
}
