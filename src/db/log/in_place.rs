//! Giving disk back without a copy: the rows of the log's last pages are moved
//! to free space in front of them, then the empty tail is cut off.

use crate::db::{Doing, GenericClient, Result, Transaction, rows};
use crate::records::quote_ident;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Row;

/// What the log takes on disk, in pages and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Size {
    /// Pages of the table itself.
    pub pages: u64,
    /// Bytes of the table itself.
    pub heap: u64,
    /// Bytes of its TOAST table with its index.
    pub toast: u64,
    /// Bytes of its indexes.
    pub index: u64,
}

/// Reads what the log takes on disk.
pub async fn size(client: &impl GenericClient) -> Result<Size> {
    let row = client.query_one(SIZE, &[]).await.doing("read the size of ops")?;
    Ok(Size { pages: n(&row, 0), heap: n(&row, 1), toast: n(&row, 2), index: n(&row, 3) })
}

const SIZE: &str = "
    SELECT pg_relation_size(c.oid) / current_setting('block_size')::bigint, pg_relation_size(c.oid),
           coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0), pg_indexes_size(c.oid)
    FROM pg_class c WHERE c.oid = 'public.ops'::regclass";

/// A number; 0 for the size of a relation that was dropped as it was looked at.
fn n(row: &Row, column: usize) -> u64 {
    row.get::<_, Option<i64>>(column).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

/// The next transaction: whatever is committed now has an older one.
pub async fn next_xid(client: &impl GenericClient) -> Result<u64> {
    rows::one(client, NEXT_XID, &[], "read the next transaction").await
}

const NEXT_XID: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";

/// How a range of pages was emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// The first page of what is empty now.
    pub from: u64,
    /// Rows that found no room in front: the pages before `from` are full.
    pub stuck: u64,
    /// Rows that somebody else had locked.
    pub locked: u64,
}

/// Pages that are emptied at once: so few rows at most are moved in vain.
const STRIDE: u64 = 32;
/// A transaction's rows stay locked until its end: no stride begins after this.
const LONGEST: Duration = Duration::from_millis(100);
/// Tries of rows that landed behind their stride: the free space map goes
/// round once, and half of them find room in front each time, or there is none.
const TRIES: usize = 8;

/// Moves the rows of the pages `from..to` in front of them, from the end on, by
/// updates that change nothing. Until the transaction ends, what was moved away
/// leaves no free space, so a page that takes its own rows back is full at some
/// time. It ends early where rows find no room; they stay where they are. It
/// ends as well when it took [`LONGEST`]: what it says tells where.
pub async fn empty_pages(tx: &Transaction<'_>, from: u64, to: u64) -> Result<Moved> {
    tx.batch_execute(PLAN).await.doing("begin to move rows")?;
    let mut moved = Moved { from: to, ..Moved::default() };
    let begun = Instant::now();
    while moved.from > from && moved.stuck == 0 && (moved.from == to || begun.elapsed() < LONGEST) {
        let start = moved.from.saturating_sub(STRIDE).max(from);
        tx.batch_execute("SAVEPOINT stride").await.doing("begin to move rows")?;
        moved.stuck = stride(tx, &tid(start), &tid(moved.from)).await?;
        match moved.stuck {
            0 => moved.from = start,
            // Left at the end, they would keep it from being cut off.
            _ => tx.batch_execute("ROLLBACK TO SAVEPOINT stride").await.doing("leave rows where they are")?,
        }
    }
    let (low, high) = (tid(moved.from), tid(to));
    moved.locked = n(&tx.query_one(LEFT, &[&low, &high]).await.doing("look at emptied pages")?, 0);
    Ok(moved)
}

/// Empties a stride; returns how many rows found no room in front.
async fn stride(tx: &Transaction<'_>, low: &str, high: &str) -> Result<u64> {
    let first = tx.prepare_cached(MOVE).await.doing("move rows to the front")?;
    let again = tx.prepare_cached(MOVE_AGAIN).await.doing("move rows to the front")?;
    let row = tx.query_one(&first, &[&low, &high]).await.doing("move rows to the front")?;
    let (mut own, mut behind): (Vec<String>, Vec<String>) = (row.get(0), row.get(1));
    for _ in 0..TRIES {
        while !own.is_empty() {
            let row = tx.query_one(&again, &[&own, &low, &high]).await.doing("move rows to the front")?;
            own = row.get(0);
            behind.extend(row.get::<_, Vec<String>>(1));
        }
        if behind.is_empty() {
            break;
        }
        let row = tx.query_one(&again, &[&behind, &low, &high]).await.doing("move rows to the front")?;
        let before = behind.len();
        (own, behind) = (row.get(0), row.get(1));
        if behind.len() * 2 > before {
            break;
        }
    }
    Ok((own.len() + behind.len()) as u64)
}

/// Pages are read in their order, rows by their place.
const PLAN: &str = "SET LOCAL jit = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL plan_cache_mode = force_generic_plan";

fn tid(page: u64) -> String {
    format!("({page},0)")
}

