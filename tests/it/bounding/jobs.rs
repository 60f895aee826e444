//! The lease and jobs: handed over, detached, killed, lost; pause and pace.

use super::*;

/// Slow enough to be met in the middle: some tenths of a second a batch.
async fn slowly(bench: &Bench) {
    bench.run("UPDATE opsward.pace SET percent = 5").await;
}

async fn fully(bench: &Bench) {
    bench.run("UPDATE opsward.pace SET percent = 100").await;
}

/// Waits until some of the log is gone.
async fn begun(bench: &Bench, of: usize) {
    bench.until(&format!("SELECT count(*) < {of} FROM ops")).await;
}

/// Who holds the lease.
const LEASES: &str = "FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted AND a.datname = current_database()";

async fn lease_pid(bench: &Bench) -> i32 {
    bench.client.query_one(&format!("SELECT l.pid {LEASES}"), &[]).await.unwrap().get(0)
}

/// Every process that deletes, in the order of its statements.
async fn watch_deleters(bench: &Bench) {
    bench
        .run(
            "CREATE TABLE deleters (n bigserial, pid int);
             CREATE FUNCTION who() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.deleters (pid) VALUES (pg_backend_pid()); RETURN NULL; END $$;
             CREATE TRIGGER who AFTER DELETE ON ops FOR EACH STATEMENT EXECUTE FUNCTION who()",
        )
        .await;
}

/// So many deleted, each of them all at once.
async fn deleters(bench: &Bench) -> usize {
    let rows = bench.client.query("SELECT pid FROM deleters ORDER BY n", &[]).await.unwrap();
    let mut pids: Vec<i32> = rows.iter().map(|r| r.get(0)).collect();
    pids.dedup();
    let turns = pids.len();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(turns, pids.len(), "two deleted by turns");
    turns
}

#[tokio::test]
async fn a_job_is_handed_over_and_outlives_its_command() {
    let bench = Bench::new().await.with(BATCH, "100");
    bench.log(2_000, 20).await;
    let daemon = bench.daemon().await;
    // The same envelope as without a daemon.
    let (code, counted) = bench.json(&["census"]).await;
    assert_eq!((code, &counted["result"]["rows"]), (0, &2_020.into()), "{counted}");
    daemon.line(|l| l.contains("a job was handed over") && l.contains("census")).await;

    slowly(&bench).await;
    let command = bench.start(&["prune"]).spawn();
    command.line(|l| l.contains("handed to the daemon")).await;
    begun(&bench, 2_020).await;
    command.line(|l| l.contains("rows")).await;
    command.signal("INT");
    let ran = command.ran().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("detached") && ran.stdout.contains("goes on in the daemon"), "{ran:?}");
    let status =
        bench.start(&["status"]).env("OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN", daemon.admin().to_string());
    assert!(status.output().await.stdout.contains("prune"));
    assert!(bench.left().await > 20);
    fully(&bench).await;
    bench.until("SELECT bool_and(finished_at IS NOT NULL) FROM opsward.jobs").await;
    assert_eq!(bench.left().await, 20);
}

/// The daemon deletes by its own settings, and the command that has others says so.
#[tokio::test]
async fn settings_that_differ_from_the_daemon_s_are_named() {
    let bench = Bench::new().await;
    bench.log(100, 20).await;
    let _daemon = bench.daemon().await;
    let (code, pruned) = bench.start(&["prune"]).env(DAYS, "60").json().await;
    assert_eq!((code, bench.left().await), (0, 20), "the window of 30 days counts: {pruned}");
    let warning = &pruned["warnings"][0];
    assert_eq!(warning["code"], "settings_differ", "{pruned}");
    assert_eq!(
        warning["text"],
        format!("the daemon did this with its own settings: {DAYS} is 60 here and 30 there").as_str()
    );
    let told = bench.start(&["prune"]).env(DAYS, "60").output().await;
    let line = format!("{DAYS} is 60 here and 30 there");
    assert!(told.stdout.contains(&line) || told.stderr.contains(&line), "{told:?}");
    let (_, same) = bench.json(&["prune"]).await;
    assert!(!same["warnings"].to_string().contains("settings_differ"), "{same}");
}

#[tokio::test]
async fn a_reclaim_names_the_settings_that_the_daemon_has_not() {
    let bench = Bench::new().await;
    bench.log(100, 20).await;
    let _daemon = bench.daemon().await;
    bench.json(&["census"]).await;
    let reclaim = ["reclaim", "--yes", "--mode", "in-place", "--policy", "window"];
    let (code, refused) = bench.start(&reclaim).env(DAYS, "29").json().await;
    let line = format!("{DAYS} is 29 here and 30 there");
    assert!(code != 0 && refused["error"].to_string().contains(&line), "{refused}");
    let every = "OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL";
    let (code, done) = bench.start(&reclaim).env(every, "2h").json().await;
    assert_eq!(code, 0, "{done}");
    let warnings = done["warnings"].to_string();
    assert!(warnings.contains("settings_differ") && warnings.contains(every), "{done}");
}

