//! Times, as Go's time.Time reads them from JSON.

use super::super::code::OUT_OF_RANGE;
use super::super::json;
use crate::values::RejectReason;
use jiff::Timestamp;

const DAY: i64 = 86_400;
const MICROS: i64 = 1_000_000;

/// 0001-01-01T00:00:00Z, Go's zero time, in microseconds since the Unix epoch.
const ZERO_MICROS: i64 = -62_135_596_800 * MICROS;

/// An instant, cut to microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Time {
    micros: i64,
    /// Go's zero value: that instant to the nanosecond, and written with a Z.
    /// With a numeric offset the location is set, and the ORM sees a value.
    zero: bool,
}

impl Time {
    /// The time of a field that was left out.
    pub(super) const ZERO: Self = Self { micros: ZERO_MICROS, zero: true };

    /// Whether it counts as left out.
    pub(super) fn is_zero(self) -> bool {
        self.zero
    }

    /// As the text of a timestamptz.
    pub(super) fn text(self) -> String {
        text(self.micros)
    }

    /// Reads what stands between a string's quotes. Escapes are not undone: Go
    /// parses the literal. Like Go's, it is RFC 3339 with four liberties: an
    /// hour of one digit, a comma before the fraction, offsets up to 24:60, and
    /// the year 0. A leap second is none of them.
    pub(super) fn parse(literal: &str) -> Result<Self, RejectReason> {
        scan(literal.as_bytes()).ok_or_else(|| {
            let detail = format!("\"{}\" is no RFC 3339 time", json::excerpt(literal));
            RejectReason::new(OUT_OF_RANGE, detail)
        })
    }
}

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self { micros: micros_of(at), zero: false }
    }
}

/// Microseconds since the Unix epoch, cut towards the past.
pub(super) fn micros_of(at: Timestamp) -> i64 {
    let micros = at.as_nanosecond().div_euclid(1000);
    i64::try_from(micros).unwrap_or(ZERO_MICROS)
}

