//! Giving disk back without a copy: the rows of the log's last pages are moved
//! to free space in front of them, then the empty tail is cut off.

use super::connect::Client;
use super::error::{Doing, Result};
use super::lease::Lease;
use deadpool_postgres::GenericClient;

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
///
/// # Errors
/// The database's.
pub async fn size(client: &impl GenericClient) -> Result<Size> {
    let row = client.query_one(SIZE, &[]).await.doing("read the size of ops")?;
    let n = |i: usize| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
    Ok(Size { pages: n(0), heap: n(1), toast: n(2), index: n(3) })
}

const SIZE: &str = "
    SELECT pg_relation_size(c.oid) / current_setting('block_size')::bigint, pg_relation_size(c.oid),
           coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0), pg_indexes_size(c.oid)
    FROM pg_class c WHERE c.oid = 'public.ops'::regclass";

/// How a range of pages was emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Row versions written.
    pub rows: u64,
    /// The lowest page on which one of them landed; at or above the range's
    /// start there is no free space left in front of it.
    pub landed: Option<u64>,
    /// Whether the range holds no row that could be moved any more.
    pub emptied: Emptied,
}

/// Whether a range of pages is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emptied {
    /// It is.
    Yes,
    /// Rows in it are locked by others, or there was no room in front.
    No,
}

/// Rounds of one transaction: a page takes its own rows back until it is full.
const ROUNDS: usize = 40;

/// Moves the rows of the pages `from..to` elsewhere, by updates that change
/// nothing, in one transaction: until it ends, what was moved away leaves no
/// free space, so a round moves what the round before put back. Rolled back
/// when a round lands on no page in front of the range. Rows that somebody
/// else has locked are left.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn empty_pages(lease: &mut Lease, from: u64, to: u64) -> Result<Moved> {
    let tx = lease.begin().await?;
    let statement = tx.prepare_cached(MOVE).await.doing("move rows to the front")?;
    let (low, high) = (format!("({from},0)"), format!("({to},0)"));
    let mut moved = Moved { rows: 0, landed: None, emptied: Emptied::No };
    for _ in 0..ROUNDS {
        let row = tx.query_one(&statement, &[&low, &high]).await.doing("move rows to the front")?;
        let (rows, left): (i64, i64) = (row.get(0), row.get(2));
        if rows == 0 && left == 0 {
            moved.emptied = Emptied::Yes;
            break;
        }
        moved.rows += u64::try_from(rows).unwrap_or(0);
        let landed = row.get::<_, Option<i64>>(1).and_then(|p| u64::try_from(p).ok());
        moved.landed = moved.landed.into_iter().chain(landed).min();
        if left == 0 {
            moved.emptied = Emptied::Yes;
            break;
        }
    }
    match moved.emptied {
        Emptied::Yes => tx.commit().await.doing("commit moved rows")?,
        Emptied::No => tx.rollback().await.doing("leave rows where they are")?,
    }
    Ok(moved)
}

/// $1 and $2 bound the pages. The third column counts what landed in the range
/// again. A tid is read by its text: there is no other way to its page.
const MOVE: &str = "
    WITH there AS MATERIALIZED (
        SELECT ctid FROM public.ops WHERE ctid >= $1::text::tid AND ctid < $2::text::tid FOR UPDATE SKIP LOCKED),
    moved AS (
        UPDATE public.ops SET ulid = ulid WHERE ctid = ANY (ARRAY(SELECT ctid FROM there))
        RETURNING ctid)
    SELECT count(*), min(split_part(ltrim(ctid::text, '('), ',', 1)::bigint),
           count(*) FILTER (WHERE ctid >= $1::text::tid AND ctid < $2::text::tid)
    FROM moved";

/// Whether pages hold rows that a snapshot of now sees.
///
/// # Errors
/// The database's.
pub async fn is_empty(client: &Client, from: u64, to: u64) -> Result<bool> {
    let (low, high) = (format!("({from},0)"), format!("({to},0)"));
    Ok(client.query_one(IS_EMPTY, &[&low, &high]).await.doing("look at the last pages")?.get(0))
}

const IS_EMPTY: &str = "
    SELECT NOT EXISTS (SELECT FROM public.ops WHERE ctid >= $1::text::tid AND ctid < $2::text::tid)";
