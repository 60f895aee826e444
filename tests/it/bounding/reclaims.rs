//! Contract 6 as an operator sees it: what a reclaim says, refuses and does.

use super::*;

/// Has the census say how large each day of these is.
async fn claim(bench: &Bench, days: &[u64], bytes: u64) {
    for ago in days {
        bench
            .run(&format!(
                "UPDATE opsward.census c SET bytes = {bytes} /
                     (SELECT count(*) FROM opsward.census d WHERE d.day = c.day)
                 WHERE day = (now() AT TIME ZONE 'UTC')::date - {ago}"
            ))
            .await;
    }
}

fn codes(plan: &Value) -> Vec<&str> {
    plan["result"]["obstacles"].as_array().unwrap().iter().filter_map(|o| o["code"].as_str()).collect()
}

#[tokio::test]
async fn fit_takes_the_longest_window_there_is_room_for() {
    const OF: [u64; 6] = [100, 80, 60, 40, 20, 2];
    let mut bench = Bench::new().await.with(DAYS, "0");
    bench.on_days(&OF, 60).await;
    let fit = ["reclaim", "--plan", "--fit"];
    let (code, plan) = bench.json(&fit).await;
    assert_eq!((code, &plan["result"]["fit_days"]), (0, &Value::Null), "all of it fits: {plan}");
    assert_eq!(codes(&plan), ["nothing"]);

    // Three of the six days fit beside what a swap needs in any case.
    let space = |key: &str| plan["result"]["space"][key].as_u64().unwrap();
    let room = space("free").checked_sub(space("swap_needs")).expect("free disk for this test");
    claim(&bench, &OF, room / 10 * 3).await;
    for days in ["0", "90"] {
        bench = bench.with(DAYS, days);
        let (code, plan) = bench.json(&fit).await;
        let result = &plan["result"];
        assert_eq!((code, &result["mode"], &result["policy"]), (0, &"swap".into(), &"window".into()));
        assert_eq!((&result["fit_days"], codes(&plan)), (&40.into(), vec![]), "{plan}");
        let kept = |t: &Value| t["kept_rows"].as_u64().unwrap();
        assert_eq!(result["tables"].as_array().unwrap().iter().map(kept).sum::<u64>(), 180, "{plan}");
        let text = bench.start(&fit).output().await.stdout;
        let instead = if days == "0" { "all of the log" } else { "the 90 that are set" };
        let said = format!("40 days are the longest window that fits, instead of {instead}");
        assert!(text.contains(&said), "{text}");
    }
    // What is set fits, and so it is that.
    let (_, plan) = bench.start(&fit).env(DAYS, "30").json().await;
    assert_eq!((&plan["result"]["fit_days"], codes(&plan)), (&Value::Null, vec![]), "{plan}");
    assert_eq!(bench.start(&["reclaim", "--fit", "--mode", "in-place"]).output().await.code, Some(2));
    assert_eq!(bench.start(&["reclaim", "--fit", "--policy", "compact"]).output().await.code, Some(2));

    // The whole window by a swap: refused, with both ways out.
    let (code, refused) = bench.json(&["reclaim", "--policy=window", "--mode=swap", "--yes"]).await;
    let error = &refused["error"];
    assert_eq!((code, &error["code"]), (3, &"space".into()), "{refused}");
    assert!(
        ["in-place", "--fit"].iter().all(|way| error["fix"].as_str().unwrap().contains(way)),
        "{refused}"
    );
    // Not even the shortest window: refused, and never in place instead.
    let shortest = if Schema::of_run() == Schema::A { 7 } else { 10 };
    claim(&bench, &[2], room * 2).await;
    let ran = bench.start(&["reclaim", "--fit", "--yes"]).output().await;
    assert_eq!((ran.code, bench.left().await), (Some(3), 360), "{ran:?}");
    let shortest = format!("the shortest window that may be kept ({shortest} days)");
    for words in [&shortest, "--mode in-place"] {
        assert!(ran.stderr.contains(words), "{ran:?}");
    }

    claim(&bench, &[2], room / 10 * 3).await;
    let (_, plan) = bench.json(&fit).await;
    let hash = plan["result"]["hash"].as_str().unwrap();
    // By the sizes that are claimed it gives nothing back.
    let line = ["reclaim", "--fit", "--apply", hash, "--yes", "--pace", "full"];
    let (code, done) = bench.json(&line).await;
    assert_eq!((code, bench.left().await), (0, 180), "{done}");
    assert_eq!(done["result"]["mode"], "swap");
}

