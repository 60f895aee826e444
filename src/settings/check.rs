//! Checks beyond single values: unknown names, and combinations that cannot work.

use super::load::{File, Shown, origin_of};
use super::table::{TABLE, entry};
use super::{Archive, Env, Keep, Origin, Problem, Problems, Settings, Source};
use crate::values::Finding;
use std::net::SocketAddr;
use std::time::Duration;

/// An unknown variable with one of these prefixes is likely a mistake.
const NEAR: [&str; 5] = [
    "OPENAUDIO_MEDIORUM_OPS_",
    "OPENAUDIO_MEDIORUM_DORMANT_",
    "OPENAUDIO_MEDIORUM_SIDECAR_",
    "OPENAUDIO_OPS_",
    "OPENAUDIO_ARCHIV",
];
/// A name counts as misspelt when at most so many letters differ from one of ours.
const NEAR_LETTERS: usize = 2;

/// A dormant table has been silent for at least this long (contract 5).
const DORMANT_AT_LEAST: Duration = Duration::from_secs(24 * 3600);

/// The file's section of what is kept of single tables.
const TABLES: &str = "tables";

/// `[tables.NAME]` with `keep`: tables that a model knows.
pub(super) fn tables(file: &File, settings: &mut Settings, found: &mut Problems) {
    let (Some(path), Some(value)) = (&file.path, file.values.get(TABLES)) else { return };
    let mut problem = |setting: &str, value: Option<String>, why: &str, allowed: &str| {
        let (setting, why, allowed) = (setting.to_owned(), why.to_owned(), allowed.to_owned());
        found.problems.push(Problem { setting, value, origin: Origin::File(path.clone()), why, allowed });
    };
    let Some(tables) = value.as_table() else {
        return problem(TABLES, None, "it is no section", "[tables.uploads] and a line keep = …");
    };
    for (name, of_table) in tables {
        let at = format!("{TABLES}.{name}");
        if !MODEL_TABLES.contains(&name.as_str()) {
            let why = format!("no model knows the table {name:?}{}", guess(name, &MODEL_TABLES));
            problem(&at, None, &why, &MODEL_TABLES.join(", "));
            continue;
        }
        for (key, value) in of_table.as_table().into_iter().flatten().filter(|(key, _)| *key != "keep") {
            problem(&format!("{at}.{key}"), Some(value.to_string()), "there is no such key", "keep");
        }
        let keep = of_table.get("keep").and_then(toml::Value::as_str);
        match keep.map(Keep::parse) {
            Some(Ok(keep)) => {
                settings.bounding.tables.insert(name.clone(), keep);
            }
            Some(Err(why)) => problem(&format!("{at}.keep"), keep.map(str::to_owned), &why, KEEP),
            None => problem(&format!("{at}.keep"), None, "it is not set to a text", KEEP),
        }
    }
}

const KEEP: &str = "\"all\", \"compact\" or days such as \"90d\"";
/// The tables of `config/models.toml`; a test holds them equal.
const MODEL_TABLES: [&str; 4] = ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"];

/// A key of the file that is no setting's.
pub(super) fn unknown_keys(file: &File, found: &mut Problems) {
    let Some(path) = &file.path else { return };
    for key in file.values.keys().filter(|key| entry(key).is_none() && *key != TABLES) {
        let known: Vec<&str> = TABLE.iter().map(|entry| entry.key).collect();
        found.problems.push(Problem {
            setting: key.clone(),
            value: None,
            origin: Origin::File(path.clone()),
            why: format!("there is no such setting{}", guess(key, &known)),
            allowed: known.join(", "),
        });
    }
}

