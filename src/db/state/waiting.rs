//! `opsward.waiting`: what bulk work waits for, for every view.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use jiff::Timestamp;

/// A wait of one piece of work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Which work.
    pub work: String,
    /// What for, and who holds it.
    pub what: String,
    /// Since when.
    pub since: Timestamp,
}

/// Notes what a piece of work waits for; `pid` is the lease's session. Returns since when.
pub async fn note(
    client: &Client,
    work: &str,
    (what, pid): (&str, i32),
    now: Timestamp,
) -> Result<Timestamp> {
    Ok(client.query_one(NOTE, &[&work, &what, &now, &pid]).await.doing("note a wait")?.get(0))
}

/// Up to the first `: ` it says whom it waits for; the rest is what they are at.
const NOTE: &str = "
    INSERT INTO opsward.waiting AS w (work, what, since, pid) VALUES ($1, $2, $3, $4)
    ON CONFLICT (work) DO UPDATE SET what = excluded.what, pid = excluded.pid,
        since = CASE WHEN w.pid = excluded.pid AND split_part(w.what, ': ', 1) = split_part(excluded.what, ': ', 1)
                     THEN w.since ELSE excluded.since END
    RETURNING since";

/// A piece of work waits no more.
pub async fn over(client: &Client, work: &str) -> Result<()> {
    client.execute(OVER, &[&work]).await.doing("end a wait")?;
    Ok(())
}

const OVER: &str = "DELETE FROM opsward.waiting WHERE work = $1";

/// What is waited for now by whoever `holder` is, the lease's session: the longest first.
pub async fn all(client: &Client, holder: Option<i32>) -> Result<Vec<Waiting>> {
    let rows = client.query(ALL, &[&holder]).await.doing("read what is waited for")?;
    Ok(rows.iter().map(|r| Waiting { work: r.get(0), what: r.get(1), since: r.get(2) }).collect())
}

const ALL: &str = "SELECT work, what, since FROM opsward.waiting WHERE pid = $1::int ORDER BY since, work";
