//! The daemon wires everything together: pool, channels, listeners and tasks. What a task does
//! is in its room.

mod gate;
mod jobs;
mod listen;
mod node;
mod peers;
mod presence;
mod reclaim;
mod sample;
mod signals;

use crate::bound::tick::Which;
use crate::clock::Clock;
use crate::db::privileges::{self, Lacking, Need};
use crate::db::{self, Db, migrate};
use crate::metrics::Metrics;
use crate::pull::{Puller, discover};
use crate::serve::Serve;
use crate::settings::Settings;
use crate::show::admin::{self, Admin, Decided};
use crate::show::database_state;
use crate::show::gather::DaemonView;
use crate::supervisor::{Namespace, Next, Outcome, PROC_NET_DEV, Schedule, Stage, Supervisor, Task};
use crate::values::{PeerSet, TaskReport, TaskState};
use crate::work::Work;
use crate::{http, records};
use jobs::Bulk;
use listen::Listener;
use node::Node;
use peers::{Peers, Pulls};
use signals::Signals;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Pooled connections: pages being built (3), batches being applied (2), the
/// lease, its watcher and its facts (3), and the short reads and writes of
/// some forty peers and the operator's port.
const POOL: usize = 15;
/// How long a stop may take: contract 5 says 30 s, the rest is for the runtime.
const STOP_WITHIN: Duration = Duration::from_secs(27);
/// How often the set of peers is looked up.
const DISCOVER_EVERY: Duration = Duration::from_secs(600);
/// How often it is looked how ops reach the node, or as often as peers are
/// pulled where that is more often.
const NODE_EVERY: Duration = Duration::from_secs(600);
/// Peers are pulled first within this.
const FIRST_PULL: Duration = Duration::from_secs(5);
/// How often figures of the database are read for the metrics.
const SAMPLE_EVERY: Duration = Duration::from_secs(30);
/// How often it is looked for a job that a command handed over.
const JOBS_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether something is to be counted.
const CENSUS_EVERY: Duration = Duration::from_secs(300);
/// Tasks that delete first run in the second half of this after the start (or of their
/// interval): the first pull and the first census have begun by then.
const FIRST_PRUNE: Duration = Duration::from_secs(60);
/// How often it is looked whether a reclaim is due, or as often as the log is
/// pruned where that is more often.
const RECLAIM_EVERY: Duration = Duration::from_secs(600);
/// How often the guard is looked at.
const GUARD_EVERY: Duration = Duration::from_secs(300);
/// The census begins within this of the start.
const FIRST_CENSUS: Duration = Duration::from_secs(10);
/// How often the interfaces are looked at: one small file of `/proc`.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How a daemon that had started came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By a signal, everything finished or rolled back.
    Stopped,
    /// By a second signal, or at the bound: something was cut off.
    CutOff,
    /// The network namespace is orphaned: only a restart joins the new one.
    Orphaned,
}

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database's.
    #[error(transparent)]
    Db(#[from] db::Error),
    /// A listener could not be bound; says which.
    #[error("{0}")]
    Listen(String),
    /// A setting that `run` needs is missing, or does not go with another.
    #[error("{0}")]
    Settings(String),
    /// Anything else of this machine.
    #[error("{0}")]
    Machine(String),
}

/// Runs the daemon until a signal, or until it is orphaned.
///
/// # Errors
/// It could not start; nothing was begun.
pub async fn run(settings: Settings) -> Result<End, StartError> {
    let mut signals = Signals::listen().map_err(|e| StartError::Machine(e.to_string()))?;
    let orphaned = CancellationToken::new();
    let started = tokio::select! {
        biased;
        () = signals.next() => return Ok(End::Stopped),
        started = start(settings, orphaned.clone()) => started?,
    };
    let end = tokio::select! {
        () = signals.next() => End::Stopped,
        () = orphaned.cancelled() => End::Orphaned,
    };
    let cut_off = tokio::select! {
        late = started.stop(STOP_WITHIN) => !late.is_empty(),
        () = signals.next() => {
            warn!("a second signal: cut off");
            true
        }
    };
    Ok(match end {
        End::Stopped if cut_off => End::CutOff,
        end => {
            info!("stopped");
            end
        }
    })
}

