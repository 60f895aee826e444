//! Deleting ops: one batch is one transaction, in which also the traces, the
//! floors, the history, the census and the watermark follow.
//!
//! A batch covers a range of the primary key from where the last one ended:
//! it never meets the dead entries that others left, so the work is linear in
//! rows even while another session holds an old snapshot.

pub use crate::db::prune_run::{active, begin_at, end, lockers, settle, swept};
pub use crate::db::remember::Places;
use crate::db::{
    Doing, Error, Params, Result, Transaction, census,
    lease::bound,
    prune_sql::{cuts_sql, doomed_sql, sql, stays_sql},
    remember::{FLOORS, raise, remember},
    rows,
};
use crate::records::models;
use crate::values::{EARLIEST_ULID, OpUlid, timestamp};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// The table whose ops every node skips: it has no model, and may be named.
const SKIPPED_BY_NODES: &str = "blobs";
/// Floors stay this far behind now (contract 5): 2 h.
pub const YOUNGEST_MS: u64 = 2 * 3_600_000;

/// Statements still to run after the DELETE; the time left is divided by this.
const LAST_STATEMENTS: i32 = 9;

/// On whose behalf a batch deletes.
#[derive(Clone, Debug)]
pub struct Run {
    /// The run's id, one of its own.
    pub id: String,
    /// The task, as history and metrics name it.
    pub task: &'static str,
    /// When it began.
    pub began_at: Timestamp,
    /// Where its rows are.
    pub places: Places,
}

/// What is deleted of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableCut {
    /// The table, as ops name it.
    pub table: String,
    /// The lowest ULID that stays.
    pub below: OpUlid,
    /// What keeps it from going further, for people.
    pub bound_by: String,
}

/// A range of the primary key, from `from` on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// Its first ULID.
    pub from: String,
    /// The first ULID after it, at most.
    pub until: OpUlid,
    /// Rows it covers at most.
    pub rows: u32,
}

/// Which ops of a range go. Never those that the chain has not got (`owed.rs`),
/// of tables without a model (but `blobs`), or whose ULID is none or implausible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doomed<'a> {
    /// Those of each table below a ULID; raises floors.
    Below(&'a [TableCut]),
    /// These; raises horizons.
    Listed(&'a [OpUlid]),
}

/// What is done about rows that another session has locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locked {
    /// They are waited for, 100 ms at most: the batch fails then. Cheaper, as
    /// no row has to be locked before it is deleted.
    Wait,
    /// They are skipped, and told.
    Skip,
}

/// What was deleted of one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gone {
    /// The table.
    pub table: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of them, without indexes.
    pub bytes: u64,
    /// Traces that were not there before.
    pub traces: u64,
    /// The highest of them.
    pub highest: OpUlid,
}

impl Gone {
    /// A row of [`crate::db::prune_sql::traced_of`]; rows without a ULID are not among them.
    pub(in crate::db) fn read(r: &Row) -> Option<Self> {
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        Some(Self {
            table: r.get(0),
            rows: count(r.get(2)),
            bytes: count(r.get(3)),
            highest: OpUlid::parse(r.get(4))?,
            traces: count(r.get(5)),
        })
    }
}

/// What came of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// Where the next one begins; `None` at the end of the range.
    pub next: Option<String>,
    /// Rows looked at.
    pub scanned: u64,
    /// What was deleted.
    pub gone: Vec<Gone>,
    /// What would have been, were it not locked.
    pub skipped: Vec<OpUlid>,
}

impl Batch {
    /// Rows deleted of all tables.
    pub fn rows(&self) -> u64 {
        self.gone.iter().map(|g| g.rows).sum()
    }
}

/// One batch, in the transaction that `Lease::begin` began; commit it.
///
/// # Errors
/// A cut that may not be (nothing was done), or the database's.
pub async fn batch(
    tx: &Transaction<'_>,
    run: &Run,
    range: &Range,
    doomed: Doomed<'_>,
    locked: Locked,
) -> Result<Batch> {
    tx.batch_execute(PLAN).await.doing("begin a batch")?;
    let statement = tx.prepare_cached(PAGE).await.doing("read a range of the log")?;
    let until = range.until.as_str();
    let (_, row) = tokio::try_join!(biased; bound(tx, 1), async {
        let params: [&(dyn ToSql + Sync); 3] = [&range.from, &until, &i64::from(range.rows)];
        tx.query_one(&statement, &params).await.doing("read a range of the log")
    })?;
    let mut page: Vec<&str> = row.get(0);
    let next = (page.len() > range.rows as usize).then(|| page.pop()).flatten();
    let end = next.unwrap_or(until);
    let odd: Vec<&str> = page.iter().filter(|u| OpUlid::parse(u).is_none()).copied().collect();
    let columns: Vec<&str> = row.get(1);

    let mut ulids = page.iter().filter_map(|u| OpUlid::parse(u));
    let first = ulids.next();
    let last = ulids.next_back().or(first);
    let days = first.zip(last).map(|(first, last)| Days::of(first, last)).unwrap_or_default();
    let span = Span { from: &range.from, end, odd: &odd };
    let gone = delete(tx, &sql(doomed, &columns, locked), span, (doomed, &days)).await?;
    let mut batch = Batch { next: next.map(str::to_owned), scanned: page.len() as u64, ..Batch::default() };
    if locked == Locked::Skip {
        batch.skipped = skipped(tx, &columns, span, doomed).await?;
    }
    let of_days: Vec<_> = gone.iter().map(|(day, g)| (g.table.clone(), *day, g.rows, g.bytes)).collect();
    batch.gone = by_table(gone);
    let left = (page.len() - odd.len()) as u64 != batch.rows();
    if left && let Doomed::Below(cuts) = doomed {
        remember_what_stays(tx, run, &columns, (span, cuts)).await?;
    }
    if batch.gone.is_empty() {
        advance(tx, span, left).await?;
    } else {
        // Sent together: each waits for no answer of the others. In the order
        // of their answers: what fails first says why, the rest only that.
        tokio::try_join!(
            biased;
            bound(tx, LAST_STATEMENTS),
            census::subtract(tx, &of_days),
            remember(tx, run, &batch.gone, doomed),
            advance(tx, span, left)
        )?;
    }
    Ok(batch)
}

