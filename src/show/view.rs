//! The lines and tables that both the text and the page show of a `Status`.

use super::format::{ago, bytes, count, far, span};
use super::status::{DatabaseStatus, PeersStatus, Status};
use crate::db::Kind;
use crate::values::{Progress, TaskReport, TaskState};
use jiff::Timestamp;

/// A table. The first column names something, the last ones hold figures.
pub struct Grid {
    /// Names of the columns; those in `figures` are aligned right.
    pub header: &'static [&'static str],
    /// Columns that hold figures.
    pub figures: &'static [usize],
    pub rows: Vec<Vec<String>>,
    /// Lines below it.
    pub notes: Vec<String>,
}

impl Grid {
    /// A table of what a list holds, without notes.
    pub fn of<'a, T: 'a>(
        header: &'static [&'static str],
        figures: &'static [usize],
        list: impl IntoIterator<Item = &'a T>,
        row: impl Fn(&'a T) -> Vec<String>,
    ) -> Self {
        Self { header, figures, rows: list.into_iter().map(row).collect(), notes: Vec::new() }
    }
}

/// What is shown first, name and value.
pub fn facts(status: &Status) -> Vec<(&'static str, String)> {
    let own = status.own.as_deref().unwrap_or("(self is not set)");
    let daemon = match &status.daemon {
        Some(d) => format!("up {}; peers {}, admin {}", span(d.uptime_seconds), d.listen, d.admin_listen),
        None => "not asked: the database's view".to_owned(),
    };
    let mut facts = vec![
        ("opsward", format!("{}  {own}", status.version)),
        ("daemon", daemon),
        ("database", database(&status.database)),
    ];
    if let Some(node) = &status.node {
        let read = node.read_until.filter(|_| node.replication.has_chain());
        let read = read.map(|at| format!(", read up to {}", ago(at, status.at))).unwrap_or_default();
        let prunes = node.prunes_below.map(|at| format!("; it deletes below {}", at.strftime("%-d %b")));
        facts.push(("node", format!("ops {}{read}{}", node.replication.told(), prunes.unwrap_or_default())));
    }
    if let (Some(ops), Some(index)) = (status.database.ops_bytes, status.database.index_bytes) {
        let dead = count(status.database.dead_rows.unwrap_or(0));
        let sizes = format!("{}, indexes {}, about {dead} dead rows", bytes(ops), bytes(index));
        facts.push(("ops", sizes));
        let free = status.database.free_disk_bytes;
        facts.push(("free disk", free.map_or("unknown".to_owned(), bytes)));
    }
    facts.extend(status.bounding.iter().flat_map(|b| b.facts()));
    facts.extend(under_way(status).map(|(task, progress)| ("work", format!("{task}: {}", far(progress)))));
    facts.push(("peers", source(&status.peers, status.at)));
    facts
}

/// The daemon's own tasks of which it is known how far they are.
pub fn under_way(status: &Status) -> impl Iterator<Item = (&str, &Progress)> {
    let tasks = status.daemon.iter().flat_map(|daemon| &daemon.tasks);
    tasks.filter_map(|task| Some((task.name.as_str(), task.progress.as_ref()?)))
}

