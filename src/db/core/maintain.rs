//! VACUUM, CREATE INDEX and their kind on `ops`: on the lease's connection,
//! with a second one that looks whether anybody waits behind them, and cancels
//! them then. A node's start-up waits behind every one of them.

use crate::db::{Client, Db, Doing, Error, Lease, Result, lease::set_where_known, lock_budget::Budget, rows};
use deadpool::managed::Object;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::CancelToken;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How often it is looked whether a session waits (contract 1).
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same while a VACUUM cuts off the end of a table. It looks as often itself whether a
/// session waits, gives back what it has looked at by then, and lets the session go first: it
/// is cancelled only when that has used up what writers may be kept waiting.
const LOOK_WHILE_TRUNCATING: Duration = Duration::from_millis(20);
/// If this check times out, the watcher counts as dead.
const LOOK_LONGEST: Duration = Duration::from_secs(2);

/// How a statement that could be cancelled came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It did its work.
    Done,
    /// Another session waited behind it, or was in its way: to be tried again later.
    Yielded,
    /// It was told to stop.
    Stopped,
}

/// Runs one statement outside a transaction on the lease's connection, as long
/// as it takes, unless another session waits behind it or `stop` says so.
/// `settings` are `SET`s for it, undone afterwards by `RESET`. Whatever goes
/// wrong, it is over when this returns, and the session is as it was.
///
/// # Errors
/// The database's; among them that nobody could watch it, so that it was
/// cancelled.
pub async fn watched(
    lease: &mut Lease,
    db: &Db,
    statement: &str,
    settings: &[(&str, String)],
    stop: &CancellationToken,
) -> Result<Ended> {
    let pid = lease.pid();
    let client = lease.client()?;
    let mut watch = Watch {
        db,
        client: Some(db.client().await?),
        pid,
        session: client.cancel_token(),
        failed: None,
        every: LOOK_EVERY,
        looked: Instant::now(),
    };
    let settings = || {
        [("statement_timeout", "0"), ("lock_timeout", "0")]
            .into_iter()
            .chain(settings.iter().map(|(n, v)| (*n, v.as_str())))
    };
    let sets: Vec<String> = settings().map(|(name, value)| format!("SET {name} = '{value}'")).collect();
    // Together they are one transaction: all or none.
    client.batch_execute(&sets.join("; ")).await.doing("prepare maintenance")?;
    let (result, why) = watch.over(client.batch_execute(statement), stop).await;
    let resets: Vec<String> = settings().map(|(name, _)| format!("RESET {name}")).collect();
    let mut reset = client.batch_execute(&resets.join("; ")).await;
    if reset.as_ref().is_err_and(is_cancelled) {
        // It came too late for the statement.
        reset = client.batch_execute(&resets.join("; ")).await;
    }
    let ended = match (result, watch.failed) {
        (Ok(()), _) => Ended::Done,
        (Err(e), Some(error)) if is_cancelled(&e) => return Err(error),
        (Err(e), None) if is_cancelled(&e) && why != Ended::Done => why,
        (Err(e), _) => match Error::of("maintain the log", e) {
            // Another session was in the way. It yields to this one, as to a waiting one.
            error if error.is_held_up() => {
                debug!(%error, "maintenance met a lock");
                Ended::Yielded
            }
            error => return Err(error),
        },
    };
    reset.doing("end maintenance")?;
    Ok(ended)
}

fn is_cancelled(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::QUERY_CANCELED)
}

impl Seen {
    /// Whether the one at work has to end, so long after the look before this one.
    fn means(&self, since: Duration, locks: &Budget) -> Ended {
        // A wait that is shorter than the time between two looks is often not seen: one that
        // is seen counts for those.
        let counted = |wait: Duration| wait.max(LOOK_WHILE_TRUNCATING).min(since);
        match self.waits {
            Some(wait) if !self.truncates || locks.saw(counted(wait)) => Ended::Yielded,
            _ => Ended::Done,
        }
    }
}

