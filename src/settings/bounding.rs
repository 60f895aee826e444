//! Contract 5 and 6 as settings: the types of the values that bound the log.

use super::Bounding;
use crate::values::{Replication, words};
use std::time::Duration;

/// A longer window is a mistake: no log is that old.
const MOST_DAYS: u32 = 36_500;
const DAY: u64 = 86_400;
/// How long today's nodes keep ops by default.
const STOCK: Duration = Duration::from_secs(30 * DAY);

/// What is kept of one table's ops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Every op.
    All,
    /// The ops of so many days.
    Days(u32),
    /// The ops that replay needs; retention leaves the table alone.
    Compact,
}

impl Keep {
    /// Reads `all`, `compact` or `90d`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "compact" => Ok(Self::Compact),
            _ => match text.strip_suffix('d').map(days) {
                Some(Ok(0)) => Err("a window of 0 days keeps nothing".into()),
                Some(days) => days.map(Self::Days),
                None => Err("it is neither all, compact nor a number of days".into()),
            },
        }
    }
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Days(days) => write!(f, "{days}d"),
            Self::Compact => f.write_str("compact"),
        }
    }
}

/// Reads how ops reach the node; `auto` is `None`.
///
/// # Errors
/// It is neither.
pub fn replication(text: &str) -> Result<Option<Replication>, String> {
    match (text, Replication::parse(text)) {
        ("auto", _) => Ok(None),
        (_, None) => Err("there is no such way".into()),
        (_, way) => Ok(way),
    }
}

impl Bounding {
    /// How long the node keeps ops before its own pruner deletes them; `None` without a pruner,
    /// or if none is known.
    pub fn node_keeps(&self, by: Replication) -> Option<Duration> {
        // Older nodes keep a year, or have no pruner: only the setting counts for them.
        let stock = (by == Replication::Chain).then_some(STOCK);
        self.node_retention.or(stock).filter(|_| self.node_archive != Some(Archive::Kept))
    }
}

/// What the node's switch says of its history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Archive {
    /// The node's pruner deletes.
    Pruned,
    /// The node keeps everything.
    Kept,
    /// The operator asks to keep everything, in a word that the node does not know: it deletes.
    Meant,
}

/// Reads it as the node does, which knows `true` only.
pub fn archive(text: &str) -> Archive {
    match text {
        "true" => Archive::Kept,
        _ if super::parse::boolean(text) == Ok(false) => Archive::Pruned,
        _ => Archive::Meant,
    }
}

words! {
    /// What a reclaim keeps.
    #[derive(Default)]
    pub enum Policy {
        /// What is newer than the gate of retention.
        #[default]
        Window = "window",
        /// What replay needs.
        Compact = "compact",
    }
}

/// Reads `window` or `compact`.
///
/// # Errors
/// It is neither.
pub fn policy(text: &str) -> Result<Policy, String> {
    Policy::parse(text).ok_or_else(|| "there is no such policy; there are window and compact".into())
}

/// When the daemon reclaims by itself.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum When {
    /// More than this share of the log's bytes would be given back, 0 to 1.
    Bloat(f64),
    /// Fewer bytes than this are free.
    Free(u64),
}

impl When {
    /// Reads `bloat>50%` or `free<10GiB`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        if let Some(share) = text.strip_prefix("bloat>").and_then(|rest| rest.strip_suffix('%')) {
            let percent: u8 = share.parse().map_err(|_| "its share is no whole number of percent")?;
            if !(10..=95).contains(&percent) {
                return Err("its share is not between 10% and 95%".into());
            }
            return Ok(Self::Bloat(f64::from(percent) / 100.0));
        }
        match text.strip_prefix("free<") {
            Some(bytes) => size(bytes).map(Self::Free),
            None => Err("it is no such condition".into()),
        }
    }
}

/// A time of day, in UTC, that may wrap midnight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Its first minute of the day.
    from: u32,
    /// The minute after its last.
    to: u32,
}

