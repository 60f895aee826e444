//! The JSON envelope around every command's result.

use serde::{Deserialize, Serialize};

/// Something an operator should know, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Warning {
    /// A stable snake_case word.
    pub code: String,
    /// What was found.
    pub text: String,
    /// What to do.
    pub fix: String,
}

impl Warning {
    /// A warning of a stable code.
    pub fn new(code: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            text: text.into(),
            fix: fix.into(),
        }
    }
}

/// The envelope's version.
pub const SCHEMA: u32 = 1;

/// Every command's JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// The envelope's version.
    pub schema: u32,
    /// The command.
    pub command: String,
    /// When.
    pub at: jiff::Timestamp,
    /// This validator's own host.
    #[serde(rename = "self")]
    pub own: Option<String>,
    /// Whether anything was changed.
    pub changed: bool,
    /// What an operator should know.
    pub warnings: Vec<Warning>,
    /// What the command found or did.
    pub result: T,
}