/// The second connection; another one where it is lost.
struct Watch<'a> {
    db: &'a Db,
    client: Option<Client>,
    /// The session at work, and how it is cancelled without one.
    pid: i32,
    session: CancelToken,
    /// Nobody watches any more, because of this.
    failed: Option<Error>,
    /// How long after the last look the next one is due, and when that was.
    every: Duration,
    looked: Instant,
}

/// What a look found.
struct Seen {
    /// How long another session has waited behind the one at work.
    waits: Option<Duration>,
    /// The one at work cuts off the end of a table.
    truncates: bool,
}

impl Watch<'_> {
    /// Waits for the statement's end, and says why it was cancelled, if it was.
    async fn over<T>(&mut self, work: impl Future<Output = T>, stop: &CancellationToken) -> (T, Ended) {
        let (mut work, mut why) = (std::pin::pin!(work), Ended::Done);
        loop {
            tokio::select! {
                result = &mut work => break (result, why),
                () = sleep(self.every) => {
                    if why == Ended::Done && self.failed.is_none() {
                        why = self.reason(stop).await;
                    }
                    if why != Ended::Done || self.failed.is_some() {
                        self.cancel().await;
                    }
                }
            }
        }
    }

    /// Why the statement has to end, if it has to.
    async fn reason(&mut self, stop: &CancellationToken) -> Ended {
        if stop.is_cancelled() {
            return Ended::Stopped;
        }
        let looked = match self.look().await {
            Err(error) => {
                warn!(%error, "the watch over maintenance is lost: another is begun");
                // Not to be handed out again.
                drop(self.client.take().map(Object::take));
                self.look().await
            }
            looked => looked,
        };
        let since = std::mem::replace(&mut self.looked, Instant::now()).elapsed();
        match looked {
            Ok(seen) => {
                self.every = if seen.truncates { LOOK_WHILE_TRUNCATING } else { LOOK_EVERY };
                seen.means(since, self.db.locks())
            }
            Err(error) => {
                self.failed = Some(error);
                Ended::Done
            }
        }
    }

    async fn look(&mut self) -> Result<Seen> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(self.db.client().await?),
        };
        let looked = async {
            let statement = client.prepare_cached(WAITED_FOR).await?;
            client.query_one(&statement, &[&self.pid]).await
        };
        match timeout(LOOK_LONGEST, looked).await {
            Ok(row) => {
                let row = row.doing("watch maintenance")?;
                let seconds = row.get::<_, Option<f64>>(0).map(|wait| wait.clamp(0.0, 60.0));
                Ok(Seen { waits: seconds.map(Duration::from_secs_f64), truncates: row.get(1) })
            }
            Err(_) => Err(Error::Away("the watch over maintenance got no answer".into())),
        }
    }

    /// Asked again and again, until the statement has ended.
    async fn cancel(&mut self) {
        let asked = async {
            if self.failed.is_none()
                && let Some(client) = &self.client
                && client.execute(CANCEL, &[&self.pid]).await.is_ok()
            {
                return Ok(());
            }
            self.db.cancel(&self.session).await
        };
        match timeout(LOOK_LONGEST, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "maintenance is not cancelled yet"),
            Err(_) => debug!("maintenance is not cancelled yet"),
        }
    }
}

/// Only sessions that wait for a lock are asked for what they wait for. What
/// other roles' sessions wait for is hidden in `pg_stat_activity`, not here.
const WAITED_FOR: &str = "
    SELECT (SELECT max(coalesce(extract(epoch FROM clock_timestamp() - l.waitstart), 0))::float8
            FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
            WHERE NOT l.granted AND a.datname = current_database()
              AND coalesce(a.backend_type, 'client backend') = 'client backend'
              AND $1 = ANY (pg_blocking_pids(l.pid))),
           EXISTS (SELECT FROM pg_stat_progress_vacuum WHERE pid = $1 AND phase = 'truncating heap')";
const CANCEL: &str = "SELECT pg_cancel_backend($1)";