fn database(database: &DatabaseStatus) -> String {
    if !database.up {
        let state = if database.away { "DOWN" } else { "NOT USABLE" };
        return format!("{}: {state}", database.shown);
    }
    let version = database.server_version.as_deref().unwrap_or("?");
    let schema = match database.schema_version {
        Some(0) | None => "no schema opsward".to_owned(),
        Some(n) => format!("schema opsward v{n}"),
    };
    let state = match Kind::of_code(&database.state) {
        None => "up",
        Some(Kind::Locked) => "up, ops is LOCKED",
        Some(Kind::ReadOnly) => "up, a STANDBY",
        Some(_) => "up, TROUBLE",
    };
    format!("{}: {state}, PostgreSQL {version}, {schema}", database.shown)
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

/// The tables that have something to show, in order.
pub fn grids(status: &Status) -> Vec<Grid> {
    let mut grids = vec![peers(status), readers(status), rejected(status), runs(status), relations(status)];
    grids.extend(status.daemon.as_ref().map(|d| tasks(&d.tasks, status.at)));
    grids.retain(|g| !g.rows.is_empty());
    grids
}

fn peers(status: &Status) -> Grid {
    let row = |p: &super::status::PeerStatus| {
        let outcome = match (&p.outcome, p.failures_in_a_row) {
            _ if !p.active => "departed".to_owned(),
            (None, _) => "-".to_owned(),
            (Some(outcome), 0) => outcome.clone(),
            (Some(outcome), n) => format!("{outcome} x{n}"),
        };
        vec![
            p.host.clone(),
            or_dash(p.lag_seconds, span),
            or_dash(p.last_at, |at| ago(at, status.at)),
            outcome,
            count(p.applied),
            count(p.gap_advances),
        ]
    };
    Grid::of(
        &["peer", "lag", "last pull", "outcome", "applied", "gaps"],
        &[1, 2, 4, 5],
        &status.peers.list,
        row,
    )
}

fn readers(status: &Status) -> Grid {
    let row = |r: &super::status::ReaderStatus| {
        vec![r.host.clone(), or_dash(r.lag_seconds, span), ago(r.last_at, status.at), count(r.requests)]
    };
    Grid::of(&["reader (24 h)", "lag", "last asked", "requests"], &[1, 2, 3], &status.readers, row)
}

fn rejected(status: &Status) -> Grid {
    let row = |r: &super::status::RejectedStatus| {
        vec![r.peer.clone(), r.code.clone(), count(r.ops), ago(r.last_seen, status.at)]
    };
    Grid::of(&["refused ops of", "reason", "kept", "last"], &[2, 3], &status.rejected, row)
}

fn runs(status: &Status) -> Grid {
    let row = |r: &super::status::RunStatus| {
        vec![
            r.task.clone(),
            r.table.clone(),
            count(r.rows),
            bytes(r.bytes),
            r.bound_by.clone(),
            r.outcome.clone(),
            ago(r.at, status.at),
        ]
    };
    Grid::of(
        &["deleted by", "of", "rows", "bytes", "bound by", "outcome", "when"],
        &[2, 3, 6],
        status.bounding.iter().flat_map(|b| &b.known.runs),
        row,
    )
}

/// The node's largest tables: shown, and never touched.
fn relations(status: &Status) -> Grid {
    Grid::of(&["largest tables", "bytes"], &[1], &status.database.relations, |r| {
        vec![r.name.clone(), bytes(r.bytes)]
    })
}

/// Tasks that pull peers without failures share one line: the peers' table has each of them.
fn tasks(tasks: &[TaskReport], now: Timestamp) -> Grid {
    let well = |t: &&TaskReport| t.name.starts_with("pull ") && t.failures_in_a_row == 0;
    let row = |t: &TaskReport| {
        let next = t.next_run.map(|at| match at.duration_since(now) {
            wait if wait.is_positive() => format!("in {}", span(wait.unsigned_abs().as_secs())),
            _ => "now".to_owned(),
        });
        vec![
            t.name.clone(),
            state(t).to_owned(),
            count(t.runs),
            count(t.failures),
            or_dash(t.last_success, |at| match is_endless(t) {
                true => "now".to_owned(),
                false => ago(at, now),
            }),
            next.unwrap_or("-".to_owned()),
        ]
    };
    let mut notes = Vec::new();
    match tasks.iter().filter(well).count() {
        0 => {}
        1 => notes.push("and a task that pulls a peer, without failure".to_owned()),
        n => notes.push(format!("and {n} tasks that pull a peer each, without failure")),
    }
    for task in tasks.iter().filter(|t| t.state == TaskState::Off) {
        let why = task.note.as_deref().unwrap_or_default();
        notes.push(format!("{} is off: {why}", task.name));
    }
    Grid {
        header: &["task", "state", "runs", "failed", "last well", "next"],
        figures: &[2, 3, 4, 5],
        rows: tasks.iter().filter(|t| !well(t)).map(row).collect(),
        notes,
    }
}

/// Whether the task is one that runs until the daemon stops: it only ever ended by failing.
fn is_endless(task: &TaskReport) -> bool {
    task.state == TaskState::Running && task.runs == task.failures
}

fn or_dash<T>(value: Option<T>, shown: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), shown)
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
