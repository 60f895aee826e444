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
    /// Reached, but the database or its table `ops` is not there.
    #[error("{0}")]
    Absent(String),
    /// What was reached is no server but a pooler that drops what a session needs.
    #[error("{0}")]
    Pooler(String),
    /// A standby, or a server that takes no writes for another reason.
    #[error("{0}")]
    ReadOnly(String),
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
        if kind(&source) == Kind::Away { Self::Away(describe(&source)) } else { Self::Query { what, source } }
    }

    /// What it is, by what lifts it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Away(_) => Kind::Away,
            Self::Denied(_) => Kind::Denied,
            Self::Absent(_) => Kind::Absent,
            Self::Pooler(_) => Kind::Pooler,
            Self::ReadOnly(_) => Kind::ReadOnly,
            Self::Unfit(_) => Kind::Unfit,
            Self::TooLong(_) => Kind::TooLong,
            Self::Overtaken(_) => Kind::Contended,
            Self::Query { source, .. } => kind(source),
        }
    }

    /// Whether trying again later may help, with nothing changed here.
    pub fn is_away(&self) -> bool {
        self.kind() == Kind::Away
    }

    /// The server's error code, where it sent one.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Query { source, .. } => source.code(),
            _ => None,
        }
    }

    /// Whether the work took too long: less of it may not.
    pub fn is_too_long(&self) -> bool {
        self.kind() == Kind::TooLong
    }

    /// Whether another session held a lock or was first.
    pub fn is_held_up(&self) -> bool {
        matches!(self.kind(), Kind::Locked | Kind::Contended)
    }

    /// Whether another session, or the time, was in the way: the same again may pass.
    pub fn is_contended(&self) -> bool {
        self.is_too_long() || self.is_held_up()
    }

    /// Whether a volume of the server's was full.
    pub fn is_disk_full(&self) -> bool {
        self.code() == Some(&SqlState::DISK_FULL)
    }

    /// Whether the server refused for lack of a privilege.
    pub fn is_denied(&self) -> bool {
        self.kind() == Kind::Denied
    }
}

/// What an error of the database is, by what lifts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Refused, lost, shutting down, starting up: try again later.
    Away,
    /// Another session holds a lock.
    Locked,
    /// It took too long, or was cancelled.
    TooLong,
    /// Another session was first, or both waited for each other: the same again may pass.
    Contended,
    /// The login or a privilege is refused.
    Denied,
    /// The database, a table or a column is not there.
    Absent,
    /// A standby, or a server that takes no writes.
    ReadOnly,
    /// A pooler that drops what a session needs.
    Pooler,
    /// A volume of the server is full.
    DiskFull,
    /// The values of this statement are refused: others may pass.
    BadData,
    /// The server, the schema or a session is not what opsward works with.
    Unfit,
    /// None of these.
    Other,
}

impl Kind {
    /// All of them.
    const ALL: [Self; 12] = [
        Self::Away,
        Self::Locked,
        Self::TooLong,
        Self::Contended,
        Self::Denied,
        Self::Absent,
        Self::ReadOnly,
        Self::Pooler,
        Self::DiskFull,
        Self::BadData,
        Self::Unfit,
        Self::Other,
    ];

    /// The kind of a code that [`Self::code`] gave.
    pub fn of_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Whether the server answers and lets opsward in.
    pub fn is_up(self) -> bool {
        !matches!(self, Self::Away | Self::Denied | Self::Absent | Self::Pooler | Self::Unfit)
    }

    /// The stable code of JSON errors, `/readyz` and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Away => "database_away",
            Self::Locked => "database_locked",
            Self::TooLong => "database_slow",
            Self::Contended => "database_contended",
            Self::Denied => "database_denied",
            Self::Absent => "database_absent",
            Self::ReadOnly => "database_read_only",
            Self::Pooler => "database_pooler",
            Self::DiskFull => "database_disk_full",
            Self::Unfit => "database_unfit",
            Self::BadData | Self::Other => "database_query",
        }
    }

    /// What to do about it; empty where the sentence says so.
    pub fn fix(self) -> &'static str {
        match self {
            Self::Away => {
                "try again once the database answers: start the node's Postgres, or correct OPENAUDIO_DB_URL"
            }
            Self::Locked => "try again once the lock is gone; `opsward status` names who holds it",
            Self::TooLong => "try again when the database is less busy",
            Self::Contended => "try again",
            Self::ReadOnly => {
                "name the primary in OPENAUDIO_DB_URL; with several hosts, target_session_attrs=read-write finds it"
            }
            Self::DiskFull => "make room on the volume of the server",
            Self::Pooler => "name the server itself in OPENAUDIO_DB_URL",
            _ => "",
        }
    }
}

/// Sorts a driver's error. The one place that knows the server's codes.
pub(in crate::db) fn kind(error: &tokio_postgres::Error) -> Kind {
    let Some(code) = error.code() else {
        let is_line = std::error::Error::source(error).is_some_and(|s| s.is::<std::io::Error>());
        return if error.is_closed() || is_line { Kind::Away } else { Kind::Other };
    };
    match code.code() {
        // Sessions that the server ended, and "too many connections".
        "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "25P03" | "25P04" => Kind::Away,
        "57014" => Kind::TooLong,
        "55P03" => Kind::Locked,
        "40001" | "40P01" => Kind::Contended,
        "42501" => Kind::Denied,
        "3D000" | "3F000" | "42P01" | "42703" | "42704" | "42883" => Kind::Absent,
        "25006" => Kind::ReadOnly,
        // "cannot set transaction read-write mode during recovery"
        "0A000" if describe(error).contains("during recovery") => Kind::ReadOnly,
        "53100" => Kind::DiskFull,
        code => match &code[..2] {
            "08" => Kind::Away,
            "28" => Kind::Denied,
            // Data exception, cardinality, integrity, program limit exceeded.
            "22" | "21" | "23" | "54" => Kind::BadData,
            _ => Kind::Other,
        },
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

/// The driver's error as one sentence: the server's own words first.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let detail = db.detail().map(|d| format!(" ({d})")).unwrap_or_default();
        return format!("{}{detail} [{}]", db.message(), db.code().code());
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        // A transaction without an answer is given up by us.
        None if error.is_closed() => {
            "the connection closed: the server ended it, or answered nothing for over 6 s".into()
        }
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
    match error.kind() {
        Kind::Locked | Kind::Contended => Trouble::Contended,
        Kind::TooLong => Trouble::TooLong,
        _ => Trouble::Fatal,
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn a_batch_that_outlives_its_time_is_halved() {
        let [late, away] = [Error::TooLong("apply a batch"), Error::Away("gone".into())];
        assert!(late.is_too_long() && late.is_contended() && !late.is_held_up());
        assert!(!away.is_too_long() && !away.is_contended());
    }
}
