//! What bounds the log, for `status`: from own state only, never from `ops`.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use crate::db::lease;
use crate::db::reclaim::{self, Unfinished};
use crate::db::waiting::{self, Waiting};
use crate::values::GATE_NOTICES;
use jiff::Timestamp;
use serde_json::Value;

/// What bounds the log, at one moment.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Overview {
    /// Who holds the lease.
    pub lease: Option<String>,
    /// The share of time at work, 1 to 100.
    pub percent: i32,
    /// Since when the work is paused.
    pub paused_at: Option<Timestamp>,
    /// What the census knows, all tables together.
    pub census: Option<CensusSum>,
    /// Records that traces are kept of, as the history counted them.
    pub traces: i64,
    /// Whether the replay guard is in place.
    pub guarded: bool,
    /// The job under way or waiting: its number, kind, progress.
    pub job: Option<(i64, String, Option<Value>)>,
    /// A reclaim that has not ended.
    pub reclaim: Option<Unfinished>,
    /// The last runs that deleted something, newest first.
    pub runs: Vec<Run>,
    /// What stands in the way of tasks that are on: code, subject, since when.
    pub blockers: Vec<(String, String, Timestamp)>,
    /// What bulk work waits for now.
    pub waits: Vec<Waiting>,
    /// Overrides in force and stalled peers: code, subject, since when.
    pub notices: Vec<(String, String, Timestamp)>,
}

/// The census, all tables together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CensusSum {
    /// Rows of the log.
    pub rows: i64,
    /// Bytes of them.
    pub bytes: i64,
    /// The oldest and the newest day.
    pub days: (String, String),
    /// Whether any of it is sampled.
    pub estimated: bool,
    /// When the last whole pass ended.
    pub finished_at: Option<Timestamp>,
}

/// One run and table of the history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// When it ended.
    pub at: Timestamp,
    /// Its task.
    pub task: String,
    /// Its table.
    pub table: String,
    /// Rows deleted.
    pub rows: i64,
    /// Bytes of them.
    pub bytes: i64,
    /// What bound it.
    pub bound_by: String,
    /// How it came out.
    pub outcome: String,
}

/// Reads it.
pub async fn overview(client: &Client) -> Result<Overview> {
    let doing = "read what bounds the log";
    let row = client.query_one(STATE, &[]).await.doing(doing)?;
    let census = client.query_one(CENSUS, &[]).await.doing(doing)?;
    let job = client.query_opt(JOB, &[]).await.doing(doing)?;
    let runs = client.query(RUNS, &[]).await.doing(doing)?;
    let noted = client.query(NOTED, &[]).await.doing(doing)?;
    let noted = noted.iter().map(|r| (r.get(0), r.get(1), r.get(2)));
    let (notices, blockers) =
        noted.partition(|(code, ..): &(String, _, _)| GATE_NOTICES.contains(&code.as_str()));
    let holder = lease::holder(client).await?;
    Ok(Overview {
        blockers,
        notices,
        waits: waiting::all(client, holder.as_ref().map(|h| h.pid)).await?,
        lease: holder.map(|h| h.to_string()),
        percent: row.get(0),
        paused_at: row.get(1),
        traces: row.get(2),
        guarded: row.get(3),
        census: census.get::<_, Option<i64>>(0).map(|rows| CensusSum {
            rows,
            bytes: census.get(1),
            days: (census.get(2), census.get(3)),
            estimated: census.get(4),
            finished_at: census.get(5),
        }),
        job: job.map(|r| {
            let progress: Option<&str> = r.get(2);
            (r.get(0), r.get(1), progress.and_then(|p| serde_json::from_str(p).ok()))
        }),
        reclaim: reclaim::unfinished(client).await?,
        runs: runs
            .iter()
            .map(|r| Run {
                at: r.get(0),
                task: r.get(1),
                table: r.get(2),
                rows: r.get(3),
                bytes: r.get(4),
                bound_by: r.get(5),
                outcome: r.get(6),
            })
            .collect(),
    })
}

/// 25: gentle.
const STATE: &str = "
    SELECT coalesce(p.percent, 25), p.paused_at,
           (SELECT coalesce(sum(traces), 0)::bigint FROM opsward.history),
           EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('public.ops')
                   AND tgname LIKE 'opsward%guard' AND tgenabled <> 'D')
    FROM (SELECT 1) one LEFT JOIN opsward.pace p ON true";
const CENSUS: &str = "
    SELECT sum(rows)::bigint, coalesce(sum(bytes), 0)::bigint, coalesce(min(day)::text, ''),
           coalesce(max(day)::text, ''), coalesce(bool_or(estimated), false),
           (SELECT last_finished_at FROM opsward.census_pass WHERE kind = 'full')
    FROM opsward.census WHERE day > '1970-01-01' AND rows > 0";
const JOB: &str = "
    SELECT id, kind, progress::text FROM opsward.jobs WHERE finished_at IS NULL ORDER BY started_at, id LIMIT 1";
const RUNS: &str = "
    SELECT ended_at, task, table_name, rows, bytes, bound_by, outcome
    FROM opsward.history ORDER BY ended_at DESC, id DESC LIMIT 5";
const NOTED: &str = "SELECT code, subject, since FROM opsward.blockers ORDER BY since, code, subject";
