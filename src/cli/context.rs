//! What a command gets: settings, clock, output mode.

use crate::clock::Clock;
use crate::db::Db;
use crate::settings::{Loaded, Problems, Settings, Shown};
use crate::show::{Failure, OutputMode};
use crate::values::{Finding, Host};

/// What a command knows before the settings are known to be usable.
#[derive(Debug)]
pub struct Early {
    /// The settings, or every problem in them.
    pub loaded: Result<Loaded, Problems>,
    /// The time.
    pub clock: Clock,
    /// How results are written.
    pub output: OutputMode,
}

/// What a command works with.
#[derive(Clone, Debug)]
pub struct Context {
    pub settings: Settings,
    /// Each setting as shown, with where it came from.
    pub origins: Vec<Shown>,
    /// What the settings warn of; shown or logged around the command.
    pub warnings: Vec<Finding>,
    /// The time.
    pub clock: Clock,
    /// How results are written.
    pub output: OutputMode,
}

impl Context {
    /// A context of settings that can be used.
    pub(super) fn new(loaded: Loaded, early: &Early) -> Self {
        Self {
            settings: loaded.settings,
            origins: loaded.origins,
            warnings: loaded.warnings,
            clock: early.clock.clone(),
            output: early.output,
        }
    }

    /// This validator's host, for commands that need it.
    ///
    /// # Errors
    /// The setting is missing: exit 64.
    pub fn self_host(&self) -> Result<&Host, Failure> {
        let why = "it is not set, and this command must know which validator it is";
        self.settings.node_endpoint.as_ref().ok_or_else(|| Problems::unset("node_endpoint", why).into())
    }

    /// Opens the node's database with at most `size` connections that the
    /// server lists as `opsward <command>`.
    ///
    /// # Errors
    /// The database is away: exit 75. Any other database error: exit 1.
    pub async fn open_db(&self, command: &str, size: usize) -> Result<Db, Failure> {
        let name = format!("opsward {command}");
        Ok(Db::open(&self.settings.db, &name, size).await?)
    }
}
