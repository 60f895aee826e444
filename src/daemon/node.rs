//! How ops reach the node, looked at again and again: a node is upgraded
//! while we run. What changes is told, and every task follows.

use super::peers::Peers;
use crate::bound::decide::recognise;
use crate::bound::facts;
use crate::db::{self, node};
use crate::pull::route::sweep_route;
use crate::supervisor::{Next, Outcome};
use crate::values::Replication;
use crate::work::Work;
use std::sync::Arc;
use tracing::{debug, info, warn};

/// The task that knows how ops reach the node.
pub(super) struct Node {
    pub(super) work: Work,
    pub(super) peers: Arc<Peers>,
}

impl Node {
    /// Looks at the tables and asks the node; then whoever pulls is told.
    pub(super) async fn run_once(&self) -> Outcome {
        let client = self.work.db.client().await?;
        let catalog = node::catalog(&client).await?;
        let kept = node::kept(&client).await?.map(|kept| kept.replication);
        drop(client);
        // The catalog alone tells where there are no columns, or all of them.
        let mut route = None;
        if catalog.has_status && !catalog.has_user_id {
            let asked =
                sweep_route(&self.peers.registry, &self.work.settings.node_url, Some(&self.work.own)).await;
            route =
                asked.inspect_err(|why| debug!(why, "the node does not say whether it serves sweeps")).ok();
        }
        let (found, why) = recognise(facts::seen(&catalog, route, kept));
        let client = self.work.db.client().await?;
        let before = node::keep(&client, found, why, self.work.clock.now()).await?;
        if before != Some(found) {
            match before {
                Some(before) => {
                    warn!(from = before.word(), to = found.word(), why, "ops reach the node another way now")
                }
                None => info!(by = found.word(), why, "how ops reach the node"),
            }
        }
        let (by, why) = facts::replication(&client, &catalog, &self.work.settings).await?;
        self.follow(by, &why).await;
        if catalog.is_unlogged {
            warn!(
                fix = "ALTER TABLE public.ops SET LOGGED",
                "ops is UNLOGGED: a crash of the server empties it"
            );
        }
        Ok(Next::Scheduled)
    }

    async fn follow(&self, by: Replication, why: &str) {
        for mode in Replication::ALL {
            self.work.metrics.node_replication.with_label_values(&[mode.word()]).set(i64::from(mode == by));
        }
        self.peers.follow(by, why).await;
    }
}

/// What is known before the node was asked.
pub(super) async fn at_start(work: &Work) -> db::Result<(Replication, String)> {
    let client = work.db.client().await?;
    let catalog = node::catalog(&client).await?;
    facts::replication(&client, &catalog, &work.settings).await
}
