//! Which parts of a `Status` need an operator, and what to do about them. Pure.

use super::format;
use super::status::{PeerStatus, Status};
use crate::db::Kind;
use crate::values::{Finding, TaskState};

/// Failures in a row before a peer or a task is warned about.
const FAILURES: u32 = 3;
/// A replaced log is mentioned for a week, in seconds.
const SHOWN_FOR: i64 = 7 * 86_400;
/// Free bytes below which there is a warning when `min_free_disk_bytes` is missing.
const LITTLE_DISK: u64 = 1 << 30;

/// Every warning that `status` calls for.
pub fn warnings(status: &Status) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut warn = |code: &'static str, text: String, fix: &str| {
        found.push(Finding::new(code, text, fix));
    };
    database(status, &mut warn);
    log(status, &mut warn);
    disk(status, &mut warn);
    bounding(status, &mut warn);
    // Where ops come by the chain alone nobody pulls, and old results mean nothing.
    let pulled = status.node.as_ref().is_none_or(|node| node.replication.has_peers());
    for peer in status.peers.list.iter().filter(|_| pulled) {
        about_peer(peer, &mut warn);
    }
    let kept: u64 = status.rejected.iter().map(|r| r.ops).sum();
    if kept > 0 {
        let text = format!("refused and kept: {}", format::many(kept, "op"));
        warn("rejected_ops", text, "opsward rejected list");
    }
    for task in status.daemon.iter().flat_map(|d| &d.tasks) {
        // Failures of pulling are reported with the peer, above.
        let failing = task.state == TaskState::BackingOff && task.failures_in_a_row >= FAILURES;
        if task.panics > 0 || (failing && !task.name.starts_with("pull ")) {
            let why = task.last_error.as_deref().unwrap_or("a panic, caught");
            let text = format!("task {}: {} failures, the last: {why}", task.name, task.failures);
            warn("task_failing", text, "see the daemon's log");
        }
    }
    found
}

