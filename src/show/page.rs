//! The operator's page: one HTML document without scripts or external assets, which reloads
//! itself.

mod plot;
mod words;

use super::format::{ago, bytes, count, far};
use super::status::Status;
use super::view::{Grid, facts, grids, under_way};
use crate::bound::plan::{Plan, State};
use crate::db::{census, history};
use crate::values::{Finding, Progress};
use std::fmt::Write;

/// Seconds until the page reloads; the second while a job is at work.
const REFRESH: (u32, u32) = (15, 3);
/// Most rows of a table on the page, so that it stays under 60 kB.
const MOST_ROWS: usize = 60;
/// Most reasons shown for one task: 40 failing peers would bury everything else.
const MOST_REASONS: usize = 3;

/// Forbids the page to load, run, frame or send anything.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// On a narrow screen each row of a table becomes a card.
const STYLE: &str = include_str!("page/style.css");

/// All that the page is made from.
pub struct Page<'a> {
    /// What `status` says.
    pub status: &'a Status,
    /// What needs the operator.
    pub warnings: &'a [Finding],
    /// What would be deleted, as last decided; `None` before the first look.
    pub plan: Option<&'a Plan>,
    /// The log by table and day.
    pub census: &'a [census::Entry],
    /// What was deleted, the newest first.
    pub history: &'a [history::Entry],
}

impl Page<'_> {
    /// The whole page.
    pub fn html(&self) -> String {
        let status = self.status;
        let own = escaped(status.own.as_deref().unwrap_or("opsward"));
        let has_job = status.bounding.as_ref().is_some_and(|b| b.known.job.is_some());
        let at_work = has_job || under_way(status).next().is_some();
        let refresh = if at_work { REFRESH.1 } else { REFRESH.0 };
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta http-equiv=\"refresh\" content=\"{refresh}\">\
             <link rel=\"icon\" href=\"data:,\">\
             <title>{own} · opsward</title><style>{STYLE}</style></head><body>\n\
             <h1>opsward <small>{own}</small></h1>\n"
        );
        // Writing into a String cannot fail.
        let _ = writeln!(out, "<p class=\"state\">{}</p>", marked(&words::state(status, self.plan)));
        if status.read_only {
            out.push_str(
                "<p class=\"loud\"><strong>Read-only:</strong> nothing outside the schema opsward is written.</p>\n",
            );
        }
        self.needs(&mut out);
        self.work(&mut out);
        self.figures(&mut out);
        plot::draw(&mut out, self.census);
        self.decision(&mut out);
        for grid in grids(status).into_iter().filter(|g| g.header[0] != "deleted by") {
            table(&mut out, &words::of_tasks(grid));
        }
        table(&mut out, &self.deleted());
        let _ = write!(
            out,
            "<footer>As of {:.0}, asked again every {refresh} s. The same as data: <a href=\"/status\">/status</a>, \
             <a href=\"/metrics\">/metrics</a>.</footer>\n</body></html>\n",
            status.at
        );
        out
    }

    /// What needs the operator: the first of each kind, and how many more.
    fn needs(&self, out: &mut String) {
        let mut said: Vec<&str> = Vec::new();
        for w in self.warnings {
            let code = w.code.as_ref();
            if said.contains(&code) {
                continue;
            }
            said.push(code);
            let _ = write!(out, "<p class=\"loud\">{}", marked(&w.text));
            match self.warnings.iter().filter(|other| other.code == w.code).count() - 1 {
                0 => {}
                more => {
                    let _ = write!(out, " (and {more} more of this kind: <code>opsward status</code>)");
                }
            }
            let _ = writeln!(out, "<br><span class=\"note\">{}</span></p>", marked(&w.fix));
        }
    }

    /// What is under way, with how far it is.
    fn work(&self, out: &mut String) {
        let job = self.status.bounding.as_ref().and_then(|b| b.known.job.as_ref());
        let jobs = job.map(|job| (words::job(&job.kind), job.progress.as_ref()));
        let own = under_way(self.status).map(|(task, p)| (words::task(task).to_owned(), Some(p)));
        for (name, progress) in jobs.into_iter().chain(own) {
            let _ = write!(out, "<section class=\"job\"><strong>{}</strong>", escaped(&name));
            match progress {
                Some(progress) => bar(out, progress),
                None => out.push_str(" waits for its turn."),
            }
            out.push_str("</section>\n");
        }
    }

    /// The log's figures, each with the exact number, and the rest of the facts.
    fn figures(&self, out: &mut String) {
        let database = &self.status.database;
        let census = self.status.bounding.as_ref().and_then(|b| b.known.census.as_ref());
        let figures = [
            ("ops_bytes", "the table ops on disk", database.ops_bytes),
            ("index_bytes", "its indexes", database.index_bytes),
            ("census_bytes", "the ops that are in it", census.map(|c| c.bytes)),
            ("free_disk_bytes", "free disk", database.free_disk_bytes),
        ];
        out.push_str("<div class=\"figures\">");
        for (id, name, value) in figures {
            let Some(value) = value else { continue };
            let _ = write!(
                out,
                "<div><data id=\"{id}\" value=\"{value}\">{}</data><span>{name}</span></div>",
                bytes(value)
            );
        }
        out.push_str("</div>\n<dl>");
        for (name, value) in
            facts(self.status).into_iter().filter(|(name, _)| !["ops", "free disk"].contains(name))
        {
            let _ = write!(out, "<dt>{name}</dt><dd>{}</dd>", marked(&value));
        }
        out.push_str("</dl>\n");
    }

    /// What each task would delete now, and what stands in the way.
    fn decision(&self, out: &mut String) {
        let Some(plan) = self.plan else { return };
        let mut rows = Vec::new();
        let mut notes = Vec::new();
        for task in plan.tasks.iter().filter(|task| task.state != State::Off) {
            for delete in task.deletes.iter().filter(|delete| delete.rows > 0) {
                let about = if delete.about { "about " } else { "" };
                let below = delete.bounded.cut.below.ms();
                rows.push(vec![
                    words::task(task.name).to_owned(),
                    delete.bounded.cut.table.clone(),
                    format!("{about}{}", count(delete.rows)),
                    bytes(delete.bytes),
                    words::day(below),
                    delete.bounded.bound_by.to_string(),
                ]);
            }
            for b in task.blockers.iter().take(MOST_REASONS) {
                notes.push(format!("{}: {} ({})", words::task(task.name), b.text, b.fix));
            }
            if let Some(more) = task.blockers.len().checked_sub(MOST_REASONS).filter(|n| *n > 0) {
                notes.push(format!("{}: and {more} more reasons: `opsward plan`", words::task(task.name)));
            }
        }
        if rows.is_empty() {
            notes.insert(0, "Nothing would be deleted now.".to_owned());
        }
        notes.push(format!("Decided {}.", ago(plan.at, self.status.at)));
        let header = &["would be deleted by", "of", "ops", "bytes", "older than", "bound by"];
        table(out, &Grid { header, figures: &[2, 3], rows, notes });
    }

    fn deleted(&self) -> Grid {
        let row = |e: &history::Entry| {
            vec![
                words::task(&e.task).to_owned(),
                e.table.clone(),
                count(e.rows),
                bytes(e.bytes),
                e.bound_by.clone(),
                e.outcome.clone(),
                ago(e.ended_at, self.status.at),
            ]
        };
        let header = &["was deleted by", "of", "ops", "bytes", "bound by", "outcome", "when"];
        Grid::of(header, &[2, 3, 6], self.history, row)
    }
}

