//! A connection string as pgx reads it: a URL, or keywords and values.
//!
//! Errors and notes repeat nothing of the string but the names of known keys: a password with
//! a stray `/` or `?` in it turns up in odd places.

use super::{DbTarget, Secret, TlsMode, pg_text};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The default. It is shorter than pgx's two minutes, so that a request is answered 503 while
/// its client still waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest one attempt may take; a task that waits longer looks dead.
const MAX_CONNECT_TIMEOUT_S: u64 = 60;

/// Keys for other drivers, poolers and libpq, without effect here.
const IGNORED: [&str; 19] = [
    "application_name",
    "channel_binding",
    "default_query_exec_mode",
    "description_cache_capacity",
    "fallback_application_name",
    "gssencmode",
    "krbspn",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "min_read_buffer_size",
    "passfile",
    "replication",
    "service",
    "servicefile",
    "sslnegotiation",
    "sslpassword",
    "sslsni",
    "statement_cache_capacity",
];

/// The string's keys and values; `dbname` is kept as `database`.
pub(super) type Raw = BTreeMap<String, String>;

/// Reads a URL of `postgres` or `postgresql`, or `key=value` pairs.
///
/// # Errors
/// What is wrong with it, without any of its text.
pub fn parse(text: &str) -> Result<DbTarget, String> {
    let mut raw = pg_text::read(text)?;
    if raw.values().any(|v| v.contains('\0')) {
        return Err("a value in it holds a zero byte".into());
    }
    let mut notes = Vec::new();
    let hosts = hosts(&mut raw)?;
    let user = take(&mut raw, "user").unwrap_or_else(|| "postgres".into());
    // The server's own default.
    let dbname = take(&mut raw, "database").unwrap_or_else(|| user.clone());
    let password = take(&mut raw, "password").map(Secret::new);
    let connect_timeout = connect_timeout(&mut raw, &mut notes)?;
    let (tls, root_cert) = tls(&mut raw, &hosts)?;
    let client_cert = client_cert(&mut raw)?;
    let primary_only = primary_only(&mut raw, &mut notes)?;
    let params = params(raw, &mut notes)?;
    Ok(DbTarget {
        hosts,
        user,
        password,
        dbname: Some(dbname),
        tls,
        root_cert,
        client_cert,
        connect_timeout,
        primary_only,
        params,
        notes,
    })
}

/// A value that is there and not empty.
fn take(raw: &mut Raw, key: &str) -> Option<String> {
    raw.remove(key).filter(|value| !value.is_empty())
}

/// Hosts with their ports. As in pgx, a host beyond the list of ports takes
/// the first of them.
fn hosts(raw: &mut Raw) -> Result<Vec<(String, u16)>, String> {
    let hosts = take(raw, "host").unwrap_or_default();
    let ports = take(raw, "port").unwrap_or_else(|| "5432".into());
    let ports: Vec<u16> = ports
        .split(',')
        .map(|port| port.parse().ok().filter(|port| *port > 0))
        .collect::<Option<_>>()
        .ok_or("a port in it is no number from 1 to 65535")?;
    let first = ports.first().copied().unwrap_or(5432);
    Ok(hosts
        .split(',')
        .enumerate()
        .map(|(i, host)| {
            let host = if host.is_empty() { "localhost" } else { host };
            (host.to_owned(), ports.get(i).copied().unwrap_or(first))
        })
        .collect())
}

fn connect_timeout(raw: &mut Raw, notes: &mut Vec<String>) -> Result<Duration, String> {
    let Some(text) = take(raw, "connect_timeout") else {
        return Ok(CONNECT_TIMEOUT);
    };
    let seconds: u64 = text.parse().map_err(|_| "connect_timeout is no number of seconds")?;
    if (1..=MAX_CONNECT_TIMEOUT_S).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    // Zero is "no limit" there.
    notes.push(format!("connect_timeout is cut to {MAX_CONNECT_TIMEOUT_S} s"));
    Ok(Duration::from_secs(MAX_CONNECT_TIMEOUT_S))
}

fn tls(raw: &mut Raw, hosts: &[(String, u16)]) -> Result<(TlsMode, Option<PathBuf>), String> {
    let mode = match take(raw, "sslmode").as_deref() {
        None | Some("allow") => TlsMode::Prefer,
        Some(mode) => TlsMode::parse(mode)
            .ok_or("sslmode is none of disable, allow, prefer, require, verify-ca, verify-full")?,
    };
    let root = take(raw, "sslrootcert");
    let root = match root.as_deref() {
        Some("system") if mode != TlsMode::VerifyFull => {
            return Err("sslrootcert=system needs sslmode=verify-full".into());
        }
        Some("system") => None,
        root => root.map(PathBuf::from),
    };
    // No TLS over a socket directory, whatever sslmode says: as pgx.
    if hosts.iter().all(|(host, _)| host.starts_with('/')) {
        return Ok((TlsMode::Disable, root));
    }
    Ok((mode, root))
}

fn client_cert(raw: &mut Raw) -> Result<Option<(PathBuf, PathBuf)>, String> {
    match (take(raw, "sslcert"), take(raw, "sslkey")) {
        (Some(cert), Some(key)) => Ok(Some((cert.into(), key.into()))),
        (None, None) => Ok(None),
        _ => Err("sslcert and sslkey go together, and one is missing".into()),
    }
}

/// Which of the hosts will do. opsward writes, so that a standby never does.
fn primary_only(raw: &mut Raw, notes: &mut Vec<String>) -> Result<bool, String> {
    match take(raw, "target_session_attrs").as_deref() {
        None | Some("any") => Ok(false),
        Some("read-write" | "primary") => Ok(true),
        Some(other @ ("read-only" | "standby" | "prefer-standby")) => {
            notes.push(format!(
                "target_session_attrs={other} is read as any: opsward writes, a standby takes no writes"
            ));
            Ok(false)
        }
        Some(_) => Err(
            "target_session_attrs is none of any, read-write, primary, read-only, standby, prefer-standby"
                .into(),
        ),
    }
}

/// The remaining keys: run-time parameters, and keys without effect here.
fn params(mut raw: Raw, notes: &mut Vec<String>) -> Result<Vec<(String, String)>, String> {
    let mut params = match take(&mut raw, "options") {
        Some(options) => pg_text::options(&options)?,
        None => Vec::new(),
    };
    let mut ignored = Vec::new();
    for (key, value) in raw {
        if IGNORED.contains(&key.as_str()) {
            ignored.push(key);
        } else if key.starts_with("pool_") {
            ignored.push("pool_*".into());
        } else {
            params.push((key, value));
        }
    }
    ignored.dedup();
    for (key, value) in &params {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !key.chars().all(fits) {
            return Err("a key in it is no name of a parameter; \
                        in a password / ? # @ are written %2F %3F %23 %40"
                .into());
        }
        if value.contains(|c: char| c.is_control()) {
            return Err("the value of a run-time parameter in it holds a control character".into());
        }
    }
    if !ignored.is_empty() {
        notes.push(format!("{} in it: of no use to opsward, ignored", ignored.join(", ")));
    }
    Ok(params)
}

#[cfg(test)]
mod tests;
