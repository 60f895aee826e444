//! What `doctor` finds: checks, each with what was found and what to do.

use super::format::wrapped;
use super::status::{PeerStatus, Status};
use super::{advice, format};
use crate::db::privileges::{Lacking, Need};
use crate::db::stats::Fitness;
use crate::db::{self, Kind, migrate, node};
use crate::settings::{Settings, Shown, entry};
use crate::values::{Finding, Notice, Replication};
use jiff::Timestamp;
use serde::Serialize;

/// Decisions by time are unsafe when clocks differ by more seconds than this (contract 5).
const CLOCK_SECONDS: u64 = 300;

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, and should be looked at.
    Warn,
    /// Does not work.
    Fail,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What was looked at, stable.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; none where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), fix: None }
    }

    /// Works, and should be looked at.
    pub fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, fix: Some(fix.into()), ..Self::ok(name, found) }
    }

    /// Does not work.
    pub fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(name, found, fix) }
    }
}

/// Whether anything does not work.
pub fn has_failure(checks: &[Check]) -> bool {
    checks.iter().any(|c| c.verdict == Verdict::Fail)
}

/// Warnings about the settings; mistakes would have ended `doctor` before.
pub fn settings(warnings: &[Finding]) -> Vec<Check> {
    if warnings.is_empty() {
        return vec![Check::ok("settings", "valid")];
    }
    let check = |w: &Finding| Check::warn("settings", &w.text, &w.fix);
    warnings.iter().map(check).collect()
}

/// The database could not be worked with.
pub fn no_database(shown: &str, error: &db::Error) -> Check {
    let fix = match error.kind() {
        Kind::Away => format!("start the node's Postgres, or correct OPENAUDIO_DB_URL (now {shown})"),
        kind if kind.fix().is_empty() => "correct that, then run `opsward doctor` again".to_owned(),
        kind => kind.fix().to_owned(),
    };
    Check::fail("database", error.to_string(), fix)
}

/// The database, as far as it was reached.
pub fn database(status: &Status, fitness: &Fitness, now: Timestamp) -> Vec<Check> {
    let shown = &status.database.shown;
    let version = status.database.server_version.as_deref().unwrap_or("?");
    let role = &fitness.role;
    let mut checks = vec![Check::ok("database", format!("{shown}, PostgreSQL {version}, as {role}"))];
    if let Some(kind) = Kind::of_code(&status.database.state) {
        let why = status.database.error.clone().unwrap_or_default();
        checks.push(Check::fail("database", why, kind.fix()));
    }
    checks.push(match fitness.encoding.as_str() {
        "UTF8" => Check::ok("encoding", format!("UTF8, locale {}", fitness.locale)),
        other => Check::fail(
            "encoding",
            format!("the database's encoding is {other}"),
            "a node makes its database in UTF8: name the node's own in OPENAUDIO_DB_URL",
        ),
    });
    checks.extend(status.database.schema_version.map(schema));
    if !fitness.ops_1.is_empty() {
        checks.push(Check::fail(
            "ops_1",
            format!(
                "a relation ops_1 exists in {}: nodes then rewrite ops at start",
                fitness.ops_1.join(", ")
            ),
            "find out whose it is, and rename or drop it before the node restarts",
        ));
    }
    checks.push(clock("database_clock", "the database's", fitness.now, now));
    checks
}

/// Privileges that the role lacks, each with the statement that grants it. Only those for
/// pulling are a failure.
pub fn privileges(role: &str, lacking: &[Lacking]) -> Vec<Check> {
    let check = |of: &Lacking| {
        let (found, fix) =
            (format!("{role}: {}", of.need.consequence()), format!("as the owner: {}", of.lift));
        match of.need {
            Need::Pull => Check::fail("privileges", found, fix),
            _ => Check::warn("privileges", found, fix),
        }
    };
    match lacking {
        [] => vec![Check::ok("privileges", "the role has every right that the enabled features need")],
        lacking => lacking.iter().map(check).collect(),
    }
}

/// What the plan notes of the node's own pruner.
pub fn pruner(notices: Vec<Notice>) -> Vec<Check> {
    let check = |notice: Notice| match &*notice.code {
        "node_prunes" => Check::ok("node_pruner", notice.text),
        code => {
            let name = if code == "owed_pruned" { "owed_ops" } else { "node_pruner" };
            Check::warn(name, notice.text, "`opsward plan` shows what would be deleted, and when")
        }
    };
    notices.into_iter().map(check).collect()
}

