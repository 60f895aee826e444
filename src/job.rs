//! Work that takes the lease. A command does it itself, or hands it to the
//! daemon that holds the lease; both come through `carry_out`.

use crate::db::lease::Lease;
use crate::db::{self};
use crate::work::Work;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A piece of work with its arguments, as it stands in `opsward.jobs`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Job {}

impl Job {
    /// Which work it is: the word of its command.
    pub fn kind(&self) -> &'static str {
        match *self {}
    }
}

/// Why a job did not do its work.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// How the command ends: contract 9's exit codes.
    pub exit: u8,
    /// What happened.
    pub text: String,
    /// What to do; empty where the text says it.
    pub fix: String,
}

impl Trouble {
    /// A guard refused; nothing was done.
    pub fn refused(text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { exit: 3, text: text.into(), fix: fix.into() }
    }
}

impl From<db::Error> for Trouble {
    fn from(error: db::Error) -> Self {
        let fix = if error.is_away() { "try again once the database answers" } else { "" };
        Self { exit: if error.is_away() { 75 } else { 1 }, text: error.to_string(), fix: fix.to_owned() }
    }
}

/// How a job came out, as it stands in `opsward.jobs`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Its report.
    Report(Value),
    /// Why there is none.
    Trouble(Trouble),
}

/// Does a job's work on the lease; the report is the command's.
pub async fn carry_out(job: &Job, work: &Work, lease: &mut Lease) -> Ended {
    let _ = (work, lease);
    match *job {}
}