/// Variables that look like ours. A misspelt one is a problem, as a misspelt key of the file
/// is: an operator who sets `READONLY` must not get a daemon that writes. One with only our
/// prefix may be the node's own, and is a warning.
pub(super) fn unknown_variables(source: &Source, found: &mut Problems) {
    let ours: Vec<String> = TABLE
        .iter()
        .flat_map(|entry| {
            let names = entry.env.iter().map(|name| (*name).to_owned());
            names.chain(entry.file_variable())
        })
        .collect();
    for (name, value) in &source.env {
        if value.is_empty() || ours.contains(name) {
            continue;
        }
        if let Some(meant) = meant(name, &ours) {
            found.problems.push(Problem {
                setting: name.clone(),
                value: None,
                origin: Origin::Environment(name.clone()),
                why: format!("there is no such setting; did you mean {meant}?"),
                allowed: format!("{meant}, or none of the two"),
            });
        } else if NEAR.iter().any(|prefix| name.starts_with(prefix)) {
            found.warnings.push(Finding::new(
                "variable_unknown",
                format!("{name} is set, and opsward {} has no such setting", env!("CARGO_PKG_VERSION")),
                "correct or remove it; config show lists every setting",
            ));
        }
    }
}

/// The variable of ours that a name was likely meant to be.
fn meant(name: &str, ours: &[String]) -> Option<String> {
    if let Some(rest) = name.strip_prefix("OPSWARD_") {
        let key = |entry: &&super::Entry| distance(&rest.to_lowercase(), entry.key) <= 1;
        return TABLE.iter().find(key).map(|entry| entry.variable().to_owned());
    }
    if !name.starts_with("OPENAUDIO_MEDIORUM_") {
        return None;
    }
    let near = ours.iter().map(|our| (distance(name, our), our)).min_by_key(|(distance, _)| *distance)?;
    (near.0 <= NEAR_LETTERS).then(|| near.1.clone())
}

/// Settings that cannot be used together, or that have no effect together.
pub(super) fn combinations(settings: &mut Settings, origins: &[Shown], found: &mut Problems) {
    let written = |key: &str| match (origin_of(origins, key), entry(key)) {
        (Some(origin), Some(entry)) => origin.written(entry),
        _ => key.to_owned(),
    };
    // A value that cannot be used alone is reported already.
    let usable = |key| origins.iter().any(|s| s.key == key && s.value.is_some());
    if usable("listen")
        && usable("admin_listen")
        && same_place(settings.listen, settings.admin_listen)
        && let (Some(origin), Some(entry)) = (origin_of(origins, "admin_listen"), entry("admin_listen"))
    {
        let why = format!("it takes the same port as {} = {}", written("listen"), settings.listen);
        let text = settings.admin_listen.to_string();
        found.problems.push(Problem {
            allowed: "two different ports".to_owned(),
            ..Problem::of(entry, (origin, text.as_str()), why)
        });
    }
    warn_ineffective(settings, &written, found);
    warn_unread_by_node(settings, origins, &written, found);
    warn_uncounted(settings, &written, found);
    if let (Some(peers), Some(own)) = (&mut settings.peers, &settings.node_endpoint)
        && peers.contains(own)
    {
        peers.retain(|peer| peer != own);
        found.warnings.push(Finding::new(
            "peers_name_self",
            format!("{} names this node itself, left out", written("peers")),
            format!("take {own} off the list"),
        ));
    }
}

/// Settings without effect, or with another effect than they say.
fn warn_ineffective(settings: &mut Settings, written: &impl Fn(&str) -> String, found: &mut Problems) {
    let mut warn = |code, text: String, fix: &str| found.warnings.push(Finding::new(code, text, fix));
    for note in std::mem::take(&mut settings.db.notes) {
        let text = format!("{}: {note}", written("db_url"));
        warn("setting_partly_ignored", text, "leave that part out, or leave it as it is");
    }
    if settings.bounding.dormant_threshold < DORMANT_AT_LEAST {
        settings.bounding.dormant_threshold = DORMANT_AT_LEAST;
        let text = format!("{}: shorter than 24h is taken as 24h", written("dormant_ops_threshold"));
        warn("setting_partly_ignored", text, "set 24h or more");
    }
    if settings.tls_self_signed && settings.env != Env::Dev {
        let text =
            format!("{} is on and has no effect: {} is not dev", written("tls_self_signed"), written("env"));
        let fix = "peers' certificates are verified; turn it off to be rid of this";
        warn("tls_self_signed_ignored", text, fix);
    }
    if settings.bounding.replay_guard && settings.read_only {
        let text = format!("{} has no effect: {} is on", written("ops_replay_guard"), written("read_only"));
        warn("guard_read_only", text, "set OPENAUDIO_MEDIORUM_READ_ONLY=false to have the guard");
    }
    if settings.bounding.keep_dormant && settings.bounding.dormant_cleanup {
        let text = format!("{} vetoes {}", written("keep_dormant_ops"), written("dormant_ops_cleanup"));
        warn("dormant_vetoed", text, "unset one of them");
    }
}