/// Whether the database can be worked with, and who works with it.
fn database(status: &Status, warn: &mut impl FnMut(&'static str, String, &str)) {
    if let Some(kind) = Kind::of_code(&status.database.state) {
        let why = status.database.error.as_deref().unwrap_or("no answer");
        let fix = match kind.fix() {
            "" => "correct that; `opsward doctor` looks at it again",
            fix => fix,
        };
        warn(kind.code(), why.to_owned(), fix);
    }
    if status.daemon.is_none() {
        warn(
            "daemon_not_asked",
            "no daemon answered at the admin address: this is the database's view".into(),
            "start `opsward run`, or set OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN as the daemon has it",
        );
    }
    if status.database.up && status.database.schema_version == Some(0) {
        warn(
            "no_schema",
            "the schema opsward does not exist yet".into(),
            "start `opsward run` once: it makes its schema",
        );
    } else if status.database.up && status.peers.source.is_none() {
        warn(
            "peers_unknown",
            "the set of peers was never found".into(),
            "see `opsward doctor`, or set OPENAUDIO_MEDIORUM_PEERS",
        );
    }
}

/// What became of the log without opsward.
fn log(status: &Status, warn: &mut impl FnMut(&'static str, String, &str)) {
    if let Some((at, why)) = &status.database.log_replaced
        && status.at.as_second() - at.as_second() < SHOWN_FOR
    {
        warn(
            "log_replaced",
            format!("the log was replaced at {at}: {why}"),
            "nothing has to be done where that was a restore or a state sync",
        );
    }
    if let Some(floor) = &status.database.foreign_floor {
        warn(
            "foreign_prune",
            format!("this is a node that prunes by itself: ops below {floor} are gone, and not by opsward"),
            "nothing has to be done: ops below it that come again put records only where there are none",
        );
    }
    if status.node.as_ref().is_some_and(|node| node.is_unlogged) {
        warn(
            "ops_unlogged",
            "ops is UNLOGGED, as a restore leaves it on a full disk: a crash of the server empties it".into(),
            "once there is room: ALTER TABLE public.ops SET LOGGED",
        );
    }
}

fn disk(status: &Status, warn: &mut impl FnMut(&'static str, String, &str)) {
    match status.database.free_disk_bytes {
        Some(free) if free < status.database.min_free_disk_bytes.unwrap_or(LITTLE_DISK) => warn(
            "little_disk",
            format!("only {} are free on the database's volume: bulk work has stopped", format::bytes(free)),
            "make room, or lower OPENAUDIO_MEDIORUM_MIN_FREE_DISK; a full volume takes the node's Postgres down",
        ),
        // Nothing is measured while the log is locked.
        None if status.database.up && status.database.ops_bytes.is_some() => warn(
            "free_disk_unknown",
            "free space on the database's volume is unknown".into(),
            "mount a directory of that volume and name it in OPENAUDIO_MEDIORUM_PGDATA_PATH",
        ),
        _ => {}
    }
}

fn bounding(status: &Status, warn: &mut impl FnMut(&'static str, String, &str)) {
    let Some(bounding) = &status.bounding else { return };
    if let Some(at) = bounding.known.paused_at {
        let text = format!("bulk work is paused since {at}: the log grows");
        warn("paused", text, "`opsward resume` lets it go on");
    }
    let by_chain = status.node.as_ref().is_some_and(|node| !node.replication.has_peers());
    let again = if by_chain { "a block that is executed again" } else { "a peer that sends its log anew" };
    if bounding.unguarded {
        warn(
            "no_replay_guard",
            format!(
                "retention without the replay guard: {again} makes this node apply old ops over newer state"
            ),
            match (bounding.guard_set, status.read_only) {
                (true, true) => {
                    "READ_ONLY keeps it off the log, and deletes nothing either: with \
                     OPENAUDIO_MEDIORUM_READ_ONLY=false `opsward run` puts it there"
                }
                (true, false) => {
                    "it is switched on and not on the log: `opsward run` with the role that owns public.ops"
                }
                (false, _) => "set OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD=true",
            },
        );
    }
    for blocker in &bounding.known.blockers {
        let text = format!("in the way of deleting since {:.0}: {}", blocker.since, blocker.text);
        warn("blocked", text, &blocker.fix);
    }
    for row in bounding.known.notices.iter().filter(|n| n.code == "cursor_spelling") {
        warn("cursor_spelling", row.text.clone(), &row.fix);
    }
    for (code, what, fix) in NOTICES {
        let about: Vec<&str> =
            bounding.known.notices.iter().filter(|n| n.code == code).map(|n| n.subject.as_str()).collect();
        if !about.is_empty() {
            warn(code, format!("{what}: {}", about.join(", ")), fix);
        }
    }
    let unfinished = bounding.unfinished_reclaim.as_ref();
    if let Some(unfinished) = unfinished.filter(|_| !bounding.reclaim_is_at_work()) {
        let fix = "`opsward reclaim --resume` goes on with it, `--abort` ends it";
        warn("reclaim_unfinished", format!("a reclaim is unfinished: {unfinished}"), fix);
    }
}

/// The gate's notices about peers: code, meaning, and what ends each.
const NOTICES: [(&str, &str, &str); 5] = [
    (
        "ignored_peer",
        "ops are deleted whatever these peers still have to send, by OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS",
        "take them off it once they are back",
    ),
    (
        "ignored_reader",
        "ops are deleted whatever these peers still have to read, by OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS",
        "take them off it once they are back",
    ),
    (
        "lagging_peer",
        "ops are deleted though these peers are too far behind, by OPENAUDIO_MEDIORUM_OPS_RETENTION_MAX_PEER_LAG",
        "see that they can be read from",
    ),
    (
        "peer_removed",
        "no longer peers, but count for 7 days as they may come back, which bounds what is deleted",
        "OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS lets them go at once",
    ),
    (
        "peer_stalled",
        "peers with nothing for us at one cursor for over 24 h, which bounds what is deleted",
        "see that they are well; OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS lets them go",
    ),
];

fn about_peer(peer: &PeerStatus, warn: &mut impl FnMut(&'static str, String, &str)) {
    if let Some(hold) = &peer.held {
        let text = format!(
            "{}: the cursor stays before op {} of table {}: {}",
            peer.host, hold.ulid, hold.table, hold.reason
        );
        warn("peer_held", text, "run an opsward that knows this table as your node has it");
    }
    if peer.active && peer.failures_in_a_row >= FAILURES {
        let why = peer.detail.as_deref().unwrap_or("unknown");
        let n = peer.failures_in_a_row;
        let text = format!("{}: {n} failures in a row, the last: {why}", peer.host);
        warn(
            "peer_failing",
            text,
            "see that it is up and reachable from here; `opsward doctor` looks at this side",
        );
    }
    if peer.rejected_unkept > 0 {
        let text = format!(
            "{}: refused, counted and not kept: {}",
            peer.host,
            format::many(peer.rejected_unkept, "op")
        );
        warn("rejected_unkept", text, "opsward rejected list, then retry or drop what is kept");
    }
}
