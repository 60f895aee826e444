//! Work that takes the lease. A command does it itself, or hands it to the
//! daemon that holds the lease; both come through `carry_out`.

use crate::bound::census::{self, Finished, Scope};
use crate::bound::decide::Facts;
use crate::bound::facts;
use crate::bound::guard;
use crate::bound::tick::{self, Which};
use crate::db;
use crate::db::lease::Lease;
use crate::reclaim;
use crate::work::{Halt, Pacer, Stop, Work};
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// A piece of work with its arguments, as it stands in `opsward.jobs`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Job {
    /// Brings the census up to date.
    Census {
        /// What is counted.
        scope: CensusScope,
        /// `--pace`, 1 to 100.
        percent: Option<u8>,
    },
    /// One tick of the tasks that bound the log.
    Prune {
        /// Which.
        tasks: Vec<Which>,
        /// The share of time at work, before the database's word.
        percent: Option<u8>,
    },
    /// Gives the disk back.
    Reclaim(reclaim::Request),
}

/// What a census counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CensusScope {
    /// The days that may have changed.
    Now,
    /// All of the log.
    Full,
}

impl Job {
    /// Which work it is: the word of its command.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Census { .. } => "census",
            Self::Prune { .. } => "prune",
            Self::Reclaim(_) => "reclaim",
        }
    }
}

/// Why a job did not do its work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// How the command ends: contract 9's exit codes.
    pub exit: u8,
    /// What happened.
    pub text: String,
    /// What to do; empty where the text says it.
    pub fix: String,
}

impl Trouble {
    /// A guard refused; nothing was done.
    pub fn refused(text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { exit: 3, text: text.into(), fix: fix.into() }
    }
}

impl From<db::Error> for Trouble {
    fn from(error: db::Error) -> Self {
        let fix = if error.is_away() { "try again once the database answers" } else { "" };
        Self { exit: if error.is_away() { 75 } else { 1 }, text: error.to_string(), fix: fix.to_owned() }
    }
}

/// How a job came out, as it stands in `opsward.jobs`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its report.
    Report(Value),
    /// Why there is none.
    Trouble(Trouble),
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Db(error) => error.into(),
            Stop::Halt(Halt::Stopped) => Self {
                exit: 1,
                text: "stopped; what was done so far stays".to_owned(),
                fix: "the same command goes on from there".to_owned(),
            },
            Stop::Halt(halt) => Self::refused(halt.to_string(), "what was done so far stays"),
        }
    }
}

/// Does a job's work on the lease; the report is the command's.
pub async fn carry_out(job: &Job, work: &Work, lease: &mut Lease) -> Ended {
    let report = match job {
        Job::Census { scope, percent } => count(work, lease, *scope, *percent).await,
        Job::Prune { tasks, percent } => {
            let mut pacer = Pacer::new(work, *percent);
            let ticked = tick::tick(work, lease, &mut pacer, tasks).await;
            match ticked {
                Ok(outcomes) => Ok(json!({ "tasks": outcomes })),
                Err(Stop::Halt(halt)) => Ok(json!({ "tasks": [], "halted": halt.to_string() })),
                Err(Stop::Db(error)) => Err(error.into()),
            }
        }
        Job::Reclaim(request) => give_back(work, lease, request).await,
    };
    report.map_or_else(Ended::Trouble, Ended::Report)
}

/// A reclaim; what may go is asked when it begins, not when it was handed over,
/// and again before it is lost.
async fn give_back(work: &Work, lease: &mut Lease, request: &reclaim::Request) -> Result<Value, Trouble> {
    if request.action != reclaim::Action::Abort
        && let Some(blocker) = guard::first(work, lease).await?
    {
        return Err(Trouble::refused(blocker.text, blocker.fix));
    }
    let gate = gate_of_reclaim(work, reclaim::gate::of).await?;
    let request = reclaim::Request { gate, ..request.clone() };
    let ask = || {
        let work = work.clone();
        async move {
            let mut gate = gate_of_reclaim(&work, reclaim::gate::still).await?;
            gate.blockers.extend(guard::gone(&work).await?);
            Ok(gate)
        }
        .boxed()
    };
    match reclaim::run(work, lease, &request, &ask).await {
        Ok(report) => Ok(json!(report)),
        Err(reclaim::Error::Refused { why, fix }) => Err(Trouble::refused(why, fix)),
        Err(reclaim::Error::Db(error)) => Err(error.into()),
        Err(error @ reclaim::Error::Halted(_)) => {
            Err(Trouble { exit: 1, text: error.to_string(), fix: String::new() })
        }
    }
}

/// What the gate of retention lets a reclaim drop now.
///
/// # Errors
/// The database's.
pub async fn gate_of_reclaim(
    work: &Work,
    of: impl FnOnce(&Facts) -> reclaim::Gate,
) -> db::Result<reclaim::Gate> {
    let client = work.db.client().await?;
    let facts = facts::gather(&client, &work.settings, &work.own, work.clock.now()).await?;
    Ok(of(&facts))
}

/// One run of a census that takes turns with others; they follow each other.
const CENSUS_RUN: Duration = Duration::from_secs(60);

async fn count(
    work: &Work,
    lease: &mut Lease,
    scope: CensusScope,
    percent: Option<u8>,
) -> Result<Value, Trouble> {
    let mut pacer = Pacer::new(work, percent);
    let scope = match scope {
        CensusScope::Now => Scope::Now,
        CensusScope::Full => Scope::Full,
    };
    loop {
        let report = census::run_once(work, lease, &mut pacer, scope, CENSUS_RUN).await?;
        if report.finished == Finished::All {
            return Ok(serde_json::to_value(report).unwrap_or_default());
        }
    }
}
