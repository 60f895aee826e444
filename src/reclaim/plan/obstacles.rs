//! What makes a reclaim refuse: the gate, the table, the server, the disk.

use super::{Facts, Plan};
use crate::bound::decide::RECLAIM_LEAST;
use crate::db::preflight::Standing;
use crate::reclaim::decide::Mode;
use crate::values::{Finding, bytes};

/// A swap that gives back less than this part of the log is asked about: a full log, too, seems to
/// have some free space, since the census counts without what pages waste.
const WORTH_A_SWAP: u64 = 10;

/// What was found so far.
struct Found(Vec<Finding>);

impl Found {
    fn when(&mut self, is_so: bool, code: &'static str, text: impl Into<String>, fix: &str) {
        if is_so {
            self.0.push(Finding::new(code, text, fix));
        }
    }
}

/// All that stands in a plan's way.
pub(super) fn obstacles(facts: &Facts<'_>, plan: &Plan) -> Vec<Finding> {
    let mut found = Found(Vec::new());
    of_log(facts, plan, &mut found);
    of_table(facts.standing, plan.mode == Mode::Swap, &mut found);
    of_server(facts, plan, &mut found);
    found.0.extend(too_little(facts, plan));
    found.0
}

/// Nothing may go, nothing is known, or nothing would be gained.
fn of_log(facts: &Facts<'_>, plan: &Plan, found: &mut Found) {
    let (standing, gate) = (facts.standing, facts.gate);
    found.when(
        gate.ceiling.is_none(),
        "gate",
        format!("nothing may be deleted now: {}", gate.blockers.join("; ")),
        "`opsward plan` shows what lifts each",
    );
    found.when(
        !facts.is_counted && standing.table_bytes > 0,
        "not_counted",
        "the log was not counted yet: nobody knows what would stay",
        "`opsward census` counts it; the daemon does by itself",
    );
    found.when(
        gate.ceiling.is_some()
            && facts.is_counted
            && plan.tables.iter().all(|t| t.kept_rows == t.rows)
            && plan.space.gain() < RECLAIM_LEAST,
        "nothing",
        "there is nothing to give back: every op survives, and little of the file is free",
        "a shorter OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS, or --policy compact",
    );
}

/// The table is not what can be replaced or thinned.
fn of_table(standing: &Standing, swap: bool, found: &mut Found) {
    found.when(
        !standing.owner,
        "privilege",
        format!("the role {} does not own the table ops", standing.role),
        "use the node's own role in OPENAUDIO_DB_URL, or see docs/roles.sql, level bound",
    );
    found.when(
        swap && standing.owner && !standing.grants.is_empty(),
        "privilege",
        format!("the role {} may not put another table in the place of ops", standing.role),
        &format!("{}; or use --mode in-place", standing.grants.join("; ")),
    );
    found.when(!standing.plain, "table", "ops is no plain table", "a node makes it so: look what changed it");
    found.when(
        swap && !standing.dependents.is_empty(),
        "dependents",
        format!("a swap can't carry what depends on ops: {}", standing.dependents.join(", ")),
        match standing.hindrances.is_empty() {
            true => "drop it for the time, or use --mode in-place",
            false => "drop it for the time",
        },
    );
    found.when(
        !swap && !standing.hindrances.is_empty(),
        "dependents",
        format!("rows of ops can't just be deleted and moved: it has a {}", standing.hindrances.join(", a ")),
        "drop it for the time",
    );
    found.when(
        !standing.invalid.is_empty(),
        "invalid_index",
        format!("indexes of ops are invalid: {}", standing.invalid.join(", ")),
        "wait until they are built, or DROP INDEX them",
    );
}

