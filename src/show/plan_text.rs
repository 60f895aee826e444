//! A `Plan` as a person reads it, at 80 columns.

use super::format::{age_seconds, bytes, count, figure, indented, many, short_host, span, table, wrapped};
use crate::bound::plan::{Delete, Plan, State, TaskPlan};
use crate::values::{Blocker, BoundBy, day_of};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::fmt::Write;

/// The whole text, ending in a newline.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    if plan.read_only {
        out.push_str("READ-ONLY: nothing outside the schema opsward is written.\n\n");
    }
    for (name, value) in facts(plan) {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{name:<12}{value}");
    }
    for task in &plan.tasks {
        out.push('\n');
        out.push_str(&of_task(task, plan));
    }
    for notice in &plan.notices {
        out.push_str(&wrapped(&format!("\nnote: {}", notice.text), "      "));
        if !notice.fix.is_empty() {
            out.push_str(&wrapped(&format!("      fix: {}", notice.fix), "           "));
        }
    }
    out
}

fn facts(plan: &Plan) -> Vec<(&'static str, String)> {
    let (census, forecast) = (&plan.census, &plan.forecast);
    let about = if census.estimated { "about " } else { "" };
    let log = format!("{about}{}, {}", many(census.rows, "op"), bytes(census.bytes));
    let since = census.oldest.map_or(String::new(), |day| format!(", since {day}"));
    let mut facts = vec![("node", format!("ops {}", plan.replication.told())), ("log", log + &since)];
    let age = |at: Timestamp| format!("{} ago", span(age_seconds(at, plan.at)));
    facts.push(("counted", census.at.map_or("never: what it holds is unknown".to_owned(), age)));
    facts.push((
        "grows",
        format!(
            "{} and {} a day, by the last {}",
            many(forecast.rows_per_day, "op"),
            bytes(forecast.bytes_per_day),
            many(forecast.days, "whole day")
        ),
    ));
    let full = match (forecast.free_bytes, forecast.seconds_until_full) {
        (Some(free), Some(left)) => {
            format!("{} free, full in {} if nothing is deleted", bytes(free), span(left))
        }
        (Some(free), None) => format!("{} free", bytes(free)),
        (None, _) => "unknown".to_owned(),
    };
    facts.push(("disk", full));
    if forecast.reusable_bytes > forecast.bytes_per_day {
        facts.push((
            "reusable",
            format!("{} inside the log, before it grows", bytes(forecast.reusable_bytes)),
        ));
    }
    let more = match forecast.unbounded_bytes_per_day {
        0 => String::new(),
        more => format!(", and {} a day that nothing bounds", bytes(more)),
    };
    facts.push(("settles at", format!("about {}{more}", bytes(forecast.settles_at_bytes))));
    let deleted = match plan.rows {
        0 => "would delete nothing".to_owned(),
        rows => format!("would delete about {}, {}", many(rows, "op"), bytes(plan.bytes)),
    };
    facts.push(("now", deleted));
    if plan.trace_bytes_about > 0 {
        facts.push(("traces", format!("would take about {}", bytes(plan.trace_bytes_about))));
    }
    for reader in &forecast.readers {
        let host = short_host(reader.host.as_str());
        facts.push(("reader", format!("{host}: a gap in {} if it asks no more", span(reader.seconds))));
    }
    facts
}

/// A blocker of several tasks is explained once: under the first task that is on, else under
/// the first.
fn told_under<'a>(blocker: &Blocker, plan: &'a Plan) -> Option<&'a TaskPlan> {
    let same = |b: &Blocker| (&b.code, &b.subject) == (&blocker.code, &blocker.subject);
    let mut having = plan.tasks.iter().filter(|task| task.blockers.iter().any(same));
    having.clone().find(|task| task.state != State::Off).or_else(|| having.next())
}

fn of_task(task: &TaskPlan, plan: &Plan) -> String {
    let halts = task.halts(plan);
    let state = match task.state {
        State::WouldRun if !halts.is_empty() => "would halt",
        State::WouldRun => "would run",
        State::NothingToDo => "nothing to do",
        State::Blocked => "BLOCKED",
        State::Off => "off",
    };
    let name = task.name.replace('_', " ");
    let note = task.note.as_ref().map_or(String::new(), |note| format!("; {note}"));
    let halts: String = halts.iter().map(|halt| format!("; {}", halt.text)).collect();
    let mut out = wrapped(&format!("{name}: {state}{halts}{note}"), "  ");
    for b in &task.blockers {
        let under = told_under(b, plan).filter(|under| under.name != task.name && !b.is_off());
        if let Some(under) = under {
            if task.state != State::Off {
                let under = under.name.replace('_', " ");
                out.push_str(&wrapped(&format!("  - as {under}: {}", b.text), "    "));
            }
            continue;
        }
        // For a task that is off, "since" means nothing.
        let since = if b.is_off() { String::new() } else { format!(" (since {:.0})", b.since) };
        out.push_str(&wrapped(&format!("  - {}{since}", b.text), "    "));
        out.push_str(&wrapped(&format!("    fix: {}", b.fix), "         "));
    }
    let some: Vec<&Delete> = task.deletes.iter().filter(|delete| delete.rows > 0).collect();
    if !some.is_empty() {
        let mut t = table(&["table", "ops", "bytes", "from", "below", "bound by"]);
        for delete in &some {
            t.add_row(row(delete));
        }
        out.push_str(&indented(&t, ""));
        let hosts: BTreeSet<String> = task.deletes.iter().filter_map(held_by).collect();
        for host in hosts {
            out.push_str(&wrapped(&format!(" bound by {host}"), "   "));
        }
    }
    out
}

fn held_by(delete: &Delete) -> Option<String> {
    let by = &delete.bounded.bound_by;
    (delete.rows > 0 && matches!(by, BoundBy::Peer(_) | BoundBy::Reader(_))).then(|| by.to_string())
}

fn row(delete: &Delete) -> Vec<comfy_table::Cell> {
    let bounded = &delete.bounded;
    let about = if delete.about { "~" } else { "" };
    vec![
        comfy_table::Cell::new(&bounded.cut.table),
        figure(format!("{about}{}", count(delete.rows))),
        figure(bytes(delete.bytes)),
        comfy_table::Cell::new(delete.oldest.map_or(String::new(), |day| day.to_string())),
        comfy_table::Cell::new(day_of(bounded.cut.below.ms()).to_string()),
        comfy_table::Cell::new(bounded.bound_by.word()),
    ]
}
