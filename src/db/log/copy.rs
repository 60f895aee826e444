//! Copying what survives of the log into a table beside it, keeping up with
//! what is written meanwhile, and comparing the two. Each call is a statement
//! of a range of the primary key, in a transaction that the caller began.
//!
//! In every snapshot the two differ only where a key is in `opsward.captured`:
//! the key commits with the write, and goes with the write's copy.

use crate::db::{
    Doing, GenericClient, Params, Result, Transaction,
    clone::{Columns, NEXT},
    owed::{Owed, time_sql},
    prune::Gone,
    prune_sql, rows,
};
use crate::values::{EARLIEST_ULID, OpUlid};
use futures_util::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;

/// What does not survive, as statements name it.
#[derive(Clone, Debug)]
pub struct Doomed<'a> {
    /// By table, the lowest ULID that stays.
    pub cuts: &'a BTreeMap<String, OpUlid>,
    /// What `opsward.reclaim_drops` lists goes too.
    pub listed: bool,
    /// What can be written of a row.
    pub columns: &'a Columns,
}

/// A range of the log: above `after`, up to `until`, or to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The key before its first; '' is the log's start.
    pub after: String,
    /// Its last key; `None` is the end of the log.
    pub until: Option<String>,
    /// Rows seen in it.
    pub rows: u64,
}

/// The plan is pinned: both tables in the order of their key. Nobody waits for
/// the disk here: a crash loses the last ranges whole, with the checkpoint that
/// tells of them, and what was noted is noted again.
const PLAN: &str = "SET LOCAL jit = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL enable_hashjoin = off; SET LOCAL work_mem = '32MB'; \
    SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL plan_cache_mode = force_generic_plan; \
    SET LOCAL synchronous_commit = off";

/// Some keys are looked up one by one. `opsward.captured` can only be read from
/// end to end: with the price that [`PLAN`] puts on that, the planner no longer
/// tells a merge over the whole log from a look at a few of its rows.
const BY_KEY: &str = "SET LOCAL enable_mergejoin = off";

/// The next range of so many rows after a key. Keys in it that are no ULIDs are
/// remembered: their rows survive.
pub async fn range(tx: &Transaction<'_>, after: &str, rows: u32) -> Result<Range> {
    tx.batch_execute(PLAN).await.doing("begin a range")?;
    // As one value: a row for each key takes twice the time.
    let sql = format!("SELECT ARRAY(SELECT ulid {} LIMIT $2)", rows_after(after));
    let rows = at_least_two(rows);
    let row = rows::cached_one(tx, &sql, &[&after, &rows], "find a range of the log").await?;
    let found: Vec<&str> = row.get(0);
    // Judged here: an expression for it costs the server more than all the rest.
    let odd: Vec<&str> = found.iter().copied().filter(|u| OpUlid::parse(u).is_none()).collect();
    if !odd.is_empty() {
        tx.execute(KEEP, &[&odd]).await.doing("keep rows without a ULID")?;
    }
    let full = i64::try_from(found.len()).is_ok_and(|found| found >= rows);
    Ok(Range {
        after: after.to_owned(),
        until: found.last().filter(|_| full).map(|&last| last.to_owned()),
        rows: found.len() as u64,
    })
}

/// One row could be the key '', after which everything begins.
fn at_least_two(rows: u32) -> i64 {
    i64::from(rows.max(2))
}

const KEEP: &str = "
    INSERT INTO opsward.reclaim_kept SELECT unnest($1::text[]) ON CONFLICT DO NOTHING";

/// A range of at most so many rows within a part of the log: after a key, up to
/// another or the end. Keys that are no ULIDs are remembered already.
pub async fn known_range(
    tx: &Transaction<'_>,
    (after, until): (&str, Option<&str>),
    rows: u32,
) -> Result<Range> {
    tx.batch_execute(PLAN).await.doing("begin a range")?;
    let part = if until.is_some() { "AND ulid <= $3" } else { "AND $3::text IS NULL" };
    let sql = format!(
        "SELECT ulid FROM public.ops WHERE ulid {} $1 {part} ORDER BY ulid OFFSET $2::bigint - 1 LIMIT 1",
        above(after)
    );
    let statement = tx.prepare_cached(&sql).await.doing("find a range of the log")?;
    let rows = at_least_two(rows);
    let last = tx.query_opt(&statement, &[&after, &rows, &until]).await.doing("find a range of the log")?;
    // How many are left at the end is not worth counting.
    let seen = last.as_ref().map_or(0, |_| rows.unsigned_abs());
    let until = last.map(|r| r.get(0)).or_else(|| until.map(str::to_owned));
    Ok(Range { after: after.to_owned(), until, rows: seen })
}