/// Warns of the node's own settings that the node does not take as they are meant.
fn warn_unread_by_node(
    settings: &Settings,
    origins: &[Shown],
    written: &impl Fn(&str) -> String,
    found: &mut Problems,
) {
    let set = &settings.bounding;
    let unread = [
        ("node_ops_retention", set.node_retention.is_none(), DEFAULTS, "write it in hours, such as 720h"),
        (
            "node_ops_prune_interval",
            set.node_prune_interval.is_none(),
            DEFAULTS,
            "write it in hours, such as 6h",
        ),
        ("node_archive", set.node_archive == Some(Archive::Meant), DELETES, "set it to true, or to false"),
    ];
    for (key, _, what, fix) in unread.into_iter().filter(|(_, is_unread, ..)| *is_unread) {
        if let Some(text) = origins.iter().find(|shown| shown.key == key).and_then(|s| s.value.as_deref()) {
            let text = format!("{} = {text:?}: {what}", written(key));
            found.warnings.push(Finding::new("node_setting_unread", text, fix));
        }
    }
}

const DEFAULTS: &str = "the node cannot read that, and takes its default";
const DELETES: &str = "the node knows only true, and deletes by itself; opsward deletes nothing";

/// Warns of settings that need a census while the daemon does not count.
fn warn_uncounted(settings: &Settings, written: &impl Fn(&str) -> String, found: &mut Problems) {
    let set = &settings.bounding;
    if set.census {
        return;
    }
    let acts = [
        (
            set.dormant_cleanup && !set.keep_dormant,
            "dormant_ops_cleanup",
            "acts only within 2 h of an `opsward census`",
        ),
        (
            set.retention_bytes > 0,
            "ops_retention_bytes",
            "shortens the window only within 48 h of an `opsward census`",
        ),
        (
            set.retention_days > 0,
            "ops_retention_days",
            "acts, but `plan` knows what it deletes, and it finds ops that came late, only after an \
             `opsward census`",
        ),
    ];
    let acts = acts.iter().filter(|(is_on, ..)| *is_on);
    let texts: Vec<String> = acts.map(|(_, key, what)| format!("{} {what}", written(key))).collect();
    if !texts.is_empty() {
        found.warnings.push(Finding::new(
            "census_off",
            format!("{} is off, so {}", written("ops_census"), texts.join("; ")),
            "set OPENAUDIO_MEDIORUM_OPS_CENSUS=true, or run `opsward census` regularly",
        ));
    }
}

/// Whether two listeners would get in each other's way. Port 0 is any free one.
fn same_place(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && overlap
}

/// `; did you mean …?` where a known name is near.
fn guess(name: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|known| (distance(name, known), known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= NEAR_LETTERS.max(name.len() / 8));
    near.map_or(String::new(), |(_, known)| format!("; did you mean {known}?"))
}

/// Letters to add, drop or change to turn one name into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_the_models() {
        let models: toml::Table = include_str!("../../config/models.toml").parse().unwrap();
        let names = models["model"].as_array().unwrap().iter().map(|m| m["table"].as_str().unwrap());
        assert_eq!(names.collect::<Vec<_>>(), MODEL_TABLES);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("listen", "listen"), 0);
    }

    #[test]
    fn places() {
        let at = |text: &str| text.parse().unwrap();
        assert!(same_place(at("0.0.0.0:1"), at("127.0.0.1:1")));
        assert!(same_place(at("127.0.0.1:1"), at("127.0.0.1:1")));
        assert!(!same_place(at("127.0.0.2:1"), at("127.0.0.1:1")));
        assert!(!same_place(at("0.0.0.0:0"), at("0.0.0.0:0")));
        assert!(!same_place(at("0.0.0.0:1"), at("0.0.0.0:2")));
    }
}