/// What work that was cut off has left.
pub fn leftovers(found: Vec<(String, String)>) -> Check {
    if found.is_empty() {
        return Check::ok("leftovers", "none");
    }
    let (texts, fixes): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    Check::warn("leftovers", texts.join("; "), fixes.join("; "))
}

fn schema(version: i32) -> Check {
    let known = migrate::LATEST;
    match version {
        0 => Check::warn("schema", "opsward's schema does not exist yet", "`opsward run` makes it"),
        v if v == known => Check::ok("schema", format!("opsward's schema is of version {v}")),
        v if v < known => Check::warn(
            "schema",
            format!("opsward's schema is of version {v}, this opsward knows {known}"),
            "`opsward run` brings it up to date",
        ),
        v => Check::fail(
            "schema",
            format!("opsward's schema is of version {v}, this opsward knows {known}"),
            "run the newer opsward",
        ),
    }
}

/// How ops reach the node, what it does to the log by itself, and what a
/// restore left behind.
pub fn node(
    found: Option<(Replication, &str)>,
    catalog: &node::Catalog,
    left: &[(String, String)],
    settings: &Settings,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let set = &settings.bounding;
    if let Some((by, why)) = found {
        checks.push(Check::ok("node", format!("ops reach it {}: {why}", by.told())));
        if by.has_chain() && (set.node_retention.is_none() || set.node_archive.is_none()) {
            checks.push(Check::warn(
                "node_pruner",
                "how long the node keeps ops by its own settings is not known here",
                "give opsward the node's OPENAUDIO_OPS_RETENTION, OPENAUDIO_OPS_PRUNE_INTERVAL and \
                 OPENAUDIO_ARCHIVE, by its env_file for example",
            ));
        }
    }
    if catalog.is_unlogged {
        checks.push(Check::fail(
            "unlogged",
            "ops is UNLOGGED, as a restore leaves it on a full disk: a crash of the server empties it",
            "once there is room: ALTER TABLE public.ops SET LOGGED",
        ));
    }
    if !left.is_empty() {
        let found: Vec<String> = left.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let reset: Vec<String> = left.iter().map(|(name, _)| format!("ALTER SYSTEM RESET {name};")).collect();
        checks.push(Check::warn(
            "auto_conf",
            format!("postgresql.auto.conf holds {}, as a state sync leaves it", found.join(", ")),
            format!("unless you set that yourself: {} then reload the configuration", reset.join(" ")),
        ));
    }
    checks
}

/// What READ_ONLY prevents.
pub fn mode(settings: &Settings, origins: &[Shown]) -> Option<Check> {
    let origin = origins.iter().find(|shown| shown.key == "read_only").map(|shown| &shown.origin);
    let (entry, origin) = entry("read_only").zip(origin).filter(|_| settings.read_only)?;
    Some(Check::warn(
        "mode",
        "READ-ONLY: nothing outside the schema opsward is written, no peer is pulled",
        format!("set {} to false ({origin}) once the rest here is well", origin.written(entry)),
    ))
}

/// Another clock against ours.
pub fn clock(name: &'static str, whose: &str, theirs: Timestamp, now: Timestamp) -> Check {
    let apart = theirs.as_second().abs_diff(now.as_second());
    let shown = format!("{whose} clock and this one are {} apart", format::span(apart));
    if apart <= CLOCK_SECONDS {
        return Check::ok(name, shown);
    }
    Check::warn(name, shown, "set the clocks right: decisions by time wait until they agree")
}

/// Columns and tables of the node that are in no model, and what lacks.
pub fn models(drift: &[String]) -> Check {
    if drift.is_empty() {
        return Check::ok("models", "every record table is as this opsward knows it");
    }
    Check::warn(
        "models",
        drift.join("; "),
        "ops of such tables are held, not guessed at: run an opsward that knows this node's version",
    )
}