/// The server would keep what is freed, or write where nobody sees the space.
fn of_server(facts: &Facts<'_>, plan: &Plan, found: &mut Found) {
    let (standing, swap) = (facts.standing, plan.mode == Mode::Swap);
    let unknown = &facts.volumes.unknown;
    found.when(
        !standing.prepared.is_empty(),
        "prepared",
        format!("prepared transactions are open: {}", standing.prepared.join(", ")),
        "COMMIT PREPARED or ROLLBACK PREPARED them",
    );
    found.when(
        !standing.slots.is_empty(),
        "slots",
        format!("WAL would pile up for replication slots that nobody reads: {}", standing.slots.join(", ")),
        "start their readers, or pg_drop_replication_slot them",
    );
    found.when(
        standing.archiving.is_some(),
        "archiving",
        format!("WAL would pile up: archiving fails, {}", standing.archiving.as_deref().unwrap_or_default()),
        "mend archive_command, or switch archive_mode off",
    );
    found.when(
        swap && plan.space.free.is_none(),
        "free_unknown",
        "how much disk is free is not known, and mode swap needs much",
        "set OPENAUDIO_MEDIORUM_PGDATA_PATH to a directory on the database's volume, or use --mode in-place",
    );
    found.when(
        !unknown.is_empty(),
        "volume_unknown",
        format!("it writes to volumes that are not seen here: {}", unknown.join("; ")),
        "mount them at the same paths where opsward runs, or run it where they are",
    );
    found.when(
        !swap && standing.kept_xids > 0,
        "vacuum_deferred",
        format!(
            "vacuum_defer_cleanup_age is {}: rows that moved would still take their space",
            standing.kept_xids
        ),
        "ALTER SYSTEM SET vacuum_defer_cleanup_age = 0 and reload, or use --mode swap",
    );
    found.when(
        !swap && standing.old_snapshots,
        "old_snapshot_threshold",
        "old_snapshot_threshold is set: the server then cuts off no table's end",
        "set old_snapshot_threshold = -1 and restart the server, or use --mode swap",
    );
}

/// What does not fit.
fn too_little(facts: &Facts<'_>, plan: &Plan) -> Option<Finding> {
    let (space, fit) = (&plan.space, facts.asked.fit);
    let free = space.free.unwrap_or(u64::MAX);
    let (needs, instead) = match plan.mode {
        Mode::Swap if fit => (space.swap_needs, "--mode in-place without --fit needs hardly any"),
        Mode::Swap => (space.swap_needs, "--mode in-place needs hardly any; --fit takes a shorter window"),
        Mode::InPlace => {
            (space.in_place_floor, "free some disk, or set OPENAUDIO_MEDIORUM_MIN_FREE_DISK lower")
        }
    };
    let window = match plan.fit_days {
        Some(days) => format!(", for the shortest window that may be kept ({days} days)"),
        None => String::new(),
    };
    let obstacle = |text: String| Finding::new("space", text, instead);
    let mode = plan.mode.word();
    if free < needs {
        let (needs, there) = (bytes(needs), bytes(free));
        return Some(obstacle(format!("mode {mode} needs {needs} free{window}, there are {there}")));
    }
    let wal_needs = match plan.mode {
        Mode::Swap => facts.standing.max_wal_bytes + facts.settings.min_free_disk,
        Mode::InPlace => space.in_place_floor,
    };
    let volume = facts.volumes.wal_alone().filter(|volume| volume.free < wal_needs)?;
    Some(obstacle(format!(
        "mode {mode} needs {} free on {}, there are {}",
        bytes(wal_needs),
        volume.what,
        bytes(volume.free)
    )))
}

/// What is done only where somebody says so.
pub(super) fn risks(plan: &Plan) -> Vec<Finding> {
    let space = &plan.space;
    let free = space.free.unwrap_or(u64::MAX);
    if plan.mode == Mode::Swap && space.gain() < (space.table + space.indexes) / WORTH_A_SWAP {
        let text = format!(
            "it copies the whole log and gives hardly anything back: about {} of {}",
            bytes(space.gain()),
            bytes(space.table + space.indexes)
        );
        let fix = "--yes does it all the same; a shorter OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS, or --policy \
                   compact, gives more back";
        return vec![Finding::new("gives_little", text, fix)];
    }
    if plan.mode == Mode::Swap || free >= space.in_place_needs || free < space.in_place_floor {
        return Vec::new();
    }
    let text = format!(
        "by the estimate it may not fit: mode in-place needs about {} free, there are {}; \
         it stops by itself before the disk is full, and what was deleted until then stays deleted",
        bytes(space.in_place_needs),
        bytes(free)
    );
    vec![Finding::new("may_not_fit", text, "--yes tries it all the same; or free some disk")]
}
