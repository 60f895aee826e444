//! Whether the log is the one that opsward remembers: floors, traces, cursors,
//! census and watermark of a log that was put back from a backup, truncated or
//! replaced would keep ops out, or skip some for ever.

use crate::db::{Client, GenericClient, Result, digest::identity, rows};
use crate::values::OpUlid;
use jiff::Timestamp;
use tracing::warn;

/// Forgets what is remembered of another log, and remembers this one; says why, where it forgot.
/// Whatever deletes or counts calls this first: what it leaves behind is of this log.
///
/// # Errors
/// The database's; also that somebody holds the log or the traces.
pub async fn settle(client: &Client, now_ms: u64) -> Result<Option<String>> {
    let database = identity(client).await?;
    let why = in_transaction(client, database.as_deref()).await?;
    // One that lies ahead may be somebody's mistake, and removed.
    let latest = OpUlid::last_of_ms(now_ms);
    rows::write(client, NOTE, &[&database, &latest.as_str()], "remember the newest op").await?;
    Ok(why)
}

/// An op that is remembered stays so in an empty log: the next look finds it
/// gone. A table that took the place of the one that was looked at is left to that, too.
const NOTE: &str = "
    INSERT INTO opsward.known_log AS k (database, relation, newest)
    SELECT $1::text, 'public.ops'::regclass::oid,
           (SELECT o.ulid FROM public.ops o WHERE o.ulid <= $2::text ORDER BY o.ulid DESC LIMIT 1)
    ON CONFLICT (one) DO UPDATE SET database = excluded.database, relation = excluded.relation,
        newest = coalesce(excluded.newest, k.newest)
    WHERE k.relation = excluded.relation
        OR k.database IS NOT NULL AND k.database IS DISTINCT FROM excluded.database";

/// Forgets what is remembered of another log; says why, where it did. Whatever
/// trusts own state about the log calls this first. Remembers which table it saw.
///
/// # Errors
/// The database's; also that somebody holds the log or the traces.
pub async fn check(client: &Client) -> Result<Option<String>> {
    let database = identity(client).await?;
    let why = in_transaction(client, database.as_deref()).await?;
    rows::write(client, SAW, &[&database], "remember which log this is").await?;
    Ok(why)
}

/// One that takes the log's place between the look and this is found by the next look.
const SAW: &str = "
    INSERT INTO opsward.known_log AS k (database, relation)
    SELECT $1::text, 'public.ops'::regclass::oid
    WHERE NOT EXISTS (SELECT FROM opsward.known_log l WHERE l.database IS NOT DISTINCT FROM $1::text)
    ON CONFLICT (one) DO UPDATE SET database = excluded.database
    WHERE k.database IS NULL AND k.relation = excluded.relation";

/// The same in a transaction of the caller's, which must commit; `database` is
/// what [`identity`] says.
pub(in crate::db) async fn in_transaction(
    client: &impl GenericClient,
    database: Option<&str>,
) -> Result<Option<String>> {
    let row = rows::cached_one(client, CHECK, &[&database], "look whether the log is the same").await?;
    let why: Option<String> = row.get(0);
    if let Some(why) = &why {
        warn!(why, "the log was replaced: floors, traces, census and our cursors of it are forgotten");
    }
    Ok(why)
}

/// What a TRUNCATE left does not name the database: it is this one.
const CHECK: &str = "
    SELECT opsward.check_log((SELECT $1::text FROM opsward.known_log WHERE database IS NOT NULL))";

/// When what was remembered of another log was last forgotten, or our cursor of a peer
/// lowered, and why.
pub async fn forgotten(client: &Client) -> Result<Option<(Timestamp, String)>> {
    rows::maybe(client, FORGOTTEN, &[], "look for a log that was replaced").await
}

const FORGOTTEN: &str = "
    SELECT ended_at, outcome FROM opsward.history WHERE task = 'log' ORDER BY began_at DESC, id DESC LIMIT 1";
