//! Locks that writers of the log wait behind: one short try, then the others'
//! turn.
//!
//! A try waits for its lock and holds it for 200 ms together, or rolls back
//! (contract 6). None is made while somebody holds the table who will not be
//! gone in time, and a failed one is followed by a longer pause each time.

use crate::db::error::{Doing, Error, Result};
use crate::db::lease::Lease;
use crate::db::transaction::{GenericClient, Transaction};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;

/// Waiting for the lock and holding it.
pub const AT_MOST: Duration = Duration::from_millis(200);
/// The server ends what takes longer; a server that does not answer is left
/// alone after this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Before a look whether a holder is gone, and between the first two tries.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Whom a lock waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// SHARE ROW EXCLUSIVE: writers.
    Writers,
    /// ACCESS EXCLUSIVE: everybody.
    Everybody,
}

/// What came of a try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Brief<T> {
    /// It is done and committed.
    Done(T),
    /// Others hold the table, in words; nobody had to wait for us.
    Held(Vec<String>),
    /// The lock was tried for and not had in time: who holds the table.
    Refused(Vec<String>),
}

/// Changes something under a strong lock on a table, in one short transaction
/// on the lease's connection, or not at all.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn briefly<T>(
    lease: &mut Lease,
    (table, behind): (&str, Behind),
    change: impl AsyncFnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<Brief<T>> {
    let client = &*lease.client()?;
    let held = in_the_way(client, table, behind).await?;
    if held.iter().any(|(_, stays)| *stays) || wraparound(client, table).await? {
        return Ok(Brief::Held(words(held)));
    }
    let tx = lease.begin().await?;
    let begun = Instant::now();
    let tried = async {
        strong(&tx).await?;
        change(&tx).await
    };
    let done = match timeout(ANSWERS_WITHIN, tried).await {
        Ok(done) => done,
        Err(_) => return Err(Error::TooLong("change something under a lock")),
    };
    match done {
        Ok(value) if begun.elapsed() <= AT_MOST => {
            tx.commit().await.doing("commit under a lock")?;
            return Ok(Brief::Done(value));
        }
        Err(error) if !is_contended(&error) => return Err(error),
        _ => tx.rollback().await.doing("give a lock back")?,
    }
    Ok(Brief::Refused(words(in_the_way(&*lease.client()?, table, behind).await?)))
}

fn words(held: Vec<(String, bool)>) -> Vec<String> {
    held.into_iter().map(|(words, _)| words).collect()
}

/// How long to wait for the next try: a look at who holds a table is in nobody's
/// way, tries are, so each waits twice as long as the last, up to a minute.
#[derive(Clone, Debug)]
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pauses {
    /// The pause after a look, or after a try.
    pub fn after<T>(&mut self, came: &Brief<T>) -> Duration {
        match came {
            Brief::Refused(_) => {
                let pause = self.0;
                self.0 = (pause * 2).min(LONGEST_PAUSE);
                pause
            }
            _ => FIRST_PAUSE,
        }
    }
}

/// Tries again and again, as long as `patience`; between two tries `rest` is
/// told who holds the table and for how long to wait, and says whether to go on.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn patiently<T>(
    lease: &mut Lease,
    target: (&str, Behind),
    patience: Duration,
    change: impl AsyncFn(&Transaction<'_>) -> Result<T>,
    mut rest: impl AsyncFnMut(&[String], Duration) -> bool,
) -> Result<Brief<T>> {
    let (begun, mut pauses) = (Instant::now(), Pauses::default());
    loop {
        let came = briefly(lease, target, &change).await?;
        let pause = pauses.after(&came);
        match &came {
            Brief::Held(who) | Brief::Refused(who)
                if begun.elapsed() + pause < patience && rest(who, pause).await => {}
            _ => return Ok(came),
        }
    }
}

/// Before a lock that keeps writers out: it waits 100 ms at most (set when the
/// transaction began), makes an autovacuum yield within them, and no statement
/// takes longer. The server ends a session that hangs meanwhile. The lock does
/// not wait for the disk either: a crash may lose its commit, as a whole, and
/// whatever commits after it comes after it in WAL.
pub async fn strong(tx: &Transaction<'_>) -> Result<()> {
    // Not prepared later than what it is sent along with.
    tx.prepare_cached(BOUND).await.doing("prepare a lock")?;
    tx.batch_execute(STRONG).await.doing("prepare a lock")?;
    overtake(tx).await
}

