//! The log as it is served: rows in ULID order from one snapshot.
//!
//! A page's transaction is `Snapshot`. It locks `ops` before it takes its
//! first snapshot, so a reader that waited behind a swap of the table reads
//! the new table with a snapshot that sees it whole.

use crate::db::{
    Client, Doing, Error, Isolation, Result, Transaction, floors, log::PIN, transaction, watermark,
};
use crate::values::{Host, OpUlid};
use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt, TryStreamExt, poll};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Portal, RowStream, Statement};

/// The most rows that one scan yields; the next begins after its last. One
/// more than a page scans, so that a full page knows whether the log goes on.
pub const SCAN_ROWS: usize = 10_001;

/// A connection that is closed unless it was given back: dropped in the
/// middle of a page it may be busy, or stuck in a dead network.
pub struct Lent(Option<Client>);

impl Lent {
    /// Takes a connection on loan.
    pub fn new(client: Client) -> Self {
        Self(Some(client))
    }

    /// Returns it to the pool: nothing is under way on it.
    pub fn give_back(mut self) {
        drop(self.0.take());
    }

    /// The connection itself.
    ///
    /// # Errors
    /// None while it is on loan.
    pub fn client(&mut self) -> Result<&mut Client> {
        let given_back = || Error::Away("the connection was given back".into());
        self.0.as_mut().ok_or_else(given_back)
    }

    /// Begins the transaction of a page, waiting at most `lock_wait` for the
    /// table; no statement takes longer than `at_most`. Statements are
    /// prepared before it begins.
    ///
    /// # Errors
    /// The database's; [`Kind::Locked`] is a table that stayed locked.
    pub async fn snapshot(&mut self, lock_wait: Duration, at_most: Duration) -> Result<Snapshot<'_>> {
        let client = self.client()?;
        let rows = client.prepare_cached(ROWS).await.doing("prepare reading the log")?;
        for sql in [watermark::MINIMUM, floors::ABOVE] {
            client.prepare_cached(sql).await.doing("prepare reading the log")?;
        }
        let tx = transaction::begin(client, Isolation::Snapshot).await?;
        tx.batch_execute(&begin_sql(lock_wait, at_most)).await.doing("lock ops for a page")?;
        Ok(Snapshot { tx, rows })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Client::take(client));
        }
    }
}

const LOCK: &str = "LOCK TABLE public.ops IN ACCESS SHARE MODE; SET LOCAL enable_sort = off";

fn begin_sql(lock_wait: Duration, at_most: Duration) -> String {
    let ms = lock_wait.as_millis().max(1);
    let bound = bound_sql(at_most);
    format!("SET LOCAL lock_timeout = {ms}; {LOCK}; {PIN}; {bound}")
}

fn bound_sql(at_most: Duration) -> String {
    let ms = at_most.as_millis().max(1);
    format!("SET LOCAL statement_timeout = {ms}")
}

/// One snapshot of the log, its minimum and its floors.
pub struct Snapshot<'c> {
    tx: Transaction<'c>,
    rows: Statement,
}

/// Rows after a ULID, in order. `data` is the jsonb's text, made once; an
/// upload whose text does not contain $2 travels with '' (no jsonb reads so).
const ROWS: &str = "
    SELECT ulid, host, action, \"table\",
           CASE WHEN \"table\" = 'uploads' AND position($2::text IN t) = 0 THEN '' ELSE t END
    FROM (SELECT ulid, host, action, \"table\", data::text AS t
          FROM public.ops WHERE ulid > $1 ORDER BY ulid LIMIT 10001) page
    ORDER BY ulid";