/// How far work is, in words and as a bar.
fn bar(out: &mut String, progress: &Progress) {
    let _ = write!(out, ": {}", escaped(&far(progress)));
    if let Some(total) = progress.total.filter(|total| *total > 0) {
        let _ = write!(out, "<progress max=\"{total}\" value=\"{}\"></progress>", progress.done.min(total));
    }
    if let Some(waiting) = &progress.waiting {
        let _ = write!(out, "<br><span class=\"note\">waits: {}</span>", escaped(waiting));
    }
}

fn table(out: &mut String, grid: &Grid) {
    let class = |i: usize| if grid.figures.contains(&i) { " class=\"figure\"" } else { "" };
    if !grid.rows.is_empty() {
        out.push_str("<table><thead><tr>");
        for (i, name) in grid.header.iter().enumerate() {
            let _ = write!(out, "<th scope=\"col\"{}>{name}</th>", class(i));
        }
        out.push_str("</tr></thead><tbody>\n");
        for row in grid.rows.iter().take(MOST_ROWS) {
            out.push_str("<tr>");
            for (i, text) in row.iter().enumerate() {
                let name = grid.header.get(i).unwrap_or(&"");
                let _ = write!(out, "<td{} data-l=\"{name}\">{}</td>", class(i), marked(text));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table>\n");
        if let Some(more) = grid.rows.len().checked_sub(MOST_ROWS).filter(|n| *n > 0) {
            let _ = writeln!(out, "<p class=\"note\">and {more} more: see /status</p>");
        }
    }
    for note in &grid.notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", marked(note));
    }
}

/// Escapes text for HTML: it may come from peers or settings.
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

/// As [`escaped`]; text in backticks becomes `<code>`.
fn marked(text: &str) -> String {
    let mut out = String::new();
    let parts: Vec<String> = text.split('`').map(escaped).collect();
    let pairs = parts.len() % 2 == 1;
    for (i, part) in parts.iter().enumerate() {
        match (pairs, i % 2) {
            (true, 1) => out.extend(["<code>", part, "</code>"]),
            (false, _) if i > 0 => out.extend(["`", part]),
            _ => out.push_str(part),
        }
    }
    out
}

#[cfg(test)]
mod tests;
