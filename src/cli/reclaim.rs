//! `opsward reclaim`: gives the disk back.

use super::args::one_of;
use super::confirm::confirm;
use super::plan::{POOL, first_look};
use super::{Context, lease};
use crate::db::migrate;
use crate::job::{Job, gate_of_reclaim};
use crate::reclaim::decide::{Mode, OldSnapshots};
use crate::reclaim::plan::Plan;
use crate::reclaim::{self, Action, Report, Request};
use crate::settings::Policy;
use crate::show::{Done, ExitCode, Failure, Outcome, format};
use crate::values::{OpUlid, day_of};
use serde_json::json;

/// Give disk back: leave in the log only what survives, while the node runs
#[derive(clap::Args)]
pub(super) struct Args {
    /// Show what it would do and what stands in the way; do nothing
    #[arg(long)]
    plan: bool,
    /// Do it only if the plan is still the one of this hash
    #[arg(long, value_name = "HASH")]
    apply: Option<String>,
    #[arg(
        long,
        value_name = "MODE",
        value_parser = one_of(Mode::parse, "a mode is swap or in-place"),
        help = "swap or in-place [default: swap where it fits]"
    )]
    mode: Option<Mode>,
    #[arg(
        long,
        value_name = "POLICY",
        value_parser = one_of(Policy::parse, "there is no such policy; there are window and compact"),
        help = "window or compact [default: as settings say]"
    )]
    policy: Option<Policy>,
    /// Keep the longest window, 7 days at least, that fits on the disk beside the log
    #[arg(long)]
    fit: bool,
    /// Stop before the swap, until --swap
    #[arg(long)]
    hold: bool,
    /// Put a LOGGED table in the place of an UNLOGGED one, by a swap
    #[arg(long)]
    set_logged: bool,
    /// Do the swap that --hold stopped before
    #[arg(long, conflicts_with_all = ["plan", "hold"])]
    swap: bool,
    /// Go on with an interrupted one
    #[arg(long, conflicts_with_all = ["plan", "swap"])]
    resume: bool,
    /// Undo an interrupted one
    #[arg(long, conflicts_with_all = ["plan", "swap", "resume"])]
    abort: bool,
    #[arg(
        long,
        value_name = "WHAT",
        value_parser = one_of(OldSnapshots::parse, "it is wait or ignore"),
        help = "Snapshots older than the copy would read an emptied log after the swap: \
                wait until they end, or ignore them [default: wait]"
    )]
    old_snapshots: Option<OldSnapshots>,
    #[command(flatten)]
    lease: lease::Flags,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let action = match () {
        () if args.resume => Action::Resume,
        () if args.abort => Action::Abort,
        () if args.swap => Action::Swap,
        () => Action::Start,
    };
    let mut request = Request {
        action,
        mode: args.mode,
        policy: args.policy,
        fit: args.fit,
        hold: args.hold,
        set_logged: args.set_logged,
        old_snapshots: args.old_snapshots,
        pace: args.lease.pace,
        apply: args.apply,
        ..Request::default()
    };
    if request.fit && (request.mode == Some(Mode::InPlace) || request.policy == Some(Policy::Compact)) {
        let why = "--fit chooses a window by what a swap needs beside the log";
        return Err(Failure::usage(why, "leave out --fit, or else --mode in-place and --policy compact"));
    }
    if request.hold && request.mode == Some(Mode::InPlace) {
        let why = "--hold stops before a swap, and mode in-place has none";
        return Err(Failure::usage(why, "leave out --hold, or say --mode swap"));
    }
    if action == Action::Start {
        let plan = planned(context, &mut request).await?;
        let text = plan_text(&plan);
        if args.plan {
            return Ok(Done::new(json!(plan), text));
        }
        let under_way = plan.obstacles.iter().any(|o| o.code == "unfinished");
        let waits = under_way && lease::is_waited_for(context, args.lease.wait).await?;
        if let Some(obstacle) = plan.obstacles.iter().find(|o| !waits || o.code != "unfinished") {
            return Err(
                Failure::new(ExitCode::Refused, obstacle.code.clone(), &obstacle.text).fix(&obstacle.fix)
            );
        }
        // With --apply the operator has read the plan already.
        if request.apply.is_none() {
            confirm(context, args.yes, &text)?;
            request.apply = Some(plan.hash);
            // The question that was answered showed the risks.
            request.at_risk = true;
        }
        request.at_risk |= args.yes;
    }
    let Some((report, differ)) =
        lease::have_done::<Report>(context, args.lease.wait, Job::Reclaim(request)).await?
    else {
        return Ok(lease::detached());
    };
    let is_undone = matches!(report.outcome, reclaim::Outcome::Aborted(_)) && action != Action::Abort;
    let exit = if is_undone { ExitCode::Failed } else { ExitCode::Done };
    let result = json!(report);
    Ok(Done::new(result, outcome_text(&report, action)).changed(true).exit(exit).warn(differ))
}

