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

/// The main use beside a node that prunes by itself: nothing is left, the file is as large.
#[tokio::test]
async fn a_log_that_the_node_emptied_gives_its_file_back() {
    let bed = Bed::new(400).await;
    let client = bed.database.client().await;
    let fill =
        "INSERT INTO ops SELECT '01K0000000' || lpad(n::text, 16, '0'), 'http://a', 'create', 'uploads',
                    jsonb_build_array(repeat(md5(n::text), 30)) FROM generate_series(1, 30000) n";
    client.batch_execute(fill).await.unwrap();
    client.batch_execute("DELETE FROM ops").await.unwrap();
    let count = Start::new(&["census", "--full"])
        .env("OPENAUDIO_DB_URL", bed.database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", "http://own.example")
        .output()
        .await;
    assert_eq!(count.code, Some(0), "{count:?}");
    let status = Start::new(&["status"]).env("OPENAUDIO_DB_URL", bed.database.url()).json().await.1;
    let counted = &status["result"]["bounding"]["census"];
    assert_eq!((&counted["rows"], &counted["oldest"]), (&0.into(), &Value::Null), "{status}");
    for mode in ["in-place", "swap"] {
        let (code, plan) = reclaim(&bed, &["--plan", "--mode", mode]).json().await;
        assert_eq!((code, codes(&plan, "obstacles")), (0, vec![]), "{plan}");
    }
    let ran = reclaim(&bed, &["--mode", "swap", "--yes"]).output().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(bed.number("SELECT pg_relation_size('ops')").await, 0);
    bed.nothing_is_left().await;
    // Nothing is left to give back, which is another reason than an unknown log.
    let (_, plan) = reclaim(&bed, &["--plan"]).json().await;
    assert_eq!(codes(&plan, "obstacles"), ["nothing"], "{plan}");
}
