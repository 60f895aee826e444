//! Commands that need the lease. A command takes the lease and does the job itself, or hands
//! the job to the daemon that holds the lease, and shows the progress.

use super::{Context, progress::Meter};
use crate::db::{
    Db, Lease, jobs,
    lease::{Holder, daemon_is_there, holder},
    migrate, stats,
};
use crate::job::{self, Job, JobEnd};
use crate::metrics::Metrics;
use crate::show::{Done, ExitCode, Failure};
use crate::values::Finding;
use crate::work::Work;
use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often the command looks at a job that the daemon does.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long work may take to stop: contract 5 says 30 s, the rest is for the runtime.
const STOP_WITHIN: Duration = Duration::from_secs(27);
/// Pooled connections: the lease's, a watcher's, readers'.
const POOL: usize = 5;

#[derive(clap::Args)]
pub(super) struct Flags {
    #[arg(
        long,
        value_name = "PACE",
        value_parser = percent,
        help = "gentle, full or N%: share of the time at work [default: as `opsward pace` says]"
    )]
    pub(super) pace: Option<u8>,
    /// Wait where the lease is held elsewhere
    #[arg(long)]
    pub(super) wait: bool,
}

/// `gentle`, `full` or `N%`.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    let wrong = || "a pace is gentle, full or a share of time such as 40%".to_owned();
    match text {
        "gentle" => Ok(crate::db::pace::GENTLE),
        "full" => Ok(100),
        _ => text
            .strip_suffix('%')
            .and_then(|n| n.parse().ok())
            .filter(|n| (1..=100).contains(n))
            .ok_or_else(wrong),
    }
}

/// Does a job, here or in the daemon, and returns its report, with a warning where the daemon's
/// settings are others. `None`: Ctrl-C detached the command, and the daemon goes on with the job.
///
/// # Errors
/// The lease is held elsewhere (exit 4), or the job failed.
pub(super) async fn have_done<Report: DeserializeOwned>(
    context: &Context,
    wait: bool,
    job: Job,
) -> Result<Option<(Report, Option<Finding>)>, Failure> {
    let own = context.self_host()?.clone();
    let db = context.open_db(job.kind(), POOL).await?;
    migrate::migrate(&mut db.client().await?).await?;
    let mut said = false;
    let ended = loop {
        match Lease::take(&db).await? {
            Ok(mut lease) => {
                let work = work(context, own, db.clone())?;
                break until_signalled(&work.stop, job::begin(&job, &work, &mut lease).boxed()).await??;
            }
            Err(Some(holder)) if holder.is_daemon() => match by_daemon(context, &db, &job, &holder).await? {
                Handed::JobEnd(ended) => break ended,
                Handed::Detached => return Ok(None),
                Handed::DaemonGone => {}
            },
            Err(holder) if wait => {
                if !std::mem::replace(&mut said, true) {
                    eprintln!("opsward: waiting: {}", held(holder.as_ref()));
                }
                sleep(Duration::from_secs(1)).await;
            }
            Err(holder) => return Err(refused(holder.as_ref())),
        }
    };
    match ended {
        JobEnd::Report(report) => {
            let differ = settings_differ(&report);
            Ok(Some((serde_json::from_value(report).map_err(anyhow::Error::from)?, differ)))
        }
        JobEnd::Trouble(failure) => Err(failure),
    }
}

/// The daemon did the job with settings that are not this command's.
fn settings_differ(report: &Value) -> Option<Finding> {
    let differ: Vec<[String; 3]> = serde_json::from_value(report["settings_differ"].clone()).ok()?;
    let all: Vec<String> = differ.iter().map(job::one_differs).collect();
    Some(Finding::new(
        "settings_differ",
        format!("the daemon did this with its own settings: {}", all.join(", ")),
        "change the daemon's settings and restart it, or give this command the same ones",
    ))
}

/// A warning when nothing can stop bulk work on a full volume, because its free space is unknown.
pub(super) async fn disk_warning(context: &Context) -> Result<Option<Finding>, Failure> {
    let db = context.open_db("disk", 1).await?;
    let directory = stats::figures(&db.client().await?).await?.data_directory;
    let settings = &context.settings;
    let known = stats::free_disk(settings.pgdata_path.as_deref(), &settings.db, directory.as_deref());
    Ok(known.is_none().then(|| {
        Finding::new(
            "free_disk_unknown",
            "free space on the database's volume is unknown: nothing stops this when it is full",
            "mount a directory of that volume and name it in OPENAUDIO_MEDIORUM_PGDATA_PATH",
        )
    }))
}

/// The result of a command that was detached from its job.
pub(super) fn detached() -> Done {
    Done::new(json!({ "detached": true }), "It goes on in the daemon.")
}

