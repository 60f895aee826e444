//! What can go wrong between opsward and its database, sorted by what an
//! operator can do about it.

use tokio_postgres::error::SqlState;

/// A failure of the database, by what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Refused, timed out, shutting down, lost: try again later.
    #[error("the database is away: {0}")]
    Away(String),
    /// Reached, but it will not let us in.
    #[error("{0}")]
    Denied(String),
    /// Reached, but it is not what opsward can work with; says what to do.
    #[error("{0}")]
    Unfit(String),
    /// Work in one transaction took longer than a transaction may live.
    #[error("{0}: it took too long")]
    TooLong(&'static str),
    /// Somebody else committed what it was based on: the same again may pass.
    #[error("{0}: it was overtaken")]
    Overtaken(&'static str),
    /// A statement failed.
    #[error("{what}: {}", describe(.source))]
    Query {
        /// What was being done.
        what: &'static str,
        /// The driver's error.
        source: tokio_postgres::Error,
    },
}

/// A result of the database.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Sorts a driver's error that happened while doing `what`.
    pub fn of(what: &'static str, source: tokio_postgres::Error) -> Self {
        if is_away(&source) { Self::Away(describe(&source)) } else { Self::Query { what, source } }
    }

    /// Whether trying again later may help, with nothing changed here.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }

    /// The server's error code, where it sent one.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Query { source, .. } => source.code(),
            _ => None,
        }
    }

    /// Whether a volume of the server's was full.
    pub fn is_disk_full(&self) -> bool {
        self.code() == Some(&SqlState::DISK_FULL)
    }

    /// Whether the server refused for lack of a privilege.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied(_)) || self.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }
}

/// Adds what was being done to a driver's result.
pub trait Doing<T> {
    /// Sorts the error, if any, and says what was being done.
    ///
    /// # Errors
    /// The driver's, sorted.
    fn doing(self, what: &'static str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, tokio_postgres::Error> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|e| Error::of(what, e))
    }
}

/// Whether the same attempt may succeed later.
pub(in crate::db) fn is_away(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        // Connection exceptions, and "too many connections", "the database
        // system is starting up / shutting down".
        Some(code) => {
            code.code().starts_with("08")
                || [
                    SqlState::ADMIN_SHUTDOWN,
                    SqlState::CRASH_SHUTDOWN,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::TOO_MANY_CONNECTIONS,
                ]
                .contains(code)
        }
        None => {
            error.is_closed() || std::error::Error::source(error).is_some_and(|s| s.is::<std::io::Error>())
        }
    }
}

/// The driver's error as one sentence: the server's own words first.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let detail = db.detail().map(|d| format!(" ({d})")).unwrap_or_default();
        return format!("{}{detail} [{}]", db.message(), db.code().code());
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What a failed batch means for the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Another session held a lock.
    Contended,
    /// It took too long: fewer rows may not.
    TooLong,
    /// Nothing that trying again lifts.
    Fatal,
}

/// Sorts the error of a batch.
pub fn trouble(error: &Error) -> Trouble {
    let is = |codes: &[SqlState]| error.code().is_some_and(|code| codes.contains(code));
    if is(&[
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ]) {
        Trouble::Contended
    } else if is(&[SqlState::QUERY_CANCELED]) || matches!(error, Error::TooLong(_)) {
        Trouble::TooLong
    } else {
        Trouble::Fatal
    }
}