#[tokio::test]
async fn the_lease_is_one() {
    let bench = Bench::new().await.with(BATCH, "100");
    bench.log(2_000, 20).await;
    watch_deleters(&bench).await;
    let first = bench.start(&["prune", "--pace", "5%"]).spawn();
    begun(&bench, 2_020).await;
    let (code, refused) = bench.json(&["prune"]).await;
    assert_eq!(code, 4, "{refused}");
    assert_eq!(
        refused["error"]["code"].as_str().or(refused["result"]["code"].as_str()),
        Some("lease_held"),
        "{refused}"
    );
    let waiting = bench.start(&["prune", "--wait"]).spawn();
    waiting.line(|l| l.contains("waiting: the lease is held by opsward prune")).await;
    let before = bench.left().await;
    assert!(before > 20);
    first.signal("INT");
    let ran = first.ran().await;
    assert!(ran.stderr.contains("stopping at the next batch"), "{ran:?}");
    assert_eq!(ran.code, Some(1), "interrupted: {ran:?}");
    assert_eq!(waiting.ran().await.code, Some(0));
    assert_eq!((bench.left().await, deleters(&bench).await), (20, 2));
}

#[tokio::test]
async fn a_daemon_killed_in_a_job_is_told_and_the_next_run_goes_on() {
    let bench = Bench::new().await.with(BATCH, "100");
    bench.log(2_000, 20).await;
    slowly(&bench).await;
    for restarted in [false, true] {
        let before = bench.left().await as usize;
        let daemon = bench.daemon().await;
        let command = bench.start(&["prune"]).spawn();
        command.line(|l| l.contains("handed to the daemon")).await;
        begun(&bench, before).await;
        // Another daemon may be there before the command looks again.
        if restarted {
            command.signal("STOP");
        }
        daemon.signal("KILL");
        daemon.exit().await;
        let next = if restarted { Some(bench.daemon().await) } else { None };
        if restarted {
            bench.until("SELECT bool_and(finished_at IS NOT NULL) FROM opsward.jobs").await;
            command.signal("CONT");
        }
        let ran = command.ran().await;
        assert_eq!(ran.code, Some(75), "{ran:?}");
        assert!(
            ran.stderr.contains("run the command again") || ran.stdout.contains("run the command again"),
            "{ran:?}"
        );
        drop(next);
    }
    fully(&bench).await;
    bench.until("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'opsward' AND datname = current_database()").await;
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!((code, bench.left().await), (0, 20), "{pruned}");
}

#[tokio::test]
async fn a_lost_lease_ends_the_work_and_the_next_goes_on() {
    let bench = Bench::new().await.with(BATCH, "100");
    bench.log(2_000, 20).await;
    watch_deleters(&bench).await;
    slowly(&bench).await;
    let daemon = bench.daemon().await;
    let command = bench.start(&["prune"]).spawn();
    command.line(|l| l.contains("handed to the daemon")).await;
    begun(&bench, 2_020).await;
    let pid = lease_pid(&bench).await;
    bench.run(&format!("SELECT pg_terminate_backend({pid})")).await;
    let ran = command.ran().await;
    assert_eq!(ran.code, Some(75), "{ran:?}");
    fully(&bench).await;
    daemon.line(|l| l.contains("the job ended")).await;
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!((code, bench.left().await), (0, 20), "{pruned}");
    assert_eq!(deleters(&bench).await, 2);
    // The daemon takes a new one, when the command's is free again.
    bench.until(&format!("SELECT count(*) = 1 AND bool_and(l.pid <> {pid}) {LEASES}")).await;
}

#[tokio::test]
async fn a_job_that_nobody_does_any_more_is_ended() {
    let bench = Bench::new().await;
    let daemon = bench.daemon().await;
    // As a session leaves it that was cut off while it wrote how far it is.
    bench
        .run("INSERT INTO opsward.jobs (kind, args, requested_at, started_at) VALUES ('prune', '{}', now(), now())")
        .await;
    bench.until("SELECT bool_and(finished_at IS NOT NULL) FROM opsward.jobs").await;
    daemon.line(|l| l.contains("cut off are ended")).await;
}

#[tokio::test]
async fn a_pause_holds_the_next_batch_and_the_daemon_says_so() {
    let bench =
        Bench::new().await.with(BATCH, "100").with("OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL", "10s");
    bench.log(2_000, 20).await;
    slowly(&bench).await;
    let daemon = bench.daemon().await;
    begun(&bench, 2_020).await;
    let (code, paused) = bench.json(&["pause"]).await;
    assert_eq!((code, &paused["changed"]), (0, &true.into()));
    daemon.line(|l| l.contains("paused since") && l.contains("resume")).await;
    let left = bench.left().await;
    assert!(left > 20);
    let (code, refused) = bench.json(&["prune", "--strict"]).await;
    assert_eq!((code, bench.left().await), (3, left), "{refused}");
    assert_eq!(bench.json(&["resume"]).await.0, 0);
    assert_eq!(bench.json(&["pace", "full"]).await.1["result"]["percent"], 100);
    assert_eq!(bench.json(&["prune"]).await.0, 0);
    assert_eq!(bench.left().await, 20);
}

#[tokio::test]
async fn neither_outside_the_window_nor_with_little_disk() {
    let bench = Bench::new().await;
    bench.log(200, 20).await;
    let minute = now_ms() / 60_000 % 1_440;
    let time = |m: u64| format!("{:02}:{:02}", m % 1_440 / 60, m % 60);
    let window = format!("{}-{}", time(minute + 720), time(minute + 780));
    for (name, value) in [
        ("OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW", window.as_str()),
        ("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "900TiB"),
    ] {
        for (args, code) in [(&["prune"][..], 0), (&["prune", "--strict"], 3)] {
            let ran = bench.start(args).env(name, value).output().await;
            assert_eq!((ran.code, bench.left().await), (Some(code), 220), "{ran:?}");
            assert!(ran.stdout.contains(name), "{ran:?}");
        }
    }
    assert_eq!(bench.json(&["prune"]).await.0, 0);
    assert_eq!(bench.left().await, 20);
}