#[tokio::test]
async fn what_is_set_wrongly_is_said_before_anything_is_touched() {
    let database = Database::new().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("opsward.toml");
    let text = "[tables.upload]\nkeep = \"90d\"\n[tables.uploads]\nkeep = \"1.5d\"\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let wrong = [
        (DAYS, "-1", "it is negative"),
        ("OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW", "01:00-01:00", "it ends when it begins"),
        ("OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES", "20", "it has no unit"),
        ("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "5GiB/s", "no unit of bytes"),
        ("OPENAUDIO_MEDIORUM_OPS_RECLAIM_POLICY", "half", "no such policy"),
        ("OPENAUDIO_MEDIORUM_OPS_RECLAIM_WHEN", "bloat>50", "no such condition"),
    ];
    let env: Vec<_> =
        wrong.iter().map(|(name, value, _)| ((*name).to_owned(), (*value).to_owned())).collect();
    for args in [&["reclaim", "--plan"][..], &["prune"], &["run"], &["reset", "--reference", "x"]] {
        let ran = started(&env, &[args, &["--config", file]].concat(), database.url()).output().await;
        assert_eq!(ran.code, Some(64), "{ran:?}");
        for (name, value, why) in wrong {
            let line = ran.stderr.lines().find(|l| l.contains(name)).unwrap_or_default();
            assert!(
                line.contains(value) && line.contains(why) && line.contains("allowed"),
                "{name}: {ran:?}"
            );
        }
        for words in ["tables.upload", "did you mean uploads?", "tables.uploads.keep", "number of days"] {
            assert!(ran.stderr.contains(words), "{words}: {ran:?}");
        }
    }
    let ran = started(&[(DAYS.to_owned(), "1.5".to_owned())], &["prune"], database.url()).output().await;
    assert!(ran.code == Some(64) && ran.stderr.contains("no whole number of days"), "{ran:?}");
    for usage in [
        &["--mode", "fast"][..],
        &["--policy", "half"],
        &["--pace", "0%"],
        &["--resume", "--abort"],
        &["--swap", "--plan"],
        &["--fit=yes"],
    ] {
        let ran = started(&[], &[&["reclaim"], usage].concat(), database.url()).output().await;
        assert_eq!(ran.code, Some(2), "{usage:?}: {ran:?}");
    }
    let touched = "SELECT to_regnamespace('opsward') IS NOT NULL";
    assert!(!database.client().await.query_one(touched, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn what_depends_on_the_log_is_named_for_each_mode() {
    let bench = Bench::new().await;
    bench.on_days(&[60, 2], 50).await;
    let refused = async |mode: &str| {
        let (code, refused) = bench.json(&["reclaim", "--policy=window", "--mode", mode, "--yes"]).await;
        assert_eq!((code, &refused["error"]["code"]), (3, &"dependents".into()), "{refused}");
        assert_eq!(bench.number("SELECT count(*) FROM opsward.reclaim").await, 0);
        let text = |key: &str| refused["error"][key].as_str().unwrap().to_owned();
        (text("text"), text("fix"))
    };
    bench.run("CREATE VIEW v AS SELECT ulid FROM ops; CREATE PUBLICATION p FOR TABLE ops").await;
    let (text, fix) = refused("swap").await;
    assert!(text.contains("view v") && text.contains("publication p") && fix.contains("in-place"), "{text}");
    bench
        .run(
            "CREATE TABLE theirs (u text REFERENCES ops ON DELETE CASCADE); CREATE TABLE child () INHERITS (ops);
             CREATE RULE kept AS ON DELETE TO ops DO INSTEAD NOTHING; CREATE POLICY mine ON ops",
        )
        .await;
    let (text, fix) = refused("swap").await;
    for words in ["theirs_u_fkey", "table child", "rule kept", "policy mine"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!fix.contains("in-place"), "it would be no way out: {fix}");
    let (text, _) = refused("in-place").await;
    for words in ["foreign key theirs_u_fkey of theirs", "rule kept", "table child"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let plan = bench.start(&["reclaim", "--plan", "--policy=window", "--mode=in-place"]).output().await;
    assert!(plan.code == Some(0) && plan.stdout.contains("In the way: rows of ops"), "{plan:?}");
    bench.run("DROP TABLE theirs, child; DROP RULE kept ON ops").await;
    let line = ["reclaim", "--policy=window", "--mode=in-place", "--yes", "--pace=full"];
    assert_eq!((bench.json(&line).await.0, bench.left().await), (0, 50));
}

/// Pauses all work once a reclaim has come to a phase. The command has looked
/// at the pace lately: it must look again.
async fn pause_in(bench: &Bench, phase: &str) {
    bench
        .run(&format!(
            "CREATE OR REPLACE FUNCTION stop_there() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 UPDATE opsward.pace SET paused_at = now(); PERFORM pg_sleep(0.3); RETURN NULL; END $$;
             DROP TRIGGER IF EXISTS stop_there ON opsward.reclaim;
             CREATE TRIGGER stop_there AFTER UPDATE ON opsward.reclaim FOR EACH ROW
                 WHEN (NEW.checkpoint ->> 'phase' = '{phase}') EXECUTE FUNCTION stop_there()"
        ))
        .await;
}

#[tokio::test]
async fn stopped_in_the_middle_it_says_where_it_is_and_both_ways_on() {
    for (mode, phase, is_undone) in [
        ("swap", "verify", false),
        ("in-place", "move", false),
        ("swap", "replay", true),
        ("in-place", "vacuum", true),
    ] {
        let bench = Bench::new().await;
        bench.on_days(&[60, 50, 2], 60).await;
        pause_in(&bench, phase).await;
        let line = ["reclaim", "--policy=window", "--mode", mode, "--yes", "--pace=full"];
        let running = bench.start(&line).spawn();
        bench.until(&format!("SELECT checkpoint ->> 'phase' = '{phase}' FROM opsward.reclaim UNION ALL SELECT false LIMIT 1")).await;
        running.signal("INT");
        let ran = running.ran().await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        for words in
            ["stopping at the next batch", "told to stop; `opsward reclaim --resume` goes on", "--abort"]
        {
            assert!(ran.stderr.contains(words), "{words}: {ran:?}");
        }
        bench
            .run("DROP TRIGGER stop_there ON opsward.reclaim; UPDATE opsward.pace SET paused_at = NULL")
            .await;

        let (_, status) = bench.json(&["status"]).await;
        let warnings = status["warnings"].as_array().unwrap();
        let warning = warnings.iter().find(|w| w["code"] == "reclaim_unfinished").unwrap();
        let text = warning["text"].as_str().unwrap();
        assert!(text.contains(&format!("mode {mode}")) && text.contains(phase), "{text}");
        let fix = warning["fix"].as_str().unwrap();
        assert!(fix.contains("--resume") && fix.contains("--abort"), "{fix}");
        let (code, refused) = bench.json(&line).await;
        assert_eq!((code, &refused["error"]["code"]), (3, &"unfinished".into()), "{refused}");

        let way = if is_undone { "--abort" } else { "--resume" };
        let ran = bench.start(&["reclaim", way]).output().await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let (said, left) = match (mode, is_undone) {
            (_, false) => ("the log took", 60),
            ("swap", true) => ("undone: the log is as it was", 180),
            (_, true) => ("what was deleted stays deleted", 60),
        };
        assert!(ran.stdout.contains(said) && bench.left().await == left, "{left}: {ran:?}");
        let left = "SELECT count(*) FROM opsward.reclaim";
        assert_eq!(bench.number(left).await, 0);
    }
}

/// An abort need not wait for what it aborts: that has the daemon's turn.
#[tokio::test]
async fn a_daemon_aborts_the_reclaim_that_it_is_at() {
    let bench = Bench::new().await;
    bench.on_days(&[60, 2], 60).await;
    let daemon = bench.daemon().await;
    assert_eq!(bench.json(&["pause"]).await.0, 0);
    let running = bench.start(&["reclaim", "--policy=window", "--mode=swap", "--yes"]).spawn();
    bench.until("SELECT count(*) = 1 FROM opsward.reclaim").await;
    let ran = bench.start(&["reclaim", "--abort"]).output().await;
    assert!(ran.code == Some(0) && ran.stdout.contains("undone: the log is as it was"), "{ran:?}");
    let ran = running.ran().await;
    assert!(ran.code == Some(1) && ran.stderr.contains("told to stop"), "{ran:?}");
    daemon.line(|l| l.contains("its abort was handed over")).await;
    assert_eq!((bench.left().await, bench.number("SELECT count(*) FROM opsward.reclaim").await), (120, 0));
}

const WHEN: &str = "OPENAUDIO_MEDIORUM_OPS_RECLAIM_WHEN";
/// Given back, as the history has it.
const GIVEN_BACK: &str =
    "SELECT count(*) FROM opsward.history WHERE task = 'reclaim' AND outcome = 'given back'";

/// A daemon that looks every 10 s whether a reclaim of all that is older than 30
/// days is due, which nothing else deletes.
async fn scheduled(dir: &tempfile::TempDir, when: &str) -> Bench {
    let file = dir.path().join("opsward.toml");
    let tables = ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"];
    std::fs::write(&file, tables.map(|t| format!("[tables.{t}]\nkeep = \"30d\"\n")).concat()).unwrap();
    let bench = Bench::new().await.with(DAYS, "0").with(WHEN, when);
    let bench = bench.with("OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL", "10s");
    bench.on_days(&[60, 50, 40, 2], 60).await;
    bench
}

impl Bench {
    async fn looking(&self, dir: &tempfile::TempDir) -> Daemon {
        let file = dir.path().join("opsward.toml");
        let daemon = self.start(&["run", "--config", file.to_str().unwrap()]).spawn();
        daemon.ready().await;
        daemon
    }
}

/// Waits until it has looked once more.
async fn looked(daemon: &Daemon) {
    let runs = async || {
        let text = metrics(daemon).await;
        let line = text.lines().find(|l| l.starts_with("opsward_task_runs_total{task=\"reclaim\"}"));
        line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let before = runs().await;
    while runs().await <= before {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_daemon_reclaims_when_it_is_due_and_once_a_week() {
    let dir = tempfile::tempdir().unwrap();
    let bloated = async {
        let bench = scheduled(&dir, "bloat>50%").await;
        let daemon = bench.looking(&dir).await;
        bench.until(&format!("SELECT ({GIVEN_BACK}) = 1")).await;
        assert_eq!(bench.left().await, 60);
        daemon.line(|l| l.contains("a reclaim is due")).await;
        // As due as before, and not a week later.
        bench.on_days(&[59, 49, 39], 60).await;
        let ago = |hours: u32| {
            format!(
                "UPDATE opsward.history SET ended_at = now() - interval '{hours} hours' WHERE table_name = '(disk)'"
            )
        };
        bench.run(&ago(7 * 24 - 1)).await;
        looked(&daemon).await;
        assert_eq!(bench.left().await, 240);
        bench.run(&ago(7 * 24 + 1)).await;
        bench.until(&format!("SELECT ({GIVEN_BACK}) = 2")).await;
        assert_eq!(bench.left().await, 60);
    };
    let full = async {
        let bench = scheduled(&dir, "free<4000TiB").await;
        let _daemon = bench.looking(&dir).await;
        bench.until(&format!("SELECT ({GIVEN_BACK}) = 1")).await;
        assert_eq!(bench.left().await, 60);
    };
    let not_due = async |when: &str| {
        let bench = scheduled(&dir, when).await;
        let daemon = bench.looking(&dir).await;
        looked(&daemon).await;
        assert_eq!((bench.left().await, bench.number(GIVEN_BACK).await), (240, 0), "{when}");
    };
    let closed = async {
        let minute = now_ms() / 60_000 % 1_440;
        let time = |m: u64| format!("{:02}:{:02}", m % 1_440 / 60, m % 60);
        let window = format!("{}-{}", time(minute + 720), time(minute + 780));
        let bench = scheduled(&dir, "bloat>50%").await.with("OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW", &window);
        let daemon = bench.looking(&dir).await;
        looked(&daemon).await;
        assert_eq!((bench.left().await, bench.number(GIVEN_BACK).await), (240, 0));
    };
    // The guards of the command.
    let hindered = async {
        let bench = scheduled(&dir, "bloat>50%").await;
        bench.run("CREATE VIEW v AS SELECT ulid FROM ops").await;
        let daemon = bench.looking(&dir).await;
        daemon.line(|l| l.contains("due, and is not done: a swap can't carry") && l.contains("view v")).await;
        assert_eq!((bench.left().await, bench.number(GIVEN_BACK).await), (240, 0));
    };
    tokio::join!(bloated, full, not_due("bloat>90%"), not_due("free<1MiB"), closed, hindered);
}

/// The server ends the reclaim's session in the middle, as it does with one that hangs on
/// a stalled machine: the reclaim takes the lease anew and goes on from its checkpoint.
#[tokio::test]
async fn a_reclaim_whose_session_was_ended_goes_on() {
    for (by_daemon, mode, at) in
        [(false, "swap", "copy"), (true, "swap", "copy"), (false, "in-place", "delete")]
    {
        let bench = Bench::new().await.with(BATCH, "100");
        bench.log(3_000, 60).await;
        assert_eq!(bench.json(&["census"]).await.0, 0);
        // Its first batch ends its session, once.
        let once = "CREATE SEQUENCE ends;
            CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF (NEW.checkpoint ->> 'done')::bigint > 0 AND NEW.checkpoint ->> 'phase' = 'PHASE'
                   AND nextval('ends') = 1 THEN
                    PERFORM pg_terminate_backend(pg_backend_pid());
                END IF; RETURN NEW; END $$;
            CREATE TRIGGER ends BEFORE INSERT OR UPDATE ON opsward.reclaim
                FOR EACH ROW EXECUTE FUNCTION ends()";
        bench.run(&once.replace("PHASE", at)).await;
        let daemon = if by_daemon { Some(bench.daemon().await) } else { None };
        let line = ["reclaim", "--policy", "window", "--mode", mode, "--yes", "--pace", "full"];
        let (code, done) = bench.json(&line).await;
        assert_eq!((code, &done["result"]["outcome"]), (0, &"done".into()), "{mode} {done}");
        assert_eq!(bench.left().await, 60, "{mode}");
        assert!(bench.number("SELECT last_value FROM ends").await > 1, "{mode}: it was not ended");
        drop(daemon);
    }
}

/// A long reclaim may lose its session often: only losses without a batch in between count.
#[tokio::test]
async fn a_reclaim_that_gets_further_after_each_loss_goes_on() {
    let bench = Bench::new().await.with(BATCH, "100");
    bench.log(3_000, 60).await;
    assert_eq!(bench.json(&["census"]).await.0, 0);
    // A batch is cut off, the lease is taken anew, a batch is done; and so on, 20 times.
    bench
        .run(
            "CREATE SEQUENCE ends;
             CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE n bigint; BEGIN
                 IF (NEW.checkpoint ->> 'done')::bigint > 0 AND NEW.checkpoint ->> 'phase' = 'delete' THEN
                     n := nextval('ends');
                     IF n < 60 AND n % 3 = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
                 END IF; RETURN NEW; END $$;
             CREATE TRIGGER ends BEFORE INSERT OR UPDATE ON opsward.reclaim
                 FOR EACH ROW EXECUTE FUNCTION ends()",
        )
        .await;
    let line = ["reclaim", "--policy", "window", "--mode", "in-place", "--yes", "--pace", "full"];
    let (code, done) = bench.json(&line).await;
    assert_eq!((code, &done["result"]["outcome"]), (0, &"done".into()), "{done}");
    assert_eq!(bench.left().await, 60);
    assert!(bench.number("SELECT last_value FROM ends").await >= 60, "it was ended too rarely");
}

/// So it goes on where only the swap's second session is ended: its lease is its own still.
#[tokio::test]
async fn a_reclaim_whose_second_session_was_ended_goes_on() {
    let bench = Bench::new().await.with(BATCH, "100");
    bench.log(3_000, 60).await;
    assert_eq!(bench.json(&["census"]).await.0, 0);
    // The first traces that are not left by the lease's session end theirs, once.
    bench
        .run(
            "CREATE SEQUENCE ends;
             CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
                    AND nextval('ends') = 1 THEN
                     PERFORM pg_terminate_backend(pg_backend_pid());
                 END IF; RETURN NULL; END $$;
             CREATE TRIGGER ends BEFORE INSERT ON opsward.traces FOR EACH STATEMENT EXECUTE FUNCTION ends()",
        )
        .await;
    let line = ["reclaim", "--policy", "window", "--mode", "swap", "--yes", "--pace", "full"];
    let (code, done) = bench.json(&line).await;
    assert_eq!((code, &done["result"]["outcome"]), (0, &"done".into()), "{done}");
    assert_eq!(bench.left().await, 60);
    assert!(bench.number("SELECT last_value FROM ends").await > 1, "it was not ended");
}
