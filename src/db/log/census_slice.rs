//! The log as it is counted: slices of it in key order, and a sample of its
//! blocks. Short read-only transactions, each statement bounded.

use crate::db::{
    Client, Doing, Isolation, Params, Result, begin, catalog,
    census::{Counts, EPOCH, Tally, day_ms, day_of, day_starts},
    log::read_pinned,
    owed::Owed,
    prune_sql::OVERHEAD,
    rows,
};
use crate::records::quote_ident;
use crate::values::{EARLIEST_MS, OpUlid, latest_plausible};
use jiff::ToSpan;
use jiff::civil::Date;
use tokio_postgres::Row;

/// Days a slice may span: `width_bucket` walks them for each row.
const WINDOW_DAYS: i32 = 31;
/// Blocks a sample reads: 16 MiB, a second of random reads on a slow disk.
const SAMPLE_BLOCKS: f64 = 2_000.0;

/// Nothing is sorted: the rows come in the order of the key.
const BOUNDS: &str = "SET LOCAL statement_timeout = '4s'; SET LOCAL enable_sort = off";

/// What is read of a row, as expressions over the columns that `ops` has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    bytes: String,
    owed: String,
}

impl Reading {
    /// For these columns. `pg_column_size` of a column reads no TOAST: it is
    /// the size of a value as it is stored.
    pub fn of_columns(columns: &[String]) -> Self {
        let sizes: Vec<_> = columns.iter().map(|c| format!("pg_column_size({})", quote_ident(c))).collect();
        // Where no column is NULL, the shorter sum is it.
        let (all, some) = (sizes.join(" + "), sizes.join(", 0) + coalesce("));
        let owed = Owed::of_columns(columns).sql("");
        Self { bytes: format!("coalesce({OVERHEAD} + {all}, {OVERHEAD} + coalesce({some}, 0))"), owed }
    }

    /// For the columns that `ops` has now.
    pub async fn of_catalog(client: &Client) -> Result<Self> {
        let relations = catalog::relations(client).await?;
        Ok(Self::of_columns(relations.columns("ops").unwrap_or_default()))
    }
}

/// Some days of the log: where each begins, and where the last one ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    first: Date,
    starts: Vec<String>,
    /// The first day after it.
    pub next: Date,
    /// The highest ULID in it.
    pub last: OpUlid,
    /// No plausible op lies above it.
    pub is_last: bool,
}

impl Window {
    /// At most a month of days from `first` on, below `until`, and none above
    /// what is plausible at `now_ms`.
    pub fn new(first: Date, until: Option<Date>, now_ms: u64) -> Self {
        Self::of_days(WINDOW_DAYS, first, until, now_ms)
    }

    fn of_days(days: i32, first: Date, until: Option<Date>, now_ms: u64) -> Self {
        let latest = latest_plausible(now_ms);
        let horizon = day_of(latest.ms()).saturating_add(1.day());
        let end = first.saturating_add(days.days()).min(horizon).min(until.unwrap_or(horizon)).max(first);
        let is_last = end == horizon;
        let last = if is_last { latest } else { OpUlid::last_of_ms(day_ms(end).saturating_sub(1)) };
        let mut starts = day_starts(first, end.saturating_sub(1.day()));
        starts.push(OpUlid::first_of_ms(last.ms() + 1).to_string());
        Self { first, starts, next: end, last, is_last }
    }

    /// When it begins, in milliseconds since the Unix epoch.
    pub fn first_ms(&self) -> u64 {
        day_ms(self.first)
    }

    /// The day of a bucket; `EPOCH` where it is none of these.
    fn day(&self, bucket: i32) -> Date {
        match bucket {
            1.. if (bucket as usize) < self.starts.len() => self.first.saturating_add((bucket - 1).days()),
            _ => EPOCH,
        }
    }
}

/// Where a slice lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range<'a> {
    /// Above this; '' is the beginning of the log.
    pub after: &'a str,
    /// Up to and with this; `None` is the end of the log.
    pub to: Option<&'a str>,
    /// Rows at most.
    pub rows: u32,
}

/// What was counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slice {
    /// By day and table.
    pub counts: Counts,
    /// Rows, implausible ones included.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last row, in the log's order.
    pub last: Option<String>,
}

/// Whether each row's ULID is looked at by the server, or all of them here:
/// that is four times faster, and enough where all of them are OpUlids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Check {
    Here,
    Server,
}

