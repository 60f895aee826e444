//! Figures, times and tables as a person reads them.

pub use crate::values::{one_line, printable};

use crate::values::{OpUlid, Progress, timestamp};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;

/// The width of all text, in characters.
pub const WIDTH: u16 = 80;

pub use crate::values::{bytes, count};

/// A count of things: `1 op`, `1,234 ops`.
pub fn many(n: u64, thing: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(n))
}

/// A length of time in its two largest units: `3d 4h`, `12m 5s`.
pub fn span(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        _ if d >= 3_650 => "over 10 years".to_owned(),
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, _, _) => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    }
}

/// How far work is, and how long the rest takes where that is known.
pub fn far(progress: &Progress) -> String {
    let Progress { phase, done, total, unit, eta_seconds, .. } = progress;
    let amount = |n: u64| match unit.as_str() {
        "bytes" => bytes(n),
        unit => format!("{} {unit}", count(n)),
    };
    let mut text = match total.filter(|total| *total > 0) {
        _ if unit.is_empty() => phase.clone(),
        Some(total) => {
            let done = (*done).min(total);
            format!("{phase}: {} of {} ({} %)", amount(done), amount(total), done * 100 / total)
        }
        None => format!("{phase}: {}", amount(*done)),
    };
    if let Some(eta) = eta_seconds {
        text.push_str(&format!(", about {} left", span(*eta)));
    }
    text
}

/// Seconds from `then` to `now`; 0 where that is negative.
pub fn age_seconds(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.as_second() - then.as_second()).unwrap_or(0)
}

/// How long ago: `5m 2s ago`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(age_seconds(then, now)))
}

/// A ULID with the time that it was made at: `01J… (2024-08-01 10:00)`. Text that
/// is no ULID stays as it is.
pub fn dated(ulid: &str) -> String {
    let at = OpUlid::parse(ulid).map(|ulid| timestamp(ulid.ms()));
    at.map_or(ulid.to_owned(), |at| format!("{ulid} ({})", at.strftime("%Y-%m-%d %H:%M")))
}

/// A table without frames, at most `WIDTH` wide.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .force_no_tty()
        .set_width(WIDTH)
        .set_header(header.iter().map(|h| h.to_uppercase()));
    table
}

/// A table whose columns are aligned and whose rows stay one line each, so
/// that it can be grepped and cut.
pub fn lines(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| one_line(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A figure in a table.
pub fn figure(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// A table's text, without blanks at the ends of lines, indented by `by`.
pub fn indented(table: &Table, by: &str) -> String {
    table.lines().map(|line| format!("{by}{}\n", line.trim_end())).collect()
}

/// A paragraph of lines of at most `WIDTH`, all but the first after `indent`.
/// A word that is longer stands on a line of its own, whole.
pub fn wrapped(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for word in text.trim_end().split(' ') {
        let fits = line.chars().count() + word.chars().count() <= usize::from(WIDTH);
        if line.trim().is_empty() || fits {
            line.push_str(word);
        } else {
            out.push_str(line.trim_end());
            out.push('\n');
            line = format!("{indent}{word}");
        }
        line.push(' ');
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

/// A peer's URL without its scheme, and cut in the middle where it is long.
pub fn short_host(host: &str) -> String {
    const MOST: usize = 34;
    let name = host.strip_prefix("https://").unwrap_or(host);
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= MOST {
        return name.to_owned();
    }
    let head: String = chars[..MOST / 2].iter().collect();
    let tail: String = chars[chars.len() - (MOST / 2 - 1)..].iter().collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let sizes = [0, 1023, 1024, 1_048_570, 5_207_647_846, u64::MAX].map(bytes);
        let expected = ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "4.8 GiB", "16384.0 PiB"];
        assert_eq!(sizes, expected);
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let spans = [0, 59, 60, 3_661, 90_000].map(span);
        assert_eq!(spans, ["0s", "59s", "1m 0s", "1h 1m", "1d 1h"]);
    }

    #[test]
    fn ulids_say_when() {
        assert_eq!(dated("01HKFACTS00000000000000001"), "01HKFACTS00000000000000001 (2024-01-06 12:01)");
        assert_eq!(dated(""), "");
    }

    #[test]
    fn long_hosts_are_cut_in_the_middle() {
        assert_eq!(short_host("https://n1.example"), "n1.example");
        let long = format!("https://{}.example", "é".repeat(60));
        assert_eq!(short_host(&long).chars().count(), 34);
    }
}
