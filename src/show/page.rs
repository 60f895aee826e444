//! The operator's page: a `Status` as HTML, whole in itself. No script, no
//! asset from anywhere; it asks again by itself.

use super::Warning;
use super::status::Status;
use super::view::{Grid, facts, grids};
use std::fmt::Write;

/// Seconds after which the page is asked for again.
const REFRESH: u32 = 10;

/// Nothing may be loaded, run, framed or sent from this page.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --loud: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --loud: #f2b8b5; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h1 small { font-weight: normal; }
table { border-collapse: collapse; margin: 1.5rem 0 .5rem; width: 100%; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { overflow-wrap: break-word; } td:first-child { overflow-wrap: anywhere; min-width: 7rem; }
@media (max-width: 40rem) { table { display: block; overflow-x: auto; } }
th::first-letter { text-transform: uppercase; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
dt { float: left; clear: left; width: 7rem; opacity: .7; } dd { margin: 0 0 0 7rem; }
.loud { border-left: 4px solid var(--loud); padding-left: .75rem; }
footer, .note { opacity: .7; }";

/// The whole page.
pub fn html(status: &Status, warnings: &[Warning]) -> String {
    let own = escaped(status.own.as_deref().unwrap_or("opsward"));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"refresh\" content=\"{REFRESH}\">\
         <title>{own} · opsward</title><style>{STYLE}</style></head><body>\n\
         <h1>opsward <small>{own}</small></h1>\n"
    );
    if status.read_only {
        out.push_str(
            "<p class=\"loud\"><strong>Read-only:</strong> nothing outside the schema opsward is written.</p>\n",
        );
    }
    for w in warnings {
        // Writing into a String cannot fail.
        let _ = writeln!(
            out,
            "<p class=\"loud\">{}<br><span class=\"note\">{}</span></p>",
            escaped(&w.text),
            escaped(&w.fix)
        );
    }
    out.push_str("<dl>");
    for (name, value) in facts(status) {
        let _ = write!(out, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
    }
    out.push_str("</dl>\n");
    for grid in grids(status) {
        table(&mut out, &grid);
    }
    let _ = write!(
        out,
        "<footer>As of {:.0}, asked again every {REFRESH} s. The same as data: <a href=\"/status\">/status</a>, \
         <a href=\"/metrics\">/metrics</a>.</footer>\n</body></html>\n",
        status.at
    );
    out
}

fn table(out: &mut String, grid: &Grid) {
    out.push_str("<table><thead><tr>");
    let class = |i: usize| {
        if grid.figures.contains(&i) { " class=\"figure\"" } else { "" }
    };
    for (i, name) in grid.header.iter().enumerate() {
        let _ = write!(out, "<th scope=\"col\"{}>{name}</th>", class(i));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in &grid.rows {
        out.push_str("<tr>");
        for (i, text) in row.iter().enumerate() {
            let _ = write!(out, "<td{}>{}</td>", class(i), escaped(text));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table>\n");
    for note in &grid.notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escaped(note));
    }
}

/// Text that came from peers and from settings stays text.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_say_is_no_markup() {
        let grid = Grid {
            header: &["peer"],
            figures: &[],
            rows: vec![vec!["<script>alert('x')</script>".into()]],
            notes: vec!["a & \"b\"".into()],
        };
        let mut out = String::new();
        table(&mut out, &grid);
        assert!(!out.contains("<script>"), "{out}");
        assert!(out.contains("a &amp; &quot;b&quot;"), "{out}");
    }
}
