//! What a command ends with: its exit code, and its result as one JSON object
//! for programs or as text for people.

use crate::db;
use crate::settings::Problems;
use crate::values::{Finding, Host};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};

/// The envelope's version: it changes when a field changes its meaning.
const SCHEMA: u32 = 1;

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "u8", from = "u8")]
#[repr(u8)]
pub enum ExitCode {
    /// Done, or nothing to do.
    Done = 0,
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A guard refused; nothing was done.
    Refused = 3,
    /// The lease is held elsewhere.
    Held = 4,
    /// The settings cannot be used.
    Settings = 64,
    /// The database or the network is away: try again.
    Away = 75,
}

impl From<ExitCode> for u8 {
    fn from(code: ExitCode) -> Self {
        code as Self
    }
}

impl From<u8> for ExitCode {
    /// The exit code of a job that another process did.
    fn from(code: u8) -> Self {
        use ExitCode::{Away, Done, Failed, Held, Refused, Settings, Usage};
        let known = [Done, Usage, Refused, Held, Settings, Away];
        known.into_iter().find(|known| *known as u8 == code).unwrap_or(Failed)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputMode {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// The result of a command that did its work.
#[derive(Clone, Debug)]
pub struct Done {
    /// How the process ends.
    pub exit: ExitCode,
    /// Whether anything was changed.
    pub changed: bool,
    /// What should be known.
    pub warnings: Vec<Finding>,
    /// The result for programs.
    pub result: Value,
    /// The result for people; a newline is added where none ends it.
    pub text: String,
}

impl Done {
    /// A result that changed nothing and ends with 0.
    pub fn new(result: Value, text: impl Into<String>) -> Self {
        Self { exit: ExitCode::Done, changed: false, warnings: Vec::new(), result, text: text.into() }
    }

    /// Nothing to show: for commands that have no envelope.
    pub fn silent() -> Self {
        Self::new(Value::Null, "")
    }

    /// The same, ending otherwise.
    pub fn exit(self, exit: ExitCode) -> Self {
        Self { exit, ..self }
    }

    /// The same, having changed something or not.
    pub fn changed(self, changed: bool) -> Self {
        Self { changed, ..self }
    }

    /// The same with warnings.
    pub fn warn(mut self, warnings: impl IntoIterator<Item = Finding>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

/// Why a command or a job did not do its work, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// How the process ends.
    pub exit: ExitCode,
    /// Stable name of its kind.
    pub code: Cow<'static, str>,
    /// What happened.
    pub text: String,
    /// What to do; empty where the text says it.
    pub fix: String,
}

/// What a command ends with.
pub type Outcome = Result<Done, Failure>;

impl Failure {
    /// A failure of the kind `code` that ends with `exit`.
    pub fn new(exit: ExitCode, code: impl Into<Cow<'static, str>>, text: impl Into<String>) -> Self {
        Self { exit, code: code.into(), text: text.into(), fix: String::new() }
    }

    /// The command line is wrong.
    pub fn usage(text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, "usage", text).fix(fix)
    }

    /// READ_ONLY keeps a command from writing, so that it did nothing.
    pub fn read_only(why: &str, to: &str) -> Self {
        let fix = format!("set OPENAUDIO_MEDIORUM_READ_ONLY=false to {to}");
        Self::new(ExitCode::Refused, "read_only", format!("READ_ONLY is set: {why}")).fix(fix)
    }

    /// A guard refused; nothing was done.
    pub fn refused(text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ExitCode::Refused, "refused", text).fix(fix)
    }

    /// What to do about the failure; where the text says that, where to look next.
    pub fn way_out(&self) -> &str {
        match self.exit {
            _ if !self.fix.is_empty() => &self.fix,
            ExitCode::Usage => "see `opsward --help`",
            ExitCode::Settings => "see `opsward config check`",
            ExitCode::Refused => "nothing was done: lift what the text names, then try again",
            ExitCode::Held => "wait until it is done, or stop it",
            ExitCode::Away => "try again later",
            ExitCode::Failed | ExitCode::Done => "see the text, and `opsward doctor`",
        }
    }

    /// The same with what to do about it.
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }
}

/// The exit code for an error of the database.
pub fn exit(kind: db::Kind) -> ExitCode {
    match kind {
        db::Kind::Away | db::Kind::Locked => ExitCode::Away,
        db::Kind::Pooler => ExitCode::Settings,
        _ => ExitCode::Failed,
    }
}

impl From<db::Error> for Failure {
    fn from(error: db::Error) -> Self {
        let text = error.to_string();
        let kind = error.kind();
        let fix = match kind {
            db::Kind::Denied => "`opsward doctor` says what is missing",
            db::Kind::Absent | db::Kind::Unfit => "`opsward doctor` says what the database lacks",
            db::Kind::BadData | db::Kind::Other => {
                "`opsward doctor` looks for what is wrong with the database"
            }
            kind => kind.fix(),
        };
        Self::new(exit(kind), kind.code(), text).fix(fix)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::new(ExitCode::Settings, "settings", problems.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<db::Error>() {
            Ok(error) => error.into(),
            // `#` prints the chain of causes, and no backtrace.
            Err(error) => Self::new(ExitCode::Failed, "failed", format!("{error:#}")),
        }
    }
}

/// The fields of the envelope that every command has.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The command's words.
    pub command: &'a str,
    /// When it ended.
    pub at: Timestamp,
    /// This validator, where it is known.
    pub own: Option<&'a Host>,
    /// What the settings warn of; the command's own warnings follow.
    pub warnings: &'a [Finding],
}

#[derive(Serialize)]
struct Envelope<'a> {
    schema: u32,
    command: &'a str,
    at: Timestamp,
    #[serde(rename = "self")]
    own: Option<&'a Host>,
    changed: bool,
    warnings: Vec<&'a Finding>,
    result: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error<'a>>,
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    text: &'a str,
    fix: &'a str,
}