/// $1 and $2 bound the pages. Told are the places of rows that landed in them,
/// and of those that landed behind them. A tid is read by its text: there is no
/// other way to its page.
const MOVE: &str = "
    WITH there AS MATERIALIZED (
        SELECT ctid FROM public.ops WHERE ctid >= $1::text::tid AND ctid < $2::text::tid FOR UPDATE SKIP LOCKED),
    moved AS (
        UPDATE public.ops SET ulid = ulid WHERE ctid = ANY (ARRAY(SELECT ctid FROM there)) RETURNING ctid)
    SELECT coalesce(array_agg(ctid::text) FILTER (WHERE ctid >= $1::text::tid AND ctid < $2::text::tid), '{}'),
           coalesce(array_agg(ctid::text) FILTER (WHERE ctid >= $2::text::tid), '{}')
    FROM moved";
const MOVE_AGAIN: &str = "
    WITH moved AS (
        UPDATE public.ops SET ulid = ulid WHERE ctid = ANY ($1::text[]::tid[]) RETURNING ctid)
    SELECT coalesce(array_agg(ctid::text) FILTER (WHERE ctid >= $2::text::tid AND ctid < $3::text::tid), '{}'),
           coalesce(array_agg(ctid::text) FILTER (WHERE ctid >= $3::text::tid), '{}')
    FROM moved";
const LEFT: &str = "
    SELECT count(*) FROM public.ops WHERE ctid >= $1::text::tid AND ctid < $2::text::tid";

/// Whether nobody sees a row in the pages `from..to`; looks from the end on.
pub async fn is_empty(client: &impl GenericClient, from: u64, to: u64) -> Result<bool> {
    let mut end = to;
    while end > from {
        let start = end.saturating_sub(1_024).max(from);
        let row = rows::cached_one(client, LEFT, &[&tid(start), &tid(end)], "look at the last pages").await?;
        if n(&row, 0) > 0 {
            return Ok(false);
        }
        end = start;
    }
    Ok(true)
}

/// The table that holds what does not fit into rows of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Toast {
    /// Its name, quoted.
    pub name: String,
    /// Its bytes, without its index.
    pub bytes: u64,
}

impl Toast {
    /// Frees what rewritten rows left in it.
    pub fn vacuum(&self) -> String {
        format!("VACUUM (TRUNCATE off, INDEX_CLEANUP on) {}", self.name)
    }
}

/// Reads its size; `None` where the log has none.
pub async fn toast(client: &impl GenericClient) -> Result<Option<Toast>> {
    let rows = rows::cached(client, TOAST, &[], "read the size of the TOAST table").await?;
    Ok(rows.first().map(|r| Toast { name: r.get(0), bytes: n(r, 1) }))
}

/// A rewrite of the log (SET UNLOGGED, by a state sync) drops it: it has no size then.
const TOAST: &str = "
    SELECT t.oid::regclass::text, pg_relation_size(t.oid)
    FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid
    WHERE c.oid = 'public.ops'::regclass AND pg_relation_size(t.oid) IS NOT NULL";

/// The columns whose values may be stored out of line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Movable(Vec<(String, String)>);

/// Reads them from the catalog. The key is never out of line: an index takes no value that long.
pub async fn movable(client: &impl GenericClient) -> Result<Movable> {
    let rows = rows::cached(client, MOVABLE, &[], "read the columns of ops").await?;
    Ok(Movable(rows.iter().map(|r| (quote_ident(r.get(0)), r.get(1))).collect()))
}

const MOVABLE: &str = "
    SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = 'public.ops'::regclass AND attnum > 0 AND NOT attisdropped
      AND attlen = -1 AND attstorage <> 'p' AND attgenerated = '' AND attname <> 'ulid' ORDER BY attnum";

impl Movable {
    /// Whether a row has a value out of line. A row value holds everything in line: it takes its
    /// header's 24 bytes more than a column that is in line itself.
    fn is_out(&self) -> String {
        let of = |(c, _): &(String, String)| {
            format!("coalesce(pg_column_size(ROW({c})) - pg_column_size({c}) <> 24, false)")
        };
        self.0.iter().map(of).chain(["false".to_owned()]).collect::<Vec<_>>().join(" OR ")
    }

    /// Bytes of a row's values, as they are stored.
    fn bytes(&self) -> String {
        let of = |(c, _): &(String, String)| format!("coalesce(pg_column_size({c}), 0)");
        self.0.iter().map(of).chain(["0".to_owned()]).collect::<Vec<_>>().join(" + ")
    }

