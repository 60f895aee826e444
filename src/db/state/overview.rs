//! What bounds the log, for `status`: from own state only, never from `ops`.

use crate::db::{
    Client, Result, lease, reclaim, rows,
    waiting::{self, WaitStatus},
};
use crate::values::{Blocker, GATE_NOTICES, Progress, Unfinished};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What bounds the log, at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Overview {
    /// Who holds the lease; `null` when nobody does.
    #[serde(default)]
    pub lease: Option<String>,
    /// The share of time at work, 1 to 100.
    #[serde(rename = "pace_percent")]
    pub percent: u64,
    /// Since when the work is paused.
    pub paused_at: Option<Timestamp>,
    /// What the census knows, all tables together.
    pub census: Option<CensusStatus>,
    /// Records that traces are kept of, as the history counted them.
    pub traces: u64,
    /// Whether the replay guard is in place.
    #[serde(rename = "replay_guard")]
    pub guarded: bool,
    /// The job under way or waiting.
    pub job: Option<JobStatus>,
    /// A reclaim that has not ended.
    #[serde(skip)]
    pub reclaim: Option<Unfinished>,
    /// The last runs that deleted something, newest first.
    #[serde(default)]
    pub runs: Vec<RunStatus>,
    /// What stands in the way of tasks that are on.
    #[serde(default)]
    pub blockers: Vec<Blocker>,
    /// What bulk work waits for now.
    #[serde(default)]
    pub waits: Vec<WaitStatus>,
    /// Overrides in force and stalled peers.
    #[serde(default)]
    pub notices: Vec<Blocker>,
}

/// What the census knows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CensusStatus {
    /// Rows of the log.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The oldest UTC day; none where the log is empty.
    pub oldest: Option<String>,
    /// The newest UTC day.
    pub newest: Option<String>,
    /// Whether any of it is sampled.
    pub estimated: bool,
    /// When the last whole pass ended.
    pub finished_at: Option<Timestamp>,
}

/// A job.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its number.
    pub id: u64,
    /// `prune`, `census` or `reclaim`.
    pub kind: String,
    /// How far it is; `null` before it begins.
    pub progress: Option<Progress>,
}

/// A run of one task over one table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunStatus {
    /// When it ended.
    pub at: Timestamp,
    /// Its task.
    pub task: String,
    /// Its table.
    pub table: String,
    /// Rows deleted.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What bound it.
    pub bound_by: String,
    /// How it came out.
    pub outcome: String,
}

/// Reads it.
pub async fn overview(client: &Client) -> Result<Overview> {
    let doing = "read what bounds the log";
    let noted: Vec<Blocker> = rows::all(client, NOTED, &[], doing).await?;
    let (notices, mut blockers): (Vec<_>, Vec<Blocker>) =
        noted.into_iter().partition(|n| GATE_NOTICES.contains(&&*n.code));
    let holder = lease::holder(client).await?;
    let reclaim = reclaim::unfinished(client).await?;
    // What was noted of a reclaim is told as it is now.
    blockers.retain_mut(|blocker| match &reclaim {
        _ if blocker.code != "reclaim" => true,
        Some(swap) if swap.mode == "swap" => {
            let (text, fix) = swap.told();
            (blocker.text, blocker.fix) = (text, fix.to_owned());
            true
        }
        _ => false,
    });
    Ok(Overview {
        blockers,
        notices,
        waits: waiting::all(client, holder.as_ref().map(|h| h.pid)).await?,
        lease: holder.map(|h| h.to_string()),
        reclaim,
        runs: rows::all(client, RUNS, &[], doing).await?,
        ..rows::one(client, STATE, &[], doing).await?
    })
}

/// 25: gentle.
const STATE: &str = "
    SELECT coalesce(p.percent, 25) AS pace_percent, p.paused_at,
           (SELECT coalesce(sum(traces), 0)::bigint FROM opsward.history) AS traces,
           EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('public.ops')
                   AND tgname LIKE 'opsward%guard' AND tgenabled <> 'D') AS replay_guard,
           (SELECT to_jsonb(c) FROM (
                SELECT coalesce(sum(rows), 0)::bigint AS rows, coalesce(sum(bytes), 0)::bigint AS bytes,
                       min(day) AS oldest, max(day) AS newest, coalesce(bool_or(estimated), false) AS estimated,
                       min(f.last_finished_at) AS finished_at
                FROM (SELECT max(last_finished_at) AS last_finished_at FROM opsward.census_pass WHERE kind = 'full') f
                LEFT JOIN opsward.census ON day > '1970-01-01' AND rows > 0
                HAVING count(day) > 0 OR min(f.last_finished_at) IS NOT NULL) c) AS census,
           (SELECT to_jsonb(j) FROM (
                SELECT id, kind, progress FROM opsward.jobs WHERE finished_at IS NULL
                ORDER BY started_at, id LIMIT 1) j) AS job
    FROM (SELECT 1) one LEFT JOIN opsward.pace p ON true";
const RUNS: &str = "
    SELECT ended_at AS at, task, table_name AS table, rows, bytes, bound_by, outcome
    FROM opsward.history ORDER BY ended_at DESC, id DESC LIMIT 5";
/// What nobody looked for any more may be gone: the daemon looks every 3 minutes, `prune` when it runs.
const NOTED: &str = "
    SELECT code, subject, since, coalesce(text, code || ' ' || subject) AS text,
           coalesce(fix, '`opsward plan` says what lifts it') AS fix
    FROM opsward.blockers WHERE seen_at > now() - interval '1 hour'
    ORDER BY since, code, subject";