/// Whether another command holds the lease and `--wait` was given.
///
/// # Errors
/// Another command holds the lease and `--wait` was not given: exit 4.
pub(super) async fn is_waited_for(context: &Context, wait: bool) -> Result<bool, Failure> {
    let db = context.open_db("lease", 1).await?;
    match holder(&db.client().await?).await? {
        Some(holder) if !holder.is_daemon() && !wait => Err(refused(Some(&holder))),
        holder => Ok(holder.is_some_and(|holder| !holder.is_daemon())),
    }
}

fn refused(holder: Option<&Holder>) -> Failure {
    Failure::new(ExitCode::Held, "lease_held", held(holder)).fix("wait until it is done, or say --wait")
}

/// Who holds the lease, in a sentence.
pub(super) fn held(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) => format!("the lease is held by {holder}"),
        None => "the lease is held by a session that this role cannot see".to_owned(),
    }
}

/// What a job in the foreground works with.
pub(super) fn work(context: &Context, own: crate::values::Host, db: Db) -> Result<Work, Failure> {
    let meter = Meter::new(context.output);
    Ok(Work {
        db,
        settings: Arc::new(context.settings.clone()),
        own,
        clock: context.clock.clone(),
        metrics: Metrics::new().map_err(anyhow::Error::from)?,
        stop: CancellationToken::new(),
        tell: Arc::new(move |progress| meter.tell(&progress)),
    })
}

/// Runs `whole` here. A signal cancels `stop`, and the work ends at its next batch; a second
/// signal, or a server that does not answer, cuts it off.
///
/// # Errors
/// The work was cut off: the batch under way is rolled back.
pub(super) async fn until_signalled<T>(
    stop: &CancellationToken,
    whole: impl Future<Output = T>,
) -> Result<T, Failure> {
    let cut_off = async {
        asked_to_stop().await;
        eprintln!("opsward: stopping at the next batch");
        stop.cancel();
        tokio::select! {
            () = sleep(STOP_WITHIN) => "the server did not answer in time",
            () = asked_to_stop() => "a second signal",
        }
    };
    tokio::select! {
        ended = whole => Ok(ended),
        why = cut_off => {
            let text = format!("cut off ({why}): the batch under way is rolled back, what was done before stays");
            Err(Failure::new(ExitCode::Failed, "cut_off", text).fix("the same command goes on from there"))
        }
    }
}

/// Waits for SIGINT or SIGTERM.
async fn asked_to_stop() {
    let [int, term] = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    match (int, term) {
        (Ok(mut int), Ok(mut term)) => tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} },
        _ => std::future::pending().await,
    }
}

/// What became of a job that was handed over.
enum Handed {
    JobEnd(JobEnd),
    Detached,
    /// The daemon ended before it began the job.
    DaemonGone,
}

async fn by_daemon(context: &Context, db: &Db, job: &Job, to: &Holder) -> Result<Handed, Failure> {
    let client = db.client().await?;
    // Registered once, so that a signal between two looks is not lost.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
    let settings = context.settings.of_deletion();
    let args =
        serde_json::to_value(job::Handed { job: job.clone(), settings }).map_err(anyhow::Error::from)?;
    let id = jobs::add(&client, job.kind(), &args, context.clock.now()).await?;
    eprintln!(
        "opsward: handed to the daemon (server process {}) as job {id}; Ctrl-C leaves it to it",
        to.pid
    );
    let meter = Meter::new(context.output);
    loop {
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            _ = interrupt.recv() => {
                eprintln!("opsward: detached; job {id} goes on in the daemon: see `opsward status`");
                return Ok(Handed::Detached);
            }
        }
        let Some(found) = jobs::get(&client, id).await? else {
            return Ok(Handed::DaemonGone);
        };
        if let Some(outcome) = found.outcome {
            let ended = serde_json::from_value(outcome).map_err(anyhow::Error::from)?;
            return Ok(Handed::JobEnd(ended));
        }
        if let Some(progress) = found.progress.and_then(|p| serde_json::from_value(p).ok()) {
            meter.tell(&progress);
        }
        let goes_on = daemon_is_there(&client).await?;
        if !goes_on && found.started_at.is_none() && jobs::withdraw(&client, id).await? {
            return Ok(Handed::DaemonGone);
        }
        if !goes_on
            && found.started_at.is_some()
            && jobs::get(&client, id).await?.is_some_and(|j| j.outcome.is_none())
        {
            let text = format!("the daemon went away while it did job {id}");
            let fix = match job {
                Job::Reclaim(_) => "`opsward reclaim --resume` goes on with it, `--abort` ends it",
                _ => "run the command again: it goes on",
            };
            return Err(Failure::new(ExitCode::Away, "daemon_gone", text).fix(fix));
        }
    }
}
