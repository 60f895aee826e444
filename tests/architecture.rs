//! The rules of the house, held by reading `src/`: who may import whom, what
//! is pure, where SQL lives, how long a file may be, that a released migration
//! stays as it was. Each rule is a function from sources to complaints, and is
//! shown to complain.
#![allow(clippy::panic, reason = "tests")]

#[path = "architecture/commands.rs"]
mod commands;
#[path = "architecture/docs.rs"]
mod docs;
#[path = "architecture/source.rs"]
mod source;
#[path = "architecture/watched.rs"]
mod watched;

use sha2::{Digest, Sha256};
use source::{Source, read_all, words};
use std::path::Path;

/// What each room may import of ours, as prefixes of paths. Rooms that are
/// not built yet have their line already.
const ROOMS: &[(&str, &[&str])] = &[
    ("values", &[]),
    ("wire", &["values"]),
    ("records", &["values"]),
    ("settings", &["values"]),
    ("clock", &["values"]),
    ("tls", &[]),
    ("logging", &["settings", "values"]),
    ("metrics", &["values"]),
    ("http", &["values", "clock", "metrics"]),
    ("db", &["values", "records", "settings", "tls"]),
    ("work", &["values", "settings", "db", "clock", "metrics"]),
    ("serve", LINE),
    ("pull", LINE),
    ("bound", BOUND),
    ("reclaim", RECLAIM),
    ("show", &["values", "db", "settings", "clock", "metrics", "http", "bound::plan", "reclaim::plan"]),
    ("supervisor", &["values", "settings", "clock", "metrics"]),
    ("job", EVERYTHING),
    ("daemon", EVERYTHING),
    ("cli", EVERYTHING),
    ("lib", EVERYTHING),
    ("main", EVERYTHING),
];
const LINE: &[&str] = &["values", "wire", "records", "settings", "db", "metrics", "clock", "http", "tls"];
const BOUND: &[&str] = &["values", "records", "settings", "db", "metrics", "clock", "http", "work"];
const RECLAIM: &[&str] =
    &["values", "wire", "records", "settings", "db", "metrics", "clock", "work", "bound::decide"];
const EVERYTHING: &[&str] = &["*"];

/// What a pure choice may import.
const DECIDE: &[&str] = &["values", "records", "settings"];

/// Rooms that know neither runtime nor time nor logs, and what that means.
const PURE_ROOMS: &[&str] = &["values", "wire", "records", "settings"];
const IMPURE_CRATES: &[&str] =
    &["tokio", "tracing", "prometheus", "reqwest", "hyper", "backon", "deadpool_postgres"];
/// In a `decide.rs`, besides: nothing that waits, and no chance.
const IMPURE_WORDS: &[&str] = &["async", "await", "rand", "Instant", "SystemTime"];

/// Where SQL may stand.
const SQL_PLACES: &[&str] = &["db/", "records/statement.rs"];
const SQL_WORDS: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE"];

/// Where clippy's list of disallowed methods may be lifted, with a reason.
const EXEMPT: &[&str] = &[
    "clock.rs",
    "supervisor.rs",
    "http.rs",
    "main.rs",
    "settings/",
    "db/core/connect.rs",
    "db/core/transaction.rs",
    "reclaim/swap/second.rs",
    "reclaim/swap/ready.rs",
];

/// Longest files, in lines without tests; the named ones differ from the rest.
const LIMITS: &[(&str, usize)] = &[
    ("main.rs", 40),
    ("lib.rs", 80),
    ("bound/delete.rs", 414),
    ("db/log/prune.rs", 500),
    ("db/log/copy.rs", 470),
];
const LIMIT: usize = 400;
/// Longest functions, in lines; the named ones differ from the rest.
const FN_LIMITS: &[(&str, &str, usize)] = &[
    ("bound/decide/chain.rs", "read_until", 70),
    ("reclaim/walk.rs", "walk", 65),
    ("reclaim/begin.rs", "plan", 70),
];
const FN_LIMIT: usize = 60;

