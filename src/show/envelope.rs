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
