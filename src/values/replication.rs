//! How ops reach a node (contract 10).

use super::words;

words! {
    /// Three ways in which ops reach a node.
    #[derive(Default)]
    pub enum Replication {
        /// Peers' sweeps.
        Peers = "peers",
        /// Peers' sweeps and the chain. The safe choice when in doubt: both gates hold.
        #[default]
        Both = "both",
        /// The chain alone: peers have no sweep to pull from.
        Chain = "chain",
    }
}

impl Replication {
    /// Whether ops come by peers' sweeps: then peers are pulled and their cursors hold ops back.
    pub fn has_peers(self) -> bool {
        self != Self::Chain
    }

    /// In words, after "ops".
    pub fn told(self) -> &'static str {
        match self {
            Self::Peers => "by peers",
            Self::Both => "by peers and the chain",
            Self::Chain => "by the chain alone",
        }
    }

    /// Whether ops come by the chain: then the chain's gate holds ops back.
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