const BUCKET: &str = r#"width_bucket(ulid COLLATE "C", $3::text[])"#;
const IF_VALID: &str =
    r#"CASE WHEN ulid COLLATE "C" ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' THEN BUCKET ELSE 0 END"#;

fn slice_sql(reading: &Reading, range: Range<'_>, check: Check) -> String {
    let (bucket, last) = match check {
        Check::Here => (BUCKET.to_owned(), "NULL::text"),
        Check::Server => (IF_VALID.replace("BUCKET", BUCKET), "max(max(ulid)) OVER ()"),
    };
    let above = if range.after.is_empty() { ">=" } else { ">" };
    let to = if range.to.is_some() { "ulid <= $2" } else { "$2::text IS NULL" };
    let Reading { bytes, owed } = reading;
    format!(
        r#"SELECT tab, {bucket}, count(*), sum(bytes), count(*) FILTER (WHERE owed),
                  string_agg(ulid, ','), {last}
           FROM (SELECT ulid, coalesce("table", '') AS tab, {bytes} AS bytes, {owed} AS owed
                 FROM public.ops WHERE ulid {above} $1 AND {to}
                 ORDER BY ulid LIMIT $4) slice
           GROUP BY 1, 2"#
    )
}

/// Counts one slice in a transaction of its own, of at most 4 s.
///
/// # Errors
/// The database's; `Kind::TooLong` tells one that took too long.
pub async fn slice(
    client: &mut Client,
    reading: &Reading,
    window: &Window,
    range: Range<'_>,
) -> Result<Slice> {
    match counted(client, reading, window, (range, Check::Here)).await? {
        Some(slice) => Ok(slice),
        None => Ok(counted(client, reading, window, (range, Check::Server)).await?.unwrap_or_default()),
    }
}