/// Everything that the tasks are made from.
struct Parts {
    work: Work,
    supervisor: Supervisor,
    lacking: Vec<Lacking>,
    decided: Decided,
}

async fn start(settings: Settings, orphaned: CancellationToken) -> Result<Supervisor, StartError> {
    let own = settings.node_endpoint.clone().ok_or_else(|| {
        let words = "OPENAUDIO_NODE_ENDPOINT is not set: `run` has to know this validator's own URL, \
                     e.g. https://node.example";
        StartError::Settings(words.to_owned())
    })?;
    let public = Listener::bind(settings.listen, "OPENAUDIO_MEDIORUM_SIDECAR_LISTEN")?;
    let operators = Listener::bind(settings.admin_listen, "OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN")?;
    let metrics = Metrics::new().map_err(|e| StartError::Machine(e.to_string()))?;
    let version = env!("CARGO_PKG_VERSION");
    metrics.build_info.with_label_values(&[version]).set(1);
    let db = Db::open(&settings.db, "opsward", POOL).await?;
    db::stats::writable(&db.client().await?).await?;
    migrate::migrate(&mut db.client().await?).await?;
    database_state::tell(&metrics, &Ok(()));

    let lacking = lacking(&db).await?;
    let clock = Clock::System;
    let supervisor = Supervisor::new(clock.clone(), metrics.clone());
    let (stop, tell) = (supervisor.stopping(), Arc::new(|_| {}));
    let work = Work { db, settings: Arc::new(settings), own, clock, metrics, stop, tell };
    let parts = Parts { work, supervisor, lacking, decided: Decided::default() };
    info!(
        version,
        own = %parts.work.own,
        database = parts.work.db.shown(),
        listen = %public.address,
        admin = %operators.address,
        read_only = parts.work.settings.read_only,
        "started"
    );
    let (tell, peers) = watch::channel(None);
    parts.say_lacking();
    parts.say_disk().await?;
    // Nothing waits after the listeners: when the daemon answers, everything has begun, and a
    // signal stops it in order.
    parts.peers(tell).await?;
    parts.listeners(public, operators, peers);
    parts.watchers();
    parts.bulk();
    parts.namespace(orphaned);
    parts.say_tasks();
    Ok(parts.supervisor)
}

async fn lacking(db: &Db) -> db::Result<Vec<Lacking>> {
    let client = db.client().await?;
    let tables: Vec<&str> = records::models().iter().map(|m| m.table.as_str()).collect();
    let pulling = db::stats::fitness(&client, &tables).await?.missing;
    privileges::lacking(&client, &pulling).await
}

impl Parts {
    /// Why a task is off for lack of a privilege, and the statement that grants it.
    fn lift(&self, need: Need) -> Option<String> {
        let lacking = self.lacking.iter().find(|l| l.need == need)?;
        Some(format!("{}; {} lifts that", need.consequence(), lacking.lift))
    }

    /// One warning for each privilege that something switched on lacks.
    fn say_lacking(&self) {
        for lacking in &self.lacking {
            if lacking.need.is_wanted(&self.work.settings) {
                warn!(fix = lacking.lift, "{}", lacking.need.consequence());
            }
        }
    }

    /// Warns when free disk is unknown: bulk work goes on all the same.
    async fn say_disk(&self) -> db::Result<()> {
        let directory = db::stats::figures(&self.work.db.client().await?).await?.data_directory;
        let set = &self.work.settings;
        if db::stats::free_disk(set.pgdata_path.as_deref(), &set.db, directory.as_deref()).is_none() {
            warn!(
                fix = "mount a directory of that volume and name it in OPENAUDIO_MEDIORUM_PGDATA_PATH",
                "free space on the database's volume is unknown: nothing stops bulk work when it is full"
            );
        }
        Ok(())
    }