/// The plan is pinned: the primary key in its order, and no look at the ends of
/// the index, where dead entries gather. Nobody waits for the disk here: a crash
/// loses the last batches whole, with their traces and floors, and they are done
/// again; the end of a run is durable.
const PLAN: &str = "SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL jit = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = on; SET LOCAL work_mem = '32MB'; \
    SET LOCAL max_parallel_workers_per_gather = 0; \
    SET LOCAL synchronous_commit = off";

/// The range's ULIDs and one more, in the order of the key. They are judged
/// here: an expression for it costs the server as much as deleting the row.
const PAGE: &str = "
    SELECT ARRAY(SELECT ulid FROM public.ops WHERE ulid >= $1 AND ulid < $2
                 ORDER BY ulid LIMIT $3::bigint + 1),
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = 'public.ops'::regclass AND attnum > 0 AND NOT attisdropped
                 ORDER BY attnum)";

/// A stretch of the log, and which rows in it have no ULID.
#[derive(Clone, Copy)]
struct Span<'a> {
    from: &'a str,
    end: &'a str,
    odd: &'a [&'a str],
}

/// The UTC days of a stretch, and where each begins.
#[derive(Default)]
struct Days {
    first: Date,
    starts: Vec<String>,
}

impl Days {
    fn of(first: OpUlid, last: OpUlid) -> Self {
        let [first, last] = [first, last].map(|ulid| census::day_of(ulid.ms()));
        Self { first, starts: census::day_starts(first, last) }
    }

    /// The day of a bucket of `width_bucket` over the starts.
    fn day(&self, bucket: i32) -> Date {
        self.first.saturating_add((bucket - 1).days())
    }
}

/// The values of [`doomed_sql`], in its order.
struct Values<'a> {
    tables: Vec<&'a str>,
    ulids: Vec<&'a str>,
    since: Vec<Timestamp>,
}

impl<'a> Values<'a> {
    fn of(doomed: Doomed<'a>) -> Self {
        match doomed {
            Doomed::Below(cuts) => Self {
                tables: cuts.iter().map(|c| c.table.as_str()).collect(),
                ulids: cuts.iter().map(|c| c.below.as_str()).collect(),
                since: cuts.iter().map(|c| timestamp(c.below.ms())).collect(),
            },
            Doomed::Listed(ulids) => Self {
                tables: known().collect(),
                ulids: ulids.iter().map(OpUlid::as_str).collect(),
                since: Vec::new(),
            },
        }
    }
}

/// The tables that ops may be deleted of.
fn known() -> impl Iterator<Item = &'static str> {
    models().iter().map(|m| m.table.as_str()).chain([SKIPPED_BY_NODES])
}

/// Checks cuts: what must never be deleted is refused here, whoever asks.
///
/// # Errors
/// A table without a model, or a cut younger than 2 h.
pub fn check(cuts: &[TableCut], now_ms: u64) -> Result<()> {
    for TableCut { table, below, .. } in cuts {
        if !known().any(|known| known == table) {
            return Err(Error::Unfit(format!("ops of {table} are never deleted: it has no model")));
        }
        if below.ms() > now_ms.saturating_sub(YOUNGEST_MS) {
            return Err(Error::Unfit(format!(
                "ops of {table} below {below} are not deleted: that is less than 2 h ago"
            )));
        }
    }
    Ok(())
}

