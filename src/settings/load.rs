//! From a source to the settings: flag, environment, file, default, in this
//! order; every mistake is collected before any is reported.

use super::table::{Entry, Shape, TABLE};
use super::{DEFAULT_FILE, Origin, Problem, Problems, Settings, Source, check};
use crate::values::Finding;
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Settings that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub settings: Settings,
    /// Each setting as shown, with where it came from; in the table's order.
    pub origins: Vec<Shown>,
    /// What should be known.
    pub warnings: Vec<Finding>,
    /// The settings file that was read.
    pub file: Option<PathBuf>,
}

/// One setting as `config show` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    pub key: &'static str,
    /// Its environment variable.
    pub variable: &'static str,
    /// Its text, passwords masked; `None` when it is not set.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// The settings file, if there is one.
#[derive(Default)]
pub(super) struct File {
    pub(super) path: Option<PathBuf>,
    pub(super) values: toml::Table,
}

/// A value and where it came from.
type Given = (Origin, String);

/// Reads every setting from `source`.
///
/// # Errors
/// All that is wrong, together.
pub fn load(source: &Source) -> Result<Loaded, Problems> {
    let mut found = Problems::default();
    let file = read_file(source, &mut found);
    // Fails only if a default in the table is wrong; a test reads them all.
    let Ok(mut settings) = Settings::defaults() else {
        return Err(found);
    };
    let mut origins = Vec::with_capacity(TABLE.len());
    for entry in TABLE.iter() {
        let given = pick(entry, source, &file, &mut found);
        origins.push(set(entry, given, &mut settings, &mut found));
    }
    if origin_of(&origins, "db_url") == Some(&Origin::Default) {
        // No database is named: opsward looks for the known ones.
        settings.db.dbname = None;
    }
    check::tables(&file, &mut settings, &mut found);
    check::unknown_keys(&file, &mut found);
    check::unknown_variables(source, &mut found);
    check::combinations(&mut settings, &origins, &mut found);
    if !found.problems.is_empty() {
        return Err(found);
    }
    Ok(Loaded { settings, origins, warnings: found.warnings, file: file.path })
}

/// Where a setting came from, by its key.
pub(super) fn origin_of<'a>(origins: &'a [Shown], key: &str) -> Option<&'a Origin> {
    let shown = origins.iter().find(|shown| shown.key == key)?;
    Some(&shown.origin)
}

/// The value of an entry that goes before all others.
fn pick(entry: &Entry, source: &Source, file: &File, found: &mut Problems) -> Option<Given> {
    if let Some(text) = source.flags.get(entry.key) {
        return Some((Origin::Flag, text.trim().to_owned()));
    }
    if let Some(given) = from_environment(entry, source, found) {
        return Some(given);
    }
    let value = file.values.get(entry.key)?;
    let origin = Origin::File(file.path.clone()?);
    match text_of(value) {
        Some(text) => Some((origin, text.trim().to_owned())),
        None => {
            let why = format!("a {} cannot be its value", value.type_str());
            found.problems.push(Problem { value: None, ..Problem::of(entry, (&origin, ""), why) });
            None
        }
    }
}

/// A value of the file as text: a list is written with commas.
fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Boolean(value) => Some(value.to_string()),
        toml::Value::Integer(value) => Some(value.to_string()),
        toml::Value::Array(values) => {
            let texts: Option<Vec<&str>> = values.iter().map(|v| v.as_str()).collect();
            Some(texts?.join(","))
        }
        _ => None,
    }
}

/// The first variable of an entry that is set and not empty.
fn from_environment(entry: &Entry, source: &Source, found: &mut Problems) -> Option<Given> {
    let mut given: Option<Given> = None;
    for name in entry.env {
        let Some(value) = source.env.get(*name) else {
            continue;
        };
        let origin = Origin::Environment((*name).to_owned());
        let Some(text) = value.to_str().map(str::trim) else {
            let why = "it is not UTF-8".into();
            found.problems.push(Problem { value: None, ..Problem::of(entry, (&origin, ""), why) });
            continue;
        };
        match &given {
            _ if text.is_empty() => {}
            None => given = Some((origin, text.to_owned())),
            Some((first, value)) if value != text => found.warnings.push(Finding::new(
                "variable_shadowed",
                format!("{} goes before {name}, and they differ", first.written(entry)),
                "set one of them only",
            )),
            Some(_) => {}
        }
    }
    let Some((variable, path)) = secret_file(entry, source) else {
        return given;
    };
    let origin = Origin::SecretFile { variable, path: path.clone() };
    let why = match (&given, (source.read)(&path)) {
        (Some((other, _)), _) => format!("{} is set too", other.written(entry)),
        (None, Err(error)) => format!("the file cannot be read: {error}"),
        (None, Ok(text)) if text.trim().is_empty() => "the file is empty".into(),
        (None, Ok(text)) => return Some((origin, text.trim().to_owned())),
    };
    found.problems.push(Problem {
        value: Some(path.display().to_string()),
        allowed: format!("{} or this, a readable file", entry.variable()),
        ..Problem::of(entry, (&origin, ""), why)
    });
    None
}

fn secret_file(entry: &Entry, source: &Source) -> Option<(String, PathBuf)> {
    let variable = entry.file_variable()?;
    let path = source.env.get(&variable)?;
    (!path.is_empty()).then(|| (variable, PathBuf::from(path)))
}

/// Puts a given value into the settings. A value that cannot be used leaves the default in
/// place, for the checks that follow.
fn set(entry: &Entry, given: Option<Given>, settings: &mut Settings, found: &mut Problems) -> Shown {
    let mut value = entry.default.map(str::to_owned);
    let mut origin = Origin::Default;
    if let Some((from, text)) = given {
        value = match (entry.set)(settings, &text) {
            Ok(()) => Some(text),
            Err(why) => {
                found.problems.push(Problem::of(entry, (&from, text.as_str()), why));
                None
            }
        };
        origin = from;
    }
    Shown {
        key: entry.key,
        variable: entry.variable(),
        value: match entry.shape {
            Shape::Secret(_, masked) => value.map(|_| masked(settings)),
            _ => value,
        },
        origin,
    }
}

fn read_file(source: &Source, found: &mut Problems) -> File {
    let named = source.config.is_some();
    let path = source.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    let why = match (source.read)(path) {
        Err(error) if !named && error.kind() == ErrorKind::NotFound => return File::default(),
        Err(error) => format!("it cannot be read: {error}"),
        Ok(text) => match text.parse() {
            Ok(values) => {
                return File { path: Some(path.to_owned()), values };
            }
            // TOML's own message quotes the line, which may hold a password.
            Err(error) => at_line(&text, &error),
        },
    };
    found.problems.push(Problem {
        setting: if named { "--config" } else { "settings file" }.to_owned(),
        value: Some(path.display().to_string()),
        origin: if named { Origin::Flag } else { Origin::Default },
        why,
        allowed: "a readable file of key = value lines in TOML".to_owned(),
    });
    File::default()
}

fn at_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    format!("its line {line} is no TOML: {}", error.message())
}

#[cfg(test)]
mod tests;
