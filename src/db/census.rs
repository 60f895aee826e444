//! `opsward.census`: rows and bytes of the log by table and UTC day, and what
//! keeps it true between two counts. The counting itself reads in `slices`.

use super::error::{Doing, Result};
use crate::values::OpUlid;
use deadpool_postgres::{GenericClient, Transaction};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, tz::TimeZone};

/// The day of rows whose ULID is no plausible one.
pub const EPOCH: Date = jiff::civil::date(1970, 1, 1);

/// One table on one UTC day.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The table, as ops name it; NULL is ''.
    pub table: String,
    /// The day of the ops' ULIDs.
    pub day: Date,
    /// Ops.
    pub rows: u64,
    /// Bytes they take in the table, TOAST included, indexes not.
    pub bytes: u64,
    /// The lowest ULID when it was counted.
    pub oldest: OpUlid,
    /// The highest.
    pub newest: OpUlid,
    /// Ops that are still owed to the chain.
    pub owed: u64,
    /// From a sample, not counted.
    pub estimated: bool,
    /// When.
    pub counted_at: Timestamp,
}

/// Rows of one table whose ULID is no plausible one: they count for nothing
/// but their number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Implausible {
    /// The table, as ops name it; NULL is ''.
    pub table: String,
    /// Ops.
    pub rows: u64,
    /// Bytes they take.
    pub bytes: u64,
    /// Of them still owed to the chain.
    pub owed: u64,
}

/// The UTC day of a time in milliseconds since the Unix epoch.
pub fn day_of(ms: u64) -> Date {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map_or(Date::MAX, |at| at.to_zoned(TimeZone::UTC).date())
}

/// When a UTC day begins, in milliseconds since the Unix epoch; 0 before it.
pub fn day_ms(day: Date) -> u64 {
    let at = day.to_zoned(TimeZone::UTC).map(|z| z.timestamp().as_millisecond());
    at.ok().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}

/// The lowest ULIDs of the days from `from` up to and with `to`: in
/// `width_bucket(ulid COLLATE "C", $starts::text[])` bucket 1 is `from`.
pub fn day_starts(from: Date, to: Date) -> Vec<String> {
    from.series(1.day())
        .take_while(|day| *day <= to)
        .map(|day| OpUlid::first_of_ms(day_ms(day)).to_string())
        .collect()
}

/// All of the census but implausible rows, by table and day.
///
/// # Errors
/// The database's.
pub async fn load(client: &impl GenericClient) -> Result<Vec<Entry>> {
    let rows = client.query(LOAD, &[]).await.doing("read the census")?;
    Ok(rows.iter().filter_map(entry).collect())
}

fn entry(row: &tokio_postgres::Row) -> Option<Entry> {
    Some(Entry {
        table: row.get(0),
        day: row.get(1),
        rows: unsigned(row.get(2)),
        bytes: unsigned(row.get(3)),
        oldest: OpUlid::parse(row.get(4))?,
        newest: OpUlid::parse(row.get(5))?,
        owed: unsigned(row.get(6)),
        estimated: row.get(7),
        counted_at: row.get(8),
    })
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

const LOAD: &str = "
    SELECT table_name, day, rows, bytes, oldest, newest, owed, estimated, counted_at
    FROM opsward.census WHERE day > 'epoch' AND rows > 0 ORDER BY table_name, day";

/// The rows whose ULID is no plausible one, by table.
///
/// # Errors
/// The database's.
pub async fn implausible(client: &impl GenericClient) -> Result<Vec<Implausible>> {
    let rows = client.query(IMPLAUSIBLE, &[]).await.doing("read the census")?;
    let read = |r: &tokio_postgres::Row| Implausible {
        table: r.get(0),
        rows: unsigned(r.get(1)),
        bytes: unsigned(r.get(2)),
        owed: unsigned(r.get(3)),
    };
    Ok(rows.iter().map(read).collect())
}

const IMPLAUSIBLE: &str = "
    SELECT table_name, rows, bytes, owed FROM opsward.census
    WHERE day = 'epoch' AND rows > 0 ORDER BY table_name";

/// Marks days as written to: they are counted again.
///
/// # Errors
/// The database's.
pub async fn touch(client: &impl GenericClient, days: &[Date]) -> Result<()> {
    client.execute(TOUCH, &[&days]).await.doing("mark days for the census")?;
    Ok(())
}

const TOUCH: &str = "INSERT INTO opsward.census_touched (day) SELECT unnest($1::date[])";

/// Takes deleted ops off the census, in the transaction that deletes them and
/// under the lease: (table, day, rows, bytes). What is left of their days is
/// counted again later, for its oldest and newest.
///
/// # Errors
/// The database's.
pub async fn subtract(tx: &Transaction<'_>, deleted: &[(String, Date, u64, u64)]) -> Result<()> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let tables: Vec<&str> = deleted.iter().map(|d| d.0.as_str()).collect();
    let days: Vec<Date> = deleted.iter().map(|d| d.1).collect();
    let rows: Vec<i64> = deleted.iter().map(|d| signed(d.2)).collect();
    let bytes: Vec<i64> = deleted.iter().map(|d| signed(d.3)).collect();
    let statement = tx.prepare_cached(SUBTRACT).await.doing("take off the census")?;
    tx.execute(&statement, &[&tables, &days, &rows, &bytes]).await.doing("take off the census")?;
    Ok(())
}

/// A day that a pass is just counting is in parts counted already: that count
/// is given up (`spoiled`), the one before it stays, less what was deleted.
const SUBTRACT: &str = "
    WITH gone AS (
        SELECT table_name, day, sum(rows)::bigint AS rows, sum(bytes)::bigint AS bytes
        FROM unnest($1::text[], $2::date[], $3::bigint[], $4::bigint[]) g(table_name, day, rows, bytes)
        GROUP BY table_name, day),
    less AS (
        UPDATE opsward.census c
        SET rows = greatest(c.rows - g.rows, 0), bytes = greatest(c.bytes - g.bytes, 0)
        FROM gone g WHERE c.table_name = g.table_name AND c.day = g.day),
    given_up AS (
        UPDATE opsward.census_pass SET spoiled = day
        WHERE finished_at IS NULL AND day IN (SELECT day FROM gone))
    INSERT INTO opsward.census_touched (day)
    SELECT DISTINCT day FROM gone
    WHERE day > 'epoch' AND day NOT IN (SELECT day FROM opsward.census_touched)";

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    #[test]
    fn days_begin_at_their_first_millisecond() {
        let starts = day_starts(date(2023, 1, 1), date(2023, 1, 3));
        assert_eq!(starts.len(), 3);
        assert_eq!(starts[0], crate::values::EARLIEST_ULID);
        assert!(day_starts(date(2023, 1, 2), date(2023, 1, 1)).is_empty());
    }

    proptest! {
        #[test]
        fn a_time_lies_on_its_day(ms in 0u64..4_000_000_000_000) {
            let day = day_of(ms);
            prop_assert!(day_ms(day) <= ms && ms < day_ms(day) + 86_400_000);
        }
    }
}