/// Makes an autovacuum that is in the way of a lock yield before the lock is
/// given up, where this role may; else autovacuum is waited for.
pub async fn overtake(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute(OVERTAKE).await.doing("prepare a lock")
}

const OVERTAKE: &str = "DO $overtake$ BEGIN
    SET LOCAL deadlock_timeout = '20ms';
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END $overtake$";
const STRONG: &str = "SET LOCAL statement_timeout = '200ms'; \
    SET LOCAL idle_in_transaction_session_timeout = '200ms'; \
    SET LOCAL synchronous_commit = off; \
    SELECT set_config('opsward.since', clock_timestamp()::text, true)";

/// Bounds the next statement by what is left of the 200 ms since [`strong`]:
/// the server counts each one anew. Sent along with it, it costs no answer.
pub async fn bound(tx: &Transaction<'_>) -> Result<()> {
    let statement = tx.prepare_cached(BOUND).await.doing("bound a lock")?;
    tx.query_one(&statement, &[]).await.doing("bound a lock")?;
    Ok(())
}

const BOUND: &str = "
    SELECT set_config('statement_timeout', greatest(1, 200 - 1000 * extract(
        epoch FROM clock_timestamp() - current_setting('opsward.since')::timestamptz))::int::text, true)";

/// Whether a lock could not be had in time, or not be held long enough.
pub fn is_contended(error: &Error) -> bool {
    let codes = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::QUERY_CANCELED];
    matches!(error, Error::TooLong(_)) || error.code().is_some_and(|code| codes.contains(code))
}

/// Whether a strong lock on a table is not worth a try: it would wait in vain,
/// and writers behind it.
pub async fn is_held(client: &impl GenericClient, table: &str, behind: Behind) -> Result<bool> {
    let stays = in_the_way(client, table, behind).await?.iter().any(|(_, stays)| *stays);
    Ok(stays || wraparound(client, table).await?)
}

/// Whether a VACUUM to prevent wraparound is at a table, as far as this role
/// may see it: it yields to nobody.
async fn wraparound(client: &impl GenericClient, table: &str) -> Result<bool> {
    let statement = client.prepare_cached(WRAPAROUND).await.doing("look for a VACUUM")?;
    Ok(client.query_one(&statement, &[&table]).await.doing("look for a VACUUM")?.get(0))
}

/// The words are the server's own: no statement begins so.
const WRAPAROUND: &str = "
    SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                   AND query LIKE 'autovacuum: VACUUM% ' || $1::text || ' (to prevent wraparound)')";

/// Who holds a lock on a table that is in the way of a strong one, each in
/// words.
pub async fn holders(client: &impl GenericClient, table: &str) -> Result<Vec<String>> {
    Ok(words(in_the_way(client, table, Behind::Everybody).await?))
}

/// The holders of locks on a table, and whether each stays: it has been there
/// for longer than a lock is waited for, and does not yield as autovacuum does.
async fn in_the_way(client: &impl GenericClient, table: &str, behind: Behind) -> Result<Vec<(String, bool)>> {
    let statement = client.prepare_cached(HOLDERS).await.doing("look who holds a lock")?;
    let rows = client.query(&statement, &[&table, &(behind == Behind::Everybody)]).await;
    Ok(rows.doing("look who holds a lock")?.iter().map(|r| (r.get(0), r.get(1))).collect())
}

const HOLDERS: &str = "
    SELECT DISTINCT format('process %s (%s, %s, in a transaction for %s s): %s', a.pid,
                           coalesce(a.usename, a.backend_type), coalesce(nullif(a.application_name, ''), '-'),
                           coalesce(extract(epoch FROM clock_timestamp() - a.xact_start)::bigint, 0),
                           left(regexp_replace(a.query, '\\s+', ' ', 'g'), 120)),
           coalesce(clock_timestamp() - a.xact_start > interval '100 ms'
                    AND a.backend_type <> 'autovacuum worker', false)
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.relation = to_regclass($1::text) AND l.granted AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND ($2 OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
    LIMIT 5";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_back_off_to_a_minute_and_looks_do_not() {
        let mut pauses = Pauses::default();
        let mut after = |came: Brief<()>| pauses.after(&came).as_secs();
        let [held, refused] = [Brief::Held(Vec::new()), Brief::Refused(Vec::new())];
        assert_eq!(after(held.clone()), 2);
        let tries: Vec<u64> = (0..7).map(|_| after(refused.clone())).collect();
        assert_eq!(tries, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(after(held), 2);
    }
}
