//! `PeerSet`: the peers that a validator has, as far as is known.

use super::{Host, words};

words! {
    /// Where a peer set came from.
    pub enum PeerSource {
        /// From the setting.
        Static = "static",
        /// From the node's registry.
        Discovered = "discovered",
        /// The last set that was discovered, kept in the database.
        Remembered = "remembered",
    }
}

/// A registered peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct Peer {
    /// Its URL in comparable form.
    pub host: Host,
    /// The wallet it was registered with; empty for static peers.
    pub wallet: String,
}

/// The active peers, self left out, sorted by host.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct PeerSet {
    /// Where it came from.
    pub source: PeerSource,
    /// The peers; may be known to be empty.
    pub peers: Vec<Peer>,
}

impl PeerSet {
    /// A set of `peers` without `self_host`, sorted, each host once.
    pub fn new(source: PeerSource, peers: Vec<Peer>, self_host: Option<&Host>) -> Self {
        let mut peers: Vec<Peer> = peers.into_iter().filter(|p| Some(&p.host) != self_host).collect();
        peers.sort();
        peers.dedup_by(|a, b| a.host == b.host);
        Self { source, peers }
    }

    /// Whether a host is a registered peer.
    pub fn contains(&self, host: &Host) -> bool {
        self.peers.binary_search_by(|p| p.host.cmp(host)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_is_left_out_and_each_host_is_once() {
        let peer = |host| Peer { host: Host::parse(host).unwrap(), wallet: String::new() };
        let own = Host::parse("https://Me.example/").unwrap();
        let set = PeerSet::new(
            PeerSource::Static,
            vec![
                peer("https://b.example"),
                peer("https://me.example"),
                peer("https://B.example/"),
                peer("https://a.example"),
            ],
            Some(&own),
        );
        let hosts: Vec<&str> = set.peers.iter().map(|p| p.host.as_str()).collect();
        assert_eq!(hosts, ["https://a.example", "https://b.example"]);
        assert!(set.contains(&Host::parse("https://B.example").unwrap()));
        assert!(!set.contains(&own));
    }
}
