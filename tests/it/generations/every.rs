//! What every command does, on the schema of each generation.

use super::*;
use crate::harness::cluster::binary;
use crate::harness::ops::{self, Ops};
use std::process::Command;

fn dump(database: &Database) -> String {
    let output =
        Command::new(binary("pg_dump")).args(["--schema-only", "-d", &database.url()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|l| !l.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// A log of 60 days, and a node that has just read the chain where it has one.
async fn filled(schema: Schema) -> Database {
    let database = Database::of(schema).await;
    let client = database.client().await;
    ops::insert(&client, &Ops::new(7).starting_at(ulid_of(real_ago(60)).ms()).every(DAY / 10).take(600))
        .await;
    if schema != Schema::A {
        client
            .batch_execute(
                "INSERT INTO core_blocks (height, chain_id, hash, proposer, created_at)
                     VALUES (7, 'main', '', '', now() AT TIME ZONE 'UTC');
                 INSERT INTO cursors VALUES ('core_mediorum_blocks', '7')",
            )
            .await
            .unwrap();
    }
    database
}

fn guarded(database: &Database, args: &[&str]) -> Start {
    start(database, args).env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
}

async fn number(database: &Database, sql: &str) -> i64 {
    database.client().await.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn every_command_does_its_work() {
    for schema in Schema::ALL {
        let database = filled(schema).await;
        let before = dump(&database);
        let days = std::cell::Cell::new("30");
        let ok = async |args: &[&str]| {
            let (code, said) = guarded(&database, args).env(RETENTION, days.get()).json().await;
            assert_eq!(code, 0, "{schema:?} {args:?}: {said}");
            said
        };
        ok(&["census", "--full", "--pace", "full"]).await;
        let plan = ok(&["plan"]).await;
        assert!(plan.to_string().contains("would"), "{schema:?}: {plan}");
        ok(&["prune", "--pace", "full"]).await;
        let left = number(&database, "SELECT count(*) FROM ops").await;
        assert!((300..330).contains(&left), "{schema:?}: {left}");
        assert!(number(&database, "SELECT count(*) FROM opsward.traces").await > 0, "{schema:?}");
        let guards = "SELECT count(*) FROM pg_trigger WHERE tgname = 'opsward_replay_guard'";
        assert_eq!(number(&database, guards).await, 1, "{schema:?}");
        // A swap that is held, and gone on with; then in place; then compaction. Five days
        // go by: there is something to give back.
        days.set("25");
        let reclaim = |rest: &[&'static str]| {
            [&["reclaim", "--policy=window", "--yes", "--pace", "full"][..], rest].concat()
        };
        assert_eq!(ok(&reclaim(&["--mode=swap", "--hold"])).await["result"]["outcome"], "held");
        assert_eq!(ok(&["reclaim", "--swap", "--yes", "--pace", "full"]).await["result"]["outcome"], "done");
        let compact = ["reclaim", "--policy=compact", "--mode=swap", "--yes", "--pace", "full"];
        let (code, said) = guarded(&database, &compact).json().await;
        assert!(code == 0 || said["error"]["code"] == "nothing", "{schema:?}: {said}");
        served_and_verified(&database, schema).await;
        ok(&["status"]).await;
        ok(&["history"]).await;
        ok(&["uninstall", "--yes"]).await;
        assert_eq!(dump(&database), before, "{schema:?}");
    }
}

/// A page to a stranger, a kill, and a comparison with itself.
async fn served_and_verified(database: &Database, schema: Schema) {
    let daemon = guarded(database, &["run"]).env("OPENAUDIO_MEDIORUM_NODE_URL", "http://127.0.0.1:9").spawn();
    daemon.ready().await;
    let page = http::get(daemon.public(), "/internal/crud/sweep?after=", &[]).await;
    assert!(page.status == 200 && page.text().len() > 100, "{schema:?}: {}", page.status);
    daemon.signal("KILL");
    daemon.exit().await;
    // As if of another validator with the same records.
    let other = Database::of(schema).await;
    other.migrated().await;
    let digest = start(&other, &["digest"]).env("OPENAUDIO_NODE_ENDPOINT", "https://other.example");
    let digest = digest.output().await;
    assert_eq!(digest.code, Some(0), "{schema:?}: {digest:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), digest.stdout).unwrap();
    let same = guarded(database, &["verify", "--against", file.path().to_str().unwrap()]).output().await;
    assert_eq!(same.code, Some(0), "{schema:?}: {same:?}");
}
