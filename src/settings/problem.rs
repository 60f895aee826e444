//! Problems of the settings. All are reported together, so that the operator can correct them
//! in one go.

use super::table::{Entry, entry};
use crate::values::Finding;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Messages cut a value to so many characters.
const SHOWN_CHARS: usize = 200;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This environment variable.
    Environment(String),
    /// The file that this environment variable names.
    SecretFile {
        /// The variable, `…_FILE`.
        variable: String,
        /// The file it names.
        path: PathBuf,
    },
    /// The settings file.
    File(PathBuf),
    /// Nobody set it.
    Default,
}

impl Origin {
    /// The setting as the operator wrote it: a flag, a variable or a key.
    pub fn written(&self, entry: &Entry) -> String {
        match self {
            Self::Flag => format!("--{}", entry.flag()),
            Self::Environment(variable) | Self::SecretFile { variable, .. } => variable.clone(),
            Self::File(_) => entry.key.to_owned(),
            Self::Default => entry.variable().to_owned(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::SecretFile { variable, path } => {
                write!(f, "file {} named by {variable}", path.display())
            }
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One problem that keeps opsward from starting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// The setting as the operator wrote it.
    pub setting: String,
    /// What it was set to; `None` for a secret and for what has no value.
    pub value: Option<String>,
    /// Where that came from.
    pub origin: Origin,
    /// What is wrong with it.
    pub why: String,
    /// What is allowed.
    pub allowed: String,
}

impl Problem {
    /// A value of `entry` that cannot be used. A secret's value is left out.
    pub fn of(entry: &Entry, given: (&Origin, &str), why: String) -> Self {
        let (origin, text) = given;
        Self {
            setting: origin.written(entry),
            value: entry.is_open().then(|| masked(text)),
            origin: origin.clone(),
            why,
            allowed: entry.allowed.to_owned(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.setting)?;
        if let Some(value) = &self.value {
            write!(f, " = {value:?}")?;
        }
        match &self.origin {
            Origin::Environment(_) => f.write_str(" (environment)")?,
            Origin::SecretFile { path, .. } => write!(f, " (file {})", path.display())?,
            origin => write!(f, " ({origin})")?,
        }
        write!(f, ": {}; allowed: {}", self.why, self.allowed)
    }
}

/// Everything that is wrong, together.
#[derive(Clone, Debug, Default, thiserror::Error)]
pub struct Problems {
    /// What keeps opsward from starting, in the order of the table.
    pub problems: Vec<Problem>,
    /// What does not keep it from starting.
    pub warnings: Vec<Finding>,
}

impl Problems {
    /// The setting of a key is not set, and has to be.
    pub fn unset(key: &str, why: &str) -> Self {
        let problem =
            |entry| Problem { value: None, ..Problem::of(entry, (&Origin::Default, ""), why.to_owned()) };
        Self { problems: entry(key).map(problem).into_iter().collect(), warnings: Vec::new() }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => f.write_str("1 setting cannot be used:")?,
            n => write!(f, "{n} settings cannot be used:")?,
        }
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// A value as messages show it: cut, and without the text between `//` and the last `@`, which
/// may be a password in a URL.
fn masked(text: &str) -> String {
    let masked = match (text.find("//"), text.rfind('@')) {
        (Some(start), Some(at)) if start + 2 <= at => {
            format!("{}***{}", &text[..start + 2], &text[at..])
        }
        _ => text.to_owned(),
    };
    match masked.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &masked[..end]),
        None => masked,
    }
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn a_shown_value_hides_what_may_be_a_password() {
        assert_eq!(masked("https://me:secret@a.example/x"), "https://***@a.example/x");
        assert_eq!(
            masked("https://a:b@c,https://d:e@f"),
            "https://***@f",
            "a list is masked from its first URL to its last"
        );
        assert_eq!(masked("plain@text"), "plain@text");
        assert_eq!(masked("@//"), "@//");
        assert_eq!(masked(&"é".repeat(300)).chars().count(), 201);
    }
}