/// Puts what the lease's session deleted and moved into the server's figures. They come up to a
/// second late by themselves: after a VACUUM, as rows that it left dead.
pub async fn tell_figures(lease: &mut Lease) -> Result<()> {
    set_where_known(&*lease.client()?, TELL_FIGURES, "bring the figures of ops up to date").await
}

const TELL_FIGURES: &str = "SELECT pg_stat_force_next_flush()";

/// Space in the table is reused, none is given back: that would lock it.
pub const VACUUM: &str = "VACUUM (TRUNCATE off, INDEX_CLEANUP on, PROCESS_TOAST on) public.ops";

/// The planner is told what the table is like now.
pub const ANALYZE: &str = "ANALYZE public.ops";

/// The empty end is given back, if the lock for it can be had at once. Entries
/// of dead rows must go from the indexes, or their pages do not count as empty.
pub const VACUUM_AND_TRUNCATE: &str = "VACUUM (TRUNCATE on, INDEX_CLEANUP on, PROCESS_TOAST on) public.ops";

/// Whether this role may VACUUM the log. Where it may not, the server only
/// says so in a notice and skips the table.
pub async fn may_vacuum(client: &Client) -> Result<bool> {
    rows::one(client, MAY_VACUUM, &[], "look who owns the log").await
}

const MAY_VACUUM: &str = "
    SELECT pg_has_role(c.relowner, 'USAGE') OR pg_has_role(d.datdba, 'USAGE')
    FROM pg_class c, pg_database d
    WHERE c.oid = 'public.ops'::regclass AND d.datname = current_database()";

/// Rows deleted from the log since a VACUUM of it came to its end.
pub async fn unvacuumed(client: &Client) -> Result<u64> {
    rows::one(client, UNVACUUMED, &[], "see whether a VACUUM is due").await
}

const UNVACUUMED: &str = "SELECT rows FROM opsward.unvacuumed ORDER BY n DESC LIMIT 1";

/// Whether a VACUUM pays: a hundredth of the log was deleted since the last one,
/// or anything at all more than a day ago.
pub async fn vacuum_pays(client: &Client) -> Result<bool> {
    rows::one(client, PAYS, &[], "see whether a VACUUM is due").await
}

const PAYS: &str = "
    SELECT coalesce(bool_or(u.rows > 0 AND (u.rows * 100 >= greatest(c.reltuples, 0)
                                            OR u.vacuumed_at < now() - interval '1 day')), false)
    FROM opsward.unvacuumed u, pg_class c WHERE c.oid = to_regclass('public.ops')";

/// Remembers that a VACUUM came to its end. Nothing was deleted meanwhile: it
/// ran on the lease's connection.
pub async fn vacuumed(lease: &mut Lease) -> Result<()> {
    rows::write(&*lease.client()?, VACUUMED, &[], "remember a VACUUM").await
}

const VACUUMED: &str = "UPDATE opsward.unvacuumed SET rows = 0, vacuumed_at = now() WHERE rows > 0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_ends_when_it_used_up_what_writers_may_wait() {
        let (locks, ms) = (Budget::default(), Duration::from_millis);
        let means = |waits, truncates| Seen { waits, truncates }.means(ms(30), &locks);
        assert_eq!(means(Some(ms(1)), false), Ended::Yielded, "a node that starts waits behind it");
        assert_eq!(means(None, false), Ended::Done);
        // VACUUM lets them go first itself.
        assert_eq!([(); 5].map(|()| means(Some(ms(40)), true)), [Ended::Done; 5]);
        assert_eq!(means(Some(ms(20)), true), Ended::Yielded, "170 ms within a second");
        assert_eq!(means(None, true), Ended::Done);
        // Most short waits fall between two looks: one that is seen counts as long as that is.
        let locks = Budget::default();
        let means = || Seen { waits: Some(ms(1)), truncates: true }.means(ms(20), &locks);
        assert_eq!([(); 7].map(|()| means()), [Ended::Done; 7]);
        assert_eq!(means(), Ended::Yielded);
    }
}
