//! Locks that writers of the log wait behind: one short try, then the others'
//! turn.
//!
//! A try waits for its lock and holds it for 200 ms together, or rolls back
//! (contract 6); all tries of a second share them ([`super::lock_budget`]). None is
//! made while somebody holds the table who will not be gone in time, and a failed one
//! is followed by a longer pause each time.

use crate::db::{
    Doing, Error, GenericClient, Lease, Params, Result, Transaction, activity::process, lock_budget::AT_MOST,
    rows,
};
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;

/// The server ends what takes longer; a server that does not answer is left
/// alone after this.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// Before a look whether a holder is gone, and between the first two tries.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After a lock that was had in vain: nobody is in the way.
const ONCE_MORE: Duration = Duration::from_millis(100);

/// Whom a lock waits for, and who waits behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// SHARE ROW EXCLUSIVE: writers.
    Writers,
    /// ACCESS EXCLUSIVE: everybody.
    Everybody,
    /// ACCESS EXCLUSIVE on a table of ours that nobody waits for: it is tried whoever
    /// holds it, and takes its time.
    Nobody,
}

/// The tables that a change locks, first the one that is locked first.
pub type Target<'a> = (&'a [&'a str], Behind);

/// Who is in the way of a lock on a table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holders {
    /// The table.
    pub table: String,
    /// Each in words; empty where nobody is to be seen any more.
    pub who: Vec<String>,
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who.is_empty() {
            true => write!(f, "a lock on {}", self.table),
            false => write!(f, "a lock on {}, held by {}", self.table, self.who.join("; ")),
        }
    }
}

/// What came of a try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Brief<T> {
    /// It is done and committed.
    Done(T),
    /// Others hold the table; nobody had to wait for us.
    Held(Holders),
    /// The lock was tried for and not had in time.
    Refused(Holders),
    /// It was had, and the change found that it may not be made yet ([`Error::Overtaken`]).
    Overtaken,
}

/// Changes something under a strong lock, in one short transaction on the lease's
/// connection, or not at all.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn briefly<T>(
    lease: &mut Lease,
    target: Target<'_>,
    change: impl AsyncFnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<Brief<T>> {
    let is_short = target.1 != Behind::Nobody;
    let budget = lease.locks().clone();
    let left = if is_short { budget.wait().await } else { AT_MOST };
    if let Some(holders) = held(&*lease.client()?, target).await? {
        return Ok(Brief::Held(holders));
    }
    let spent = is_short.then(|| budget.spend());
    let tx = if is_short { lease.begin().await? } else { lease.begin_rare().await? };
    let begun = Instant::now();
    let tried = async {
        if is_short {
            strong(&tx, left).await?
        } else {
            overtake(&tx).await?
        }
        change(&tx).await
    };
    let done = match is_short {
        true => timeout(ANSWERS_WITHIN, tried)
            .await
            .map_err(|_| Error::TooLong("change something under a lock"))?,
        false => tried.await,
    };
    match done {
        Ok(value) if !is_short || begun.elapsed() <= left => {
            tx.commit().await.doing("commit under a lock")?;
            return Ok(Brief::Done(value));
        }
        Err(Error::Overtaken(_)) => {
            tx.rollback().await.doing("give a lock back")?;
            return Ok(Brief::Overtaken);
        }
        Err(error) if !error.is_contended() => return Err(error),
        _ => tx.rollback().await.doing("give a lock back")?,
    }
    drop(spent);
    Ok(Brief::Refused(holders(&*lease.client()?, target).await?))
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
            Brief::Held(_) => FIRST_PAUSE,
            Brief::Overtaken => {
                *self = Self::default();
                ONCE_MORE
            }
            Brief::Done(_) => {
                *self = Self::default();
                Duration::ZERO
            }
        }
    }
}

/// Tries again and again, for a time.
pub struct Patience {
    until: Instant,
    pauses: Pauses,
}

impl Patience {
    /// For so long.
    pub fn of(time: Duration) -> Self {
        Self { until: Instant::now() + time, pauses: Pauses::default() }
    }

    /// The pause before the next try; `None` where it would come too late.
    pub fn pause<T>(&mut self, came: &Brief<T>) -> Option<Duration> {
        let pause = self.pauses.after(came);
        Some(pause).filter(|pause| Instant::now() + *pause < self.until)
    }
}