/// Makes ready for a range that was found in another transaction, and for the traces of another
/// session that are waited for until its batch ends.
pub async fn begin(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute(&format!("{PLAN}; {PATIENT}")).await.doing("begin a range")
}

const PATIENT: &str = "SET LOCAL lock_timeout = '400ms'";

/// In the order of the key, after `$1`; its start is '', which may be a key.
fn rows_after(after: &str) -> String {
    format!("FROM public.ops WHERE ulid {} $1 ORDER BY ulid", above(after))
}

fn above(after: &str) -> &'static str {
    if after.is_empty() { ">=" } else { ">" }
}

impl Range {
    /// `$1` and `$2` of every statement over a range.
    fn sql(&self, prefix: &str) -> String {
        let above = above(&self.after);
        match self.until {
            Some(_) => format!("{prefix}ulid {above} $1 AND {prefix}ulid <= $2"),
            None => format!("{prefix}ulid {above} $1 AND $2::text IS NULL"),
        }
    }

    /// Whether no row in it can be below a ULID.
    pub fn is_above(&self, ceiling: &str) -> bool {
        // Of ULIDs alone is the order of bytes that of the key.
        OpUlid::parse(&self.after).is_some_and(|after| after.as_str() >= ceiling)
    }
}

impl Doomed<'_> {
    /// Leaves traces of what stays below the cuts for the chain's sake, as
    /// deleting does: the node's own pruner deletes it too.
    fn stays_sql(&self, range: &Range) -> Option<String> {
        let owed = self.columns.owed();
        let arm = |(table, cut): (&String, &OpUlid)| {
            let stays = owed.stays_a_while("o.", &time_sql(cut.ms()));
            let table = table.replace('\'', "''");
            format!("WHEN '{table}' THEN o.ulid COLLATE \"C\" < '{cut}' AND {stays} ")
        };
        let arms: String = self.cuts.iter().map(arm).collect();
        let is_owed = !arms.is_empty() && owed != Owed::default();
        let stays = format!(
            "SELECT {} FROM public.ops o WHERE {} AND CASE o.\"table\" {arms}ELSE false END",
            prune_sql::gone_sql("0"),
            range.sql("o.")
        );
        is_owed.then(|| prune_sql::traced_of(&stays, "0"))
    }

    /// Whether a row `o` of a range goes. Rows without a ULID are among the kept.
    fn sql(&self, range: &Range) -> String {
        let owed = self.columns.owed();
        let arm = |(table, cut): (&String, &OpUlid)| {
            let late = owed.is_late("o.", &time_sql(cut.ms()));
            format!(
                "WHEN '{}' THEN o.ulid COLLATE \"C\" < '{cut}' AND NOT {late} ",
                table.replace('\'', "''")
            )
        };
        let arms: String = self.cuts.iter().map(arm).collect();
        let mut ways = Vec::new();
        if !arms.is_empty() {
            ways.push(format!("CASE o.\"table\" {arms}ELSE false END"));
        }
        if self.listed {
            let below = range.until.as_ref().map_or("$2::text IS NULL", |_| "d.first <= $2");
            ways.push(format!(
                "o.ulid IN (SELECT unnest(d.ulids) FROM opsward.reclaim_drops d WHERE d.last > $1 AND {below})"
            ));
        }
        if ways.is_empty() {
            ways.push("false".into());
        }
        format!(
            "(({}) AND NOT {} AND o.ulid >= '{EARLIEST_ULID}'
              AND o.ulid NOT IN (SELECT k.ulid FROM opsward.reclaim_kept k WHERE {}))",
            ways.join(" OR "),
            owed.sql("o."),
            range.sql("k.")
        )
    }
}

