//! Contract 9: one file a command.

pub mod doctor;
pub mod healthcheck;
pub mod run;
pub mod status;
pub mod uninstall;

use crate::db;
use crate::settings::Settings;
use crate::show::Warning;
use crate::show::envelope::{Envelope, SCHEMA};
use jiff::Timestamp;
use serde::Serialize;
use std::io::Write;

/// How a command ended, as its exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Refused by a guard: nothing was done.
    Refused = 3,
    /// Somebody else is at it.
    Busy = 4,
    /// The settings.
    Settings = 64,
    /// The database or the network is away: try again.
    Away = 75,
}

impl Exit {
    /// The exit code for an error of the database.
    pub fn of(error: &db::Error) -> Self {
        if error.is_away() {
            Self::Away
        } else {
            Self::Failed
        }
    }
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// For a person.
    Text,
    /// The JSON envelope.
    Json,
}

/// What every command is given.
pub struct Context {
    /// The settings.
    pub settings: Settings,
    /// What should be known of them.
    pub warnings: Vec<Warning>,
    /// How to print.
    pub output: Output,
}

/// Whether a command changed anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// It did.
    Yes,
    /// It did not.
    No,
}

impl Context {
    /// Prints a result to stdout: the envelope, or `text`.
    pub fn print(&self, command: &str, at: Timestamp, result: &impl Serialize, said: Said) {
        let text = match self.output {
            Output::Text => said.text,
            Output::Json => {
                let envelope = Envelope {
                    schema: SCHEMA,
                    command: command.to_owned(),
                    at,
                    own: self
                        .settings
                        .node_endpoint
                        .as_ref()
                        .map(ToString::to_string),
                    changed: said.changed == Changed::Yes,
                    warnings: said.warnings,
                    result,
                };
                serde_json::to_string(&envelope).unwrap_or_default() + "\n"
            }
        };
        // A reader that went away is its own matter.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
}

/// What goes with a result.
pub struct Said {
    /// The result as text.
    pub text: String,
    /// Whether anything was changed.
    pub changed: Changed,
    /// What should be known.
    pub warnings: Vec<Warning>,
}