/// By table and day; each row of a table has all of its traces.
async fn delete(
    tx: &Transaction<'_>,
    sql: &str,
    span: Span<'_>,
    (doomed, days): (Doomed<'_>, &Days),
) -> Result<Vec<(Date, Gone)>> {
    let values = Values::of(doomed);
    let statement = tx.prepare_cached(sql).await.doing("delete ops")?;
    let Values { tables, ulids, since } = &values;
    let params: [&(dyn ToSql + Sync); 7] =
        [&span.from, &span.end, &span.odd, tables, ulids, since, &days.starts];
    let deleted = async { tx.query(&statement, &params).await.doing("delete ops") };
    let (_, rows) = tokio::try_join!(biased; bound(tx, 1), deleted)?;
    Ok(rows.iter().filter_map(|r| Some((days.day(r.get(1)), Gone::read(r)?))).collect())
}

fn by_table(gone: Vec<(Date, Gone)>) -> Vec<Gone> {
    let mut tables: Vec<Gone> = Vec::new();
    for (_, of_day) in gone {
        match tables.iter_mut().find(|of| of.table == of_day.table) {
            Some(of) => {
                of.rows += of_day.rows;
                of.bytes += of_day.bytes;
                of.highest = of.highest.max(of_day.highest);
            }
            None => tables.push(of_day),
        }
    }
    tables
}

/// What is still there of what was to go: another session had it locked.
async fn skipped(
    tx: &Transaction<'_>,
    columns: &[&str],
    span: Span<'_>,
    doomed: Doomed<'_>,
) -> Result<Vec<OpUlid>> {
    let sql = format!(
        "SELECT o.ulid FROM public.ops o, {} WHERE {}",
        cuts_sql(doomed),
        doomed_sql(doomed, columns)
    );
    let values = Values::of(doomed);
    let Values { tables, ulids, since } = &values;
    let params: [&(dyn ToSql + Sync); 6] = [&span.from, &span.end, &span.odd, tables, ulids, since];
    let rows = rows::cached(tx, &sql, &params, "look for skipped ops").await?;
    Ok(rows.iter().filter_map(|r| OpUlid::parse(r.get(0))).collect())
}

/// Traces and floors for what stays below its cut as the chain has not got it,
/// or got it late: the node's own pruner goes by the ULID alone, deletes it too,
/// and remembers nothing.
async fn remember_what_stays(
    tx: &Transaction<'_>,
    run: &Run,
    columns: &[&str],
    (span, cuts): (Span<'_>, &[TableCut]),
) -> Result<()> {
    if !columns.contains(&"core_tx_status") {
        return Ok(());
    }
    let doing = "remember what stays";
    let Values { tables, ulids, since } = &Values::of(Doomed::Below(cuts));
    let params: [&(dyn ToSql + Sync); 6] = [&span.from, &span.end, &span.odd, tables, ulids, since];
    let statement = tx.prepare_cached(&stays_sql(columns)).await.doing(doing)?;
    let (_, rows) = tokio::try_join!(biased; bound(tx, 1), async {
        tx.query(&statement, &params).await.doing(doing)
    })?;
    let floor = |r: &Row| {
        let cut = cuts.iter().find(|cut| cut.table == r.get::<_, &str>(0))?;
        Some((cut.table.as_str(), floor_over(OpUlid::parse(r.get(4))?, Some(cut.below))))
    };
    let (tables, floors): (Vec<&str>, Vec<OpUlid>) = rows.iter().filter_map(floor).unzip();
    if tables.is_empty() {
        return Ok(());
    }
    let floors: Vec<&str> = floors.iter().map(OpUlid::as_str).collect();
    raise(tx, run, FLOORS, (&tables, &floors)).await
}

/// As low as it may be: the millisecond after the highest that is remembered.
pub fn floor_over(highest: OpUlid, cut: Option<OpUlid>) -> OpUlid {
    let after = OpUlid::first_of_ms(highest.ms() + 1);
    cut.map_or(after, |cut| cut.min(after))
}

/// Moves the watermark over the span, up to the first row that is left of it.
/// Nothing is done where something is left below the span already.
async fn advance(tx: &Transaction<'_>, span: Span<'_>, something_is_left: bool) -> Result<()> {
    let sql = if something_is_left { ADVANCE_TO_FIRST_LEFT } else { ADVANCE };
    let params: Params<'_> = &[&span.from, &EARLIEST_ULID, &span.end, &span.odd];
    let params = if something_is_left { params } else { &params[..3] };
    rows::write_cached(tx, sql, params, "move the watermark").await
}

const ADVANCE: &str = "
    UPDATE opsward.watermark SET ulid = $3::text, n = n + 1
    WHERE n = (SELECT n FROM opsward.watermark ORDER BY n DESC LIMIT 1)
      AND greatest(ulid, $2::text) >= $1::text AND ulid < $3::text";
const ADVANCE_TO_FIRST_LEFT: &str = "
    UPDATE opsward.watermark w SET ulid = f.ulid, n = w.n + 1
    FROM (SELECT o.ulid FROM public.ops o
          WHERE o.ulid >= $1 AND o.ulid < $3 AND o.ulid <> ALL ($4::text[])
            AND (SELECT greatest(ulid, $2::text) >= $1 FROM opsward.watermark ORDER BY n DESC LIMIT 1)
          ORDER BY o.ulid LIMIT 1) f
    WHERE w.n = (SELECT n FROM opsward.watermark ORDER BY n DESC LIMIT 1) AND w.ulid < f.ulid";