/// Copies the survivors of a range; says how many.
pub async fn copy(tx: &Transaction<'_>, doomed: &Doomed<'_>, range: &Range) -> Result<u64> {
    let (to, from) = (doomed.columns.list(""), doomed.columns.list("o."));
    let (within, gone) = (range.sql("o."), doomed.sql(range));
    let sql = format!(
        "INSERT INTO {NEXT} ({to}) OVERRIDING SYSTEM VALUE
         SELECT {from} FROM public.ops o WHERE {within} AND NOT {gone} ORDER BY o.ulid"
    );
    let statement = tx.prepare_cached(&sql).await.doing("copy a range of the log")?;
    tx.execute(&statement, &[&range.after, &range.until]).await.doing("copy a range of the log")
}

/// Leaves the traces of what a range loses, and counts it by table; what stays for the
/// chain's sake counts no rows. They act on nothing until a floor is raised over them.
pub async fn trace(tx: &Transaction<'_>, doomed: &Doomed<'_>, range: &Range) -> Result<Vec<Gone>> {
    let (within, which) = (range.sql("o."), doomed.sql(range));
    let gone = prune_sql::gone_sql(&doomed.columns.bytes("o."));
    let gone = format!("SELECT {gone} FROM public.ops o WHERE {within} AND {which}");
    tx.batch_execute(HASH).await.doing("leave traces of a range")?;
    let ends: Params<'_> = &[&range.after, &range.until];
    let rows = rows::cached(tx, &prune_sql::traced_of(&gone, "0"), ends, "leave traces of a range").await?;
    let mut gone: Vec<Gone> = rows.iter().filter_map(Gone::read).collect();
    if let Some(stays) = doomed.stays_sql(range) {
        let rows = rows::cached(tx, &stays, ends, "remember what stays").await?;
        gone.extend(rows.iter().filter_map(Gone::read).map(|stays| Gone { rows: 0, ..stays }));
    }
    tx.batch_execute(NO_HASH).await.doing("leave traces of a range")?;
    Ok(gone)
}

/// A few thousand records are joined, which merging takes a fifth longer.
const HASH: &str = "SET LOCAL enable_hashjoin = on";
const NO_HASH: &str = "SET LOCAL enable_hashjoin = off";

/// Whether the new table has nothing of a range.
pub async fn is_empty(tx: &Transaction<'_>, range: &Range) -> Result<bool> {
    let sql = format!("SELECT NOT EXISTS (SELECT FROM {NEXT} n WHERE {})", range.sql("n."));
    rows::one(tx, &*sql, &[&range.after, &range.until], "look at the copy of a range").await
}

/// How far the copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copied<'a> {
    /// Up to this key: what lies above will be copied as it is then.
    To(&'a str),
    /// To the end: the new table follows the log.
    All,
}

impl<'a> Copied<'a> {
    fn until(self) -> Option<&'a str> {
        match self {
            Self::To(key) => Some(key),
            Self::All => None,
        }
    }
}

