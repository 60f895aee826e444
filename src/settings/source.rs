//! Where settings are read from. Tests pass their own source; this is the only place that
//! reads the environment of the process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The settings file that is read when `--config` names none and it exists.
pub const DEFAULT_FILE: &str = "/etc/opsward/opsward.toml";
/// The largest file read, in bytes: a settings file is some kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

type ReadFile = dyn Fn(&Path) -> io::Result<String>;

/// Flags, environment and files, as one reading of the settings sees them.
pub struct Source {
    /// Values from the command line, by the setting's key.
    pub flags: BTreeMap<&'static str, String>,
    /// The settings file that the command line names.
    pub config: Option<PathBuf>,
    /// Environment variables.
    pub env: BTreeMap<String, OsString>,
    /// Reads a file as text.
    pub read: Box<ReadFile>,
}

impl Source {
    /// The environment and the files of this process.
    #[allow(clippy::disallowed_methods, reason = "the one place that reads it")]
    pub fn process() -> Self {
        Self {
            flags: BTreeMap::new(),
            config: None,
            env: std::env::vars_os()
                .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
                .collect(),
            read: Box::new(read_file),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values may be secrets.
        f.debug_struct("Source").field("config", &self.config).finish_non_exhaustive()
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}
