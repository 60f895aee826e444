//! The command `reclaim`: what it refuses at once, and what it asks first.

use super::Bed;
use crate::harness::Start;
use serde_json::Value;

fn reclaim(bed: &Bed, more: &[&str]) -> Start {
    Start::new(&[&["reclaim", "--policy", "window"], more].concat())
        .env("OPENAUDIO_DB_URL", bed.database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", "http://own.example")
        .env("OPENAUDIO_MEDIORUM_PEERS", "none")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "30")
        .env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "0")
}

fn codes<'a>(envelope: &'a Value, of: &str) -> Vec<&'a str> {
    let found = envelope["result"][of].as_array().unwrap_or_else(|| panic!("{envelope}"));
    found.iter().map(|one| one["code"].as_str().unwrap()).collect()
}

async fn uncount(bed: &Bed) {
    let sql = "DELETE FROM opsward.census; DELETE FROM opsward.census_pass";
    bed.database.client().await.batch_execute(sql).await.unwrap();
}

#[tokio::test]
async fn only_a_swap_is_held() {
    let bed = Bed::new(50).await;
    let ran = reclaim(&bed, &["--hold", "--mode", "in-place"]).output().await;
    assert!(ran.code == Some(2) && ran.stderr.contains("--hold"), "{ran:?}");
    // Where the mode is chosen by what fits, the plan says so.
    let tight = reclaim(&bed, &["--hold", "--plan"]).env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1000TB");
    let (code, plan) = tight.json().await;
    assert!(code == 0 && codes(&plan, "obstacles").contains(&"hold"), "{plan}");
}

#[tokio::test]
async fn a_plan_shows_what_will_refuse() {
    let bed = Bed::new(50).await;
    let (code, plan) = reclaim(&bed, &["--plan"]).env("OPENAUDIO_MEDIORUM_READ_ONLY", "true").json().await;
    assert_eq!((code, codes(&plan, "obstacles")), (0, vec!["read_only"]), "{plan}");
    let ran = reclaim(&bed, &["--yes"]).env("OPENAUDIO_MEDIORUM_READ_ONLY", "true").output().await;
    assert!(ran.code == Some(3) && ran.stderr.contains("READ_ONLY"), "{ran:?}");
}

#[tokio::test]
async fn a_swap_that_gives_hardly_anything_back_asks_first() {
    let bed = Bed::new(2_000).await;
    // The bed's own census leaves out what a row takes beside its data.
    uncount(&bed).await;
    let reclaim = |more: &[&str]| {
        reclaim(&bed, &[&["--mode", "swap", "--pace", "full"], more].concat())
            .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "100")
    };
    let (code, plan) = reclaim(&["--plan"]).json().await;
    assert_eq!((code, codes(&plan, "risks")), (0, vec!["gives_little"]), "{plan}");
    let hash = plan["result"]["hash"].as_str().unwrap();
    let ran = reclaim(&["--apply", hash]).output().await;
    assert!(ran.code == Some(3) && ran.stderr.contains("--yes"), "{ran:?}");
    let ran = reclaim(&["--apply", hash, "--yes"]).output().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_log_that_was_never_counted_is_sampled_first() {
    let bed = Bed::new(400).await;
    uncount(&bed).await;
    let (code, plan) = reclaim(&bed, &["--plan", "--mode", "swap"]).json().await;
    assert_eq!((code, codes(&plan, "obstacles")), (0, vec![]), "{plan}");
    let rows = plan["result"]["tables"].as_array().unwrap().iter().map(|t| t["rows"].as_u64().unwrap());
    assert_eq!(rows.sum::<u64>(), 401, "{plan}");
}