async fn counted(
    client: &mut Client,
    reading: &Reading,
    window: &Window,
    (range, check): (Range<'_>, Check),
) -> Result<Option<Slice>> {
    let sql = slice_sql(reading, range, check);
    let params: Params<'_> = &[&range.after, &range.to, &window.starts, &i64::from(range.rows)];
    let rows = read_pinned(client, BOUNDS, &sql, params, "count a slice of the log").await?;
    let mut slice = Slice::default();
    for row in &rows {
        let day = window.day(row.get(1));
        let ulids: &str = row.get(5);
        let mut tally = Tally::counted(row.get(2), row.get(3), row.get(4));
        match bounds(ulids, tally.rows) {
            Some((oldest, newest)) => {
                slice.last = slice.last.max(Some(newest.to_owned()));
                if day != EPOCH {
                    (tally.oldest, tally.newest) = (oldest.to_owned(), newest.to_owned());
                }
            }
            None if check == Check::Here => return Ok(None),
            None => {}
        }
        slice.rows += tally.rows;
        slice.bytes += tally.bytes;
        slice.counts.add((day, row.get(0)), tally);
    }
    if let (Check::Server, Some(row)) = (check, rows.first()) {
        slice.last = row.get(6);
    }
    Ok(Some(slice))
}

/// The later of a key and a ULID, in the order of the log's keys.
pub async fn later(client: &Client, key: &str, ulid: OpUlid) -> Result<String> {
    if let Some(key) = OpUlid::parse(key) {
        return Ok(key.max(ulid).to_string());
    }
    rows::one(client, LATER, &[&key, &ulid.as_str()], "compare two keys of the log").await
}

const LATER: &str = "SELECT greatest($1::text, $2::text)";

/// The lowest and the highest of so many OpUlids with commas between them;
/// `None` where they are no such thing.
fn bounds(ulids: &str, count: u64) -> Option<(&str, &str)> {
    let mut found: Option<(&str, &str)> = None;
    let mut seen = 0;
    for ulid in ulids.split(',') {
        OpUlid::parse(ulid)?;
        let (low, high) = found.unwrap_or((ulid, ulid));
        found = Some((low.min(ulid), high.max(ulid)));
        seen += 1;
    }
    found.filter(|_| seen == count)
}

/// A sample of blocks, scaled to the whole: what the census will roughly say.
pub async fn estimate(client: &mut Client, reading: &Reading, now_ms: u64) -> Result<Counts> {
    let blocks: i64 = client.query_one(BLOCKS, &[]).await.doing("measure the log")?.get(0);
    let mut percent = (100.0 * SAMPLE_BLOCKS / (blocks.max(1) as f64)).min(100.0) as f32;
    let earliest = day_of(EARLIEST_MS);
    let window = Window::of_days(i32::MAX / 400, earliest, None, now_ms);
    let bucket = IF_VALID.replace("BUCKET", BUCKET).replace("$3", "$2");
    let sql = estimate_sql(reading, &bucket);
    loop {
        match sampled(client, &sql, percent, &window).await {
            Err(e) if e.is_too_long() && percent > 1e-6 => percent /= 4.0,
            Err(e) => return Err(e),
            Ok(rows) => return Ok(scaled(&rows, &window, 100.0 / f64::from(percent))),
        }
    }
}

const BLOCKS: &str = "
    SELECT pg_relation_size(to_regclass('public.ops')) / current_setting('block_size')::bigint";

fn estimate_sql(Reading { bytes, owed }: &Reading, bucket: &str) -> String {
    format!(
        r#"SELECT coalesce("table", ''), {bucket}, count(*), sum({bytes}), count(*) FILTER (WHERE {owed}),
                  min(ulid COLLATE "C"), max(ulid COLLATE "C")
           FROM public.ops TABLESAMPLE SYSTEM ($1::real) GROUP BY 1, 2"#
    )
}

async fn sampled(client: &mut Client, sql: &str, percent: f32, window: &Window) -> Result<Vec<Row>> {
    let tx = begin(client, Isolation::Read).await?;
    // A sort of whole rows would need disk for itself, where there may be none.
    let bounds = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '4s'; \
        SET LOCAL enable_sort = off; SET LOCAL work_mem = '32MB'";
    tx.batch_execute(bounds).await.doing("begin a sample")?;
    let rows = tx.query(sql, &[&percent, &window.starts]).await.doing("sample the log")?;
    tx.rollback().await.doing("end a sample")?;
    Ok(rows)
}

fn scaled(rows: &[Row], window: &Window, factor: f64) -> Counts {
    let mut counts = Counts::default();
    let scale = |n: u64| (n as f64 * factor).round() as u64;
    for row in rows {
        let day = window.day(row.get(1));
        let tally = Tally::counted(row.get(2), row.get(3), row.get(4));
        let ends = if day == EPOCH { Default::default() } else { (row.get(5), row.get(6)) };
        let tally = Tally {
            rows: scale(tally.rows),
            bytes: scale(tally.bytes),
            owed: scale(tally.owed),
            oldest: ends.0,
            newest: ends.1,
        };
        counts.add((day, row.get(0)), tally);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    const NOW: u64 = 1_790_000_000_000;

    #[test]
    fn windows_cover_every_day_once() {
        let mut day = date(2023, 1, 1);
        let mut starts = Vec::new();
        loop {
            let window = Window::new(day, None, NOW);
            starts.extend(window.starts[..window.starts.len() - 1].to_vec());
            assert_eq!(window.day(0), EPOCH);
            assert_eq!(window.day(1), day);
            assert_eq!(window.day(window.starts.len() as i32), EPOCH);
            day = window.next;
            if window.is_last {
                assert_eq!(window.last, latest_plausible(NOW));
                break;
            }
        }
        assert_eq!(starts, day_starts(date(2023, 1, 1), day_of(NOW + 86_400_000)));
        let one = Window::new(date(2024, 2, 29), Some(date(2024, 3, 1)), NOW);
        assert_eq!((one.starts.len(), one.next, one.is_last), (2, date(2024, 3, 1), false));
    }

    #[test]
    fn only_whole_ulids_pass() {
        let (a, b) = ("01HKFACTS00000000000000001", "01HKFACTS00000000000000002");
        assert_eq!(bounds(&format!("{b},{a}"), 2), Some((a, b)));
        // One row of two ULIDs and a comma, or two halves.
        assert_eq!(bounds(&format!("{a},{b}"), 1), None);
        for bad in ["", ",", &a.to_lowercase(), &a[..25], &format!("{a},"), &format!("{a}{b}")] {
            assert_eq!(bounds(bad, 1), None, "{bad}");
        }
    }

    #[test]
    fn owed_where_the_column_exists() {
        let names = |n: &[&str]| n.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(Reading::of_columns(&names(&["ulid"])).owed, "false");
        let newer = Reading::of_columns(&names(&["ulid", "core_tx_status"]));
        assert!(newer.owed.contains("pending"));
        assert!(newer.bytes.contains("pg_column_size(\"core_tx_status\")"), "{}", newer.bytes);
    }
}
