//! Transactions. Each begins here, names its isolation level, and is watched from
//! BEGIN to the answer to COMMIT.

use crate::db::{Client, Doing, Result, connect::Session};
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, IsolationLevel, Row, Statement, ToStatement};

/// After this a transaction is cancelled. The server's own bounds are shorter, but
/// each counts one statement, and none counts COMMIT.
const LONGEST: Duration = Duration::from_millis(4_500);
/// The same for [`begin_rare`].
const LONGEST_RARE: Duration = Duration::from_secs(30);
/// Between two cancels, and the longest wait for one to be sent.
const AGAIN: Duration = Duration::from_millis(500);
/// After so many cancels without an effect the connection is closed.
const CANCELS: u32 = 4;

/// What a transaction may do, and what its statements see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// READ COMMITTED: each statement sees what was committed before it, so that a
    /// decision under a lock sees all that was committed before the lock.
    Write,
    /// READ COMMITTED READ ONLY.
    Read,
    /// REPEATABLE READ READ ONLY: all statements see one snapshot, taken by the first
    /// that is no LOCK.
    Snapshot,
}

/// Begins a transaction.
pub async fn begin(client: &mut Client, isolation: Isolation) -> Result<Transaction<'_>> {
    begin_within(client, isolation, LONGEST).await
}

/// Begins a transaction of the longest bound, for the client and for the server: rare work on
/// opsward's own tables that needs longer than others where the machine is busy.
pub async fn begin_rare(client: &mut Client) -> Result<Transaction<'_>> {
    let tx = begin_within(client, Isolation::Write, LONGEST_RARE).await?;
    tx.batch_execute(RARE).await.doing("begin a transaction")?;
    Ok(tx)
}

const RARE: &str =
    "SET LOCAL statement_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = '30s'";

const LATE_CANCEL: &str = "SELECT pg_sleep(0.2)";

/// Begins a transaction that is cancelled after `longest`. The only place that begins one.
#[allow(clippy::disallowed_methods, reason = "the one place")]
async fn begin_within(
    client: &mut Client,
    isolation: Isolation,
    longest: Duration,
) -> Result<Transaction<'_>> {
    let (level, read_only) = match isolation {
        Isolation::Write => (IsolationLevel::ReadCommitted, false),
        Isolation::Read => (IsolationLevel::ReadCommitted, true),
        Isolation::Snapshot => (IsolationLevel::RepeatableRead, true),
    };
    if client.is_cancelled.swap(false, Ordering::Relaxed) {
        // A cancel that comes late is to find this, and no statement of the transaction.
        let _ = client.wrapper.batch_execute(LATE_CANCEL).await;
    }
    let watch = Watch::over(client, longest);
    let builder = client.wrapper.build_transaction();
    let builder = builder.isolation_level(level).read_only(read_only).deferrable(false);
    Ok(Transaction { inner: builder.start().await.doing("begin a transaction")?, watch })
}

/// A transaction that is rolled back unless it is committed, and cancelled by the
/// client when it lives too long.
pub struct Transaction<'a> {
    inner: deadpool_postgres::Transaction<'a>,
    watch: Watch,
}

impl Transaction<'_> {
    /// Commits it. The server's answer is waited for as long as the watch allows.
    pub async fn commit(self) -> std::result::Result<(), Error> {
        let Self { inner, watch } = self;
        let committed = inner.commit().await;
        drop(watch);
        committed
    }

    /// Rolls it back.
    pub async fn rollback(self) -> std::result::Result<(), Error> {
        let Self { inner, watch } = self;
        let rolled_back = inner.rollback().await;
        drop(watch);
        rolled_back
    }
}

impl<'a> Deref for Transaction<'a> {
    type Target = deadpool_postgres::Transaction<'a>;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

/// Ends a transaction that lives too long: cancels what the server is at, again and
/// again, then closes the connection.
struct Watch(JoinHandle<()>);

impl Watch {
    #[allow(clippy::disallowed_methods, reason = "it watches whatever the caller waits for")]
    fn over(session: &Session, longest: Duration) -> Self {
        let (cancel, tls, connection) =
            (session.wrapper.cancel_token(), session.tls.clone(), session.connection.clone());
        let is_cancelled = session.is_cancelled.clone();
        Self(tokio::spawn(async move {
            sleep(longest).await;
            for _ in 0..CANCELS {
                is_cancelled.store(true, Ordering::Relaxed);
                // A cancel that is not sent is sent again.
                let _ = timeout(AGAIN, cancel.cancel_query(tls.clone())).await;
                sleep(AGAIN).await;
            }
            connection.abort();
        }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(in crate::db) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What statements run on: a session, or a transaction of it.
pub trait GenericClient: Sync {
    /// Prepares a statement once a session.
    fn prepare_cached(&self, sql: &str)
    -> impl Future<Output = std::result::Result<Statement, Error>> + Send;
    /// All rows.
    fn query<T: ?Sized + ToStatement + Sync>(
        &self,
        sql: &T,
        params: Params<'_>,
    ) -> impl Future<Output = std::result::Result<Vec<Row>, Error>> + Send;
    /// The one row that there must be.
    fn query_one<T: ?Sized + ToStatement + Sync>(
        &self,
        sql: &T,
        params: Params<'_>,
    ) -> impl Future<Output = std::result::Result<Row, Error>> + Send;
    /// One row or none.
    fn query_opt<T: ?Sized + ToStatement + Sync>(
        &self,
        sql: &T,
        params: Params<'_>,
    ) -> impl Future<Output = std::result::Result<Option<Row>, Error>> + Send;
    /// The number of rows that it wrote.
    fn execute<T: ?Sized + ToStatement + Sync>(
        &self,
        sql: &T,
        params: Params<'_>,
    ) -> impl Future<Output = std::result::Result<u64, Error>> + Send;
    /// Statements without parameters.
    fn batch_execute(&self, sql: &str) -> impl Future<Output = std::result::Result<(), Error>> + Send;
}

/// By the methods of the same names that the type derefs to.
macro_rules! statements_run_on {
    ($type:ty, $own:ident => $inner:expr) => {
        impl GenericClient for $type {
            async fn prepare_cached(&self, sql: &str) -> std::result::Result<Statement, Error> {
                let $own = self;
                $inner.prepare_cached(sql).await
            }
            async fn query<T: ?Sized + ToStatement + Sync>(
                &self,
                sql: &T,
                params: Params<'_>,
            ) -> std::result::Result<Vec<Row>, Error> {
                let $own = self;
                $inner.query(sql, params).await
            }
            async fn query_one<T: ?Sized + ToStatement + Sync>(
                &self,
                sql: &T,
                params: Params<'_>,
            ) -> std::result::Result<Row, Error> {
                let $own = self;
                $inner.query_one(sql, params).await
            }
            async fn query_opt<T: ?Sized + ToStatement + Sync>(
                &self,
                sql: &T,
                params: Params<'_>,
            ) -> std::result::Result<Option<Row>, Error> {
                let $own = self;
                $inner.query_opt(sql, params).await
            }
            async fn execute<T: ?Sized + ToStatement + Sync>(
                &self,
                sql: &T,
                params: Params<'_>,
            ) -> std::result::Result<u64, Error> {
                let $own = self;
                $inner.execute(sql, params).await
            }
            async fn batch_execute(&self, sql: &str) -> std::result::Result<(), Error> {
                let $own = self;
                $inner.batch_execute(sql).await
            }
        }
    };
}

statements_run_on!(Client, client => client.wrapper);
statements_run_on!(Transaction<'_>, tx => tx.inner);
