//! `opsward.jobs`: work that a command handed to the daemon that holds the
//! lease, its progress and how it came out.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use jiff::Timestamp;
use serde_json::Value;

/// A job as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// Which work: `prune`, `census` or `reclaim`.
    pub kind: String,
    /// Its arguments, as the command wrote them.
    pub args: Value,
    /// When the daemon began it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How far it is.
    pub progress: Option<Value>,
    /// How it came out.
    pub outcome: Option<Value>,
}

fn job(row: &tokio_postgres::Row) -> Job {
    Job {
        id: row.get(0),
        kind: row.get(1),
        args: json(row.get(2)).unwrap_or_default(),
        started_at: row.get(3),
        finished_at: row.get(4),
        progress: json(row.get(5)),
        outcome: json(row.get(6)),
    }
}

fn json(text: Option<&str>) -> Option<Value> {
    text.and_then(|t| serde_json::from_str(t).ok())
}

/// Adds a job; returns its number.
pub async fn add(client: &Client, kind: &str, args: &Value, now: Timestamp) -> Result<i64> {
    let row = client.query_one(ADD, &[&kind, &args.to_string(), &now]).await.doing("hand over a job")?;
    Ok(row.get(0))
}

const ADD: &str = "
    INSERT INTO opsward.jobs (kind, args, requested_at) VALUES ($1, $2::text::jsonb, $3) RETURNING id";

/// Notes a job that this process begins itself; returns its number.
pub async fn begin(client: &Client, kind: &str, args: &Value, now: Timestamp) -> Result<i64> {
    let row = client.query_one(BEGIN, &[&kind, &args.to_string(), &now]).await.doing("note a job")?;
    Ok(row.get(0))
}

const BEGIN: &str = "
    INSERT INTO opsward.jobs (kind, args, requested_at, started_at) VALUES ($1, $2::text::jsonb, $3, $3)
    RETURNING id";

/// Takes the oldest job that nobody has begun, of the last day: what was asked
/// for longer ago may not be wanted any more. Jobs 30 days old go on the way.
pub async fn claim(client: &Client, now: Timestamp) -> Result<Option<Job>> {
    client.execute(FORGET, &[&now]).await.doing("forget old jobs")?;
    let row = client.query_opt(CLAIM, &[&now]).await.doing("take a job")?;
    Ok(row.as_ref().map(job))
}

const FORGET: &str = "
    DELETE FROM opsward.jobs WHERE requested_at < $1::timestamptz - interval '30 days'";
const CLAIM: &str = "
    UPDATE opsward.jobs SET started_at = $1
    WHERE id = (SELECT id FROM opsward.jobs WHERE started_at IS NULL AND finished_at IS NULL
                  AND requested_at >= $1::timestamptz - interval '1 day'
                ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, kind, args::text, started_at, finished_at, progress::text, outcome::text";

/// Ends what was begun and nobody does any more. Only for who has the lease
/// and does no job: every other that was begun is lost.
pub async fn interrupted(client: &Client, now: Timestamp) -> Result<u64> {
    client.execute(INTERRUPTED, &[&now]).await.doing("end interrupted jobs")
}

const INTERRUPTED: &str = r#"
    UPDATE opsward.jobs SET finished_at = $1,
        outcome = '{"trouble": {"exit": 75, "text": "whoever did the job went away in the middle of it",
                    "fix": "run the command again: it goes on"}}'
    WHERE started_at IS NOT NULL AND finished_at IS NULL"#;

/// Ends what nobody has begun within a day; returns the jobs' numbers.
pub async fn expired(client: &Client, now: Timestamp) -> Result<Vec<i64>> {
    let rows = client.query(EXPIRED, &[&now]).await.doing("end expired jobs")?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

const EXPIRED: &str = r#"
    UPDATE opsward.jobs SET finished_at = $1,
        outcome = '{"trouble": {"exit": 75, "text": "the job was not begun within a day: it is expired",
                    "fix": "run the command again where it is still wanted"}}'
    WHERE started_at IS NULL AND finished_at IS NULL
      AND requested_at < $1::timestamptz - interval '1 day'
    RETURNING id"#;

/// Takes a job back that nobody has begun; says whether it was there.
pub async fn withdraw(client: &Client, id: i64) -> Result<bool> {
    Ok(client.execute(WITHDRAW, &[&id]).await.doing("take a job back")? > 0)
}

const WITHDRAW: &str =
    "DELETE FROM opsward.jobs WHERE id = $1 AND started_at IS NULL AND finished_at IS NULL";

/// Writes how far a job is.
pub async fn progress(client: &Client, id: i64, progress: &Value) -> Result<()> {
    client.execute(PROGRESS, &[&id, &progress.to_string()]).await.doing("write a job's progress")?;
    Ok(())
}

const PROGRESS: &str = "UPDATE opsward.jobs SET progress = $2::text::jsonb WHERE id = $1";

/// Writes how a job came out.
pub async fn finish(client: &Client, id: i64, outcome: &Value, now: Timestamp) -> Result<()> {
    client.execute(FINISH, &[&id, &outcome.to_string(), &now]).await.doing("write a job's outcome")?;
    Ok(())
}

const FINISH: &str = "
    UPDATE opsward.jobs SET outcome = $2::text::jsonb, finished_at = $3 WHERE id = $1";

/// A job by its number.
pub async fn get(client: &Client, id: i64) -> Result<Option<Job>> {
    Ok(client.query_opt(GET, &[&id]).await.doing("look at a job")?.as_ref().map(job))
}

const GET: &str = "
    SELECT id, kind, args::text, started_at, finished_at, progress::text, outcome::text
    FROM opsward.jobs WHERE id = $1";

/// Whether the abort of a reclaim was handed over and waits for its turn.
pub async fn abort_waits(client: &Client) -> Result<bool> {
    Ok(client.query_one(ABORT_WAITS, &[]).await.doing("look for an abort")?.get(0))
}

const ABORT_WAITS: &str = "
    SELECT EXISTS (SELECT FROM opsward.jobs
                   WHERE kind = 'reclaim' AND started_at IS NULL AND finished_at IS NULL
                     AND args ->> 'action' = 'abort')";
