//! How ops reach a node (contract 10).

use serde::{Deserialize, Serialize};

/// Three ways in which ops reach a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replication {
    /// Peers' sweeps.
    Peers,
    /// Peers' sweeps and the chain; in doubt this, as both gates hold.
    #[default]
    Both,
    /// The chain alone: peers have no sweep to pull from.
    Chain,
}

impl Replication {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Peers, Self::Both, Self::Chain];

    /// The mode of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.word() == word)
    }

    /// Its word, in settings, tables, labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Both => "both",
            Self::Chain => "chain",
        }
    }

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
