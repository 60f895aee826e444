//! `opsward.jobs`: work that a command handed to the daemon that holds the
//! lease, its progress and how it came out.

use crate::db::{Client, Doing, Result, rows};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// A job as it stands.
#[derive(Clone, PartialEq, Debug, Deserialize)]
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

/// Adds a job; returns its number.
pub async fn add(client: &Client, kind: &str, args: &Value, now: Timestamp) -> Result<i64> {
    rows::one(client, ADD, &[&kind, &args.to_string(), &now], "hand over a job").await
}

const ADD: &str = "
    INSERT INTO opsward.jobs (kind, args, requested_at) VALUES ($1, $2::text::jsonb, $3) RETURNING id";

/// Notes a job that this process begins itself; returns its number.
pub async fn begin(client: &Client, kind: &str, args: &Value, now: Timestamp) -> Result<i64> {
    rows::one(client, BEGIN, &[&kind, &args.to_string(), &now], "note a job").await
}

const BEGIN: &str = "
    INSERT INTO opsward.jobs (kind, args, requested_at, started_at) VALUES ($1, $2::text::jsonb, $3, $3)
    RETURNING id";

/// Takes the oldest job that nobody has begun, of the last day: what was asked
/// for longer ago may not be wanted any more. Jobs 30 days old go on the way.
pub async fn claim(client: &Client, now: Timestamp) -> Result<Option<Job>> {
    client.execute(FORGET, &[&now]).await.doing("forget old jobs")?;
    rows::maybe(client, CLAIM, &[&now], "take a job").await
}

const FORGET: &str = "
    DELETE FROM opsward.jobs WHERE requested_at < $1::timestamptz - interval '30 days'";
const CLAIM: &str = "
    UPDATE opsward.jobs SET started_at = $1
    WHERE id = (SELECT id FROM opsward.jobs WHERE started_at IS NULL AND finished_at IS NULL
                  AND requested_at >= $1::timestamptz - interval '1 day'
                ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, kind, args, started_at, finished_at, progress, outcome";

/// Ends what was begun and nobody does any more. Only for who has the lease
/// and does no job: every other that was begun is lost.
pub async fn interrupted(client: &Client, now: Timestamp) -> Result<u64> {
    client.execute(INTERRUPTED, &[&now]).await.doing("end interrupted jobs")
}

const INTERRUPTED: &str = r#"
    UPDATE opsward.jobs SET finished_at = $1,
        outcome = '{"trouble": {"exit": 75, "code": "database_away", "text": "whoever did the job went away in the middle of it",
                    "fix": "run the command again: it goes on"}}'
    WHERE started_at IS NOT NULL AND finished_at IS NULL"#;

/// Ends what nobody has begun within a day; returns the jobs' numbers.
pub async fn expired(client: &Client, now: Timestamp) -> Result<Vec<i64>> {
    rows::all(client, EXPIRED, &[&now], "end expired jobs").await
}

const EXPIRED: &str = r#"
    UPDATE opsward.jobs SET finished_at = $1,
        outcome = '{"trouble": {"exit": 75, "code": "database_away", "text": "the job was not begun within a day: it is expired",
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
    rows::write(client, PROGRESS, &[&id, &progress.to_string()], "write a job's progress").await
}

const PROGRESS: &str = "UPDATE opsward.jobs SET progress = $2::text::jsonb WHERE id = $1";

/// Writes how a job came out.
pub async fn finish(client: &Client, id: i64, outcome: &Value, now: Timestamp) -> Result<()> {
    rows::write(client, FINISH, &[&id, &outcome.to_string(), &now], "write a job's outcome").await
}

const FINISH: &str = "
    UPDATE opsward.jobs SET outcome = $2::text::jsonb, finished_at = $3 WHERE id = $1";

/// A job by its number.
pub async fn get(client: &Client, id: i64) -> Result<Option<Job>> {
    rows::maybe(client, GET, &[&id], "look at a job").await
}

const GET: &str = "
    SELECT id, kind, args, started_at, finished_at, progress, outcome
    FROM opsward.jobs WHERE id = $1";

/// Whether the abort of a reclaim was handed over and waits for its turn.
pub async fn abort_waits(client: &Client) -> Result<bool> {
    rows::one(client, ABORT_WAITS, &[], "look for an abort").await
}

const ABORT_WAITS: &str = "
    SELECT EXISTS (SELECT FROM opsward.jobs
                   WHERE kind = 'reclaim' AND started_at IS NULL AND finished_at IS NULL
                     AND args ->> 'action' = 'abort')";
