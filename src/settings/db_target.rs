//! Where the database is and how to reach it, as a pgx URL says it.

use crate::values::words;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

words! {
    /// libpq's sslmode.
    pub enum TlsMode {
        /// Never.
        Disable = "disable",
        /// Where the server offers it, unverified (`allow` is read as this too).
        Prefer = "prefer",
        /// Always; verified against a root certificate where one is named.
        Require = "require",
        /// Always, by a certificate of a known authority.
        VerifyCa = "verify-ca",
        /// Always, by a certificate of a known authority for this very host.
        VerifyFull = "verify-full",
    }
}

/// A database as a pgx URL names it.
#[derive(Clone, Debug)]
pub struct DbTarget {
    /// Host names, addresses or socket directories, tried in order.
    pub hosts: Vec<(String, u16)>,
    /// The role.
    pub user: String,
    pub password: Option<Secret>,
    /// The database; `None` looks for whichever known one holds `ops`.
    pub dbname: Option<String>,
    /// How the connection is secured.
    pub tls: TlsMode,
    /// The authorities to believe; `None` for the system's.
    pub root_cert: Option<PathBuf>,
    /// The client's own certificate and key, PEM files.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// How long one connection attempt may take.
    pub connect_timeout: Duration,
    /// Only a server that takes writes will do: `target_session_attrs=read-write`.
    pub primary_only: bool,
    /// Run-time parameters set at the start of each session.
    pub params: Vec<(String, String)>,
    /// What was ignored or changed, a sentence each.
    pub notes: Vec<String>,
}

impl DbTarget {
    /// `host:port/database` of the first host: for messages, without secrets.
    pub fn shown(&self) -> String {
        let (host, port) = self.hosts.first().map_or(("?", 0), |(h, p)| (h.as_str(), *p));
        format!("{host}:{port}/{}", self.dbname.as_deref().unwrap_or("?"))
    }

    /// The target as a URL with `***` for the password: for `config show`.
    /// Run-time parameters are left out.
    pub fn masked(&self) -> String {
        let password = self.password.as_ref().map_or("", |_| ":***");
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|(host, port)| match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            })
            .collect();
        let mode = self.tls.word();
        let attrs = if self.primary_only { "&target_session_attrs=read-write" } else { "" };
        format!(
            "postgresql://{}{password}@{}/{}?sslmode={mode}{attrs}",
            self.user,
            hosts.join(","),
            self.dbname.as_deref().unwrap_or_default()
        )
    }
}
