//! `Op`: one replicated write, and the reasons for which one is refused.

use super::{OpUlid, words};
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

words! {
    /// What an op does with its records.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum Action {
        /// Insert records that are not there.
        Create = "create",
        /// Insert records, or overwrite every column of those that are there.
        Update = "update",
        /// Delete records by primary key.
        Delete = "delete",
    }
}

/// An op whose envelope is sound: the ULID is plausible, the action known and
/// `data` is the JSON text of an array of objects. Whether its records fit
/// their table is a question for `records`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Its key.
    pub ulid: OpUlid,
    /// The host that wrote it first, as it spelled itself; may be empty.
    pub host: String,
    /// What it does.
    pub action: Action,
    /// The table of its records, as named in the log.
    pub table: String,
    /// Its records: JSON text, as received.
    pub data: Data,
}

/// The JSON text of an op's records. It shares the text of the whole op that it
/// was received in, so that an op is in memory once.
#[derive(Clone)]
pub struct Data {
    whole: Arc<String>,
    at: Range<usize>,
}

impl Data {
    /// The part `at` of a whole op's text; all of it where there is no such part.
    pub fn within(whole: Arc<String>, at: Range<usize>) -> Self {
        match whole.get(at.clone()) {
            Some(_) => Self { whole, at },
            None => Self { at: 0..whole.len(), whole },
        }
    }

    /// The whole op as it was received.
    pub fn whole(&self) -> &str {
        &self.whole
    }
}

impl Deref for Data {
    type Target = str;

    fn deref(&self) -> &str {
        self.whole.get(self.at.clone()).unwrap_or_default()
    }
}

impl From<String> for Data {
    fn from(text: String) -> Self {
        Self { at: 0..text.len(), whole: Arc::new(text) }
    }
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Data {}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Why an op was not applied. The code is stable (it is stored, and a label);
/// the detail is for a person.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RejectReason {
    /// A stable snake_case word.
    pub code: &'static str,
    /// What was found and what would be right.
    pub detail: String,
}

impl RejectReason {
    /// A reason of a stable code and a sentence for a person.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}
