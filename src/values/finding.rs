//! `Finding`: what an operator should know, and what to do about it.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// A warning, or an obstacle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Stable name of its kind.
    pub code: Cow<'static, str>,
    /// What is so.
    pub text: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    /// A finding of the kind `code`.
    pub fn new(code: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code: Cow::Borrowed(code), text: text.into(), fix: fix.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.text, self.fix)
    }
}
