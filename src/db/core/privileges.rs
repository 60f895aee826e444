//! What bounding the log needs beyond pulling and serving, and what lifts its
//! absence: asked of the catalog, never tried out.

use crate::db::{Client, Doing, Result, rows};
use crate::settings::Settings;

/// What needs a privilege.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Pulling: ops, cursors and records are written.
    Pull,
    /// Retention and dormant cleanup: ops are locked and deleted.
    Delete,
    /// VACUUM of the log.
    Vacuum,
    /// The index on the log.
    Index,
    /// The replay guard: who puts a trigger there must be able to remove it.
    Guard,
    /// CHECKPOINT while much is written.
    Checkpoint,
    /// A deadlock_timeout that lets the guard give its lock up early.
    LockWaits,
}

/// A privilege that is missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lacking {
    /// What needs it.
    pub need: Need,
    /// The statement that lifts it, for the owner or a superuser.
    pub lift: String,
}

impl Need {
    /// Whether something that is switched on needs it.
    pub fn is_wanted(self, settings: &Settings) -> bool {
        let set = &settings.bounding;
        let deletes = set.retention_days > 0 || set.retention_bytes > 0 || set.dormant_cleanup;
        !settings.read_only
            && match self {
                Self::Pull => settings.sweep_peers,
                Self::Delete | Self::Vacuum | Self::Checkpoint => deletes,
                Self::Index => set.ensure_index,
                Self::Guard | Self::LockWaits => set.replay_guard,
            }
    }

    /// What goes without it, in a sentence.
    pub fn consequence(self) -> &'static str {
        match self {
            Self::Pull => "this role may not write all that pulling writes: no peer is pulled",
            Self::Delete => "this role may not delete from public.ops: retention and dormant cleanup are off",
            Self::Vacuum => "this role may not VACUUM public.ops: autovacuum alone makes room for new ops",
            Self::Index => "this role may make no index on public.ops: the index on (table, ulid) is off",
            Self::Guard => {
                "this role may not put a trigger on public.ops and remove it again: the replay guard is off, \
                 and while it is switched on nothing is deleted"
            }
            Self::Checkpoint => {
                "this role may not CHECKPOINT: WAL of bulk work can fill a volume that is nearly full"
            }
            Self::LockWaits => {
                "this role may not set deadlock_timeout: the replay guard may wait for autovacuum up to 100 ms"
            }
        }
    }
}

/// Everything that bounding lacks, in the order of [`Need`]; `pulling` is what
/// `stats::fitness` found missing.
pub async fn lacking(client: &Client, pulling: &[String]) -> Result<Vec<Lacking>> {
    let row = client.query_one(LACKING, &[]).await.doing("look at the privileges")?;
    let needs = [Need::Delete, Need::Vacuum, Need::Index, Need::Guard, Need::Checkpoint];
    let lifts = needs.into_iter().enumerate().map(|(i, need)| (need, row.get::<_, Option<String>>(i)));
    let mut found: Vec<Lacking> =
        lifts.filter_map(|(need, lift)| Some(Lacking { need, lift: lift? })).collect();
    if !pulling.is_empty() {
        found.insert(0, Lacking { need: Need::Pull, lift: pulling.join("; ") });
    }
    if !may_set_deadlock_timeout(client).await? {
        let lift: Option<String> = row.get(5);
        let lift = lift.unwrap_or_else(|| "nothing but a superuser does before PostgreSQL 15".into());
        found.push(Lacking { need: Need::LockWaits, lift });
    }
    Ok(found)
}

/// Rows are locked FOR UPDATE before they go, which takes UPDATE as well. Only
/// an owner VACUUMs, makes indexes and drops triggers; an index and the guard's
/// function need room in the schema too. Where the log belongs to a superuser, no
/// advice says to join it: the log gets an owner that nobody logs in as.
const LACKING: &str = "
    WITH log AS (
        SELECT c.oid, pg_has_role(c.relowner, 'USAGE') AS owned,
               pg_has_role(d.datdba, 'USAGE') AS of_database,
               CASE WHEN o.rolsuper
                    THEN format('ALTER TABLE public.ops OWNER TO a role without login, and GRANT that role TO %I (docs/roles.sql, level bound)', current_user)
                    ELSE format('GRANT %I TO %I', o.rolname, current_user) END AS join_owner
        FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner, pg_database d
        WHERE c.oid = to_regclass('public.ops') AND d.datname = current_database())
    SELECT CASE WHEN NOT (has_table_privilege(oid, 'DELETE') AND has_table_privilege(oid, 'UPDATE'))
                THEN format('GRANT UPDATE, DELETE ON public.ops TO %I', current_user) END,
           CASE WHEN NOT (owned OR of_database) THEN join_owner END,
           CASE WHEN NOT owned THEN join_owner
                WHEN NOT has_schema_privilege('public', 'CREATE')
                THEN format('GRANT CREATE ON SCHEMA public TO %I', current_user) END,
           CASE WHEN NOT owned THEN join_owner
                WHEN NOT has_schema_privilege('public', 'CREATE')
                THEN format('GRANT CREATE ON SCHEMA public TO %I', current_user) END,
           CASE WHEN NOT coalesce((SELECT pg_has_role(oid, 'USAGE') FROM pg_roles
                                   WHERE rolname = 'pg_checkpoint'),
                                  (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))
                THEN format('GRANT pg_checkpoint TO %I', current_user) END,
           CASE WHEN current_setting('server_version_num')::int >= 150000
                THEN format('GRANT SET ON PARAMETER deadlock_timeout TO %I', current_user) END
    FROM log";

/// Whether this role may set `deadlock_timeout`.
pub async fn may_set_deadlock_timeout(client: &Client) -> Result<bool> {
    let row = client.query_one(IS_SUPER, &[]).await.doing("look at the privileges")?;
    if row.get(0) || !row.get::<_, bool>(1) {
        return Ok(row.get(0));
    }
    rows::one(client, MAY_SET, &[], "look at the privileges").await
}

const IS_SUPER: &str = "
    SELECT rolsuper, current_setting('server_version_num')::int >= 150000
    FROM pg_roles WHERE rolname = current_user";
/// Known from PostgreSQL 15 on.
const MAY_SET: &str = "SELECT has_parameter_privilege('deadlock_timeout', 'SET')";

/// What work that was cut off has left behind, a sentence and a remedy each.
pub async fn leftovers(client: &Client) -> Result<Vec<(String, String)>> {
    rows::all(client, INVALID, &[], "look for invalid indexes").await
}

const INVALID: &str = "
    SELECT format('the index %s on public.ops is invalid: a build of it failed, or a session builds it now', c.relname),
           format('if nothing builds it: DROP INDEX CONCURRENTLY %I.%I', n.nspname, c.relname)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE i.indrelid = to_regclass('public.ops') AND NOT i.indisvalid ORDER BY c.relname";

/// Jobs that were begun and whose daemon is gone: their numbers and kinds.
pub async fn orphaned_jobs(client: &Client) -> Result<Vec<String>> {
    rows::all(client, ORPHANED, &[], "look for unfinished jobs").await
}

const ORPHANED: &str = "
    SELECT format('%s %s', kind, id) FROM opsward.jobs
    WHERE started_at IS NOT NULL AND finished_at IS NULL ORDER BY id";