impl Window {
    /// Reads `01:00-05:00`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once('-').ok_or("it is no two times with - between them")?;
        let window = Self { from: minute(from)?, to: minute(to)? };
        if window.from == window.to {
            return Err("it is no window: it ends when it begins".into());
        }
        Ok(window)
    }

    /// Whether a time, in seconds since the Unix epoch, lies in it.
    pub fn contains(self, second: i64) -> bool {
        let minute = (second.rem_euclid(DAY as i64) / 60) as u32;
        match self.from < self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }

    /// Seconds from a time, in seconds since the Unix epoch, until it opens.
    pub fn opens_in(self, second: i64) -> u64 {
        let day = DAY as i64;
        (i64::from(self.from) * 60 - second.rem_euclid(day)).rem_euclid(day) as u64
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b] = [self.from, self.to].map(|m| (m / 60, m % 60));
        write!(f, "{:02}:{:02}-{:02}:{:02} UTC", a.0, a.1, b.0, b.1)
    }
}

fn minute(text: &str) -> Result<u32, String> {
    let wrong = || format!("{:?} is no time of day such as 01:00", text.trim());
    let (hour, minute) = text.trim().split_once(':').ok_or_else(wrong)?;
    let number = |t: &str, below: u32| {
        let two = t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
        t.parse::<u32>().ok().filter(|n| two && *n < below)
    };
    match (number(hour, 24), number(minute, 60)) {
        (Some(hour), Some(minute)) => Ok(hour * 60 + minute),
        _ => Err(wrong()),
    }
}

/// A whole number of days.
pub(super) fn days(text: &str) -> Result<u32, String> {
    if text.starts_with('-') {
        return Err("it is negative".into());
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse() {
            Ok(days) if days <= MOST_DAYS => Ok(days),
            _ => Err(format!("it is more than {MOST_DAYS} days")),
        };
    }
    Err("it is no whole number of days".into())
}

/// A size in bytes: `512MiB`, `20GB`, `1.5TiB` or `0`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    if text.starts_with('-') {
        return Err("it is negative".into());
    }
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit.trim_start() {
        "" => return Err("it has no unit".into()),
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        other => return Err(format!("{other:?} is no unit of bytes")),
    };
    let number: f64 = number.parse().map_err(|_| "it is no size")?;
    let bytes = number * factor as f64;
    if bytes >= (1_u64 << 53) as f64 {
        return Err("it is too large".into());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512MiB", 512 << 20),
            ("20GB", 20_000_000_000),
            ("1.5GiB", 3 << 29),
            ("7 B", 7),
            ("3TiB", 3 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "20", "GiB", "-1GiB", "1gib", "1..5GiB", "9999999TiB", "1GiBs"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn windows() {
        let at = |h: i64, m: i64| h * 3600 + m * 60;
        let night = Window::parse("23:30-05:00").unwrap();
        assert!(night.contains(at(23, 30)) && night.contains(at(4, 59)) && night.contains(at(0, 0) - 1));
        assert!(!night.contains(at(5, 0)) && !night.contains(at(23, 29)));
        let day = Window::parse("01:00 - 05:00").unwrap();
        assert!(day.contains(at(25, 0)) && !day.contains(at(5, 0)) && !day.contains(at(0, 59)));
        assert_eq!(day.to_string(), "01:00-05:00 UTC");
        for text in ["", "01:00", "01:00-01:00", "1:00-02:00", "24:00-01:00", "01:60-02:00", "+1:00-02:00"] {
            assert!(Window::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keeps_and_conditions() {
        assert_eq!(Keep::parse("90d"), Ok(Keep::Days(90)));
        assert_eq!(Keep::parse("all"), Ok(Keep::All));
        assert_eq!(Keep::parse("compact"), Ok(Keep::Compact));
        for text in ["", "90", "0d", "-1d", "1.5d", "90h", "None"] {
            assert!(Keep::parse(text).is_err(), "{text}");
        }
        assert_eq!(When::parse("bloat > 50%"), Ok(When::Bloat(0.5)));
        assert_eq!(When::parse("free<10GiB"), Ok(When::Free(10 << 30)));
        for text in ["", "bloat>5%", "bloat>50", "free<10", "free>1GiB", "bloat>100%"] {
            assert!(When::parse(text).is_err(), "{text}");
        }
        for text in ["-1", "1.5", "", "+3", "99999"] {
            assert!(days(text).is_err(), "{text}");
        }
    }
}
