//! `opsward.census`: rows and bytes of the log by table and UTC day, and what
//! keeps it true between two counts. The counting itself reads in `slices`.

use crate::db::{GenericClient, Result, Transaction, rows};
use crate::values::{OpUlid, signed};
pub use crate::values::{day_ms, day_of};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The day of rows whose ULID is no plausible one.
pub const EPOCH: Date = jiff::civil::date(1970, 1, 1);

/// One table on one UTC day.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
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

/// What was counted of one table on one day.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Ops.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of them owed to the chain.
    pub owed: u64,
    /// The lowest ULID; '' of implausible rows.
    pub oldest: String,
    /// The highest.
    pub newest: String,
}

impl Tally {
    /// Counts as the server sends them, the ends still unknown.
    pub(in crate::db) fn counted(rows: i64, bytes: i64, owed: i64) -> Self {
        let [rows, bytes, owed] = [rows, bytes, owed].map(|n| u64::try_from(n).unwrap_or(0));
        Self { rows, bytes, owed, ..Self::default() }
    }
}

/// What was counted, by day and table.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<((Date, String), Tally)>", into = "Vec<((Date, String), Tally)>")]
pub struct Counts(BTreeMap<(Date, String), Tally>);

impl From<Vec<((Date, String), Tally)>> for Counts {
    fn from(all: Vec<((Date, String), Tally)>) -> Self {
        Self(all.into_iter().collect())
    }
}

impl From<Counts> for Vec<((Date, String), Tally)> {
    fn from(counts: Counts) -> Self {
        counts.0.into_iter().collect()
    }
}

impl Counts {
    /// Adds to what was counted of a table on a day.
    pub fn add(&mut self, key: (Date, String), more: Tally) {
        let tally = self.0.entry(key).or_insert_with(|| Tally { rows: 0, bytes: 0, owed: 0, ..more.clone() });
        tally.rows += more.rows;
        tally.bytes += more.bytes;
        tally.owed += more.owed;
        if more.oldest < tally.oldest {
            tally.oldest = more.oldest;
        }
        if more.newest > tally.newest {
            tally.newest = more.newest;
        }
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: Self) {
        other.0.into_iter().for_each(|(key, tally)| self.add(key, tally));
    }

    /// The latest day with plausible ops.
    pub fn latest(&self) -> Option<Date> {
        self.0.keys().next_back().map(|key| key.0).filter(|day| *day != EPOCH)
    }

    /// Only what this holds of.
    pub fn retain(&mut self, holds: impl Fn(Date) -> bool) {
        self.0.retain(|key, _| holds(key.0));
    }

    /// Takes out what this holds of.
    pub fn take(&mut self, holds: impl Fn(Date) -> bool) -> Self {
        let (out, left) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| holds(key.0));
        self.0 = left;
        Self(out)
    }
}

/// The lowest ULIDs of the days from `from` up to and with `to`: in
/// `width_bucket(ulid COLLATE "C", $starts::text[])` bucket 1 is `from`.
pub fn day_starts(from: Date, to: Date) -> Vec<String> {
    from.series(1.day())
        .take_while(|day| *day <= to)
        .map(|day| OpUlid::first_of_ms(day_ms(day)).to_string())
        .collect()
}

/// Ops of this day and later ones are counted again and again; one day more
/// than is not marked when ops of it arrive late, for the turn of the day.
pub fn recent_from(now_ms: u64) -> Date {
    day_of(now_ms).saturating_sub(RECENT_DAYS.days())
}

/// Days that are counted again without being marked, today left out.
const RECENT_DAYS: i32 = 3;

/// The days before the recent ones of ops that just arrived.
pub fn late_days(ulids: impl Iterator<Item = OpUlid>, now_ms: u64) -> Vec<Date> {
    let recent = recent_from(now_ms).saturating_add(1.day());
    let below = day_ms(recent);
    let days: BTreeSet<Date> = ulids.map(|u| u.ms()).filter(|ms| *ms < below).map(day_of).collect();
    days.into_iter().collect()
}

/// All of the census but implausible rows, by table and day.
pub async fn load(client: &impl GenericClient) -> Result<Vec<Entry>> {
    rows::all(client, LOAD, &[], "read the census").await
}

const LOAD: &str = "
    SELECT table_name AS table, day, rows, bytes, oldest, newest, owed, estimated, counted_at
    FROM opsward.census WHERE day > 'epoch' AND rows > 0 ORDER BY table_name, day";

