//! A `Status` as a person reads it, at 80 columns.

use super::Warning;
use super::format::{ago, bytes, count, indented, right, short_host, span, table};
use super::status::{DatabaseStatus, PeersStatus, Status};
use crate::values::{TaskReport, TaskState};
use jiff::Timestamp;
use std::fmt::Write;

/// The whole text, ending in a newline.
pub fn text(status: &Status, warnings: &[Warning]) -> String {
    let now = status.at;
    let mut out = String::new();
    if status.read_only {
        out.push_str("READ-ONLY: nothing outside the schema opsward is written.\n\n");
    }
    let own = status.own.as_deref().unwrap_or("(self is not set)");
    let mut line = |name: &str, value: String| {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{name:<10}{value}");
    };
    line("opsward", format!("{}  {own}", status.version));
    line(
        "daemon",
        match &status.daemon {
            Some(d) => format!(
                "up {}; peers {}, admin {}",
                span(d.uptime_seconds),
                d.listen,
                d.admin_listen
            ),
            None => "not asked: the database's view".to_owned(),
        },
    );
    line("database", database(&status.database));
    if let (Some(ops), Some(index)) = (status.database.ops_bytes, status.database.index_bytes) {
        let dead = status.database.dead_rows.unwrap_or(0);
        let figures = [bytes(ops), bytes(index), count(dead)];
        let [ops, index, dead] = figures;
        line(
            "ops",
            format!("{ops}, indexes {index}, some {dead} dead rows"),
        );
        let free = status.database.free_disk_bytes;
        line("free disk", free.map_or("unknown".to_owned(), bytes));
    }
    line("peers", source(&status.peers, now));
    peers(&mut out, &status.peers, now);
    readers(&mut out, status);
    rejected(&mut out, status);
    if let Some(daemon) = &status.daemon {
        tasks(&mut out, &daemon.tasks, now);
    }
    for w in warnings {
        let _ = write!(out, "\nwarning: {}\n    fix: {}\n", w.text, w.fix);
    }
    out
}

fn database(database: &DatabaseStatus) -> String {
    if !database.up {
        return format!("{}: DOWN", database.shown);
    }
    let version = database.server_version.as_deref().unwrap_or("?");
    let schema = match database.schema_version {
        Some(0) | None => "no schema opsward".to_owned(),
        Some(n) => format!("schema opsward v{n}"),
    };
    format!("{}: up, PostgreSQL {version}, {schema}", database.shown)
}

fn source(peers: &PeersStatus, now: Timestamp) -> String {
    let active = peers.list.iter().filter(|p| p.active).count();
    match (&peers.source, peers.refreshed_at) {
        (Some(source), Some(at)) => {
            let via = peers.via.as_deref();
            let via = via.map(|v| format!(" from {v}")).unwrap_or_default();
            format!("{active}, {source}{via}, {}", ago(at, now))
        }
        _ => "unknown".to_owned(),
    }
}

fn peers(out: &mut String, peers: &PeersStatus, now: Timestamp) {
    if peers.list.is_empty() {
        return;
    }
    let mut t = table(&["peer", "lag", "last pull", "outcome", "applied", "gaps"]);
    for p in &peers.list {
        let outcome = match (&p.outcome, p.failures_in_a_row) {
            _ if !p.active => "departed".to_owned(),
            (None, _) => "-".to_owned(),
            (Some(outcome), 0) => outcome.clone(),
            (Some(outcome), n) => format!("{outcome} x{n}"),
        };
        t.add_row([
            short_host(&p.host).into(),
            right(p.lag_seconds.map_or("-".to_owned(), span)),
            right(p.last_at.map_or("-".to_owned(), |at| ago(at, now))),
            outcome.into(),
            right(count(p.applied)),
            right(count(p.gap_advances)),
        ]);
    }
    out.push('\n');
    out.push_str(&indented(&t, ""));
}

fn readers(out: &mut String, status: &Status) {
    if status.readers.is_empty() {
        return;
    }
    let mut t = table(&["reader (24 h)", "lag", "last asked", "requests"]);
    for r in &status.readers {
        t.add_row([
            short_host(&r.host).into(),
            right(r.lag_seconds.map_or("-".to_owned(), span)),
            right(ago(r.last_at, status.at)),
            right(count(r.requests)),
        ]);
    }
    out.push('\n');
    out.push_str(&indented(&t, ""));
}

fn rejected(out: &mut String, status: &Status) {
    if status.rejected.is_empty() {
        return;
    }
    let mut t = table(&["refused ops of", "reason", "kept", "last"]);
    for r in &status.rejected {
        t.add_row([
            short_host(&r.peer).into(),
            r.code.as_str().into(),
            right(count(r.ops)),
            right(ago(r.last_seen, status.at)),
        ]);
    }
    out.push('\n');
    out.push_str(&indented(&t, ""));
}

/// Tasks of peers that do well are one line; the table above tells of each.
fn tasks(out: &mut String, tasks: &[TaskReport], now: Timestamp) {
    let mut t = table(&["task", "state", "runs", "failed", "last well", "next"]);
    let mut pulls = 0;
    for task in tasks {
        if task.name.starts_with("pull ") && task.failures_in_a_row == 0 {
            pulls += 1;
            continue;
        }
        let next = task.next_run.map(|at| match at.duration_until(now) {
            wait if wait.is_positive() => "now".to_owned(),
            wait => format!("in {}", span(wait.unsigned_abs().as_secs())),
        });
        t.add_row([
            short_host(&task.name).into(),
            state(task).into(),
            right(count(task.runs)),
            right(count(task.failures)),
            right(task.last_success.map_or("-".to_owned(), |at| ago(at, now))),
            right(next.unwrap_or("-".to_owned())),
        ]);
    }
    out.push('\n');
    out.push_str(&indented(&t, ""));
    if pulls > 0 {
        let _ = writeln!(
            out,
            " and {pulls} tasks that pull a peer each, without failure"
        );
    }
    for task in tasks.iter().filter(|t| t.state == TaskState::Off) {
        let why = task.note.as_deref().unwrap_or_default();
        let _ = writeln!(out, " {} is off: {why}", task.name);
    }
}

fn state(task: &TaskReport) -> &'static str {
    match task.state {
        TaskState::Off => "off",
        TaskState::Waiting => "waiting",
        TaskState::Running => "running",
        TaskState::BackingOff => "backing off",
        TaskState::Ended => "ended",
    }
}

#[cfg(test)]
mod tests;
