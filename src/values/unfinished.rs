//! A reclaim that has not ended, and what is said of it.

use jiff::Timestamp;
use serde::Deserialize;

/// A reclaim that is under way or was interrupted.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Unfinished {
    /// `swap` or `in-place`.
    pub mode: String,
    /// Its phase, in a word.
    pub phase: String,
    /// It waits for `opsward reclaim --swap`.
    pub held: bool,
    /// Somebody is at it now.
    pub at_work: bool,
    /// When it last did something.
    pub since: Timestamp,
}

impl Unfinished {
    /// What is said of it where it stands in the way, and what ends it.
    pub fn told(&self) -> (String, &'static str) {
        let (mode, phase) = (&self.mode, &self.phase);
        match (self.at_work, self.held) {
            (true, _) => (
                format!("a reclaim in mode {mode} is at work, in its phase {phase}"),
                "wait until it ends: `opsward status` shows how far it is; `opsward reclaim --abort` ends it",
            ),
            (false, true) => (
                "a reclaim in mode swap is held before its swap".to_owned(),
                "`opsward reclaim --swap` puts the new table in place, `--abort` undoes it",
            ),
            (false, false) => (
                format!("a reclaim in mode {mode} is unfinished, in its phase {phase}"),
                "`opsward reclaim --resume` goes on with it, `--abort` ends it",
            ),
        }
    }
}
