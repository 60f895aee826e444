//! How ops reach the node, from what was seen of it.

use crate::values::{Replication, SweepRoute};

/// What was seen of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// `ops` has `core_tx_status`.
    pub has_status: bool,
    /// `uploads` has `user_id`.
    pub has_user_id: bool,
    /// What its own sweep route answers, where it was asked and answered.
    pub route: Option<SweepRoute>,
    /// What was found last.
    pub kept: Option<Replication>,
}

/// How ops reach the node, and what told it.
pub fn recognise(seen: Seen) -> (Replication, &'static str) {
    match seen {
        Seen { has_status: false, .. } => (Replication::Peers, "ops has no column core_tx_status"),
        Seen { has_user_id: true, .. } => (Replication::Chain, "uploads has the column user_id"),
        Seen { route: Some(SweepRoute::Gone), .. } => {
            (Replication::Chain, "the node's own sweep route answers 404")
        }
        Seen { route: Some(SweepRoute::Served), .. } => {
            (Replication::Both, "ops has core_tx_status and the node's own sweep route answers")
        }
        // Without the column it was another node.
        Seen { kept: Some(kept @ (Replication::Both | Replication::Chain)), .. } => {
            (kept, "the node's own sweep route did not answer: it is as it was found last")
        }
        _ => (Replication::Both, "the node's own sweep route did not answer: both gates hold until it does"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_is_known_by_its_signs() {
        let b = Seen { has_status: true, ..Seen::default() };
        let mode = |seen| recognise(seen).0;
        assert_eq!(mode(Seen::default()), Replication::Peers);
        // A database that was put back is a node of peers again.
        assert_eq!(mode(Seen { kept: Some(Replication::Chain), ..Seen::default() }), Replication::Peers);
        assert_eq!(mode(Seen { route: Some(SweepRoute::Served), ..b }), Replication::Both);
        assert_eq!(mode(Seen { route: Some(SweepRoute::Gone), ..b }), Replication::Chain);
        assert_eq!(
            mode(Seen { has_user_id: true, route: Some(SweepRoute::Served), ..b }),
            Replication::Chain
        );
    }

    #[test]
    fn in_doubt_it_is_what_it_was_else_both() {
        let b = Seen { has_status: true, ..Seen::default() };
        let of = |kept| recognise(Seen { kept, ..b }).0;
        assert_eq!(of(None), Replication::Both);
        assert_eq!(of(Some(Replication::Peers)), Replication::Both);
        assert_eq!(of(Some(Replication::Both)), Replication::Both);
        assert_eq!(of(Some(Replication::Chain)), Replication::Chain);
    }
}
