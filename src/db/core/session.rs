//! What every session of opsward relies on. The facts are set when a session
//! starts and read back once: a pooler may drop them, and a database or a role may
//! have other defaults.

use crate::db::{Doing, Error, Result};
use tokio_postgres::SimpleQueryMessage;

/// No statement and no idle transaction lives longer: the node's concurrent index
/// build waits for every snapshot (contract 1).
const LONGEST: &str = "4500ms";

/// A setting of the session, and the value that it must have.
struct Fact {
    name: &'static str,
    value: &'static str,
    set: Set,
}

/// How a fact is brought about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Set {
    /// As a start-up option, which goes before a database's and a role's defaults.
    AtStart,
    /// By a SET, and only where it differs: not every server knows it, or not every
    /// role may set it.
    Afterwards,
}

const fn at_start(name: &'static str, value: &'static str) -> Fact {
    Fact { name, value, set: Set::AtStart }
}

const fn afterwards(name: &'static str, value: &'static str) -> Fact {
    Fact { name, value, set: Set::Afterwards }
}

/// Values are written as the server shows them.
const FACTS: [Fact; 24] = [
    at_start("default_transaction_isolation", "read committed"),
    at_start("default_transaction_read_only", "off"),
    at_start("default_transaction_deferrable", "off"),
    at_start("statement_timeout", LONGEST),
    at_start("idle_in_transaction_session_timeout", LONGEST),
    // Shorter than `statement_timeout`, so that a lock is told from a slow statement.
    at_start("lock_timeout", "4s"),
    // A standby that does not answer must not hold a commit up: what opsward
    // commits is in one log with the node's data and arrives there in its order.
    at_start("synchronous_commit", "local"),
    at_start("search_path", "public,pg_temp"),
    at_start("default_tablespace", ""),
    at_start("default_table_access_method", "heap"),
    at_start("quote_all_identifiers", "off"),
    at_start("standard_conforming_strings", "on"),
    at_start("transform_null_equals", "off"),
    // The plans that are pinned read the log by its primary key.
    at_start("enable_indexscan", "on"),
    at_start("enable_indexonlyscan", "on"),
    at_start("plan_cache_mode", "auto"),
    // A planner that is kept from its plans takes the rest for very dear, and compiles them.
    at_start("jit", "off"),
    at_start("client_encoding", "UTF8"),
    at_start("TimeZone", "UTC"),
    at_start("DateStyle", "ISO, MDY"),
    at_start("IntervalStyle", "postgres"),
    // Known from PostgreSQL 17 on. It would end the session of the lease.
    afterwards("transaction_timeout", "0"),
    // Known from PostgreSQL 14 on. It would end what keeps a daemon's mark, and pooled sessions.
    afterwards("idle_session_timeout", "0"),
    // Only a superuser may set it.
    afterwards("session_replication_role", "origin"),
];

/// The start-up options of a session: `params` of the URL, then ours, as the last
/// one of a name holds.
pub(super) fn options(params: &[(String, String)]) -> String {
    let theirs = params.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let ours = FACTS.iter().filter(|f| f.set == Set::AtStart).map(|f| (f.name, f.value));
    let escape = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
    let parts: Vec<String> =
        theirs.chain(ours).map(|(name, value)| format!("-c {name}={}", escape(value))).collect();
    parts.join(" ")
}

/// Reads the facts of a new session back, and sets those that can only be set now.
///
/// # Errors
/// A fact is not as it was set: the sentence names it, its value and the way out.
pub(super) async fn check(client: &tokio_postgres::Client, server: &str) -> Result<()> {
    for fact in differing(client).await? {
        if fact.0.set == Set::Afterwards {
            let sql = format!("SET {} = '{}'", fact.0.name, fact.0.value);
            // What a role may not set is told by reading it again.
            if let Err(error) = client.batch_execute(&sql).await
                && error.as_db_error().is_none()
            {
                return Err(error).doing("prepare a session");
            }
        }
    }
    match differing(client).await?.first() {
        Some((fact, value)) => {
            let text = complaint(fact, value, server);
            Err(if fact.set == Set::AtStart { Error::Pooler(text) } else { Error::Unfit(text) })
        }
        None => Ok(()),
    }
}

fn complaint(fact: &Fact, value: &str, server: &str) -> String {
    let Fact { name, value: wanted, set } = fact;
    match set {
        Set::AtStart => format!(
            "a session at {server} has {name} = '{value}' although opsward asked for '{wanted}': something \
             between opsward and the server, a pooler such as PgBouncer, drops start-up options"
        ),
        Set::Afterwards => format!(
            "a session at {server} has {name} = '{value}', opsward needs '{wanted}' and its role may not set it: \
             ALTER DATABASE or ALTER ROLE … RESET {name}, by a superuser, lifts that"
        ),
    }
}

/// The facts that are not as they should be, each with its value. One round trip; a
/// setting that the server does not know is as it should be.
async fn differing(client: &tokio_postgres::Client) -> Result<Vec<(&'static Fact, String)>> {
    let columns: Vec<String> = FACTS.iter().map(|f| format!("current_setting('{}', true)", f.name)).collect();
    let sql = format!("SELECT {}", columns.join(", "));
    let answer = client.simple_query(&sql).await.doing("read the settings of a session")?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.ok_or_else(|| Error::Away("the server did not say how the session is set".into()))?;
    let values = FACTS.iter().enumerate().filter_map(|(i, fact)| Some((fact, row.get(i)?)));
    Ok(values
        .filter(|(fact, value)| *value != fact.value)
        .map(|(fact, value)| (fact, value.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_come_last_and_are_escaped() {
        let theirs = [("lock_timeout".to_owned(), "1 s\\".to_owned())];
        let options = options(&theirs);
        assert!(
            options
                .starts_with("-c lock_timeout=1\\ s\\\\ -c default_transaction_isolation=read\\ committed ")
        );
        assert!(
            options.contains(" -c lock_timeout=4s ") && options.contains(" -c default_tablespace= "),
            "{options}"
        );
        assert!(!options.contains("session_replication_role"));
    }

    #[test]
    fn a_complaint_names_the_setting_its_value_and_who_drops_it() {
        let text = complaint(&FACTS[0], "serializable", "h:6432/db");
        for word in ["h:6432/db", "default_transaction_isolation = 'serializable'", "PgBouncer"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