/// Before a lock that keeps writers out: it waits 100 ms at most (set when the
/// transaction began), makes an autovacuum yield within them, and no statement
/// takes longer than what is `left` of the 200 ms. The server ends a session that
/// hangs meanwhile. The lock does not wait for the disk either: a crash may lose its
/// commit, as a whole, and whatever commits after it comes after it in WAL.
pub async fn strong(tx: &Transaction<'_>, left: Duration) -> Result<()> {
    // Not prepared later than what it is sent along with.
    tx.prepare_cached(BOUND).await.doing("prepare a lock")?;
    let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    rows::cached_one(tx, STRONG, &[&left], "prepare a lock").await?;
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
/// As if those of the 200 ms that are not left had passed.
const STRONG: &str = "
    SELECT set_config('statement_timeout', $1::int::text, true),
           set_config('idle_in_transaction_session_timeout', $1::int::text, true),
           set_config('synchronous_commit', 'off', true),
           set_config('opsward.since',
                      (clock_timestamp() - make_interval(secs => (200 - $1::int) / 1000.0))::text, true)";

/// Bounds the next statement by what is left of the 200 ms since [`strong`]:
/// the server counts each one anew. Sent along with it, it costs no answer.
pub async fn bound(tx: &Transaction<'_>) -> Result<()> {
    rows::cached_one(tx, BOUND, &[], "bound a lock").await.map(|_| ())
}

const BOUND: &str = "
    SELECT set_config('statement_timeout', greatest(1, 200 - 1000 * extract(
        epoch FROM clock_timestamp() - current_setting('opsward.since')::timestamptz))::int::text, true)";

/// Who makes a try not worth it: it would wait in vain, and others behind it.
///
/// # Errors
/// The database's.
pub async fn held(client: &impl GenericClient, (tables, behind): Target<'_>) -> Result<Option<Holders>> {
    if behind == Behind::Nobody {
        return Ok(None);
    }
    let (holders, stays) = in_the_way(client, (tables, behind)).await?;
    Ok(Some(holders).filter(|_| stays))
}

/// Who is in the way of a lock, for as long as it may be.
///
/// # Errors
/// The database's.
pub async fn holders(client: &impl GenericClient, target: Target<'_>) -> Result<Holders> {
    Ok(in_the_way(client, target).await?.0)
}

/// The holders of the first table that has any, and whether one of them stays: it has
/// been there for longer than a lock is waited for, and does not yield as autovacuum does.
async fn in_the_way(client: &impl GenericClient, (tables, behind): Target<'_>) -> Result<(Holders, bool)> {
    let params: Params<'_> = &[&tables, &(behind != Behind::Writers)];
    let rows = rows::cached(client, HOLDERS, params, "look who holds a lock").await?;
    let table = rows.first().map_or_else(|| *tables.last().unwrap_or(&""), |row| row.get(6));
    let rows = rows.iter().filter(|row| row.get::<_, &str>(6) == table);
    let stays = rows.clone().any(|row| row.get(5));
    let words = |row: &Row| row.get::<_, Option<String>>(8).unwrap_or_else(|| process(row));
    Ok((Holders { table: table.to_owned(), who: rows.map(words).collect() }, stays))
}

/// A VACUUM against wraparound yields to nobody; it may be seen before its lock. What was prepared
/// holds its locks without a process.
const HOLDERS: &str = "
    WITH held AS (
        SELECT t.name, t.n, l.pid, l.virtualtransaction
        FROM unnest($1::text[]) WITH ORDINALITY AS t(name, n), pg_locks l
        WHERE l.relation = to_regclass(t.name) AND l.granted
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND ($2::boolean OR l.mode NOT IN ('AccessShareLock', 'RowShareLock')))
    SELECT 0 AS pid, '' AS who, '' AS application, p.prepared AS since, '' AS query, true AS stays, name, n,
           format('the prepared transaction %s of %s, begun %s', p.gid, p.owner,
                  to_char(p.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')) AS words
    FROM held JOIN pg_locks x ON x.virtualtransaction = held.virtualtransaction
    JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
    WHERE held.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
    UNION
    SELECT a.pid, coalesce(a.usename, a.backend_type), a.application_name, a.xact_start, a.query,
           coalesce(clock_timestamp() - a.xact_start > interval '100 ms' AND a.backend_type <> 'autovacuum worker'
                    OR a.query LIKE 'autovacuum: VACUUM% (to prevent wraparound)', false) AS stays,
           t.name, t.n, NULL
    FROM unnest($1::text[]) WITH ORDINALITY AS t(name, n), pg_stat_activity a
    WHERE a.pid <> pg_backend_pid() AND a.datname = current_database()
      AND (EXISTS (SELECT FROM held h WHERE h.pid = a.pid AND h.name = t.name)
           OR a.query LIKE 'autovacuum: VACUUM% ' || t.name || ' (to prevent wraparound)')
    ORDER BY n, stays DESC, pid LIMIT 5";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_back_off_to_a_minute_and_looks_do_not() {
        let mut pauses = Pauses::default();
        let mut after = |came: Brief<()>| pauses.after(&came).as_secs();
        let [held, refused] = [Brief::Held(Holders::default()), Brief::Refused(Holders::default())];
        assert_eq!(after(held.clone()), 2);
        let tries: Vec<u64> = (0..7).map(|_| after(refused.clone())).collect();
        assert_eq!(tries, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(after(held), 2);
        assert_eq!((after(Brief::Done(())), after(refused)), (0, 2));
    }

    #[test]
    fn who_is_in_the_way_is_one_sentence() {
        let of = |who: &[&str]| {
            let who = who.iter().map(|w| (*w).to_owned()).collect();
            Holders { table: "public.ops".into(), who }.to_string()
        };
        assert_eq!(of(&[]), "a lock on public.ops");
        assert_eq!(of(&["a", "b"]), "a lock on public.ops, held by a; b");
    }
}
