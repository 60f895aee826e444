//! Durations as Go's `time.ParseDuration` reads them, and days and weeks of 24
//! hours each.

use std::time::Duration;

/// Go counts in a signed 64-bit number of nanoseconds.
const MAX_NANOS: u128 = i64::MAX as u128;
/// Digits of a fraction that can matter: an hour is 3.6e12 ns.
const FRACTION_DIGITS: usize = 18;

/// Reads `1h30m`, `2160h`, `30d`, `2w`, `1.5h`, `100ms` or `0`.
///
/// # Errors
/// What is wrong with it; negative ones are refused too.
pub fn parse(text: &str) -> Result<Duration, String> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let nanos = if rest == "0" { 0 } else { sum(rest)? };
    if negative && nanos > 0 {
        return Err("it is negative".into());
    }
    let nanos = u64::try_from(nanos).map_err(|_| too_long())?;
    Ok(Duration::from_nanos(nanos))
}

/// Reads it as the node does: it knows no days and weeks, and takes its default for what it
/// cannot read, which is `None`. A negative one is no less than none at all.
pub(super) fn as_node(text: &str) -> Option<Duration> {
    let read = |text: &str| parse(text).ok().filter(|_| !text.contains(['d', 'w', '+', '-']));
    match text.strip_prefix('-') {
        Some(rest) => read(rest).map(|_| Duration::ZERO),
        None => read(text.strip_prefix('+').unwrap_or(text)),
    }
}

/// The sum of the parts, each a decimal number and a unit.
fn sum(mut rest: &str) -> Result<u128, String> {
    if rest.is_empty() {
        return Err("it is no duration".into());
    }
    let mut total = 0_u128;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err("it is no duration".into());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = unit_nanos(unit)?;
        let whole = if whole.is_empty() { "0" } else { whole };
        total = whole
            .parse::<u128>()
            .ok()
            .and_then(|n| n.checked_mul(unit))
            .and_then(|n| n.checked_add(total))
            .and_then(|n| n.checked_add(fraction_nanos(fraction, unit)))
            .filter(|n| *n <= MAX_NANOS)
            .ok_or_else(too_long)?;
        rest = after;
    }
    Ok(total)
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

fn unit_nanos(unit: &str) -> Result<u128, String> {
    Ok(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        "w" => 604_800_000_000_000,
        "" => return Err("a number in it has no unit".into()),
        _ => return Err("a unit in it is unknown".into()),
    })
}

fn fraction_nanos(fraction: &str, unit: u128) -> u128 {
    let digits = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    let value: u128 = digits.parse().unwrap_or(0);
    value * unit / 10_u128.pow(digits.len() as u32)
}

fn too_long() -> String {
    "it is longer than 292 years".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_go_reads_them() {
        for (text, ms) in [
            ("0", 0),
            ("-0", 0),
            ("+5s", 5_000),
            ("1h30m", 5_400_000),
            ("2160h", 7_776_000_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("30d", 2_592_000_000),
            ("2w", 1_209_600_000),
            ("1d12h", 129_600_000),
            ("1.s", 1_000),
            ("100ms", 100),
            ("1000us", 1),
            ("1000µs", 1),
            ("1000μs", 1),
            ("1m1.001s", 61_001),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse("0.000000001s"), Ok(Duration::from_nanos(1)));
        assert_eq!(parse("9223372036854775807ns"), Ok(Duration::from_nanos(i64::MAX as u64)));
    }

    #[test]
    fn what_it_is_not() {
        for (text, why) in [
            ("", "no duration"),
            ("-", "no duration"),
            (".s", "no duration"),
            ("h", "no duration"),
            ("1h ", "unknown"),
            (" 1h", "no duration"),
            ("10", "no unit"),
            ("00", "no unit"),
            ("1y", "unknown"),
            ("1h5", "no unit"),
            ("-1s", "negative"),
            ("9223372036854775808ns", "292 years"),
            ("99999999999999999999999999999999999999999h", "292 years"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_node_takes_its_default_for_what_it_cannot_read() {
        let hours = |h: f64| Some(Duration::from_secs_f64(h * 3600.0));
        for (text, read) in [
            ("720h", hours(720.0)),
            ("1h30m", hours(1.5)),
            ("+30m", hours(0.5)),
            ("0", hours(0.0)),
            ("-1h", hours(0.0)),
            ("60d", None),
            ("2w", None),
            ("720", None),
            ("--1h", None),
            ("garbage", None),
            ("", None),
        ] {
            assert_eq!(as_node(text), read, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn parts_add_up(h in 0u64..1000, m in 0u64..100, s in 0u64..100, ms in 0u64..2000) {
            let text = format!("{h}h{m}m{s}s{ms}ms");
            let want = Duration::from_millis(((h * 60 + m) * 60 + s) * 1000 + ms);
            prop_assert_eq!(parse(&text), Ok(want));
        }
    }
}