/// The rows whose ULID is no plausible one, by table.
pub async fn implausible(client: &impl GenericClient) -> Result<Vec<Implausible>> {
    rows::all(client, IMPLAUSIBLE, &[], "read the census").await
}

const IMPLAUSIBLE: &str = "
    SELECT table_name AS table, rows, bytes, owed FROM opsward.census
    WHERE day = 'epoch' AND rows > 0 ORDER BY table_name";

/// Marks days as written to: they are counted again.
pub async fn touch(client: &impl GenericClient, days: &[Date]) -> Result<()> {
    rows::write(client, TOUCH, &[&days], "mark days for the census").await
}

const TOUCH: &str = "INSERT INTO opsward.census_touched (day) SELECT unnest($1::date[])";

/// The first marked day from `from` on and before `below`.
pub async fn touched(client: &impl GenericClient, from: Date, below: Date) -> Result<Option<Date>> {
    rows::one(client, TOUCHED, &[&from, &below], "look for marked days").await
}

const TOUCHED: &str = "SELECT min(day) FROM opsward.census_touched WHERE day >= $1 AND day < $2";

/// Forgets the marks of days that are about to be counted.
pub async fn forget_touched(tx: &Transaction<'_>, from: Date, below: Date) -> Result<()> {
    rows::write(tx, FORGET, &[&from, &below], "forget marked days").await
}

const FORGET: &str = "DELETE FROM opsward.census_touched WHERE day >= $1 AND day < $2";

/// Forgets what the census says of the days from `from` on and before `below`,
/// but for one.
pub async fn clear(tx: &Transaction<'_>, from: Date, below: Date, but: Option<Date>) -> Result<()> {
    rows::write(tx, CLEAR, &[&from, &below, &but], "replace the census").await
}

const CLEAR: &str = "
    DELETE FROM opsward.census
    WHERE day >= $1 AND day < $2 AND day IS DISTINCT FROM $3::date";

/// Puts counts in where there are none.
pub async fn put(tx: &Transaction<'_>, counts: &Counts, estimated: Estimated, at: Timestamp) -> Result<()> {
    let of = |f: fn(&Tally) -> u64| counts.0.values().map(|t| signed(f(t))).collect::<Vec<i64>>();
    let text = |f: fn(&Tally) -> &str| counts.0.values().map(f).collect::<Vec<&str>>();
    let tables: Vec<&str> = counts.0.keys().map(|k| k.1.as_str()).collect();
    let days: Vec<Date> = counts.0.keys().map(|k| k.0).collect();
    let (rows, bytes, owed) = (of(|t| t.rows), of(|t| t.bytes), of(|t| t.owed));
    let (oldest, newest) = (text(|t| &t.oldest), text(|t| &t.newest));
    let estimated = estimated == Estimated::Yes;
    rows::write(
        tx,
        PUT,
        &[&tables, &days, &rows, &bytes, &oldest, &newest, &owed, &estimated, &at],
        "write the census",
    )
    .await
}

const PUT: &str = "
    INSERT INTO opsward.census (table_name, day, rows, bytes, oldest, newest, owed, estimated, counted_at)
    SELECT *, $8, $9
    FROM unnest($1::text[], $2::date[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[])
    ON CONFLICT DO NOTHING";

/// Whether figures are from a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Estimated {
    /// They are.
    Yes,
    /// They were counted.
    No,
}

/// Takes deleted ops off the census, in the transaction that deletes them and
/// under the lease: (table, day, rows, bytes). What is left of their days is
/// counted again later, for its oldest and newest.
pub async fn subtract(tx: &Transaction<'_>, deleted: &[(String, Date, u64, u64)]) -> Result<()> {
    let tables: Vec<&str> = deleted.iter().map(|d| d.0.as_str()).collect();
    let days: Vec<Date> = deleted.iter().map(|d| d.1).collect();
    let rows: Vec<i64> = deleted.iter().map(|d| signed(d.2)).collect();
    let bytes: Vec<i64> = deleted.iter().map(|d| signed(d.3)).collect();
    rows::write_cached(tx, SUBTRACT, &[&tables, &days, &rows, &bytes], "take off the census").await
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

/// Whether days are marked to be counted again.
pub(crate) async fn is_touched(client: &impl GenericClient) -> Result<bool> {
    rows::one(client, TOUCHED_AT_ALL, &[], "read the census' marks").await
}

const TOUCHED_AT_ALL: &str = "SELECT EXISTS (SELECT FROM opsward.census_touched)";

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
