//! Contract 9: what commands show. The envelope for programs; here, the few
//! forms that people read figures in.

mod envelope;

pub use envelope::{
    Changed, Done, ExitCode, Failure, Frame, Outcome, OutputMode, json, write_lines,
};

/// A size for people: the two or three digits that matter, in binary units.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut size = bytes as f64 / 1024.0;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for unit in UNITS {
        // What rounds to 1024 is one of the next unit.
        if size < 1023.5 {
            let digits = usize::from(size < 99.95) + usize::from(size < 9.995);
            return format!("{size:.digits$} {unit}");
        }
        size /= 1024.0;
    }
    format!("{bytes} B")
}

/// A length of time for people: its two largest units, cut off below.
pub fn age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let at = UNITS
        .iter()
        .position(|(unit, _)| seconds >= *unit)
        .unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[at];
    let large = format!("{} {name}", seconds / unit);
    match UNITS.get(at + 1) {
        Some((small, name)) if seconds % unit / small > 0 => {
            format!("{large} {} {name}", seconds % unit / small)
        }
        _ => large,
    }
}

/// A count for people: a comma between each three digits.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A table for people: columns aligned, no lines drawn, so that it can be
/// grepped and cut.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10_234, "9.99 KiB"),
            (10_239, "10.0 KiB"),
            (1_048_575, "1.00 MiB"),
            (5_207_647_846, "4.85 GiB"),
            (222_264_557_568, "207 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_725, "1 h 2 min"),
            (3_605, "1 h"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn counts() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn tables() {
        let rows = [
            vec!["a".into(), "1".into()],
            vec!["bcd".into(), String::new()],
        ];
        assert_eq!(table(&["name", "n"], rows), "name  n\na     1\nbcd");
    }
}
