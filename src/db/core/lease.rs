//! The lease: a session advisory lock on a connection of its own. Whatever
//! deletes from or rewrites `ops` runs on that very connection: the lock of a
//! lost session is free for the next holder while another connection of the
//! first still commits.

use crate::db::{
    Client, Db, Doing, Error, Isolation, Result, Transaction, lock_budget::Budget, presence::PRESENCE_LOCK,
    rows, transaction,
};
use deadpool::managed::Object;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// One number in Postgres' space of advisory locks: "opswardL" in ASCII.
pub(in crate::db) const LEASE_LOCK: i64 = 0x6f70_7377_6172_644c;

/// The lease, held as long as this lives and its session does.
pub struct Lease {
    client: Option<Client>,
    pid: i32,
    locks: Budget,
}

/// Who holds the lease.
#[derive(Clone, PartialEq, Eq, Debug, serde::Deserialize)]
pub struct Holder {
    /// The server's process of its session.
    pub pid: i32,
    /// What it calls itself: `opsward` is a daemon, `opsward prune` a command.
    pub application: String,
    /// When its session began.
    pub since: Timestamp,
}

impl Holder {
    /// Whether it is a daemon, which takes jobs.
    pub fn is_daemon(&self) -> bool {
        self.application == "opsward"
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (server process {}, since {})", self.application, self.pid, self.since)
    }
}

impl Lease {
    /// Takes the lease on a connection of the pool, which it keeps; `Err` says
    /// who holds it, where that can be seen.
    pub async fn take(db: &Db) -> Result<std::result::Result<Self, Option<Holder>>> {
        let client = db.client().await?;
        let taken = client.query_one(TAKE, &[&LEASE_LOCK]).await.doing("take the lease")?;
        if !taken.get::<_, bool>(0) {
            return Ok(Err(holder(&client).await?));
        }
        let lease = Self { client: Some(client), pid: taken.get(1), locks: db.locks().clone() };
        lease.sessions_own().await?;
        Ok(Ok(lease))
    }

    /// What it is at is not to outlive this process: nobody would watch it. This session is
    /// never handed back to the pool.
    async fn sessions_own(&self) -> Result<()> {
        set_where_known(self.get()?, ENDS_WITH_ITS_CLIENT, "keep the lease").await
    }

    fn get(&self) -> Result<&Client> {
        self.client.as_ref().ok_or_else(|| Error::Away("the lease is given back".into()))
    }

    /// What is left of the time that the node's writers may be kept waiting.
    pub(in crate::db) fn locks(&self) -> &Budget {
        &self.locks
    }

    /// How long writers must be left alone; `None` where they need not be.
    pub fn pause(&self) -> Option<Duration> {
        self.locks.pause()
    }

    /// The server's process of its session.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The connection that holds it.
    ///
    /// # Errors
    /// None while the lease is held.
    pub fn client(&mut self) -> Result<&mut Client> {
        self.client.as_mut().ok_or_else(|| Error::Away("the lease is given back".into()))
    }

    /// Makes sure that the session still lives and still holds the lock.
    ///
    /// # Errors
    /// It does not: whatever was being done has to end.
    pub async fn check(&self) -> Result<()> {
        let row = self.get()?.query_one(HELD, &[&LEASE_LOCK]).await.doing("check the lease")?;
        held(self.pid, row.get(0), row.get(1))
    }

    /// Begins a transaction of a batch: bounded in time, never waiting for a
    /// lock over 100 ms, and only while the lease is held.
    ///
    /// # Errors
    /// The lease is lost, or the database's.
    pub async fn begin(&mut self) -> Result<Transaction<'_>> {
        let pid = self.pid;
        let tx = transaction::begin(self.client()?, Isolation::Write).await?;
        tx.batch_execute(BOUNDS).await.doing("begin a batch")?;
        own(pid, tx).await
    }

    /// The same for rare work on tables that nobody waits for, such as a drop: it has the
    /// longest bound.
    pub(in crate::db) async fn begin_rare(&mut self) -> Result<Transaction<'_>> {
        let pid = self.pid;
        let tx = transaction::begin_rare(self.client()?).await?;
        tx.batch_execute("SET LOCAL lock_timeout = '100ms'").await.doing("begin a batch")?;
        own(pid, tx).await
    }
}

