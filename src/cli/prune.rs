//! `opsward prune`: one tick of the tasks that are on.

use super::args::one_of;
use super::{Context, lease};
use crate::bound::decide::Decision;
use crate::bound::delete::Ended;
use crate::bound::index::Ensured;
use crate::bound::tick::{Pruned, TaskOutcome, Which};
use crate::bound::vacuum::Vacuumed;
use crate::job::Job;
use crate::show::{Done, ExitCode, Outcome, format};
use crate::values::{Blocker, Finding};

/// Run one tick of the tasks that are on: delete what may go, now
#[derive(clap::Args)]
pub(super) struct Args {
    #[arg(
        long,
        value_name = "TASK",
        value_parser = one_of(Which::parse, "a task is retention, dormant or index"),
        help = "retention, dormant or index; may be given again [default: all]"
    )]
    task: Vec<Which>,
    /// End with 3 where something stood in the way
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    lease: lease::Flags,
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let tasks = if args.task.is_empty() { Which::ALL.to_vec() } else { args.task };
    let job = Job::Prune { tasks, percent: args.lease.pace };
    let Some((report, differ)) = lease::have_done::<Pruned>(context, args.lease.wait, job).await? else {
        return Ok(lease::detached());
    };
    let Pruned { tasks, interrupted, halted, .. } = &report;
    let mut text: Vec<String> = tasks.iter().map(lines).collect();
    text.extend(halted.iter().map(|why| format!("nothing was done: {why}")));
    // What was deleted before an interruption stays, and is reported.
    if *interrupted {
        text.push("interrupted: what was done so far stays; `opsward prune` goes on".to_owned());
    }
    let refused = args.strict && (tasks.iter().any(is_blocked) || halted.is_some());
    let changed = tasks.iter().any(|t| t.rows() > 0 || t.index == Some(Ensured::Made));
    let vacuums = tasks.iter().flat_map(|t| [t.vacuum, t.deleted.as_ref().and_then(|d| d.vacuum)]);
    let is_denied = vacuums.flatten().any(|vacuum| vacuum == Vacuumed::Denied);
    let denied = is_denied.then(|| {
        Finding::new(
            "vacuum_denied",
            "this role does not own public.ops and may not VACUUM it",
            "use the node's own role in OPENAUDIO_DB_URL",
        )
    });
    let result = serde_json::to_value(&report).map_err(anyhow::Error::from)?;
    Ok(Done::new(result, text.join("\n"))
        .changed(changed)
        .exit(match (interrupted, refused) {
            (true, _) => ExitCode::Failed,
            (false, true) => ExitCode::Refused,
            (false, false) => ExitCode::Done,
        })
        .warn(differ)
        .warn(denied)
        // The report is shown even when the database cannot be asked for its volume now.
        .warn(lease::disk_warning(context).await.ok().flatten()))
}

/// Whether something kept a task that is on from its work.
fn is_blocked(task: &TaskOutcome) -> bool {
    let halted = task.deleted.as_ref().is_some_and(|d| matches!(d.ended, Ended::Halted(_)));
    let skipped = task.decision.as_ref().is_some_and(|d| matches!(d, Decision::Skip { .. }) && !d.is_off());
    task.read_only
        || task.halted.is_some()
        || (halted && task.rows() == 0)
        || matches!(task.index, Some(Ensured::Refused(_)))
        || skipped
}

/// What came of a task, a line each.
fn lines(task: &TaskOutcome) -> String {
    let mut lines = Vec::new();
    if let Some(Decision::Skip { blockers }) = &task.decision {
        // Where a task is off, its other blockers do not matter.
        let off = blockers.iter().find(|b| b.is_off()).map(std::slice::from_ref);
        let skipped = |b: &Blocker| format!("skipped: {}; {}", b.text, b.fix);
        lines.extend(off.unwrap_or(blockers).iter().map(skipped));
    }
    lines.extend(task.notices.iter().map(|n| match n.fix.as_str() {
        "" => format!("note: {}", n.text),
        fix => format!("note: {}; {fix}", n.text),
    }));
    if let Some(Decision::Prune { cuts }) = task.decision.as_ref().filter(|_| task.deleted.is_some()) {
        lines.extend(cuts.iter().map(|of| {
            let table = &of.cut.table;
            let sum = task.deleted.as_ref().and_then(|d| d.tables.get(table)).copied().unwrap_or_default();
            let (rows, bytes) = (format::many(sum.rows, "op"), format::bytes(sum.bytes));
            format!(
                "{table}: {rows} deleted, {bytes}, below {} (bound by {})",
                format::dated(of.cut.below.as_str()),
                of.bound_by.word()
            )
        }));
    }
    match task.deleted.as_ref().map(|deleted| &deleted.ended) {
        Some(Ended::OutOfTime) => lines.push("ended: out_of_time".into()),
        Some(Ended::Halted(why)) => lines.push(format!("stopped: {why}")),
        Some(Ended::Done { .. }) | None => {}
    }
    lines.extend(task.vacuum.map(|v| format!("a VACUUM was due after earlier deletions: {}", v.word())));
    lines.extend(task.halted.iter().map(|why| format!("halted: {why}")));
    lines.extend(task.index.as_ref().map(|index| match index {
        Ensured::There(name) => format!("there {name}"),
        Ensured::Made => "made".to_owned(),
        Ensured::Yielded => "yielded".to_owned(),
        Ensured::Stopped => "stopped".to_owned(),
        Ensured::Refused(why) => format!("refused {why}"),
    }));
    if task.read_only {
        lines.push("READ_ONLY is set: nothing was done".into());
    }
    if lines.is_empty() {
        lines.push("off, or nothing to do".into());
    }
    let name = task.task.word();
    lines.iter().map(|line| format!("{name}: {line}")).collect::<Vec<_>>().join("\n")
}