/// Takes at most so many noted keys, and makes the new table hold of each what
/// the log holds: one statement, one snapshot. What is younger than the
/// survivors survives, so keys below `ceiling` are remembered. Returns them.
pub async fn replay(
    tx: &Transaction<'_>,
    columns: &Columns,
    copied: Copied<'_>,
    (ceiling, most): (&str, u32),
) -> Result<Vec<String>> {
    let (to, from, excluded) = (columns.list(""), columns.list("o."), columns.excluded());
    let put = match copied {
        // Nothing is copied yet at ''.
        Copied::To(_) => "o.ulid <= $3 AND $3 <> ''",
        Copied::All => "$3::text IS NULL",
    };
    let sql = format!(
        "WITH taken AS (
             DELETE FROM opsward.captured c
             WHERE c.ctid = ANY (ARRAY(SELECT ctid FROM opsward.captured LIMIT $1)) RETURNING c.ulid),
         keys AS MATERIALIZED (SELECT DISTINCT ulid FROM taken),
         there AS (SELECT o.* FROM keys k JOIN public.ops o ON o.ulid = k.ulid),
         kept AS (
             INSERT INTO opsward.reclaim_kept
             SELECT ulid FROM there WHERE ulid < $2 OR ulid COLLATE \"C\" < $2 ON CONFLICT DO NOTHING),
         lost AS (
             DELETE FROM {NEXT} n USING keys k
             WHERE n.ulid = k.ulid AND NOT EXISTS (SELECT FROM public.ops o WHERE o.ulid = k.ulid)),
         put AS (
             INSERT INTO {NEXT} ({to}) OVERRIDING SYSTEM VALUE SELECT {from} FROM there o WHERE {put}
             ON CONFLICT (ulid) DO UPDATE SET {excluded})
         SELECT ulid FROM keys"
    );
    let until = copied.until();
    tx.batch_execute(&format!("{PLAN}; {BY_KEY}")).await.doing("begin a replay")?;
    let params: Params<'_> = &[&i64::from(most), &ceiling, &until];
    let rows = rows::cached(tx, &sql, params, "replay what was written").await?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Bytes of the list of noted keys, dead rows included.
pub async fn noted_bytes(client: &impl GenericClient) -> Result<u64> {
    let row = rows::cached_one(client, NOTED_BYTES, &[], "look how long the list is").await?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

const NOTED_BYTES: &str = "SELECT pg_relation_size('opsward.captured')";

/// Replays the rest of what was noted while nobody can write to the list, and
/// empties it unless more was noted than is replayed at once. Returns the keys.
/// A change of [`crate::db::short_lock`].
pub async fn empty_list(
    tx: &Transaction<'_>,
    columns: &Columns,
    copied: Copied<'_>,
    most: (&str, u32),
) -> Result<Vec<String>> {
    tx.batch_execute(LOCK_LIST).await.doing("lock the list of noted keys")?;
    let keys = replay(tx, columns, copied, most).await?;
    if !is_noted(tx).await? {
        tx.batch_execute(EMPTY_LIST).await.doing("empty the list of noted keys")?;
    }
    Ok(keys)
}

const LOCK_LIST: &str = "LOCK TABLE opsward.captured IN ACCESS EXCLUSIVE MODE";
const EMPTY_LIST: &str = "TRUNCATE opsward.captured";

/// Whether a key is noted that was not replayed.
pub async fn is_noted(tx: &Transaction<'_>) -> Result<bool> {
    Ok(rows::cached_one(tx, NOTED, &[], "look for unreplayed writes").await?.get(0))
}

pub(in crate::db) const NOTED: &str = "SELECT EXISTS (SELECT FROM opsward.captured)";

/// Keys that differ although nothing noted says that they may, of those that
/// were replayed in this transaction.
pub async fn recheck(
    tx: &Transaction<'_>,
    columns: &Columns,
    copied: Copied<'_>,
    keys: &[String],
) -> Result<Vec<String>> {
    let (one, other) = (columns.list("o."), columns.list("n."));
    let sql = format!(
        "SELECT k.ulid FROM unnest($1::text[]) AS k(ulid)
         LEFT JOIN public.ops o ON o.ulid = k.ulid LEFT JOIN {NEXT} n ON n.ulid = k.ulid
         WHERE NOT record_image_eq(ROW({one}), ROW({other}))
           AND ($2::text IS NULL OR k.ulid <= $2 AND $2 <> '')"
    );
    let params: Params<'_> = &[&keys, &copied.until()];
    let rows = rows::cached(tx, &unnoted(&sql), params, "check what was replayed").await?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Keys of a range in which the survivors and the new table differ, by a
/// single value or as a whole, although nothing noted says that they may.
/// Values are compared byte by byte.
pub async fn verify(tx: &Transaction<'_>, doomed: &Doomed<'_>, range: &Range) -> Result<Vec<String>> {
    let (within, gone) = (range.sql("o."), doomed.sql(range));
    let (one, other, all) = (doomed.columns.list("o."), doomed.columns.list("n."), doomed.columns.list("o."));
    let within_next = range.sql("n.");
    let sql = format!(
        "SELECT coalesce(o.ulid, n.ulid) AS ulid
         FROM (SELECT {all} FROM public.ops o WHERE {within} AND NOT {gone} ORDER BY o.ulid) o
         FULL JOIN (SELECT * FROM {NEXT} n WHERE {within_next} ORDER BY n.ulid) n ON o.ulid = n.ulid
         WHERE NOT record_image_eq(ROW({one}), ROW({other}))"
    );
    let ends: Params<'_> = &[&range.after, &range.until];
    let rows = rows::cached(tx, &unnoted(&sql), ends, "compare a range of the log").await?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Those of the keys that a statement finds of which nothing is noted. The list may hold a
/// million keys: it is read where something differs, which is rare.
fn unnoted(differs: &str) -> String {
    format!(
        "WITH differs AS MATERIALIZED ({differs})
         SELECT d.ulid FROM differs d WHERE d.ulid NOT IN (SELECT c.ulid FROM opsward.captured c) LIMIT 5"
    )
}

/// One op as compaction judges it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalkedOp {
    /// Its key.
    pub ulid: String,
    /// What it does.
    pub action: String,
    /// Its table.
    pub table: String,
    /// Its records; `None` where there are none, or too many to look at.
    pub data: Option<String>,
    /// The chain has not got it, or brought it too lately.
    pub owed: bool,
}

/// Hands the ops before a key (or from the end) to `judge`, newest first, one
/// at a time; `longest` is the most bytes of records that it looks at, `below`
/// by table from which time on what the chain brought stays. Returns the last
/// key and how many there were.
pub async fn walk(
    tx: &Transaction<'_>,
    (columns, below): (&Columns, &BTreeMap<String, OpUlid>),
    before: Option<&str>,
    (rows, longest): (u32, usize),
    mut judge: impl FnMut(&WalkedOp),
) -> Result<(Option<String>, u64)> {
    let owed = owed_sql(columns.owed(), below);
    let before_sql = before.map_or("$1::text IS NULL", |_| "o.ulid < $1");
    let sql = format!(
        "SELECT o.ulid, coalesce(o.action, ''), coalesce(o.\"table\", ''),
                CASE WHEN pg_column_size(o.data) <= $3 THEN o.data::text END, {owed}
         FROM public.ops o WHERE {before_sql} ORDER BY o.ulid DESC LIMIT $2"
    );
    tx.batch_execute(PLAN).await.doing("begin to walk the log")?;
    let statement = tx.prepare_cached(&sql).await.doing("walk the log")?;
    let (rows, longest) = (i64::from(rows), i32::try_from(longest).unwrap_or(i32::MAX));
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&before, &rows, &longest];
    let stream = tx.query_raw(&statement, params).await.doing("walk the log")?;
    let mut stream = std::pin::pin!(stream.map(|row| row.doing("walk the log")));
    let (mut last, mut count) = (None, 0);
    while let Some(row) = stream.try_next().await? {
        let op = WalkedOp {
            ulid: row.get(0),
            action: row.get(1),
            table: row.get(2),
            data: row.get(3),
            owed: row.get(4),
        };
        judge(&op);
        (last, count) = (Some(op.ulid), count + 1);
    }
    Ok((last, count))
}

/// Whether the chain keeps a row `o` from being dropped.
fn owed_sql(owed: Owed, below: &BTreeMap<String, OpUlid>) -> String {
    let late = |(table, below): (&String, &OpUlid)| {
        let late = owed.is_late("o.", &time_sql(below.ms()));
        format!(" OR (o.\"table\" = '{}' AND {late})", table.replace('\'', "''"))
    };
    let late: String = below.iter().map(late).collect();
    format!("({}{late})", owed.sql("o."))
}

/// Remembers what nobody needs of the part of the log from `first` to `last`.
pub async fn list(tx: &Transaction<'_>, pass: u32, ulids: &[OpUlid]) -> Result<()> {
    let ulids: Vec<&str> = ulids.iter().map(OpUlid::as_str).collect();
    let (Some(last), Some(first)) = (ulids.first(), ulids.last()) else { return Ok(()) };
    let pass = i32::try_from(pass).unwrap_or(i32::MAX);
    rows::write_cached(tx, LIST, &[&pass, &first, &last, &ulids], "list what nobody needs").await
}

const LIST: &str = "INSERT INTO opsward.reclaim_drops (pass, first, last, ulids) VALUES ($1, $2, $3, $4)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ulids_tell_that_nothing_below_the_ceiling_follows() {
        let ceiling = OpUlid::first_of_ms(1_700_000_000_000);
        let range = |after: &str| Range { after: after.into(), until: None, rows: 0 };
        assert!(range(ceiling.as_str()).is_above(ceiling.as_str()));
        assert!(!range(OpUlid::first_of_ms(1_699_999_999_999).as_str()).is_above(ceiling.as_str()));
        // The euro sign sorts before digits in en_US, its bytes after them.
        for odd in ["", "\u{20ac}", "01ZZ", "zz"] {
            assert!(!range(odd).is_above(ceiling.as_str()), "{odd}");
        }
    }
}