/// Makes sure that the transaction's session holds the lease still.
async fn own(pid: i32, tx: Transaction<'_>) -> Result<Transaction<'_>> {
    // Not prepared later than what it is sent along with.
    tx.prepare_cached(BOUND).await.doing("begin a batch")?;
    let row = rows::cached_one(&tx, HELD, &[&LEASE_LOCK], "check the lease").await?;
    held(pid, row.get(0), row.get(1))?;
    Ok(tx)
}

fn held(pid: i32, now: i32, holds: bool) -> Result<()> {
    match pid == now && holds {
        true => Ok(()),
        false => Err(Error::Away(format!("the lease is lost: its session was {pid} and is {now}"))),
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Closed, not handed back: the lock goes with the session.
        if let Some(client) = self.client.take() {
            drop(Object::take(client));
        }
    }
}

/// What a session is at does not outlive its client by more than a second.
pub(super) const ENDS_WITH_ITS_CLIENT: &str = "SET client_connection_check_interval = '1s'";

/// Sets something for a session, on servers that know it.
pub(super) async fn set_where_known(client: &Client, sql: &str, doing: &'static str) -> Result<()> {
    match client.batch_execute(sql).await {
        Err(e) if e.as_db_error().is_some() => Ok(()),
        done => done.doing(doing),
    }
}

/// Bounds each of the statements that follow in a batch by what is left of the
/// batch's time, in so many parts; sent along with the first of them, it costs
/// no answer of its own. A batch that is late fails by it, and is rolled back.
pub async fn bound(tx: &Transaction<'_>, parts: i32) -> Result<()> {
    rows::cached_one(tx, BOUND, &[&parts], "bound a batch").await.map(|_| ())
}

/// 4 s from its BEGIN on: the rest of contract 1's 5 s is for its COMMIT.
const BOUND: &str = "
    SELECT set_config('statement_timeout', greatest(1,
        (4000 - extract(epoch FROM clock_timestamp() - now()) * 1000) / $1::int)::int::text, true)";

const TAKE: &str = "SELECT pg_try_advisory_lock($1), pg_backend_pid()";
const BOUNDS: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '4s'; \
    SET LOCAL synchronous_commit = local";

/// A big number's lock is seen as its two halves.
const HELD: &str = "
    SELECT pg_backend_pid(), EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND objsubid = 1
          AND classid::bigint = ($1::bigint >> 32) AND objid::bigint = ($1::bigint & 4294967295))";

/// Who holds the lease now.
pub async fn holder(client: &Client) -> Result<Option<Holder>> {
    rows::maybe(client, HOLDER, &[&LEASE_LOCK], "look who holds the lease").await
}

/// Whether a daemon serves this database, with the lease or while it takes it anew.
pub async fn daemon_is_there(client: &Client) -> Result<bool> {
    let row = client.query_opt(HOLDER, &[&PRESENCE_LOCK]).await.doing("look for a daemon")?;
    Ok(row.is_some())
}

/// Who holds it, if it is not this very session.
pub async fn other(client: &Client) -> Result<Option<Holder>> {
    let Some(found) = holder(client).await? else { return Ok(None) };
    let own = client.query_one("SELECT pg_backend_pid()", &[]).await.doing("look who holds the lease")?;
    Ok(Some(found).filter(|found| found.pid != own.get::<_, i32>(0)))
}

const HOLDER: &str = "
    SELECT l.pid, coalesce(a.application_name, '') AS application, coalesce(a.backend_start, now()) AS since
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid::bigint = ($1::bigint >> 32) AND l.objid::bigint = ($1::bigint & 4294967295)
    LIMIT 1";

/// The one place in a process where the lease is kept: tasks take turns.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Lease>>>);

/// A turn with the lease; it stays in its slot afterwards.
pub struct Turn(OwnedMutexGuard<Option<Lease>>);

impl Slot {
    /// Waits for a turn, and makes sure of the lease, or takes it; `Err` says
    /// who else holds it.
    pub async fn turn(&self, db: &Db) -> Result<std::result::Result<Turn, Option<Holder>>> {
        let mut slot = self.0.clone().lock_owned().await;
        let is_held = match slot.as_ref() {
            Some(lease) => lease.check().await.is_ok(),
            None => false,
        };
        if !is_held {
            *slot = None;
            match Lease::take(db).await? {
                Ok(lease) => *slot = Some(lease),
                Err(holder) => return Ok(Err(holder)),
            }
        }
        Ok(Ok(Turn(slot)))
    }
}

impl Turn {
    /// The lease.
    ///
    /// # Errors
    /// None: a turn is given with the lease.
    pub fn lease(&mut self) -> Result<&mut Lease> {
        self.0.as_mut().ok_or_else(|| Error::Away("the lease is given back".into()))
    }
}
