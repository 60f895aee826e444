//! How ops reach a node (contract 10).

use super::words;

words! {
    /// Three ways in which ops reach a node.
    #[derive(Default)]
    pub enum Replication {
        /// Peers' sweeps.
        Peers = "peers",
        /// Peers' sweeps and the chain; in doubt this, as both gates hold.
        #[default]
        Both = "both",
        /// The chain alone: peers have no sweep to pull from.
        Chain = "chain",
    }
}

impl Replication {
    /// Ops come by peers' sweeps: they are pulled, and hold what they need.
    pub fn has_peers(self) -> bool {
        self != Self::Chain
    }

    /// Ops come by the chain: its gate holds.
    pub fn has_chain(self) -> bool {
        self != Self::Peers
    }
}

/// What the node's own sweep route answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SweepRoute {
    /// A page, or that the cursor is none.
    Served,
    /// 404: this node has no such route.
    Gone,
}
