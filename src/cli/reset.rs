//! `opsward reset`: begins the log anew, once another validator is proven to
//! hold the same records.

use super::confirm::confirm;
use super::digest::Scope;
use super::progress::Meter;
use super::verify::{REFERENCE, SETTLE, differences, reference, report_json};
use super::{Context, lease};
use crate::bound::decide::reset_from;
use crate::bound::{facts, guard};
use crate::db::{Db, Lease, maintain, migrate, presence::is_alone};
use crate::reclaim::Error;
use crate::reclaim::reset::{self, behind, complete, plan};
use crate::reclaim::verify::{Reference, Report, Verify};
use crate::records::models;
use crate::settings::duration;
use crate::show::{Done, ExitCode, Failure, Outcome, format};
use crate::values::{Beginning, Finding};
use serde_json::json;
use std::borrow::Cow;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How many differences are shown; `verify` lists all.
const SHOWN: usize = 10;

/// Empty the log, once another validator is proven to hold the same records
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    scope: Scope,
    #[arg(long, value_name = "FILE|URL", help = REFERENCE)]
    reference: String,
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, help = SETTLE)]
    settle: Duration,
    /// How old the reference may be
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    max_age: Duration,
    /// Of no effect: a reset locks ops for 200 ms at most. Kept for old scripts
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = duration, hide = true)]
    max_lock: Duration,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let own = context.self_host()?.clone();
    if context.settings.read_only {
        return Err(Failure::read_only("nothing was done", "begin the log anew"));
    }
    let scope = args.scope.models()?;
    let left_out = models().iter().filter(|m| !scope.iter().any(|s| s.table == m.table));
    complete(&left_out.map(|m| m.table.clone()).collect::<Vec<_>>())?;
    let reference = reference(&args.reference, "reference", "reset").await?;
    let db = context.open_db("reset", 3).await?;
    migrate::migrate(&mut db.client().await?).await?;
    let mut held = Lease::take(&db)
        .await?
        .map_err(|holder| is_held(format!("{}: nothing was done", lease::held(holder.as_ref()))))?;
    let verify = Verify {
        db: &db,
        own: Some(&own),
        scope,
        settle: args.settle,
        max_age: Some(args.max_age),
        clock: context.clock.clone(),
    };
    let report = proven(&verify, &reference, Meter::new(context.output)).await?;
    let mut plan = plan(&report, &own, context.clock.now())?;
    if let Reference::Url(db) = &reference {
        plan.reference = db.shown().to_owned();
    }
    fit_to_node(context, &db, &mut plan).await?;
    confirm(context, args.yes, &question(&plan, db.shown()))?;
    // The question may have waited long for its answer.
    verify.is_fresh(&report.reference)?;
    if !is_alone(held.client()?).await? {
        return Err(is_held("a daemon is connected: nothing was done".to_owned()));
    }
    let work = lease::work(context, own, db.clone())?;
    let guard = guard::first(&work, &mut held).await.map_err(Error::from).map_err(failed)?;
    if let Some(missing) = guard {
        return Err(refused(missing.code, missing.text).fix(missing.fix));
    }
    let done = reset::carry_out(&work, &mut held, plan.clone());
    let done = lease::until_signalled(&work.stop, done).await?.map_err(failed)?;
    analyze(&mut held, &db).await;
    let after = &done.report;
    let text = format!(
        "The log begins anew: {} stay; it took {} and takes {}; ops was locked for {} ms.",
        format::many(done.kept, "row"),
        format::bytes(after.bytes_before),
        format::bytes(after.bytes_after),
        after.locked_ms
    );
    let proof = report_json(&report);
    let result = json!({ "kept": done.kept, "bytes_before": after.bytes_before, "bytes_after": after.bytes_after,
        "locked_ms": after.locked_ms, "floor": plan.young, "cursors": plan.cursors.len(), "proof": proof });
    Ok(Done::new(result, text).changed(true).warn(peers_behind(&plan)))
}

/// Compares the records; refuses when they differ.
async fn proven(verify: &Verify<'_>, reference: &Reference, meter: Meter) -> Result<Report, Failure> {
    let report = verify.clone().run(reference, &|what, rows, place| meter.rows(what, rows, place)).await;
    meter.end();
    let report = report?;
    if report.matches {
        return Ok(report);
    }
    let all = differences(&report);
    let more = all.len().saturating_sub(SHOWN);
    let some = all[..all.len() - more].join("; ");
    let more = if more > 0 { format!("; and {more} lines more") } else { String::new() };
    let why = format!("nothing was done: the records here are not those of the reference: {some}{more}");
    let fix = "`opsward verify` lists them; once both have read the same it matches, --settle waits for that";
    Err(refused("differs", why).fix(fix))
}

fn failed(error: Error) -> Failure {
    match error {
        Error::Halted(_) | Error::Undo(_) => {
            Failure::new(ExitCode::Failed, "stopped", "stopped: nothing was done")
        }
        error => error.into(),
    }
}

/// An emptied table has no dead rows, but the planner's statistics are those of the full one:
/// ANALYZE runs at once, and gives way to anybody who waits for the table.
async fn analyze(lease: &mut Lease, db: &Db) {
    let stop = CancellationToken::new();
    if let Err(error) = maintain::watched(lease, db, maintain::ANALYZE, &[], &stop).await {
        tracing::warn!("the statistics of ops are left to autovacuum: {error}");
    }
}

/// Adapts the plan to how ops reach the node: where they come by the chain more of them stay,
/// and nobody reads the cursors.
async fn fit_to_node(context: &Context, db: &Db, plan: &mut Beginning) -> Result<(), Failure> {
    let own = context.self_host()?;
    let facts = facts::gather(&db.client().await?, &context.settings, own, context.clock.now()).await?;
    let from = reset_from(&facts).map_err(|blocker| {
        refused(blocker.code, format!("{}: nothing was done", blocker.text)).fix(blocker.fix)
    })?;
    plan.young = plan.young.min(from);
    if !facts.replication.has_peers() {
        plan.cursors.clear();
    }
    Ok(())
}

/// What will be done, and what peers will notice.
fn question(plan: &Beginning, shown: &str) -> String {
    let mut text = format!(
        "The records in {shown} are those of {}.\nThis empties public.ops there, but for rows since {}, rows \
         that the chain has not got and rows of tables without a model; raises the floor of every record \
         table to then, and the cursors of {} to what the reference had read.\nPeers that have read less \
         of this log than that will see a retention gap up to {}, and skip to it.",
        plan.reference,
        plan.young,
        format::many(plan.cursors.len() as u64, "peer"),
        plan.young
    );
    if let Some(warning) = peers_behind(plan) {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

fn peers_behind(plan: &Beginning) -> Option<Finding> {
    let hosts = behind(plan);
    (!hosts.is_empty()).then(|| {
        Finding::new(
            "peers_behind",
            format!(
                "read less far than 2 h ago: {}; what they send from before only adds records",
                hosts.join(", ")
            ),
            "where they are active, wait until both validators have read them",
        )
    })
}

fn refused(code: impl Into<Cow<'static, str>>, text: String) -> Failure {
    Failure::new(ExitCode::Refused, code, text)
}

fn is_held(text: String) -> Failure {
    Failure::new(ExitCode::Held, "lease_held", text).fix("stop it first")
}
