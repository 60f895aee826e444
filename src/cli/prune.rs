//! `opsward prune`: one tick of the tasks that are on.

use super::args::{choice, flag, option};
use super::{Command, Context, Output, Run, lease};
use crate::bound::tick::Which;
use crate::job::Job;
use crate::show::{Done, ExitCode, Outcome, format};
use crate::values::Finding;
use clap::{ArgAction, ArgMatches};
use serde_json::Value;

pub(super) const COMMAND: Command = Command {
    name: "prune",
    args: |command| {
        command
            .about("Run one tick of the tasks that are on: delete what may go, now")
            .arg(choice(
                option("task", "TASK", "retention, dormant or index; may be given again [default: all]")
                    .action(ArgAction::Append),
                Which::parse,
                "a task is retention, dormant or index",
            ))
            .arg(flag("strict", "End with 3 where something stood in the way"))
            .arg(lease::pace_flag())
            .arg(lease::wait_flag())
    },
    output: Output::Envelope,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

async fn run(context: &Context, args: &ArgMatches) -> Outcome {
    let tasks = match args.get_many::<Which>("task") {
        Some(named) => named.copied().collect(),
        None => Which::ALL.to_vec(),
    };
    let job = Job::Prune { tasks, percent: lease::pace(args) };
    let Some((report, differ)) = lease::have_done::<Value>(context, args, job).await? else {
        return Ok(lease::detached());
    };
    let tasks = report["tasks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let halted = report["halted"].as_str().map(|why| format!("nothing was done: {why}"));
    // What was deleted before an interruption stays, and is reported.
    let interrupted = report["interrupted"] == true;
    let stopped =
        interrupted.then(|| "interrupted: what was done so far stays; `opsward prune` goes on".to_owned());
    let text: Vec<String> = tasks.iter().map(told).chain(halted).chain(stopped).collect();
    let is_blocked = |task: &Value| {
        let blockers = task["decision"]["blockers"].as_array();
        task["read_only"] == true
            || task["halted"].is_string()
            || (task["deleted"]["ended"] == "halted" && rows(task) == 0)
            || task["index"]["outcome"] == "refused"
            || blockers.is_some_and(|all| !all.iter().any(is_off))
    };
    let refused = args.get_flag("strict") && (tasks.iter().any(is_blocked) || report["halted"].is_string());
    let changed = tasks.iter().any(|t| rows(t) > 0 || t["index"]["outcome"] == "made");
    let denied = tasks.iter().any(|t| t["deleted"]["vacuum"] == "denied" || t["vacuum"] == "denied");
    let warning = denied.then(|| {
        Finding::new(
            "vacuum_denied",
            "this role does not own public.ops and may not VACUUM it",
            "use the node's own role in OPENAUDIO_DB_URL",
        )
    });
    Ok(Done::new(report.clone(), text.join("\n"))
        .changed(changed)
        .exit(match (interrupted, refused) {
            (true, _) => ExitCode::Failed,
            (false, true) => ExitCode::Refused,
            (false, false) => ExitCode::Done,
        })
        .warn(differ)
        .warn(warning)
        // The report is shown even when the database cannot be asked for its volume now.
        .warn(lease::disk_warning(context).await.ok().flatten()))
}

fn is_off(blocker: &Value) -> bool {
    blocker["code"] == "off" || blocker["code"] == "keep_dormant"
}

fn rows(task: &Value) -> u64 {
    let tables = task["deleted"]["tables"].as_object();
    tables.map_or(0, |all| all.values().filter_map(|sum| sum["rows"].as_u64()).sum())
}

fn told(task: &Value) -> String {
    let name = task["task"].as_str().unwrap_or_default();
    let mut lines = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let blockers = task["decision"]["blockers"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Where a task is off, its other blockers do not matter.
    let off = blockers.iter().find(|b| is_off(b)).map(std::slice::from_ref);
    for blocker in off.unwrap_or(blockers) {
        lines.push(format!("skipped: {}; {}", text(&blocker["text"]), text(&blocker["fix"])));
    }
    for notice in task["notices"].as_array().into_iter().flatten() {
        let fix = notice["fix"].as_str().map(|fix| format!("; {fix}")).unwrap_or_default();
        lines.push(format!("note: {}{fix}", text(&notice["text"])));
    }
    for cut in task["decision"]["cuts"].as_array().into_iter().flatten() {
        let (table, by) = (text(&cut["table"]), text(&cut["bound_by"]["by"]));
        let sum = &task["deleted"]["tables"][&table];
        let number = |key: &str| sum[key].as_u64().unwrap_or(0);
        lines.push(format!(
            "{table}: {} deleted, {}, below {} (bound by {by})",
            format::many(number("rows"), "op"),
            format::bytes(number("bytes")),
            text(&cut["below"]),
        ));
    }
    if let Some(ended) = task["deleted"]["ended"].as_str().filter(|ended| *ended != "done") {
        lines.push(format!("ended: {ended} {}", text(&task["deleted"]["why"])));
    }
    if let Some(outcome) = task["vacuum"].as_str() {
        lines.push(format!("a VACUUM was due after earlier deletions: {outcome}"));
    }
    if let Some(why) = task["halted"].as_str() {
        lines.push(format!("halted: {why}"));
    }
    if let Some(outcome) = task["index"]["outcome"].as_str() {
        lines.push(format!("{outcome} {}", text(&task["index"]["detail"])));
    }
    if task["read_only"] == true {
        lines.push("READ_ONLY is set: nothing was done".into());
    }
    if lines.is_empty() {
        lines.push("off, or nothing to do".into());
    }
    lines.iter().map(|line| format!("{name}: {line}")).collect::<Vec<_>>().join("\n")
}
