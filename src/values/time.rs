//! Times as milliseconds since the Unix epoch, as ULIDs hold them.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::time::Duration;

/// The time of so many milliseconds, at most `Timestamp::MAX`.
pub fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}

/// A time in milliseconds; 0 before 1970.
pub fn unix_ms(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

/// The UTC day of a time in milliseconds.
pub fn day_of(ms: u64) -> Date {
    timestamp(ms).to_zoned(TimeZone::UTC).date()
}

/// When a UTC day begins, in milliseconds; 0 before 1970.
pub fn day_ms(day: Date) -> u64 {
    day.to_zoned(TimeZone::UTC).map_or(0, |at| unix_ms(at.timestamp()))
}

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