    fn listeners(&self, public: Listener, operators: Listener, peers: watch::Receiver<Option<Arc<PeerSet>>>) {
        let Work { db, settings, own, clock, metrics, .. } = self.work.clone();
        let reports = self.supervisor.reports();
        let view = DaemonView {
            started_at: clock.now(),
            listen: public.address.to_string(),
            admin_listen: operators.address.to_string(),
            tasks: Arc::new(move || reports.all()),
        };
        let serve = Serve::new(db.clone(), own, clock.clone(), metrics.clone(), peers);
        let admin = Admin { settings, db, view, clock, metrics, plan: self.decided.clone() };
        for (label, listener, handler, limits) in [
            ("serve", public, serve.handler(), http::Limits::default()),
            ("admin", operators, admin.handler(), admin::LIMITS),
        ] {
            let task = Task { stage: Stage::Listener, ..Task::new(label, Schedule::Forever) };
            self.supervisor.start(task, move |stop| {
                let (listener, handler) = (listener.again(), handler.clone());
                async move {
                    http::serve(listener?, handler, limits, stop).await;
                    Ok(Next::Scheduled)
                }
            });
        }
    }

    /// Starts a task that runs at an interval, first within `first`.
    fn every<R>(
        &self,
        label: &'static str,
        (interval, first): (Duration, Duration),
        run: impl Fn(CancellationToken) -> R + Send + Sync + 'static,
    ) where
        R: Future<Output = Outcome> + Send + 'static,
    {
        self.supervisor.start(Task::new(label, Schedule::Every { interval, first }), run);
    }

    async fn peers(&self, tell: watch::Sender<Option<Arc<PeerSet>>>) -> Result<(), StartError> {
        let Work { db, settings, own, clock, metrics, .. } = self.work.clone();
        let off = match (settings.read_only, settings.sweep_peers) {
            (true, _) => Some("OPENAUDIO_MEDIORUM_READ_ONLY=false turns it on".to_owned()),
            (_, false) => Some("OPENAUDIO_MEDIORUM_SWEEP_PEERS=true turns it on".to_owned()),
            _ => self.lift(Need::Pull),
        };
        let registry = discover::registry_client().map_err(StartError::Machine)?;
        let interval = settings.sweep_interval;
        let pulls = match off {
            Some(why) => {
                self.supervisor.off("pull", &why);
                None
            }
            None => Some(Pulls::new(
                self.supervisor.clone(),
                Puller::of_settings(&settings, db, own, clock, metrics.clone())
                    .map_err(StartError::Machine)?,
                Schedule::Every { interval, first: FIRST_PULL },
                metrics,
            )),
        };
        let (by, why) = node::at_start(&self.work).await?;
        let peers = Arc::new(Peers { work: self.work.clone(), registry, tell, pulls });
        peers.follow(by, &why).await;
        let node = Arc::new(Node { work: self.work.clone(), peers: peers.clone() });
        self.every("node", (NODE_EVERY.min(interval), Duration::ZERO), move |_| {
            let node = node.clone();
            async move { node.run_once().await }
        });
        self.every("discovery", (DISCOVER_EVERY, Duration::ZERO), move |stop| {
            let peers = peers.clone();
            async move { peers.run_once(&stop).await }
        });
        Ok(())
    }

    /// What only looks: that somebody serves the database, its figures, the gate.
    fn watchers(&self) {
        let db = self.work.db.clone();
        self.supervisor
            .start(Task::new("presence", Schedule::Forever), move |stop| presence::hold(db.clone(), stop));
        let work = self.work.clone();
        self.every("figures", (SAMPLE_EVERY, Duration::ZERO), move |_| sample::run_once(work.clone()));
        let (work, decided) = (self.work.clone(), self.decided.clone());
        self.every("gate", (db::gate::SAMPLE_EVERY, Duration::ZERO), move |_| {
            gate::watch(work.clone(), decided.clone())
        });
    }