/// Migrations as they were released, by SHA-256.
const FROZEN: &[(&str, &str)] = &[
    ("0001_init.sql", "980274e3dea838d4c54a57f153b10d8df7a5ec8ff61713e25732ddf921873553"),
    ("0002_bounding.sql", "e1060840ef0bb120f82d9030ffb48256a19ed2b8b07529b1c276580d211f2f3e"),
    ("0003_replay.sql", "c04bcfc8ae01374ef7f59a084e0033b2fb2ab08115cc5a4ae35be005146ec503"),
    ("0004_reclaim.sql", "f20a6e17fc728827f16350f9f6f48d122af8ca96b0c86b451739bf0c464330e7"),
    ("0005_unvacuumed.sql", "6c2efeb456cb7ffeee2653d7ae4937b6e1f63e03247f1f19e95de2ee8dadcff5"),
    ("0006_triggers.sql", "6299d7196e1ea63b548271e6ea765ac48225c21f2a3dcdb910db96175a8d4b42"),
    ("0007_swap.sql", "faa851cbe83f55157ba66278347ceeb7b2c0949afbda9df6a11894af6e05334c"),
    ("0008_in_place.sql", "bcc4207f7f3b445d079e914ed3f0828cd4ab12062eb36cb877e6d2a2745459a7"),
    ("0009_bound.sql", "0787eb6b4e4f80fb44ea4a7356d6801db5bc53b2a67c037899faea12ca48f719"),
    ("0010_node.sql", "ecd62b002d74869ef58588e123149a9eabb7998339602cdb9b72c014c5112c2b"),
    ("0011_waiting.sql", "75f53eb4e4eacc3b0a8f7826cbb04349284a8ded436882daf6af32d2a157c755"),
    ("0012_remembered.sql", "297ed9a08f83e70b664fe534ffe9a6d35b62f236902d3e4b23af6c5ebdf8ade6"),
    ("0013_seen.sql", "65ddd9c06d0c1051983d1badd1881effc90efa639510d7a63db6c9e5b6c93f4d"),
    ("0014_told.sql", "0575086d5d3d017fe7a21aab423765ff5dd72edbd69f1ecb41a321678e080a45"),
    ("0015_versions.sql", "f62293b6de649e3ceef9ede36bb8620d7f4df3c23aeb11661413b8ad8d933f98"),
    ("0016_announced.sql", "acd809998b93869e6f4ec2ef57d0813fb3897a2543876aac3bcdf49c12a98852"),
    ("0017_put_back.sql", "219da05bb65835e25c6f10b772ce5913622081a34e92e9350a099de0ceb2114c"),
];

fn is_below(path: &str, prefix: &str) -> bool {
    prefix == "*" || path == prefix || path.starts_with(&format!("{prefix}::"))
}

fn imports(files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let room = file.room();
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            complaints.push(format!(
                "src/{} belongs to no room that ROOMS in tests/architecture.rs knows",
                file.path
            ));
            continue;
        };
        for path in file.paths() {
            let own = is_below(&path, room);
            if !own && !allowed.iter().any(|prefix| is_below(&path, prefix)) {
                complaints.push(format!(
                    "src/{} names {path}: {room} may import {}",
                    file.path,
                    listed(allowed)
                ));
            }
        }
    }
    complaints
}

fn decisions(files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|f| f.name() == "decide.rs") {
        for path in file.paths() {
            if !DECIDE.iter().any(|prefix| is_below(&path, prefix)) {
                complaints.push(format!(
                    "src/{} names {path}: a pure choice may import {}",
                    file.path,
                    listed(DECIDE)
                ));
            }
        }
        for (word, _) in words(&file.code) {
            if IMPURE_CRATES.contains(&word) || IMPURE_WORDS.contains(&word) {
                complaints.push(format!(
                    "src/{} names {word}: a pure choice waits for nothing, logs nothing, \
                     counts nothing and knows no clock but the `now` it is given",
                    file.path
                ));
            }
        }
    }
    complaints
}

fn purity(files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|f| PURE_ROOMS.contains(&f.room())) {
        for (word, _) in words(&file.code) {
            if IMPURE_CRATES.contains(&word) {
                complaints.push(format!("src/{} names {word}: {} is pure", file.path, file.room()));
            }
        }
    }
    complaints
}

fn sql(files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        if SQL_PLACES.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        for text in &file.strings {
            if let Some(word) = sql_word(text) {
                complaints.push(format!(
                    "src/{} holds SQL ({word} in {:?}): it belongs into src/db/",
                    file.path,
                    text.chars().take(60).collect::<String>()
                ));
            }
        }
    }
    complaints
}

