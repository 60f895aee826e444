//! The active peers: finds them, stores them, tells the listeners, and runs one task per peer
//! that pulls it.

use crate::db;
use crate::metrics::Metrics;
use crate::pull::discover::{FoundPeers, discover, static_peers};
use crate::pull::{PullFailure, Puller};
use crate::supervisor::{Handle, Next, Outcome, Schedule, Stage, Supervisor, Task};
use crate::values::{Host, PeerSet, Replication, signed};
use crate::work::Work;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// After this long without an answer from the registry the last known set is used meanwhile.
const MEANWHILE: Duration = Duration::from_secs(3);

/// The task that knows the peers.
pub(super) struct Peers {
    pub(super) work: Work,
    pub(super) registry: reqwest::Client,
    pub(super) tell: watch::Sender<Option<Arc<PeerSet>>>,
    pub(super) pulls: Option<Pulls>,
}

impl Peers {
    /// Finds the peers, tells who listens, and keeps them.
    pub(super) async fn run_once(&self, stop: &CancellationToken) -> Outcome {
        let Some(found) = stop.run_until_cancelled(self.find()).await else {
            return Ok(Next::Done);
        };
        match found {
            Ok(found) => {
                // Whoever is pulled is known after the next start, too.
                let kept = self.keep(&found).await;
                self.use_set(found.peers).await;
                kept?;
                Ok(Next::Scheduled)
            }
            Err(why) => {
                self.work.metrics.discovery_failures.inc();
                self.fall_back().await;
                anyhow::bail!("the peers could not be looked up: {why}")
            }
        }
    }

    async fn find(&self) -> Result<FoundPeers, String> {
        if let Some(hosts) = &self.work.settings.peers {
            return Ok(static_peers(hosts, Some(&self.work.own)));
        }
        let asked = discover(&self.registry, &self.work.settings.node_url, Some(&self.work.own));
        let mut asked = std::pin::pin!(asked);
        tokio::select! {
            found = &mut asked => return found,
            () = tokio::time::sleep(MEANWHILE) => self.fall_back().await,
        }
        asked.await
    }

    /// Where no set is known yet, the last one that was discovered.
    async fn fall_back(&self) {
        if self.tell.borrow().is_some() {
            return;
        }
        let remembered = async { db::peers::remembered(&self.work.db.client().await?).await };
        match remembered.await {
            Ok(Some(set)) => {
                info!(peers = set.peers.len(), "the last known peers are used meanwhile");
                self.use_set(set).await;
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "the last known peers could not be read"),
        }
    }

    /// Turns pulling on or off: where ops come by the chain alone, peers have no sweep route.
    pub(super) async fn follow(&self, by: Replication, why: &str) {
        let Some(pulls) = &self.pulls else { return };
        pulls.follow(by, why).await;
        let set = self.tell.borrow().clone();
        if let Some(set) = set {
            pulls.reconcile(&set).await;
        }
    }

    async fn use_set(&self, set: PeerSet) {
        let count = signed(set.peers.len());
        self.work.metrics.peers.set(count);
        if let Some(pulls) = &self.pulls {
            pulls.reconcile(&set).await;
        }
        self.tell.send_if_modified(|told| {
            let changed = told.as_deref() != Some(&set);
            if changed {
                info!(peers = set.peers.len(), source = set.source.word(), "the peers are known");
                *told = Some(Arc::new(set));
            }
            changed
        });
    }

    async fn keep(&self, found: &FoundPeers) -> db::Result<()> {
        let mut client = self.work.db.client().await?;
        db::peers::replace(&mut client, &found.peers, &found.via, self.work.clock.now()).await
    }
}

/// One task a peer.
pub(super) struct Pulls {
    supervisor: Supervisor,
    puller: Puller,
    schedule: Schedule,
    metrics: Metrics,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    by_host: HashMap<Host, Handle>,
    /// The report that says why nobody is pulled.
    off: Option<u64>,
}

impl Pulls {
    pub(super) fn new(supervisor: Supervisor, puller: Puller, schedule: Schedule, metrics: Metrics) -> Self {
        Self { supervisor, puller, schedule, metrics, running: Mutex::default() }
    }

    /// Turns pulling on or off, as ops reach the node.
    async fn follow(&self, by: Replication, why: &str) {
        let mut running = self.running.lock().await;
        match (by.has_peers(), running.off) {
            (true, Some(id)) => {
                self.supervisor.on(id);
                running.off = None;
                info!(by = by.word(), "pulling is on again");
            }
            (false, None) => {
                let why = format!("ops reach this node by the chain alone: {why}");
                running.off = Some(self.supervisor.off_for_now("pull", &why));
            }
            _ => {}
        }
    }

    /// Starts what is missing, stops what is too much.
    async fn reconcile(&self, set: &PeerSet) {
        let mut running = self.running.lock().await;
        let is_off = running.off.is_some();
        let running = &mut running.by_host;
        for peer in set.peers.iter().filter(|_| !is_off) {
            if !running.contains_key(&peer.host) {
                running.insert(peer.host.clone(), self.start(peer.host.clone()));
            }
        }
        let departed: Vec<Host> = running.keys().filter(|h| is_off || !set.contains(h)).cloned().collect();
        for host in departed {
            let Some(handle) = running.remove(&host) else {
                continue;
            };
            handle.stop().await;
            let why = if is_off { "pulling is off" } else { "it left the set of peers" };
            info!(peer = %host, "no longer pulled: {why}");
            // Series are bounded by the peers that are there; it may have none.
            for outcome in ["ok", "failed", "held"] {
                let _ = self.metrics.sweeps_pulled.remove_label_values(&[host.as_str(), outcome]);
            }
        }
    }

    fn start(&self, peer: Host) -> Handle {
        let task = Task {
            name: format!("pull {peer}"),
            label: "pull",
            schedule: self.schedule,
            stage: Stage::Worker,
        };
        let puller = self.puller.clone();
        self.supervisor.start(task, move |stop| {
            let (puller, peer) = (puller.clone(), peer.clone());
            async move {
                match puller.run_once(&peer, &stop).await {
                    Ok(pulled) => Ok(pulled.next.map_or(Next::Scheduled, Next::After)),
                    Err(PullFailure::Stopped) => Ok(Next::Done),
                    Err(failure) => Err(failure.into()),
                }
            }
        })
    }
}