fn scan(bytes: &[u8]) -> Option<Time> {
    let mut rest = bytes;
    let year = digits(&mut rest, 4)?;
    literal(&mut rest, b'-')?;
    let month = digits(&mut rest, 2)?;
    literal(&mut rest, b'-')?;
    let day = digits(&mut rest, 2)?;
    literal(&mut rest, b'T')?;
    let hour = digits(&mut rest, 2).or_else(|| digits(&mut rest, 1))?;
    literal(&mut rest, b':')?;
    let minute = digits(&mut rest, 2)?;
    literal(&mut rest, b':')?;
    let second = digits(&mut rest, 2)?;
    let nanos = fraction(&mut rest);
    let offset = offset(rest)?;

    let fits = (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let local = days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let seconds = local - offset.unwrap_or(0);
    Some(Time {
        micros: seconds * MICROS + nanos / 1000,
        zero: seconds == ZERO_MICROS / MICROS && nanos == 0 && offset.is_none(),
    })
}

/// Exactly `count` ASCII digits.
fn digits(rest: &mut &[u8], count: usize) -> Option<i64> {
    let (head, tail) = rest.split_at_checked(count)?;
    let mut value = 0;
    for b in head {
        if !b.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(b - b'0');
    }
    *rest = tail;
    Some(value)
}

fn literal(rest: &mut &[u8], wanted: u8) -> Option<()> {
    let (first, tail) = rest.split_first()?;
    (*first == wanted).then(|| *rest = tail)
}

/// The nanoseconds of a fraction of any length; 0 and nothing read where there
/// is none.
fn fraction(rest: &mut &[u8]) -> i64 {
    let [b'.' | b',', b'0'..=b'9', ..] = rest else {
        return 0;
    };
    let tail = &rest[1..];
    let end = tail.iter().position(|b| !b.is_ascii_digit()).unwrap_or(tail.len());
    let digit = |at: usize| tail[..end].get(at).map_or(0, |b| i64::from(b - b'0'));
    *rest = &tail[end..];
    (0..9).fold(0, |nanos, at| nanos * 10 + digit(at))
}

/// The whole rest: `Z` (`Some(None)`) or an offset in seconds.
fn offset(rest: &[u8]) -> Option<Option<i64>> {
    let (sign, mut rest) = match rest {
        [b'Z'] => return Some(None),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let hours = digits(&mut rest, 2)?;
    literal(&mut rest, b':')?;
    let minutes = digits(&mut rest, 2)?;
    (rest.is_empty() && hours <= 24 && minutes <= 60).then(|| Some(sign * (hours * 3600 + minutes * 60)))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. Years begin in
/// March here, so that a leap day is the last of its year; an era is 400 years.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * of_era + of_era / 4 - of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// The text that Postgres gives a timestamptz in UTC and reads under any
/// DateStyle: year first, no trailing zeros, BC from the year 0 back.
pub(super) fn text(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(MICROS), micros.rem_euclid(MICROS));
    let (year, month, day) = civil_from_days(seconds.div_euclid(DAY));
    let of_day = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    let mut out = String::with_capacity(40);
    push_padded(&mut out, shown, 4);
    for (before, part) in [('-', month), ('-', day), (' ', hour), (':', minute), (':', second)] {
        out.push(before);
        push_padded(&mut out, part, 2);
    }
    if fraction != 0 {
        out.push('.');
        push_padded(&mut out, fraction, 6);
        out.truncate(out.trim_end_matches('0').len());
    }
    out.push_str("+00");
    out.push_str(era);
    out
}

/// Appends a number from 0 with at least `width` digits. By hand, as formatting
/// times was a tenth of converting a page.
fn push_padded(out: &mut String, value: i64, width: u32) {
    let mut unit = 10_i64.pow(width - 1);
    while value / unit >= 10 {
        unit *= 10;
    }
    while unit > 0 {
        let digit = u8::try_from(value / unit % 10).unwrap_or(0);
        out.push(char::from(b'0' + digit));
        unit /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(literal: &str) -> String {
        Time::parse(literal).map_or_else(|e| e.to_string(), Time::text)
    }

    #[test]
    fn reads_what_go_reads() {
        for (literal, text) in [
            ("2024-06-01T12:00:00Z", "2024-06-01 12:00:00+00"),
            ("2024-06-01T12:00:00-08:00", "2024-06-01 20:00:00+00"),
            ("2024-02-29T23:59:59.123456789Z", "2024-02-29 23:59:59.123456+00"),
            ("2024-06-01T12:00:00.1234567891Z", "2024-06-01 12:00:00.123456+00"),
            ("2024-06-01T12:00:00.5+05:30", "2024-06-01 06:30:00.5+00"),
            ("1969-12-31T23:59:59.999999999Z", "1969-12-31 23:59:59.999999+00"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31 23:59:59.999999+00"),
            ("9999-12-31T23:59:59-23:59", "10000-01-01 23:58:59+00"),
            ("0000-06-01T00:00:00Z", "0001-06-01 00:00:00+00 BC"),
            ("0000-01-01T00:00:00+00:01", "0002-12-31 23:59:00+00 BC"),
            ("2024-06-01T12:00:00+24:00", "2024-05-31 12:00:00+00"),
            ("2024-06-01T12:00:00+23:60", "2024-05-31 12:00:00+00"),
            ("2024-06-01T12:00:00,5Z", "2024-06-01 12:00:00.5+00"),
            ("2024-06-01T9:00:00Z", "2024-06-01 09:00:00+00"),
        ] {
            assert_eq!(read(literal), text, "{literal}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for literal in [
            "",
            "2024-06-01",
            "2024-06-01t12:00:00z",
            "2024-06-01T12:00:00z",
            "2024-06-01 12:00:00Z",
            "2024-06-01T12:00:00",
            "2024-06-30T23:59:60Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-06-01T24:00:00Z",
            "2024-06-01T12:60:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-06-00T00:00:00Z",
            "2024-06-31T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "999-01-01T00:00:00Z",
            "2024-06-01T12:00:00+0530",
            "2024-06-01T12:00:00+5:30",
            "2024-06-01T12:00:00+25:00",
            "2024-06-01T12:00:00+00:61",
            "2024-06-01T12:00:00Z ",
            " 2024-06-01T12:00:00Z",
            "2024-06-01T12:00:00.Z",
            "2024-06-01T12:00:00.5",
            "2024-06-01T12:00:00ZZ",
            "2024-06-01T12:00:00+00:00Z",
            "2024-06-01T12:00:00\\u005a",
            "２０２４-06-01T12:00:00Z",
        ] {
            assert!(Time::parse(literal).is_err(), "{literal}");
        }
    }

    #[test]
    fn go_zero_is_written_with_a_z() {
        assert!(Time::ZERO.is_zero());
        assert_eq!(Time::ZERO.text(), "0001-01-01 00:00:00+00");
        let zero = |literal| Time::parse(literal).unwrap().is_zero();
        assert!(zero("0001-01-01T00:00:00Z"));
        assert!(zero("0001-01-01T00:00:00.000Z"));
        assert!(!zero("0001-01-01T00:00:00+00:00"));
        assert!(!zero("0001-01-01T01:00:00+01:00"));
        assert!(!zero("0001-01-01T00:00:00.000000001Z"));
    }

    #[test]
    fn every_day_of_the_calendar() {
        let first = days_from_civil(-1, 1, 1);
        let last = days_from_civil(10_000, 12, 31);
        let mut next = (-1, 1, 1);
        for days in first..=last {
            assert_eq!(civil_from_days(days), next);
            assert_eq!(days_from_civil(next.0, next.1, next.2), days);
            next = match next {
                (y, 12, 31) => (y + 1, 1, 1),
                (y, m, d) if d == days_in(y, m) => (y, m + 1, 1),
                (y, m, d) => (y, m, d + 1),
            };
        }
    }
}