    /// Sets each column to what it is, as a new value: the server stores that anew.
    fn anew(&self) -> String {
        let of = |(c, kind): &(String, String)| match kind.as_str() {
            "text" => format!("{c} = {c} || ''"),
            "bytea" => format!("{c} = {c} || ''::bytea"),
            _ => format!("{c} = ({c}::text || '')::{kind}"),
        };
        self.0.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

/// Bytes that the log's rows hold out of line, by a sample of so many percent of its pages: rows
/// whose values do not fit into one, and what the TOAST table adds to each.
pub async fn out_of_line(tx: &Transaction<'_>, movable: &Movable, percent: f32) -> Result<u64> {
    let bytes = movable.bytes();
    let sql = format!(
        "SELECT coalesce(sum(bytes) * 1.04 * 100 / $1::real, 0)::bigint
         FROM (SELECT {bytes} AS bytes FROM public.ops TABLESAMPLE SYSTEM ($1::real)) s WHERE bytes > 1950"
    );
    let row = tx.query_one(&sql, &[&percent]).await.doing("sample the log")?;
    Ok(n(&row, 0))
}

/// What became of a batch of rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rewritten {
    /// The last key; `None` at the end of the log.
    pub last: Option<String>,
    /// Rows looked at.
    pub scanned: u64,
    /// Bytes of those that were written again.
    pub bytes: u64,
}

/// Writes again those of the next rows after a key that hold a value out of line.
pub async fn rewrite(tx: &Transaction<'_>, movable: &Movable, after: &str, rows: u32) -> Result<Rewritten> {
    tx.batch_execute(PLAN).await.doing("begin to rewrite rows")?;
    let (is_out, bytes, anew) = (movable.is_out(), movable.bytes(), movable.anew());
    let sql = format!(
        "WITH page AS MATERIALIZED (
             SELECT ulid, ctid, {is_out} AS is_out FROM public.ops WHERE ulid > $1 ORDER BY ulid LIMIT $2),
         long AS MATERIALIZED (
             SELECT ctid, {bytes} AS bytes FROM public.ops
             WHERE ctid = ANY (ARRAY(SELECT ctid FROM page WHERE is_out)) FOR UPDATE SKIP LOCKED),
         written AS (
             UPDATE public.ops SET {anew} WHERE ctid = ANY (ARRAY(SELECT ctid FROM long)))
         SELECT (SELECT max(ulid) FROM page), (SELECT count(*) FROM page),
                (SELECT coalesce(sum(bytes), 0)::bigint FROM long)"
    );
    let row = rows::cached_one(tx, &sql, &[&after, &i64::from(rows)], "rewrite rows").await?;
    Ok(Rewritten { last: row.get(0), scanned: n(&row, 1), bytes: n(&row, 2) })
}

/// An index that is larger than it has to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bloated {
    /// Its name with its schema, quoted.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// What it would take anew, as estimated.
    pub anew: u64,
}

/// The valid indexes of the log and of its TOAST table that would lose a third
/// and a MiB at least, smallest first: each makes room for the next.
pub async fn bloated(client: &impl GenericClient) -> Result<Vec<Bloated>> {
    let rows = client.query(BLOATED, &[]).await.doing("look at the indexes of ops")?;
    Ok(rows.iter().map(|r| Bloated { name: r.get(0), bytes: n(r, 1), anew: n(r, 2) }).collect())
}

/// An entry is its header and pointer, 12 bytes, and its columns as long as
/// ANALYZE saw them (ULIDs where it did not look); a tenth of a page is free.
const BLOATED: &str = "
    SELECT * FROM (
        SELECT format('%I.%I', s.nspname, x.relname), pg_relation_size(x.oid) AS bytes,
               (16384 + greatest(x.reltuples, 0) / 0.9 * (12 + (
                   SELECT ceil(sum(coalesce(st.avg_width, CASE WHEN i.indrelid = c.oid THEN 27 ELSE 4 END)) / 8) * 8
                   FROM unnest(i.indkey::int2[]) AS k(attnum)
                   LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                   LEFT JOIN pg_stats st ON st.schemaname = 'public' AND st.tablename = 'ops'
                     AND st.attname = a.attname AND i.indrelid = c.oid)))::bigint AS anew
        FROM pg_class c JOIN pg_index i ON i.indrelid IN (c.oid, c.reltoastrelid)
        JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace s ON s.oid = x.relnamespace
        WHERE c.oid = 'public.ops'::regclass AND i.indisvalid) b
    WHERE bytes > anew * 1.5 AND bytes > anew + 1048576 ORDER BY bytes";

/// Writes it anew while everybody goes on reading and writing.
pub fn reindex(index: &Bloated) -> String {
    format!("REINDEX INDEX CONCURRENTLY {}", index.name)
}

/// What an interrupted REINDEX left, as statements that drop it. While a session builds
/// an index there ([`crate::db::activity::builders`]), it may be that session's.
pub async fn leftovers(client: &impl GenericClient) -> Result<Vec<String>> {
    rows::all(client, LEFTOVERS, &[], "look for leftovers of REINDEX").await
}

/// Indexes of TOAST tables are dropped the plain way only.
const LEFTOVERS: &str = "
    SELECT format(CASE WHEN i.indrelid = c.oid THEN 'DROP INDEX CONCURRENTLY IF EXISTS %I.%I'
                       ELSE 'DROP INDEX IF EXISTS %I.%I' END,
                  s.nspname, x.relname)
    FROM pg_class c JOIN pg_index i ON i.indrelid IN (c.oid, c.reltoastrelid)
    JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace s ON s.oid = x.relnamespace
    WHERE c.oid = 'public.ops'::regclass AND NOT i.indisvalid AND x.relname ~ '_cc(new|old)[0-9]*$'";
