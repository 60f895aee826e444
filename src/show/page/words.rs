//! The words of the page: what an operator calls things.

use crate::bound::plan::{Plan, State, TaskPlan};
use crate::show::format::{bytes, many, span};
use crate::show::status::Status;
use crate::show::view::Grid;
use crate::values::day_of;

/// The state of the log in a sentence or two. Commands stand in backticks.
pub(super) fn state(status: &Status, plan: Option<&Plan>) -> String {
    let database = &status.database;
    if !database.up {
        let why = database.error.as_deref().unwrap_or("no answer");
        return format!("The node's database cannot be used: {why}.");
    }
    let (Some(ops), Some(index)) = (database.ops_bytes, database.index_bytes) else {
        return "The size of the log is not known yet.".to_owned();
    };
    let log = ops + index;
    let bounding = status.bounding.as_ref();
    let counted = bounding.and_then(|b| b.known.census.as_ref());
    let mut out = format!("The log takes {}", bytes(log));
    let reclaim = plan.and_then(|plan| plan.task("reclaim"));
    match (bounding.filter(|b| b.unfinished_reclaim.is_some()), counted, reclaim) {
        (Some(b), ..) if b.reclaim_is_at_work() => out.push_str("; a reclaim is at work."),
        (Some(_), ..) => out.push_str("; a reclaim is unfinished: `opsward reclaim --resume` or `--abort`."),
        (None, None, _) => out.push_str("; what is in it was not counted yet."),
        (None, _, Some(TaskPlan { state: State::WouldRun, note: Some(note), .. })) => {
            out.push_str(&format!("; {note}."));
        }
        (None, _, Some(TaskPlan { state: State::NothingToDo, .. })) => {
            out.push_str(", nearly all of it is in use.");
        }
        _ => out.push('.'),
    }
    if let Some(plan) = plan {
        out.push(' ');
        out.push_str(&grows(plan));
    }
    out
}

/// How fast the log grows, and where that ends.
fn grows(plan: &Plan) -> String {
    let day = bytes(plan.forecast.bytes_per_day);
    let retention = plan.task("retention");
    match retention.map(|task| (task.state, task.blockers.as_slice())) {
        Some((State::Blocked, [first, more @ ..])) => {
            let more = if more.is_empty() {
                String::new()
            } else {
                format!(" (and {})", many(more.len() as u64, "more reason"))
            };
            format!("It grows by {day} a day; retention deletes nothing: {}{more}.", first.text)
        }
        Some((State::WouldRun | State::NothingToDo, _)) => {
            format!("It grows by {day} a day and settles at about {}.", bytes(plan.forecast.settles_at_bytes))
        }
        _ => match plan.forecast.seconds_until_full {
            Some(left) => {
                format!("It grows by {day} a day; nothing bounds it, and the disk is full in {}.", span(left))
            }
            None => format!("It grows by {day} a day; nothing bounds it."),
        },
    }
}

/// A UTC day.
pub(super) fn day(ms: u64) -> String {
    day_of(ms).to_string()
}

/// A job that a command handed over.
pub(super) fn job(kind: &str) -> String {
    match kind {
        "census" => "Counting the log".to_owned(),
        "prune" => "Deleting what is old".to_owned(),
        "reclaim" => "Giving the disk back".to_owned(),
        other => other.to_owned(),
    }
}

/// What a task does; its own name where there is no better word.
pub(super) fn task(name: &str) -> &str {
    match name {
        "retention" => "retention",
        "dormant" | "dormant_cleanup" => "dormant cleanup",
        "reclaim" => "reclaim",
        other => other,
    }
}

/// Adds to the table of tasks what each task does. Tasks that pull are left out: the peers'
/// table has them.
pub(super) fn of_tasks(mut grid: Grid) -> Grid {
    if grid.header.first() == Some(&"task") {
        grid.rows.retain(|row| !row.first().is_some_and(|name| name.starts_with("pull ")));
        for row in &mut grid.rows {
            if let (Some(name), Some(does)) = (row.first().cloned(), row.first().and_then(|name| does(name)))
            {
                row[0] = format!("{name}: {does}");
            }
        }
    }
    grid
}

fn does(name: &str) -> Option<&'static str> {
    Some(match name {
        "serve" => "answers peers",
        "admin" => "answers you",
        "node" => "finds out how ops reach the node",
        "discovery" => "asks the node for the registered peers",
        "presence" => "marks the database as served",
        "figures" => "reads sizes and free disk",
        "gate" => "decides what may be deleted",
        "jobs" => "does what commands hand over",
        "census" => "counts the log",
        "retention" => "deletes what is older than the window",
        "dormant" => "deletes old ops of tables that get no more",
        "reclaim" => "gives the disk back by itself",
        "guard" => "keeps the replay guard on the log",
        "index" => "keeps the index on the log",
        "namespace" => "notices when the node's container goes away",
        _ => return None,
    })
}
