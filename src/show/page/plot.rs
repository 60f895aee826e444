//! The log by day and table, drawn from the census.

use super::escaped;
use crate::db::census::{EPOCH, Entry};
use crate::show::format::bytes;
use jiff::civil::Date;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Bars at most: older logs get bars of several days.
const BARS: i64 = 90;
/// Tables with a colour of their own; the rest share the last one.
const COLOURS: [&str; 5] = ["a", "b", "c", "d", "e"];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 200.0;

/// A plot with its key; nothing where nothing was counted.
pub(super) fn draw(out: &mut String, census: &[Entry]) {
    let counted: Vec<&Entry> = census.iter().filter(|e| e.day > EPOCH && e.bytes > 0).collect();
    let days = counted.iter().map(|e| e.day);
    let (Some(first), Some(last)) = (days.clone().min(), days.max()) else { return };
    let since = |day: Date| i64::from(day.duration_since(first).as_secs() as i32 / 86_400);
    let a_bar = since(last) / BARS + 1;
    let bars = since(last) / a_bar + 1;

    let mut tables: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in &counted {
        *tables.entry(&entry.table).or_default() += entry.bytes;
    }
    let mut tables: Vec<(&str, u64)> = tables.into_iter().collect();
    tables.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let colour = |table: &str| {
        let at = tables.iter().position(|(name, _)| *name == table).unwrap_or(usize::MAX);
        at.min(COLOURS.len() - 1)
    };
    let mut heights = vec![[0_u64; COLOURS.len()]; usize::try_from(bars).unwrap_or(1)];
    for entry in &counted {
        if let Some(bar) = usize::try_from(since(entry.day) / a_bar).ok().and_then(|i| heights.get_mut(i)) {
            bar[colour(&entry.table)] += entry.bytes;
        }
    }
    let most = heights.iter().map(|bar| bar.iter().sum::<u64>()).max().unwrap_or(1).max(1);
    let each = if a_bar == 1 { "day".to_owned() } else { format!("{a_bar} days") };
    let _ = write!(
        out,
        "<h2>Ops in the log by {each}, up to {} each</h2>\n<svg preserveAspectRatio=\"none\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Ops in the log by day and table\">",
        bytes(most)
    );
    for (i, class) in COLOURS.iter().enumerate() {
        let path = bars_of(&heights, i, most);
        if !path.is_empty() {
            let _ = write!(out, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }
    let _ = write!(
        out,
        "</svg>\n<div class=\"ends\"><span>{first}</span><span>{last}</span></div>\n<div class=\"key\">"
    );
    for (i, (table, sum)) in tables.iter().enumerate() {
        let name = if table.is_empty() { "(no table)".to_owned() } else { escaped(table) };
        let class = COLOURS[i.min(COLOURS.len() - 1)];
        let _ = write!(out, "<span><i class=\"{class}\"></i>{name} {}</span>", bytes(*sum));
    }
    out.push_str("</div>\n");
}

/// The bars of one colour, each on top of those before it.
fn bars_of(heights: &[[u64; COLOURS.len()]], colour: usize, most: u64) -> String {
    let step = WIDTH / heights.len() as f64;
    let scale = |bytes: u64| bytes as f64 / most as f64 * HEIGHT;
    let mut path = String::new();
    for (i, bar) in heights.iter().enumerate().filter(|(_, bar)| bar[colour] > 0) {
        let below: u64 = bar[..colour].iter().sum();
        let (x, y, high) = (i as f64 * step, HEIGHT - scale(below), scale(bar[colour]));
        let _ = write!(path, "M{x:.1} {y:.1}h{:.1}v-{high:.1}h-{:.1}z", step * 0.85, step * 0.85);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::OpUlid;
    use jiff::Timestamp;
    use jiff::civil::date;

    fn entry(table: &str, day: Date, bytes: u64) -> Entry {
        let ulid = OpUlid::first_of_ms(1_700_000_000_000);
        Entry {
            table: table.into(),
            day,
            rows: 1,
            bytes,
            oldest: ulid,
            newest: ulid,
            owed: 0,
            estimated: false,
            counted_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn years_fit_and_the_largest_table_comes_first() {
        let mut census = vec![entry("", EPOCH, 1 << 40)];
        let mut day = date(2023, 1, 1);
        for _ in 0..1_200 {
            census.extend(
                ["uploads", "b", "c", "d", "e", "f<"]
                    .map(|t| entry(t, day, if t == "uploads" { 2_000 } else { 100 })),
            );
            day = day.tomorrow().unwrap_or(day);
        }
        let mut out = String::new();
        draw(&mut out, &census);
        assert!(out.len() < 25_000, "{}", out.len());
        assert!(out.contains("Ops in the log by 14 days") && out.contains("2023-01-01"), "{out}");
        assert!(out.contains("<i class=\"a\"></i>uploads 2.3 MiB") && out.contains("f&lt;"), "{out}");
        let mut none = String::new();
        draw(&mut none, &census[..1]);
        assert_eq!(none, "");
    }
}
