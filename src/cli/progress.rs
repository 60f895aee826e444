//! How far a command is, on stderr: a line that moves on a terminal, lines
//! that follow each other elsewhere, nothing beside an envelope.

use crate::show::{OutputMode, format};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::{IsTerminal, Write};

/// Rows between two lines where stderr is no terminal.
const LINE_ROWS: u64 = 1_000_000;

/// Shows how far a command is.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    /// What was said last, and up to how many rows.
    said: RefCell<(String, u64)>,
    quiet: bool,
}

impl Shown {
    /// A display for a command whose result is written so.
    pub(super) fn new(output: OutputMode) -> Self {
        let quiet = output == OutputMode::Json;
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]");
            ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        Self { bar, said: RefCell::default(), quiet }
    }

    /// Shows that so many rows of something were read.
    pub(super) fn tell(&self, what: &str, rows: u64, place: &str) {
        if self.quiet {
            return;
        }
        let what = format!("{what}, {place}");
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{what}: {}", format::count(rows)));
            bar.tick();
            return;
        }
        let mut said = self.said.borrow_mut();
        if said.0 != what || rows >= said.1 + LINE_ROWS {
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{what}: {}", format::count(rows));
            *said = (what, rows);
        }
    }

    /// Takes the moving line away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
