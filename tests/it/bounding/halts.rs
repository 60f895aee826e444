//! What may not go on says so, keeps what it did, and comes again as soon as
//! it may.

use super::*;

const CENSUS: &str = "OPENAUDIO_MEDIORUM_OPS_CENSUS";
const FLOOR: &str = "OPENAUDIO_MEDIORUM_MIN_FREE_DISK";

#[tokio::test]
async fn a_daemon_goes_on_after_resume_not_at_its_next_tick() {
    let bench = Bench::new()
        .await
        .with(CENSUS, "false")
        .with("OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL", "10h");
    bench.log(200, 20).await;
    bench.run("UPDATE opsward.pace SET paused_at = now()").await;
    let daemon = bench.daemon().await;
    // Retention had its turn.
    let said = async {
        while !daemon.log().contains("paused since") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    // The first one comes within a minute of the start.
    tokio::time::timeout(std::time::Duration::from_secs(120), said).await.unwrap();
    // What the daemon's own tasks wait for is told as what jobs wait for is.
    bench
        .until(
            "SELECT count(*) > 0 FROM opsward.waiting WHERE work = 'retention' AND what LIKE 'paused since%'",
        )
        .await;
    let (_, status) = bench.json(&["status"]).await;
    let waits = status["result"]["bounding"]["waits"].to_string();
    assert!(waits.contains("retention") && waits.contains("opsward resume"), "{status}");
    assert_eq!(bench.json(&["resume"]).await.0, 0);
    bench.until("SELECT count(*) = 20 FROM ops").await;
    bench.until("SELECT count(*) = 0 FROM opsward.waiting WHERE work = 'retention'").await;
}

#[tokio::test]
async fn a_task_that_halts_hides_nothing_of_what_others_did() {
    let bench =
        Bench::new().await.with(BATCH, "100").with("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX", "true");
    bench.log(400, 20).await;
    // Paused in the middle of retention, for longer than a look is good for; the
    // index waits for a snapshot.
    bench
        .run(
            "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 UPDATE opsward.pace SET paused_at = now(); PERFORM pg_sleep(0.3); RETURN NULL; END $$;
             CREATE TRIGGER pause AFTER DELETE ON ops FOR EACH STATEMENT EXECUTE FUNCTION pause()",
        )
        .await;
    let held = bench.database.old_snapshot().await;
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!((code, &pruned["changed"]), (0, &true.into()), "{pruned}");
    let gone: u64 = deleted(&pruned).values().sum();
    assert_eq!((gone, bench.left().await), (100, 320), "{pruned}");
    assert_eq!(pruned["result"]["tasks"][1]["deleted"]["ended"], "halted", "{pruned}");
    let index = &pruned["result"]["tasks"][2];
    assert_eq!(index["task"], "index", "{pruned}");
    assert!(index["halted"].as_str().is_some_and(|why| why.contains("opsward resume")), "{pruned}");
    let strict = bench.start(&["prune", "--strict", "--task", "index"]).output().await;
    assert_eq!(strict.code, Some(3), "{strict:?}");
    held.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn nothing_deleted_for_lack_of_disk_is_refused_when_strict() {
    let bench = Bench::new().await.with(CENSUS, "false").with(FLOOR, "900TiB");
    bench.log(200, 20).await;
    for (args, code) in [(&["prune"][..], 0), (&["prune", "--strict"], 3)] {
        let ran = bench.start(args).output().await;
        assert_eq!((ran.code, bench.left().await), (Some(code), 220), "{ran:?}");
        assert!(ran.stdout.contains(FLOOR), "{ran:?}");
    }
}

#[tokio::test]
async fn little_disk_is_no_reason_not_to_count() {
    let bench = Bench::new().await.with(FLOOR, "900TiB");
    bench.log(200, 20).await;
    let (code, counted) = bench.json(&["census"]).await;
    assert_eq!((code, &counted["result"]["rows"]), (0, &220.into()), "{counted}");
    // It decides, and says what it would have done.
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!(code, 0, "{pruned}");
    let retention = &pruned["result"]["tasks"][1];
    assert_eq!(retention["decision"]["cuts"].as_array().map(Vec::is_empty), Some(false), "{pruned}");
    assert_eq!(retention["deleted"]["ended"], "halted", "{pruned}");
    assert_eq!(bench.left().await, 220);
}

#[tokio::test]
async fn a_job_of_days_ago_is_not_done() {
    let bench = Bench::new().await;
    let args = r#"{"kind": "census", "scope": "now", "percent": 100}"#;
    bench
        .run(&format!(
            "INSERT INTO opsward.jobs (kind, args, requested_at)
             SELECT 'census', '{args}', now() - ago FROM unnest(ARRAY[interval '25 hours', '23 hours']) ago"
        ))
        .await;
    let daemon = bench.daemon().await;
    bench.until("SELECT bool_and(finished_at IS NOT NULL) FROM opsward.jobs").await;
    let started = "SELECT count(*) FROM opsward.jobs WHERE started_at IS NOT NULL AND requested_at";
    assert_eq!(bench.number(&format!("{started} < now() - interval '1 day'")).await, 0);
    assert_eq!(bench.number(&format!("{started} > now() - interval '1 day'")).await, 1);
    daemon.line(|l| l.contains("WARN") && l.contains("expired")).await;
    let expired = "SELECT count(*) FROM opsward.jobs WHERE outcome -> 'trouble' ->> 'text' LIKE '%expired%'";
    assert_eq!(bench.number(expired).await, 1);
}

#[tokio::test]
async fn a_prune_that_is_interrupted_says_so_and_fails() {
    let bench = Bench::new().await.with(CENSUS, "false").with(BATCH, "100");
    bench.log(2_000, 20).await;
    bench
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_sleep(0.3); RETURN NULL; END $$;
             CREATE TRIGGER slow AFTER DELETE ON ops FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        )
        .await;
    let prune = bench.start(&["prune", "--pace", "1%"]).spawn();
    prune.line(|line| line.contains("deleting (retention)")).await;
    prune.signal("INT");
    let ran = prune.ran().await;
    assert!(ran.code == Some(1) && ran.stdout.contains("interrupted"), "{ran:?}");
    assert!((21..2_020).contains(&bench.left().await), "what was done stays, and nothing more is");
}