/// A statement's word that something follows. `GRANT CREATE ON …` is advice to
/// a person, not a statement of ours.
fn sql_word(text: &str) -> Option<&str> {
    let mut before = "";
    for (word, at) in words(text) {
        let more = text[at + word.len()..].starts_with(char::is_whitespace);
        if SQL_WORDS.contains(&word) && more && before != "GRANT" {
            return Some(word);
        }
        before = word;
    }
    None
}

fn exemptions(files: &[Source]) -> Vec<String> {
    let lifted = |f: &&Source| words(&f.code).any(|(word, _)| word == "disallowed_methods");
    let mut complaints = Vec::new();
    for file in files.iter().filter(lifted) {
        if !EXEMPT.iter().any(|place| file.path.starts_with(place)) {
            complaints.push(format!(
                "src/{} lifts clippy::disallowed_methods: only {} may",
                file.path,
                listed(EXEMPT)
            ));
        }
    }
    complaints
}

fn lengths(files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let own = LIMITS.iter().find(|(path, _)| *path == file.path);
        let limit = own.map_or(LIMIT, |(_, limit)| *limit);
        if file.lines > limit {
            complaints.push(format!(
                "src/{} has {} lines without tests: {limit} are allowed; find the step in it that \
                 is a file of its own",
                file.path, file.lines
            ));
        }
    }
    complaints
}

fn long_functions(files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        for (name, lines) in file.functions() {
            let own = FN_LIMITS.iter().find(|(path, function, _)| *path == file.path && *function == name);
            let limit = own.map_or(FN_LIMIT, |(.., limit)| *limit);
            if lines > limit {
                complaints.push(format!(
                    "src/{}: {name} has {lines} lines: {limit} are allowed; find the step in it that is a \
                     function of its own",
                    file.path
                ));
            }
        }
    }
    complaints
}

fn migrations(there: &[(String, Vec<u8>)], frozen: &[(&str, &str)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, bytes) in there {
        let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        match frozen.iter().find(|(known, _)| known == name) {
            Some((_, known)) if *known == hash => {}
            Some(_) => complaints.push(format!(
                "{name} changed (now {hash}): a released migration stays as it was, write a new \
                 one; before the release, put the new hash into FROZEN"
            )),
            None => complaints.push(format!("{name} is new: add {hash} to FROZEN")),
        }
    }
    for (known, _) in frozen {
        if !there.iter().any(|(name, _)| name == known) {
            complaints.push(format!("{known} is gone: databases have it"));
        }
    }
    complaints
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "nothing of ours".into() } else { names.join(", ") }
}