    /// What takes turns with the lease.
    fn bulk(&self) {
        let bulk = Bulk::new(self.work.clone(), self.supervisor.reports());
        let own = bulk.clone();
        self.every("jobs", (JOBS_EVERY, Duration::ZERO), move |stop| own.clone().next_job(stop));
        let set = &self.work.settings.bounding;
        let writes = !self.work.settings.read_only;
        if set.census {
            let own = bulk.clone();
            self.every("census", (CENSUS_EVERY, FIRST_CENSUS), move |stop| own.clone().census(stop));
        } else {
            self.supervisor.off("census", "OPENAUDIO_MEDIORUM_OPS_CENSUS=true turns it on");
        }
        let retains = set.retention_days > 0 || set.retention_bytes > 0;
        let cleans = set.dormant_cleanup && !set.keep_dormant;
        for (which, label, is_on, switch, need) in [
            (Which::Dormant, "dormant", cleans, "DORMANT_OPS_CLEANUP=true", Need::Delete),
            (Which::Retention, "retention", retains, "OPS_RETENTION_DAYS", Need::Delete),
            (Which::Index, "index", set.ensure_index, "ENSURE_OPS_TABLE_INDEX=true", Need::Index),
        ] {
            let switched = |by: &str| Some(format!("OPENAUDIO_MEDIORUM_{by} turns it on"));
            let off = match (is_on, writes) {
                (false, _) => switched(switch),
                (_, false) => switched("READ_ONLY=false"),
                _ => self.lift(need),
            };
            if let Some(why) = off {
                self.supervisor.off(label, &why);
                continue;
            }
            let own = bulk.clone();
            let times = (set.interval, FIRST_PRUNE.min(set.interval));
            self.every(label, times, move |stop| own.clone().tick(which, stop));
        }
        match set.reclaim_when.filter(|_| writes) {
            Some(when) => {
                let every = RECLAIM_EVERY.min(set.interval);
                let (own, said) = (bulk.clone(), reclaim::Said::default());
                self.every("reclaim", (every, every), move |stop| {
                    reclaim::when(own.clone(), when, said.clone(), stop)
                });
            }
            None => self.supervisor.off("reclaim", "OPENAUDIO_MEDIORUM_OPS_RECLAIM_WHEN turns it on"),
        }
        let read_only = (!writes).then(|| "OPENAUDIO_MEDIORUM_READ_ONLY=false turns it on".to_owned());
        match read_only.or_else(|| self.lift(Need::Guard)) {
            None => self.every("guard", (GUARD_EVERY, FIRST_PULL), move |stop| bulk.clone().guard(stop)),
            Some(why) => self.supervisor.off("guard", &why),
        }
    }

    fn say_tasks(&self) {
        let (off, on): (Vec<_>, Vec<_>) =
            self.supervisor.reports().all().into_iter().partition(|t| t.state == TaskState::Off);
        let names = |tasks: Vec<TaskReport>| {
            let names: Vec<String> = tasks.into_iter().map(|t| t.name).collect();
            names.join(" ")
        };
        info!(on = names(on), off = names(off), "tasks");
    }

    /// Without a list of interfaces to read there is nothing to watch.
    fn namespace(&self, orphaned: CancellationToken) {
        let namespace = match Namespace::note(Path::new(PROC_NET_DEV)) {
            Ok(namespace) => namespace,
            Err(e) => {
                return self.supervisor.off("namespace", &format!("{PROC_NET_DEV} cannot be read: {e}"));
            }
        };
        self.every("namespace", (LOOK_EVERY, LOOK_EVERY), move |_| {
            let is_orphaned = namespace.is_orphaned();
            if is_orphaned {
                warn!(
                    "every network interface of the start is gone: the container whose network \
                         this shares was recreated; ending, so that a restart joins the new one"
                );
                orphaned.cancel();
            }
            async move { Ok(if is_orphaned { Next::Done } else { Next::Scheduled }) }
        });
    }
}