/// The look-up of the peers: how many, and which way worked.
pub fn discovery(looked_up: Result<(usize, &str), &str>, known: bool) -> Check {
    match looked_up {
        Ok((n, "")) => Check::ok("discovery", format!("{}, set by OPENAUDIO_MEDIORUM_PEERS", peers(n))),
        Ok((n, via)) => Check::ok("discovery", format!("{}, from {via}", peers(n))),
        Err(why) => {
            let fix = "see OPENAUDIO_MEDIORUM_NODE_URL, or set OPENAUDIO_MEDIORUM_PEERS";
            if known {
                let found = format!("no way works, the last known peers are used: {why}");
                return Check::warn("discovery", found, fix);
            }
            Check::fail("discovery", format!("no way works: {why}"), fix)
        }
    }
}

/// What answers at self's public URL: the version it says, if it is ours.
pub fn public_url(url: &str, answered: Result<Option<&str>, &str>) -> Check {
    match answered {
        Ok(Some(version)) => Check::ok("public_url", format!("{url} is answered by opsward {version}")),
        Ok(None) => Check::warn(
            "public_url",
            format!("{url} is not answered by opsward: no peer reads from it"),
            "route /internal/crud/sweep to OPENAUDIO_MEDIORUM_SIDECAR_LISTEN at the proxy before the node",
        ),
        Err(why) => Check::warn(
            "public_url",
            format!("{url} cannot be reached from here: {why}"),
            "check OPENAUDIO_NODE_ENDPOINT; peers need to reach it",
        ),
    }
}

/// The warnings of `status`, except those that `doctor` checks itself.
pub fn replication(status: &Status) -> Vec<Check> {
    let elsewhere = ["database_away", "database_unfit", "no_schema", "peers_unknown", "ops_unlogged"];
    let mut checks: Vec<Check> = advice::warnings(status)
        .into_iter()
        .filter(|w| !elsewhere.contains(&&*w.code))
        .map(|w| Check::warn(name(&w.code), w.text, w.fix))
        .collect();
    // Peers that nobody has pulled yet are not counted as good.
    let pulled = |p: &&PeerStatus| p.active && p.last_at.is_some();
    let n = status.peers.list.iter().filter(pulled).count();
    if n > 0 && !checks.iter().any(|c| c.name == "peers" || c.name == "rejected_ops") {
        let found = format!("{} pulled, none failing, held or refused", peers(n));
        checks.push(Check::ok("peers", found));
    }
    if let Some(free) = status.database.free_disk_bytes
        && !checks.iter().any(|c| c.name == "free_disk")
    {
        checks.push(Check::ok("free_disk", format::bytes(free)));
    }
    checks
}

fn peers(n: usize) -> String {
    format::many(n as u64, "peer")
}

fn name(code: &str) -> &'static str {
    match code {
        "peer_held" | "peer_failing" => "peers",
        "rejected_ops" | "rejected_unkept" => "rejected_ops",
        "little_disk" | "free_disk_unknown" => "free_disk",
        "daemon_not_asked" => "daemon",
        "no_replay_guard" => "replay_guard",
        "blocked" | "ignored_peer" | "ignored_reader" | "lagging_peer" | "peer_removed" | "peer_stalled" => {
            "retention"
        }
        "foreign_prune" => "foreign_prune",
        "paused" => "pace",
        "reclaim_unfinished" => "leftovers",
        _ => "tasks",
    }
}

/// The checks as a person reads them, at 80 columns.
pub fn text(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        let indent = " ".repeat(22);
        let line = format!("{mark:<6}{:<16}{}", check.name, check.found);
        out.push_str(&wrapped(&line, &indent));
        if let Some(fix) = &check.fix {
            out.push_str(&wrapped(&format!("{indent}fix: {fix}"), &" ".repeat(27)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well() {
        let checks = [
            Check::ok("database", "localhost:5432/openaudio, PostgreSQL 15.20, as postgres"),
            schema(0),
            schema(migrate::LATEST),
            schema(99),
            models(&["table uploads has the columns a, b".into()]),
            discovery(Ok((3, "http://localhost/")), true),
            discovery(Err("http://localhost/: it answered 308"), false),
            public_url("https://me.example", Ok(None)),
            clock("peers_clock", "the peers'", Timestamp::from_second(400).unwrap(), Timestamp::UNIX_EPOCH),
        ];
        assert!(has_failure(&checks));
        assert!(!has_failure(&checks[..3]));
        let text = text(&checks);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        // The version changes with every migration.
        let latest = |word: &str| format!("{word} {}", migrate::LATEST);
        let text =
            text.replace(&latest("version"), "version LATEST").replace(&latest("knows"), "knows LATEST");
        insta::assert_snapshot!(text);
    }
}
