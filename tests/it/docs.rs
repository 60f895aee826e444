//! Every command of opsward's that README, docs and runbooks name is run as it stands there.

#[path = "../architecture/commands.rs"]
mod commands;

use crate::harness::{Database, Ops, Start, ops};
use std::collections::BTreeSet;

/// What does not end with 0 where nothing is unfinished, nobody can be asked and the peer is
/// made up: how the command begins, its exit code, and a part of its reason. The first that
/// fits counts.
const OTHERWISE: &[(&str, i32, &str)] = &[
    ("uninstall", 3, ASKS),
    ("reset --reference", 3, ASKS),
    ("reclaim --resume", 3, "there is no reclaim to go on with"),
    ("reclaim --abort", 3, "there is no reclaim to undo"),
    ("reclaim --swap", 3, "there is no reclaim to swap"),
    ("reclaim --plan", 0, ""),
    ("reclaim --policy window --yes", 0, ""),
    // It asks, or there is nothing left to give back.
    ("reclaim --policy window", 3, ""),
    ("reclaim --mode in-place", 3, ""),
    ("reclaim --hold", 3, ""),
    ("sweep --peer", 1, ""),
    ("rejected drop", 1, "no refused op has the id 1"),
];
const ASKS: &str = "say --yes where nobody can be asked";

/// Names of commands in sentences, that miss an argument there, and the daemon.
const NAMES: &[&str] = &["reclaim", "rejected retry", "reset", "run"];

/// A value for what stands for one.
fn filled<'a>(word: &'a str, file: &'a str) -> &'a str {
    match word {
        "URL" => "https://node.example",
        "ID" => "1",
        "SHELL" => "bash",
        "FILE" | "here" | "/digest.gz" => file,
        word => word,
    }
}

#[tokio::test]
async fn every_command_of_the_docs_does_what_it_says() {
    let database = Database::new().await;
    ops::insert(&database.client().await, &Ops::new(7).take(300)).await;
    let start = |words: &[&str]| {
        Start::new(words)
            .env("OPENAUDIO_DB_URL", database.url())
            .env("OPENAUDIO_NODE_ENDPOINT", "https://self.example")
            .env("OPENAUDIO_MEDIORUM_PEERS", "none")
            .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "30")
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let other = Database::new().await;
    let other = start(&["digest"])
        .env("OPENAUDIO_DB_URL", other.url())
        .env("OPENAUDIO_NODE_ENDPOINT", "https://other.example");
    std::fs::write(file.path(), other.output().await.stdout).unwrap();
    let file = file.path().to_str().unwrap();
    let (mut seen, mut complaints) = (BTreeSet::new(), Vec::new());
    for (page, _, lines) in commands::commands() {
        for line in lines {
            let words = commands::bare(&line);
            let Some(("opsward", words)) = words.split_first().map(|(first, rest)| (first.as_str(), rest))
            else {
                continue;
            };
            let command = words.join(" ");
            if NAMES.contains(&command.as_str()) || !seen.insert(command.clone()) {
                continue;
            }
            let words: Vec<&str> = words.iter().map(|word| filled(word, file)).collect();
            let ran = start(&words).output().await;
            let otherwise = OTHERWISE.iter().find(|(begins, ..)| command.starts_with(begins));
            let (code, why) = otherwise.map_or((0, ""), |(_, code, why)| (*code, *why));
            if command == "pause" {
                start(&["resume"]).output().await;
            }
            if ran.code != Some(code) || !ran.stderr.contains(why) {
                complaints.push(format!("{}: {line}: {ran:?}", page.display()));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(seen.len() > 30, "{seen:?}");
}
