//! Shows the progress of long work on stderr: a moving line on a terminal, elsewhere a plain
//! line every 10 s.

use crate::show::{OutputMode, format};
use crate::values::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two plain lines of one phase.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows progress on stderr.
pub(super) struct Meter {
    bar: Option<ProgressBar>,
    quiet: bool,
    last: Mutex<Option<(Instant, String)>>,
}

impl Meter {
    /// Shows nothing before the first [`Self::tell`], and nothing at all with `--output json`.
    pub(super) fn new(output: OutputMode) -> Self {
        let quiet = output == OutputMode::Json;
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
            let style = ProgressStyle::with_template("{spinner} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        Self { bar, quiet, last: Mutex::new(None) }
    }

    /// Removes the moving line.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Shows how many rows of `what` were read at `place` so far.
    pub(super) fn rows(&self, what: &str, rows: u64, place: &str) {
        let phase = format!("{what}, {place}");
        self.tell(&Progress { phase, done: rows, unit: "rows".into(), ..Progress::default() });
    }

    /// Shows how far it is.
    pub(super) fn tell(&self, progress: &Progress) {
        if self.quiet {
            return;
        }
        let line = line(progress);
        let line = format::one_line(&line).into_owned();
        if let Some(bar) = &self.bar {
            bar.set_message(line);
            return bar.tick();
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let new =
            last.as_ref().is_none_or(|(at, phase)| *phase != progress.phase || at.elapsed() >= LINE_EVERY);
        if new {
            eprintln!("opsward: {line}");
            *last = Some((Instant::now(), progress.phase.clone()));
        }
    }
}

fn line(progress: &Progress) -> String {
    let mut line = format::far(progress);
    if let Some(waiting) = &progress.waiting {
        line.push_str(&format!("; {waiting}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_well() {
        let progress = Progress {
            phase: "census".into(),
            done: 500,
            total: Some(2_000),
            unit: "rows".into(),
            eta_seconds: Some(90),
            ..Progress::default()
        };
        assert_eq!(line(&progress), "census: 500 rows of 2,000 rows (25 %), about 1m 30s left");
        let open = Progress { total: None, eta_seconds: None, waiting: Some("paused".into()), ..progress };
        assert_eq!(line(&open), "census: 500 rows; paused");
        let uncounted = Progress { phase: "swap".into(), unit: String::new(), ..open };
        assert_eq!(line(&uncounted), "swap; paused");
    }
}
