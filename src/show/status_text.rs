//! A `Status` as a person reads it, at 80 columns.

use super::format::{figure, indented, short_host, table, wrapped};
use super::status::Status;
use super::view::{Grid, facts, grids};
use crate::values::Finding;
use comfy_table::Cell;
use std::fmt::Write;

/// The whole text, ending in a newline.
pub fn text(status: &Status, warnings: &[Finding]) -> String {
    let mut out = String::new();
    if status.read_only {
        out.push_str("READ-ONLY: nothing outside the schema opsward is written.\n\n");
    }
    for (name, value) in facts(status) {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{name:<10}{value}");
    }
    for grid in grids(status) {
        out.push('\n');
        out.push_str(&rows(&grid));
    }
    out.push_str(&advice(warnings));
    out
}

/// Warnings with their fixes, each a paragraph.
pub fn advice(warnings: &[Finding]) -> String {
    let one = |w: &Finding| {
        let text = wrapped(&format!("warning: {}", w.text), "         ");
        let fix = wrapped(&format!("    fix: {}", w.fix), "         ");
        format!("\n{text}{fix}")
    };
    warnings.iter().map(one).collect()
}

fn rows(grid: &Grid) -> String {
    let mut t = table(grid.header);
    for row in &grid.rows {
        t.add_row(row.iter().enumerate().map(|(i, text)| match i {
            0 => Cell::new(short_host(text)),
            i if grid.figures.contains(&i) => figure(text),
            _ => Cell::new(text),
        }));
    }
    let mut out = indented(&t, "");
    for note in &grid.notes {
        out.push_str(&wrapped(&format!(" {note}"), "   "));
    }
    out
}

#[cfg(test)]
mod tests;