/// The outcome as one line of JSON: documented fields in their order, and
/// `error` where the command failed.
pub fn json(frame: Frame<'_>, outcome: &Outcome) -> String {
    let nothing = Value::Null;
    let done = outcome.as_ref().ok();
    let envelope = Envelope {
        schema: SCHEMA,
        command: frame.command,
        at: frame.at,
        own: frame.own,
        changed: done.is_some_and(|done| done.changed),
        warnings: frame.warnings.iter().chain(done.map_or(&[][..], |done| &done.warnings)).collect(),
        result: done.map_or(&nothing, |done| &done.result),
        error: outcome.as_ref().err().map(|failure| Error {
            code: &failure.code,
            text: &failure.text,
            fix: failure.way_out(),
        }),
    };
    // Plain data with text keys: it always has a JSON form.
    serde_json::to_string(&envelope).unwrap_or_default()
}

/// Writes lines. All results, warnings and failures are written here, so this is where text
/// from outside is escaped. A closed pipe is no failure: its reader has seen what it wanted.
///
/// # Errors
/// Any other failure to write.
pub fn write_lines(mut out: impl Write, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let text = super::format::printable(text);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(end.as_bytes()))
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn frame(own: Option<&Host>) -> Frame<'_> {
        Frame {
            command: "config show",
            at: Timestamp::from_second(1_700_000_000).unwrap(),
            own,
            warnings: &[],
        }
    }

    #[test]
    fn a_result() {
        let own = Host::parse("https://a.example").unwrap();
        let done =
            Done::new(json!({"rows": 3}), "").changed(true).warn([Finding::new("w", "it is so", "do this")]);
        let first = [Finding::new("v", "first", "that")];
        let frame = Frame { warnings: &first, ..frame(Some(&own)) };
        insta::assert_snapshot!(json(frame, &Ok(done)), @r#"{"schema":1,"command":"config show","at":"2023-11-14T22:13:20Z","self":"https://a.example","changed":true,"warnings":[{"code":"v","text":"first","fix":"that"},{"code":"w","text":"it is so","fix":"do this"}],"result":{"rows":3}}"#);
    }

    #[test]
    fn a_failure() {
        let away = Failure::from(db::Error::Away("h:1: refused".into()));
        assert_eq!(away.exit, ExitCode::Away);
        insta::assert_snapshot!(json(frame(None), &Err(away)), @r#"{"schema":1,"command":"config show","at":"2023-11-14T22:13:20Z","self":null,"changed":false,"warnings":[],"result":null,"error":{"code":"database_away","text":"the database is away: h:1: refused","fix":"try again once the database answers: start the node's Postgres, or correct OPENAUDIO_DB_URL"}}"#);
    }

    #[test]
    fn failures_by_kind() {
        let exit = |error: db::Error| Failure::from(error).exit as u8;
        assert_eq!(exit(db::Error::Denied("x".into())), 1);
        assert_eq!(exit(db::Error::Unfit("x".into())), 1);
        let wrapped = anyhow::Error::from(db::Error::Away("x".into())).context("while at it");
        assert_eq!(Failure::from(wrapped).exit, ExitCode::Away);
        let other = anyhow::anyhow!("inner").context("outer");
        assert_eq!(Failure::from(other).text, "outer: inner");
    }

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        assert!(write_lines(Broken(ErrorKind::BrokenPipe), "x").is_ok());
        assert!(write_lines(Broken(ErrorKind::StorageFull), "x").is_err());
        let mut out = Vec::new();
        write_lines(&mut out, "a\nb").unwrap();
        write_lines(&mut out, "c\n").unwrap();
        write_lines(&mut out, "\u{1b}[2J").unwrap();
        write_lines(&mut out, "").unwrap();
        assert_eq!(out, b"a\nb\nc\n\\u001b[2J\n");
    }
}
