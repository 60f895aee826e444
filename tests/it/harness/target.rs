//! A database of the harness' cluster as settings hold it; benches and the demo
//! include this by `#[path]`.

use opsward::settings::{DbTarget, Secret, TlsMode};
use std::time::Duration;

/// The database of a name on a local port, by the superuser.
pub fn local(port: u16, dbname: &str) -> DbTarget {
    DbTarget {
        notes: Vec::new(),
        hosts: vec![("127.0.0.1".into(), port)],
        user: "postgres".into(),
        password: Some(Secret::new("postgres")),
        dbname: Some(dbname.into()),
        tls: TlsMode::Prefer,
        root_cert: None,
        client_cert: None,
        connect_timeout: Duration::from_secs(5),
        primary_only: false,
        params: Vec::new(),
    }
}
