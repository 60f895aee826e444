//! `reset`: the log begun anew, after a proof that another validator holds the
//! same records. It is a swap whose survivors are what must stay: young rows,
//! rows owed to the chain, rows of tables without a model, and whatever is
//! written meanwhile. Cursors and floors are raised in the swap's transaction.

use super::decide::{Checkpoint, Mode, Survivors};
use super::digest;
use super::verify;
use super::{Action, Error, Gate, Outcome, Report, Request, Result};
use crate::db::{self, lease::Lease, reset};
use crate::records::models;
use crate::settings::Policy;
use crate::values::{Beginning, Host, OpUlid, is_plausible, unix_ms};
use crate::work::Work;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// What is younger stays in the log: peers read each other every 10 minutes.
const YOUNG_MS: u64 = 2 * 3_600_000;
/// How long a stop may take (contract 5: 30 s).
const UNDO_AT_MOST: Duration = Duration::from_secs(20);
/// Every node skips them.
const SKIPPED: &str = "blobs";

/// Refuses a scope that proves too little: only telemetry may be left out.
///
/// # Errors
/// The tables that must not be.
pub fn complete(left_out: &[String]) -> std::result::Result<(), digest::Error> {
    let may = |table: &&String| models().get(table).is_some_and(|model| model.append_only);
    let must: Vec<&str> = left_out.iter().filter(|t| !may(t)).map(String::as_str).collect();
    match must.is_empty() {
        true => Ok(()),
        false => Err(digest::Error::Refused(format!(
            "the proof leaves out {}: only tables that nodes never change may be left out",
            must.join(", ")
        ))),
    }
}

/// With what the log would begin anew after this proof.
///
/// # Errors
/// The proof is none.
pub fn plan(
    report: &verify::Report,
    own: &Host,
    now: Timestamp,
) -> std::result::Result<Beginning, digest::Error> {
    complete(&report.left_out)?;
    if !report.matches {
        return Err(digest::Error::Refused("the records differ from those of the reference".into()));
    }
    let now_ms = unix_ms(now);
    let theirs = &report.reference;
    let own_log = theirs.own.iter().zip(&theirs.newest);
    let cursors = theirs.cursors.iter().chain(own_log).filter_map(|(host, ulid)| {
        let ulid = OpUlid::parse(ulid).filter(|ulid| is_plausible(*ulid, now_ms))?;
        Some((Host::parse(host).filter(|host| host != own)?.to_string(), ulid))
    });
    Ok(Beginning {
        cursors: cursors.collect(),
        young: OpUlid::first_of_ms(now_ms.saturating_sub(YOUNG_MS)),
        reference: theirs.own.clone().unwrap_or_else(|| "a database".into()),
    })
}

/// Peers whose logs were read less far than what stays: what they still send
/// from before inserts records that are missing, and changes none.
pub fn behind(beginning: &Beginning) -> Vec<&str> {
    let behind = beginning.cursors.iter().filter(|(_, ulid)| **ulid < beginning.young);
    behind.map(|(host, _)| host.as_str()).collect()
}

/// What came of a reset.
pub struct Done {
    /// The swap's report.
    pub report: Report,
    /// Rows that are left.
    pub kept: u64,
}

/// Does it, or nothing: what is left of a try that failed is undone.
///
/// # Errors
/// Nothing was done: somebody's reclaim is unfinished, a daemon is connected,
/// ops is not what a swap can carry, it was told to stop, or the database's.
pub async fn carry_out(work: &Work, lease: &mut Lease, beginning: Beginning) -> Result<Done> {
    let request = Request { reset: Some(Box::new(beginning)), pace: Some(100), ..Request::default() };
    if is_left(lease).await? {
        undo(work, lease).await?;
    }
    let report = match super::run(work, lease, &request, &unasked).await {
        Ok(report) => report,
        Err(error) => match is_left(lease).await? {
            // Where the swap had been made, it is done.
            true => undo(work, lease).await?.filter(|r| r.outcome == Outcome::Done).ok_or(error)?,
            false => return Err(error),
        },
    };
    if let Outcome::Aborted(why) = report.outcome {
        return Err(Error::refused(format!("{why}: nothing was done"), ""));
    }
    Ok(Done { kept: reset::rows(&*lease.client()?).await?, report })
}

/// The proof stands for the gate.
fn unasked() -> BoxFuture<'static, db::Result<Gate>> {
    std::future::ready(Ok(Gate::default())).boxed()
}

/// Whether there is something of a reset that did not come to its end.
async fn is_left(lease: &mut Lease) -> Result<bool> {
    let there = db::reclaim::load(&*lease.client()?).await?;
    let there = there.and_then(|(value, _)| serde_json::from_value::<Checkpoint>(value).ok());
    Ok(there.is_some_and(|at| at.reset.is_some()))
}

/// Removes what is left of a reset. Where somebody holds ops for longer, its
/// triggers stay, switched off, until the next try.
async fn undo(work: &Work, lease: &mut Lease) -> Result<Option<Report>> {
    let work = Work { stop: CancellationToken::new(), ..work.clone() };
    let request = Request { action: Action::Abort, ..Request::default() };
    let late = async {
        sleep(UNDO_AT_MOST).await;
        work.stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = super::run(&work, lease, &request, &unasked) => done.map(Some),
        () = late => Ok(None),
    }
}

/// The checkpoint that a reset begins with.
pub(super) async fn begin(work: &Work, lease: &mut Lease, beginning: &Beginning) -> Result<Checkpoint> {
    let figures = db::stats::figures(&*lease.client()?).await?;
    let now = work.clock.now().as_millisecond();
    let tables = models().iter().map(|m| m.table.as_str()).chain([SKIPPED]);
    let cuts = tables.map(|table| (table.to_owned(), beginning.young)).collect();
    let survivors = Survivors { cuts, ..Survivors::default() };
    Ok(Checkpoint {
        pace: Some(100),
        bytes_before: figures.ops_bytes + figures.index_bytes,
        began_ms: now,
        reset: Some(beginning.clone()),
        ..Checkpoint::begin(format!("reset-{now}"), Mode::Swap, Policy::Window, survivors)
    })
}