impl Snapshot<'_> {
    /// A scan of at most [`SCAN_ROWS`] rows after `after`; uploads that do
    /// not contain `self_host` come without data.
    pub async fn scan(&self, after: &str, self_host: &Host) -> Result<Scan> {
        let portal = self.tx.bind(&self.rows, &[&after, &self_host.as_str()]).await.doing("read the log")?;
        Ok(Scan { portal })
    }

    /// Asks for the next `rows` rows of a scan, each part bounded by `at_most`
    /// in the server's time. Parts are read in the order they were asked for;
    /// one may be asked for while the one before it is still arriving.
    pub async fn fetch(&self, scan: &Scan, rows: usize, at_most: Duration) -> Result<Rows<'_>> {
        let rows = i32::try_from(rows).unwrap_or(i32::MAX).max(1);
        let bound = bound_sql(at_most);
        let mut bounded = async move { self.tx.batch_execute(&bound).await }.boxed();
        // The first poll sends it; what it says is read with the rows.
        let bounded = match poll!(&mut bounded) {
            Poll::Ready(said) => ready(said).boxed(),
            Poll::Pending => bounded,
        };
        let stream = self.tx.query_portal_raw(&scan.portal, rows).await;
        Ok(Rows { bounded: Some(bounded), stream: Box::pin(stream.doing("read the log")?) })
    }

    /// The smallest plausible ULID from the watermark upward, found in small
    /// looks; `None` where there is none or too many rows were implausible.
    pub async fn minimum(&self, now_ms: u64) -> Result<Option<OpUlid>> {
        watermark::minimum(&self.tx, now_ms).await
    }

    /// Every table's floor above `after`, by table.
    pub async fn floors_above(&self, after: OpUlid) -> Result<Vec<(String, OpUlid)>> {
        floors::above(&self.tx, after).await
    }

    /// Ends the transaction.
    pub async fn close(self) -> Result<()> {
        // It wrote nothing, and a failed one can only be rolled back.
        self.tx.rollback().await.doing("end a page")
    }
}

/// A scan of the log that is fetched in parts.
pub struct Scan {
    portal: Portal,
}

/// Rows on their way.
pub struct Rows<'s> {
    bounded: Option<BoxFuture<'s, std::result::Result<(), tokio_postgres::Error>>>,
    stream: Pin<Box<RowStream>>,
}

impl Rows<'_> {
    /// The next row; `None` at the end of this part.
    ///
    /// # Errors
    /// The database's; [`Kind::TooLong`] is the bound given to `fetch`.
    pub async fn next(&mut self) -> Result<Option<LogRow>> {
        if let Some(bounded) = &mut self.bounded {
            bounded.await.doing("bound a page in time")?;
            self.bounded = None;
        }
        Ok(self.stream.try_next().await.doing("read the log")?.map(LogRow))
    }
}

/// A row of the log, as it came.
pub struct LogRow(tokio_postgres::Row);

/// What is in a row. Texts are UTF-8 as the server sent them; NULL is empty
/// but for `data`.
pub struct LogFields<'a> {
    /// Its key.
    pub ulid: &'a str,
    /// Who wrote it first.
    pub host: &'a [u8],
    /// What it does.
    pub action: &'a [u8],
    /// The table of its records.
    pub table: &'a [u8],
    /// Its records.
    pub data: LogData<'a>,
}

/// The records of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogData<'a> {
    /// The text of its jsonb.
    Text(&'a [u8]),
    /// SQL NULL.
    Null,
    /// Left at the source: an upload that does not name this host.
    Gossip,
}

impl LogRow {
    /// Bytes it travelled with.
    pub fn bytes(&self) -> usize {
        self.0.raw_size_bytes()
    }

    /// Its fields, in place.
    ///
    /// # Errors
    /// A ULID that is no UTF-8: the server sends none.
    pub fn fields(&self) -> Result<LogFields<'_>> {
        let raw = |i: usize| -> Result<Option<&[u8]>> {
            Ok(self.0.try_get::<_, Raw>(i).doing("read a row of the log")?.0)
        };
        let text = |i: usize| Ok(raw(i)?.unwrap_or_default());
        Ok(LogFields {
            ulid: self.0.try_get(0).doing("read a row of the log")?,
            host: text(1)?,
            action: text(2)?,
            table: text(3)?,
            data: match raw(4)? {
                None => LogData::Null,
                Some([]) => LogData::Gossip,
                Some(text) => LogData::Text(text),
            },
        })
    }
}

/// A text column's bytes, unread and uncopied.
struct Raw<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT
    }
}

/// Whether a statement ran into its time bound.
pub fn is_out_of_time(error: &Error) -> bool {
    error.is_too_long()
}
