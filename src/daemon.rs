//! The daemon: the only wiring. Pool, channels, listeners and the list of
//! tasks are put together here; what each does is its room's.

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
use crate::pull::discover;
use crate::serve::Serve;
use crate::settings::Settings;
use crate::show::admin::{self, Admin, Decided};
use crate::show::database_state;
use crate::show::gather::DaemonView;
use crate::supervisor::{Namespace, Next, PROC_NET_DEV, Schedule, Stage, Supervisor, Task};
use crate::values::{Host, PeerSet, TaskReport, TaskState};
use crate::work::Work;
use crate::{http, pull, records};
use jobs::Bulk;
use listen::Listener;
use node::Node;
use peers::{Peers, Pulls};
use sample::Sampler;
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
/// What deletes begins within this of the start, or its interval: peers and
/// census come first.
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
    settings: Arc<Settings>,
    own: Host,
    db: Db,
    clock: Clock,
    metrics: Metrics,
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
    let parts = Parts {
        lacking,
        decided: Decided::default(),
        supervisor: Supervisor::new(clock.clone(), metrics.clone()),
        settings: Arc::new(settings),
        own,
        db,
        clock,
        metrics,
    };
    info!(
        version,
        own = %parts.own,
        database = parts.db.shown(),
        listen = %public.address,
        admin = %operators.address,
        read_only = parts.settings.read_only,
        "started"
    );
    let (tell, peers) = watch::channel(None);
    parts.say_lacking();
    parts.say_disk().await?;
    // Nothing waits after the listeners: a signal that comes once the daemon
    // answers finds all of it begun, and stops it in order.
    parts.peers(tell).await?;
    parts.listeners(public, operators, peers);
    parts.presence();
    parts.sampler();
    parts.gate();
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
    /// What would lift the lack of a privilege that a task cannot do without.
    fn lift(&self, need: Need) -> Option<String> {
        let lacking = self.lacking.iter().find(|l| l.need == need)?;
        Some(format!("{}; {} lifts that", need.consequence(), lacking.lift))
    }

    /// One warning for each privilege that something switched on lacks.
    fn say_lacking(&self) {
        for lacking in &self.lacking {
            if lacking.need.is_wanted(&self.settings) {
                warn!(fix = lacking.lift, "{}", lacking.need.consequence());
            }
        }
    }

    /// Bulk work goes on where nobody knows how full the volume is.
    async fn say_disk(&self) -> db::Result<()> {
        let directory = db::stats::figures(&self.db.client().await?).await?.data_directory;
        let set = self.settings.pgdata_path.as_deref();
        if db::stats::free_disk(set, &self.settings.db, directory.as_deref()).is_none() {
            warn!(
                fix = "mount a directory of that volume and name it in OPENAUDIO_MEDIORUM_PGDATA_PATH",
                "free space on the database's volume is unknown: nothing stops bulk work when it is full"
            );
        }
        Ok(())
    }

    fn listeners(&self, public: Listener, operators: Listener, peers: watch::Receiver<Option<Arc<PeerSet>>>) {
        let reports = self.supervisor.reports();
        let admin = Admin {
            settings: self.settings.clone(),
            db: self.db.clone(),
            view: DaemonView {
                started_at: self.clock.now(),
                listen: public.address.to_string(),
                admin_listen: operators.address.to_string(),
                tasks: Arc::new(move || reports.all()),
            },
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            plan: self.decided.clone(),
        };
        let serve =
            Serve::new(self.db.clone(), self.own.clone(), self.clock.clone(), self.metrics.clone(), peers);
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

    async fn peers(&self, tell: watch::Sender<Option<Arc<PeerSet>>>) -> Result<(), StartError> {
        let s = &self.settings;
        let off = match (s.read_only, s.sweep_peers) {
            (true, _) => Some("OPENAUDIO_MEDIORUM_READ_ONLY=false turns it on".to_owned()),
            (_, false) => Some("OPENAUDIO_MEDIORUM_SWEEP_PEERS=true turns it on".to_owned()),
            _ => self.lift(Need::Pull),
        };
        let http = discover::registry_client().map_err(StartError::Machine)?;
        let pulls = match off {
            Some(why) => {
                self.supervisor.off("pull", &why);
                None
            }
            None => Some(Pulls::new(
                self.supervisor.clone(),
                self.puller()?,
                Schedule::Every { interval: s.sweep_interval, first: FIRST_PULL },
                self.metrics.clone(),
            )),
        };
        let (by, why) = node::at_start(&self.db, &self.settings).await?;
        let peers = Arc::new(Peers {
            settings: self.settings.clone(),
            own: self.own.clone(),
            db: self.db.clone(),
            registry: http.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            tell,
            pulls,
        });
        peers.follow(by, &why).await;
        let node = Arc::new(Node {
            settings: self.settings.clone(),
            own: self.own.clone(),
            db: self.db.clone(),
            http,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            peers: peers.clone(),
        });
        let schedule = Schedule::Every { interval: NODE_EVERY.min(s.sweep_interval), first: Duration::ZERO };
        self.supervisor.start(Task::new("node", schedule), move |_| {
            let node = node.clone();
            async move { node.run_once().await }
        });
        let schedule = Schedule::Every { interval: DISCOVER_EVERY, first: Duration::ZERO };
        self.supervisor.start(Task::new("discovery", schedule), move |stop| {
            let peers = peers.clone();
            async move { peers.run_once(&stop).await }
        });
        Ok(())
    }

    fn puller(&self) -> Result<pull::Puller, StartError> {
        pull::Puller::of_settings(
            &self.settings,
            self.db.clone(),
            self.own.clone(),
            self.clock.clone(),
            self.metrics.clone(),
        )
        .map_err(StartError::Machine)
    }

    fn presence(&self) {
        let db = self.db.clone();
        self.supervisor
            .start(Task::new("presence", Schedule::Forever), move |stop| presence::hold(db.clone(), stop));
    }

    fn sampler(&self) {
        let sampler = Arc::new(Sampler {
            settings: self.settings.clone(),
            db: self.db.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        });
        let schedule = Schedule::Every { interval: SAMPLE_EVERY, first: Duration::ZERO };
        self.supervisor.start(Task::new("figures", schedule), move |_| {
            let sampler = sampler.clone();
            async move { sampler.run_once().await }
        });
    }

    fn work(&self) -> Work {
        Work {
            db: self.db.clone(),
            settings: self.settings.clone(),
            own: self.own.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            stop: self.supervisor.stopping(),
            tell: Arc::new(|_| {}),
        }
    }

    fn gate(&self) {
        let (work, decided) = (self.work(), self.decided.clone());
        let schedule = Schedule::Every { interval: db::gate::SAMPLE_EVERY, first: Duration::ZERO };
        self.supervisor
            .start(Task::new("gate", schedule), move |_| gate::watch(work.clone(), decided.clone()));
    }

    /// What takes turns with the lease.
    fn bulk(&self) {
        let bulk = Bulk::new(self.work());
        let schedule = Schedule::Every { interval: JOBS_EVERY, first: Duration::ZERO };
        let own = bulk.clone();
        self.supervisor.start(Task::new("jobs", schedule), move |stop| own.clone().next_job(stop));
        let set = &self.settings.bounding;
        let writes = !self.settings.read_only;
        if set.census {
            let (schedule, own) =
                (Schedule::Every { interval: CENSUS_EVERY, first: FIRST_CENSUS }, bulk.clone());
            self.supervisor.start(Task::new("census", schedule), move |stop| own.clone().census(stop));
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
            let (schedule, own) = (
                Schedule::Every { interval: set.interval, first: FIRST_PRUNE.min(set.interval) },
                bulk.clone(),
            );
            self.supervisor.start(Task::new(label, schedule), move |stop| own.clone().tick(which, stop));
        }
        match set.reclaim_when.filter(|_| writes) {
            Some(when) => {
                let every = RECLAIM_EVERY.min(set.interval);
                let (schedule, own) = (Schedule::Every { interval: every, first: every }, bulk.clone());
                let said = reclaim::Said::default();
                let run = move |stop| reclaim::when(own.clone(), when, said.clone(), stop);
                self.supervisor.start(Task::new("reclaim", schedule), run);
            }
            None => self.supervisor.off("reclaim", "OPENAUDIO_MEDIORUM_OPS_RECLAIM_WHEN turns it on"),
        }
        let read_only = (!writes).then(|| "OPENAUDIO_MEDIORUM_READ_ONLY=false turns it on".to_owned());
        match read_only.or_else(|| self.lift(Need::Guard)) {
            None => {
                let schedule = Schedule::Every { interval: GUARD_EVERY, first: FIRST_PULL };
                self.supervisor.start(Task::new("guard", schedule), move |stop| bulk.clone().guard(stop));
            }
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
        let schedule = Schedule::Every { interval: LOOK_EVERY, first: LOOK_EVERY };
        self.supervisor.start(Task::new("namespace", schedule), move |_| {
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
