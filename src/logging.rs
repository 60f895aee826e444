//! Log lines to stderr: text or JSON, by the filter from the settings.

use crate::settings::{LogFormat, Settings, log_filter};
use crate::values::printable;
use std::io::{self, IsTerminal, Write};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging for this process. A second call changes nothing.
pub fn init(settings: &Settings) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| Escaped(io::stderr(), io::stderr().is_terminal()))
        .with_ansi(io::stderr().is_terminal())
        // Else a closed stderr would be a panic.
        .log_internal_errors(false);
    let lines = match settings.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let started =
        tracing_subscriber::registry().with(lines.with_filter(filter(&settings.log_level))).try_init();
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
}

/// Writes log lines without what would move a terminal's cursor: a peer may have
/// chosen a word in them.
struct Escaped<W>(W, bool);

impl<W: Write> Write for Escaped<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // With colours, the layer itself escapes what is not its own.
        let colours = self.1;
        let text = String::from_utf8_lossy(line);
        match colours {
            true => self.0.write_all(line)?,
            false => self.0.write_all(printable(&text).as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The filter of a text that the settings have accepted.
fn filter(text: &str) -> Targets {
    let targets = log_filter(text).unwrap_or_default();
    // Each try of a pool to connect is an error of a task too, said once there.
    let quiet = Targets::new().with_target("deadpool", LevelFilter::ERROR);
    targets.into_iter().fold(quiet, |filter, (target, level)| {
        let level = level.parse().unwrap_or(LevelFilter::INFO);
        if target.is_empty() { filter.with_default(level) } else { filter.with_target(target, level) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_bare_level_speaks_of_opsward() {
        let filter = filter("debug,opsward::pull=trace,hyper=off");
        for (target, level, enabled) in [
            ("opsward", Level::DEBUG, true),
            ("opsward::db", Level::TRACE, false),
            ("opsward::pull", Level::TRACE, true),
            ("reqwest", Level::WARN, true),
            ("reqwest", Level::INFO, false),
            ("hyper", Level::ERROR, false),
        ] {
            assert_eq!(filter.would_enable(target, &level), enabled, "{target}");
        }
        assert!(!super::filter("off").would_enable("opsward", &Level::ERROR));
        assert!(!super::filter("error").would_enable("hyper", &Level::WARN));
    }
}