/// How it came out, for people.
fn outcome_text(report: &Report, action: Action) -> String {
    let [before, after] = [report.bytes_before, report.bytes_after].map(format::bytes);
    match &report.outcome {
        reclaim::Outcome::Held => {
            "held before the swap: `opsward reclaim --swap` does it within 24 h, `--abort` undoes all"
                .to_owned()
        }
        reclaim::Outcome::Aborted(_) if report.mode == Mode::InPlace => format!(
            "ended where it stood: what was deleted stays deleted; the log took {before} and takes {after}"
        ),
        reclaim::Outcome::Aborted(_) if action == Action::Abort => {
            "undone: the log is as it was, and nothing is left beside it".to_owned()
        }
        reclaim::Outcome::Aborted(why) => {
            format!("undone, the log is as it was, and nothing is left beside it: {why}")
        }
        reclaim::Outcome::Done => {
            // The census does not count the free space inside pages.
            let most = |expected: u64| expected + expected / 4 + (16 << 20);
            let much = report.bytes_expected.filter(|expected| report.bytes_after > most(*expected));
            let nothing =
                if report.bytes_after >= report.bytes_before { "; nothing was given back" } else { "" };
            let told = much.map(|expected| format!("; the plan expected about {}: what is in the way of more is in the log and in `opsward status`", format::bytes(expected)));
            format!("the log took {before} and takes {after}{nothing}{}", told.unwrap_or_default())
        }
    }
}

async fn planned(context: &Context, request: &mut Request) -> Result<Plan, Failure> {
    let db = context.open_db("reclaim", POOL).await?;
    migrate::migrate(&mut db.client().await?).await?;
    first_look(context, &db).await?;
    let work = lease::work(context, context.self_host()?.clone(), db.clone())?;
    request.gate = gate_of_reclaim(&work, reclaim::gate::of).await?;
    Ok(reclaim::plan(&work, &mut db.client().await?, request).await?)
}

fn plan_text(plan: &Plan) -> String {
    let space = &plan.space;
    let mut lines = vec![format!(
        "Mode {}, policy {}: the log takes {} now and about {} afterwards; plan {}.",
        plan.mode.word(),
        plan.policy.word(),
        format::bytes(space.table + space.indexes),
        format::bytes(space.afterwards),
        plan.hash
    )];
    let rows = plan.tables.iter().map(|t| {
        let day = |cut: &OpUlid| day_of(cut.ms());
        let cut = plan.survivors.cuts.get(&t.table).map(|c| format!("before {}", day(c)));
        let compact = plan.survivors.compact.get(&t.table).map(|c| format!("compacted before {}", day(c)));
        vec![
            t.table.clone(),
            format::count(t.rows),
            format::bytes(t.bytes),
            format::count(t.kept_rows),
            format::bytes(t.kept_bytes),
            cut.or(compact).unwrap_or_else(|| "all stay".into()),
        ]
    });
    lines.push(format::lines(&["table", "ops", "bytes", "stay", "bytes", "what goes"], rows));
    let free = space.free.map_or("not known".to_owned(), format::bytes);
    lines.push(format!(
        "Free disk: {free}; swap needs {}, in-place {}, traces {} of it. About {} s at {}% pace.",
        format::bytes(space.swap_needs),
        format::bytes(space.in_place_needs),
        format::bytes(space.traces),
        plan.seconds,
        plan.percent
    ));
    if plan.estimated {
        lines.push("The census has only sampled the log: `opsward census --full` counts it.".into());
    }
    lines.extend(plan.notes.iter().cloned());
    lines.extend(plan.risks.iter().map(|o| format!("Only with --yes: {}.", o.text)));
    lines.extend(plan.obstacles.iter().map(|o| format!("In the way: {}; {}.", o.text, o.fix)));
    lines.join("\n")
}
