//! What makes a reclaim refuse: the gate, the table, the server, the disk.

use super::{Facts, Obstacle, Plan};
use crate::reclaim::decide::Mode;
use crate::values::bytes;

/// Where every op survives, less than this is not worth a reclaim: 16 MiB.
const LEAST_GAIN: u64 = 16 << 20;
/// A swap that gives back less than this part of the log is asked about: a full log, too, seems to
/// have some free space, since the census counts without what pages waste.
const WORTH_A_SWAP: u64 = 10;

/// All that stands in a plan's way.
pub(super) fn obstacles(facts: &Facts<'_>, plan: &Plan) -> Vec<Obstacle> {
    let (standing, gate, space) = (facts.standing, facts.gate, &plan.space);
    let mut found = Vec::new();
    let mut stands = |is: bool, code: &'static str, text: String, fix: &str| {
        if is {
            found.push(Obstacle { code, text, fix: fix.to_owned() });
        }
    };
    let swap = plan.mode == Mode::Swap;
    stands(
        gate.ceiling.is_none(),
        "gate",
        format!("nothing may be deleted now: {}", gate.blockers.join("; ")),
        "`opsward plan` shows what lifts each",
    );
    stands(
        facts.census.is_empty() && standing.table_bytes > 0,
        "not_counted",
        "the log was not counted yet: nobody knows what would stay".into(),
        "`opsward census` counts it; the daemon does by itself",
    );
    stands(
        gate.ceiling.is_some()
            && !facts.census.is_empty()
            && plan.tables.iter().all(|t| t.kept_rows == t.rows)
            && plan.space.gain() < LEAST_GAIN,
        "nothing",
        "there is nothing to give back: every op survives, and little of the file is free".into(),
        "a shorter OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS, or --policy compact",
    );
    stands(
        !standing.owner,
        "privilege",
        format!("the role {} does not own the table ops", standing.role),
        "use the node's own role in OPENAUDIO_DB_URL, or see docs/roles.sql, level bound",
    );
    stands(
        swap && standing.owner && !standing.grants.is_empty(),
        "privilege",
        format!("the role {} may not put another table in the place of ops", standing.role),
        &format!("{}; or use --mode in-place", standing.grants.join("; ")),
    );
    stands(
        !standing.plain,
        "table",
        "ops is no plain table".into(),
        "a node makes it so: look what changed it",
    );
    stands(
        swap && !standing.dependents.is_empty(),
        "dependents",
        format!("a swap can't carry what depends on ops: {}", standing.dependents.join(", ")),
        match standing.hindrances.is_empty() {
            true => "drop it for the time, or use --mode in-place",
            false => "drop it for the time",
        },
    );
    stands(
        !swap && !standing.hindrances.is_empty(),
        "dependents",
        format!("rows of ops can't just be deleted: it has a {}", standing.hindrances.join(", a ")),
        "drop it for the time",
    );
    stands(
        !standing.invalid.is_empty(),
        "invalid_index",
        format!("indexes of ops are invalid: {}", standing.invalid.join(", ")),
        "wait until they are built, or DROP INDEX them",
    );
    stands(
        !standing.prepared.is_empty(),
        "prepared",
        format!("prepared transactions are open: {}", standing.prepared.join(", ")),
        "COMMIT PREPARED or ROLLBACK PREPARED them",
    );
    stands(
        !standing.slots.is_empty(),
        "slots",
        format!("WAL would pile up for replication slots that nobody reads: {}", standing.slots.join(", ")),
        "start their readers, or pg_drop_replication_slot them",
    );
    stands(
        standing.archiving.is_some(),
        "archiving",
        format!("WAL would pile up: archiving fails, {}", standing.archiving.as_deref().unwrap_or_default()),
        "mend archive_command, or switch archive_mode off",
    );
    stands(
        swap && space.free.is_none(),
        "free_unknown",
        "how much disk is free is not known, and mode swap needs much".into(),
        "set OPENAUDIO_MEDIORUM_PGDATA_PATH to a directory on the database's volume",
    );
    let unknown = &facts.volumes.unknown;
    stands(
        !unknown.is_empty(),
        "volume_unknown",
        format!("it writes to volumes that are not seen here: {}", unknown.join("; ")),
        "mount them at the same paths where opsward runs, or run it where they are",
    );
    stands(
        !swap && standing.kept_xids > 0,
        "vacuum_deferred",
        format!(
            "vacuum_defer_cleanup_age is {}: rows that moved would still take their space",
            standing.kept_xids
        ),
        "ALTER SYSTEM SET vacuum_defer_cleanup_age = 0 and reload, or use --mode swap",
    );
    stands(
        !swap && standing.old_snapshots,
        "old_snapshot_threshold",
        "old_snapshot_threshold is set: the server then cuts off no table's end".into(),
        "set old_snapshot_threshold = -1 and restart the server, or use --mode swap",
    );
    found.extend(too_little(facts, plan));
    found
}

/// What does not fit.
fn too_little(facts: &Facts<'_>, plan: &Plan) -> Option<Obstacle> {
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
    let obstacle = |text: String| Obstacle { code: "space", text, fix: instead.to_owned() };
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
pub(super) fn risks(plan: &Plan) -> Vec<Obstacle> {
    let space = &plan.space;
    let free = space.free.unwrap_or(u64::MAX);
    if plan.mode == Mode::Swap && space.gain() < (space.table + space.indexes) / WORTH_A_SWAP {
        return vec![Obstacle {
            code: "gives_little",
            text: format!(
                "it copies the whole log and gives hardly anything back: about {} of {}",
                bytes(space.gain()),
                bytes(space.table + space.indexes)
            ),
            fix: "--yes does it all the same; a shorter OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS, or --policy \
                  compact, gives more back"
                .into(),
        }];
    }
    if plan.mode == Mode::Swap || free >= space.in_place_needs || free < space.in_place_floor {
        return Vec::new();
    }
    vec![Obstacle {
        code: "may_not_fit",
        text: format!(
            "by the estimate it may not fit: mode in-place needs about {} free, there are {}; \
             it stops by itself before the disk is full, and what was deleted until then stays deleted",
            bytes(space.in_place_needs),
            bytes(free)
        ),
        fix: "--yes tries it all the same; or free some disk".into(),
    }]
}