fn held(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn sources() -> Vec<Source> {
    read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

fn bad(path: &str, text: &str) -> [Source; 1] {
    [Source::new(path, text)]
}

#[test]
fn rooms_import_what_they_may() {
    held(&imports(&sources()));
}

#[test]
fn a_forbidden_import_is_found() {
    for (path, text) in [
        ("values/op.rs", "use crate::clock::Clock;"),
        ("values/op.rs", "use crate::{values::Host, db::{Db}};"),
        ("values/op.rs", "use super::super::db::Db;"),
        ("values/mod.rs", "use super::db::Db;"),
        ("db/ops.rs", "fn f() { crate::metrics::count(); }"),
        ("serve/mod.rs", "use crate::pull::Puller;"),
        ("reclaim/mod.rs", "use crate::bound::delete;"),
        ("show/status.rs", "use crate::serve::Serve;"),
        ("stray.rs", ""),
    ] {
        assert_eq!(imports(&bad(path, text)).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("reclaim/mod.rs", "use crate::bound::decide::cutoff;"),
        ("db/connect.rs", "use super::error::Error; use crate::settings::DbTarget;"),
        ("values/op.rs", "// use crate::db::Db;\nconst A: &str = \"crate::db\";"),
        ("values/op.rs", "#[cfg(test)]\nmod tests { use crate::db::Db; }"),
        ("daemon.rs", "use crate::{serve, pull};"),
    ] {
        held(&imports(&bad(path, text)));
    }
}

#[test]
fn choices_are_pure() {
    held(&decisions(&sources()));
}

#[test]
fn an_impure_choice_is_found() {
    for text in [
        "use crate::db::Db;",
        "use crate::metrics::Metrics;",
        "use super::step;",
        "fn f() { tracing::info!(\"x\"); }",
        "async fn f() {}",
        "fn f() { std::time::Instant::now(); }",
    ] {
        assert_eq!(decisions(&bad("pull/decide.rs", text)).len(), 1, "{text}");
    }
    held(&decisions(&bad("pull/decide.rs", "use crate::values::OpUlid;")));
}

#[test]
fn pure_rooms_know_no_runtime() {
    held(&purity(&sources()));
}

#[test]
fn a_runtime_in_a_pure_room_is_found() {
    let text = "use tokio::sync::watch;";
    assert_eq!(purity(&bad("wire/body.rs", text)).len(), 1);
    held(&purity(&bad("serve/mod.rs", text)));
}

#[test]
fn sql_lives_in_db() {
    held(&sql(&sources()));
}

#[test]
fn sql_elsewhere_is_found() {
    for text in [
        "const A: &str = \"SELECT 1\";",
        "const A: &str = r#\"\n  WITH x AS (DELETE\n FROM ops) \"#;",
        "f(\"CREATE TABLE x ()\")",
        "const A: char = '\"'; const B: &str = \"UPDATE ops SET\";",
    ] {
        assert_eq!(sql(&bad("serve/mod.rs", text)).len(), 1, "{text}");
        held(&sql(&bad("db/ops.rs", text)));
    }
    for text in [
        "// SELECT 1",
        "const A: &str = \"GRANT CREATE ON DATABASE\";",
        "const A: &str = \"DELETE\";",
        "#[cfg(test)]\nmod tests { const A: &str = \"SELECT 1\"; }",
    ] {
        held(&sql(&bad("show/doctor.rs", text)));
    }
}

#[test]
fn clippy_is_lifted_where_it_may_be() {
    held(&exemptions(&sources()));
    let text = "#[allow(clippy::disallowed_methods)] fn f() {}";
    assert_eq!(exemptions(&bad("pull/mod.rs", text)).len(), 1);
    held(&exemptions(&bad("clock.rs", text)));
}

#[test]
fn files_are_short() {
    let files = sources();
    let total: usize = files.iter().map(|f| f.lines).sum();
    println!("src/: {} files, {total} lines without tests", files.len());
    held(&lengths(&files));
}

#[test]
fn functions_are_short() {
    held(&long_functions(&sources()));
    for of in ["fn f(x: [u8; 2])", "    pub(crate) async fn f()"] {
        let body = |n: usize| format!("{of} {{\n{}}}\n", "    if x { \"{\" }\n".repeat(n));
        held(&long_functions(&bad("db/a.rs", &body(FN_LIMIT - 2))));
        assert_eq!(long_functions(&bad("db/a.rs", &body(FN_LIMIT - 1))).len(), 1);
    }
    let without_a_body = format!("fn f();\nconst A: u8 = {{\n{}0 }};", "\n".repeat(FN_LIMIT));
    held(&long_functions(&bad("db/a.rs", &without_a_body)));
}

#[test]
fn a_long_file_is_found() {
    let long = |n: usize| "fn f() {}\n".repeat(n);
    for (path, limit) in [("main.rs", 40), ("lib.rs", 80), ("db/ops.rs", LIMIT)] {
        held(&lengths(&bad(path, &long(limit))));
        assert_eq!(lengths(&bad(path, &long(limit + 1))).len(), 1, "{path}");
    }
    let tested = format!("{}#[cfg(test)]\nmod tests {{\n{}}}", long(10), long(900));
    held(&lengths(&bad("db/ops.rs", &tested)));
}

#[test]
fn released_migrations_stay() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/db/migrations");
    let mut there = Vec::new();
    for entry in std::fs::read_dir(dir).expect("migrations") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        let bytes = std::fs::read(&path).expect("a text");
        there.push((name.into_owned(), bytes));
    }
    held(&migrations(&there, FROZEN));
}

#[test]
fn a_changed_migration_is_found() {
    let there = [("1.sql".to_owned(), b"SELECT 1".to_vec())];
    let right = "e004ebd5b5532a4b85984a62f8ad48a81aa3460c1ca07701f386135d72cdecf5";
    held(&migrations(&there, &[("1.sql", right)]));
    assert_eq!(migrations(&there, &[("1.sql", "other")]).len(), 1);
    assert_eq!(migrations(&there, &[]).len(), 1);
    assert_eq!(migrations(&[], &[("1.sql", right)]).len(), 1);
}
