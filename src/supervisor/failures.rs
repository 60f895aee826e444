//! Runs that went wrong, and what the log is told of them.

use std::any::Any;
use std::time::Duration;
use tracing::{debug, info, warn};

/// How a run went wrong.
pub(super) struct Failure {
    pub(super) text: String,
    pub(super) panicked: bool,
}

impl Failure {
    pub(super) fn of_error(text: impl Into<String>) -> Self {
        Self { text: text.into(), panicked: false }
    }

    pub(super) fn of_panic(payload: &(dyn Any + Send)) -> Self {
        let words = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        Self { text: format!("panicked: {words}"), panicked: true }
    }
}

/// Failures in a row, and what the log was told of them: the first, every
/// change, and then the 8th, 16th, 32nd … at warn; the others at debug.
#[derive(Default)]
pub(super) struct Failures {
    pub(super) in_a_row: u32,
    last: String,
}

impl Failures {
    pub(super) fn another(&mut self, task: &str, failure: Failure, wait: Duration) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let again = format!("{:.0?}", wait);
        let in_a_row = self.in_a_row;
        if failure.text != self.last || (in_a_row >= 8 && in_a_row.is_power_of_two()) {
            warn!(task, in_a_row, again_in = again, "failed: {}", failure.text);
        } else {
            debug!(task, in_a_row, again_in = again, "failed: {}", failure.text);
        }
        self.last = failure.text;
    }

    pub(super) fn recovered(&mut self, task: &str) {
        if self.in_a_row > 0 {
            info!(task, failures = self.in_a_row, "works again");
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_not_shouted() {
        let mut failures = Failures::default();
        for _ in 0..3 {
            failures.another("t", Failure::of_error("away"), Duration::ZERO);
        }
        assert_eq!((failures.in_a_row, failures.last.as_str()), (3, "away"));
        failures.recovered("t");
        assert_eq!(failures.in_a_row, 0);
    }
}
