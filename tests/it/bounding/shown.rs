//! What `plan` says is what `prune` does; history, status and metrics tell it.

use super::*;
use crate::harness::{Answer, Peer};

const A: &str = "https://a.example";

/// Rows by table that a plan would delete.
fn planned(envelope: &Value) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for task in envelope["result"]["tasks"].as_array().unwrap() {
        for delete in task["deletes"].as_array().unwrap() {
            let (table, rows) = (delete["table"].as_str().unwrap(), delete["rows"].as_u64().unwrap());
            if rows > 0 {
                sums.insert(table.to_owned(), rows.max(sums.get(table).copied().unwrap_or(0)));
            }
        }
    }
    sums
}

async fn told(bench: &Bench) -> BTreeMap<String, u64> {
    let (code, history) = bench.json(&["history"]).await;
    assert_eq!(code, 0, "{history}");
    let mut sums = BTreeMap::new();
    for entry in history["result"]["entries"].as_array().unwrap() {
        assert_eq!(entry["outcome"], "done");
        *sums.entry(entry["table"].as_str().unwrap().to_owned()).or_default() +=
            entry["rows"].as_u64().unwrap();
    }
    sums
}

/// The daemon's own work tells how far it is, and for how long it goes on, as a job does.
#[tokio::test]
async fn a_daemon_tells_how_far_its_own_work_is() {
    let bench = Bench::new().await.with(BATCH, "100");
    bench.log(6_000, 60).await;
    assert_eq!(bench.json(&["census"]).await.0, 0);
    bench.run("UPDATE opsward.pace SET percent = 2").await;
    let daemon = bench.daemon().await;
    let progress = async |name: &str| {
        let status = http::get(daemon.admin(), "/status", &[]).await.json();
        let tasks = status["result"]["daemon"]["tasks"].as_array().unwrap().clone();
        tasks
            .into_iter()
            .find(|task| task["name"] == name)
            .map_or(Value::Null, |task| task["progress"].clone())
    };
    let look = async {
        loop {
            let told = progress("retention").await;
            if told["eta_seconds"].is_u64() {
                return told;
            }
            assert!(bench.left().await > 60, "it ended before it told how far it was: {told}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let told = tokio::time::timeout(std::time::Duration::from_secs(150), look).await.expect("it tells");
    assert_eq!(
        (&told["phase"], &told["unit"], &told["total"]),
        (&"deleting (retention)".into(), &"rows".into(), &6_000.into())
    );
    assert!(told["done"].as_u64().unwrap() > 0, "{told}");
    let text =
        bench.start(&["status"]).env("OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN", daemon.admin().to_string());
    let text = text.output().await.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("retention: deleting (retention):") && text.contains("left"), "{text}");
    let page = http::get(daemon.admin(), "/", &[]).await.text();
    assert!(page.contains("<progress max=\"6000\"") && page.contains(" left"), "{page}");
    bench.run("UPDATE opsward.pace SET percent = 100").await;
    bench.until("SELECT count(*) = 60 FROM ops").await;
    while !progress("retention").await.is_null() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_the_plan_says_is_what_prune_does_and_everything_tells() {
    // By age; by a peer; by the file's word on single tables is by age too.
    for by in ["age", "peer"] {
        let mut bench = Bench::new().await;
        if by == "peer" {
            bench = Bench::of_peers().await.with(PEERS, A);
            bench.run(&format!("INSERT INTO cursors VALUES ('{A}', '{}')", ago(45 * DAY_MS))).await;
        }
        let made = bench.log(3_000, 300).await;
        // Between two days, so that the census has whole days on both sides.
        let cut = if by == "peer" { 45 * DAY_MS + 3_600_000 } else { 30 * DAY_MS };
        let limit = OpUlid::first_of_ms(now_ms() - cut);
        let (code, first) = bench.json(&["plan"]).await;
        assert_eq!(code, 0, "{first}");
        assert!(first["result"]["census"]["at"].is_string(), "a first look is taken: {first}");
        assert_eq!(bench.json(&["census"]).await.0, 0);
        let (_, plan) = bench.json(&["plan"]).await;
        let task = &plan["result"]["tasks"][0];
        assert_eq!(task["state"], "would_run", "{plan}");
        assert_eq!(task["deletes"][0]["bound_by"]["by"], by, "{plan}");

        let (code, pruned) = bench.json(&["prune"]).await;
        assert_eq!(code, 0, "{pruned}");
        let gone = deleted(&pruned);
        let expected = made.iter().filter(|op| op.ulid < limit).fold(BTreeMap::new(), |mut sums, op| {
            *sums.entry(op.table.to_owned()).or_default() += 1_u64;
            sums
        });
        let sum = |of: &BTreeMap<String, u64>| of.values().sum::<u64>();
        assert_eq!(told(&bench).await, gone);
        assert_eq!(bench.left().await as u64, 3_300 - sum(&gone));
        match by {
            "age" => assert_eq!((&planned(&plan), &gone), (&expected, &gone)),
            // Cut inside a day: its share is as of ops that come evenly.
            _ => {
                for (table, rows) in planned(&plan) {
                    let (rows, gone) = (rows as f64, gone[&table] as f64);
                    assert!((rows - gone).abs() <= gone * 0.1 + 5.0, "{table}: {rows} {gone}");
                }
            }
        }
        let (_, after) = bench.json(&["plan"]).await;
        assert_eq!(planned(&after), BTreeMap::new(), "{after}");
        let (_, again) = bench.json(&["prune"]).await;
        assert_eq!(sum(&deleted(&again)), if by == "age" { 0 } else { sum(&deleted(&again)).min(2) });
    }
}

#[tokio::test]
async fn a_daemon_tells_the_same() {
    let bench = Bench::new().await;
    bench.log(1_000, 100).await;
    let daemon = bench.daemon().await;
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!((code, deleted(&pruned).values().sum::<u64>()), (0, 1_000), "{pruned}");
    assert_eq!(pruned["changed"], true);
    assert_eq!(told(&bench).await, deleted(&pruned));
    let text = metrics(&daemon).await;
    for (table, rows) in deleted(&pruned) {
        let line = format!("opsward_rows_deleted_total{{table=\"{table}\",task=\"retention\"}} {rows}");
        assert!(text.contains(&line), "{line}: {text}");
    }
    let status = http::get(daemon.admin(), "/status", &[]).await.json();
    let runs = status["result"]["bounding"]["runs"].as_array().unwrap();
    let shown = runs.iter().map(|r| (r["table"].as_str().unwrap().to_owned(), r["rows"].as_u64().unwrap()));
    assert_eq!(shown.collect::<BTreeMap<_, _>>(), deleted(&pruned));
    let codes: Vec<&str> =
        status["warnings"].as_array().unwrap().iter().filter_map(|w| w["code"].as_str()).collect();
    assert!(codes.contains(&"no_replay_guard"), "{codes:?}");
}

#[tokio::test]
async fn read_only_shows_and_deletes_nothing() {
    let bench = Bench::new().await.with("OPENAUDIO_MEDIORUM_READ_ONLY", "true");
    bench.log(500, 50).await;
    assert_eq!(bench.json(&["census"]).await.0, 0);
    let (_, plan) = bench.json(&["plan"]).await;
    assert_eq!(plan["result"]["rows"], 500, "{plan}");
    assert_eq!(plan["result"]["tasks"][0]["blockers"][0]["code"], "read_only");
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!((code, bench.left().await), (0, 550), "{pruned}");
    assert_eq!(bench.json(&["prune", "--strict"]).await.0, 3);
}

#[tokio::test]
async fn what_blocks_is_told_everywhere_and_strict_says_so() {
    let bench = Bench::of_peers().await.with(PEERS, A);
    bench.log(500, 50).await;
    let (code, pruned) = bench.json(&["prune", "--strict"]).await;
    assert_eq!((code, bench.left().await), (3, 550), "{pruned}");
    assert_eq!(bench.json(&["prune"]).await.0, 0);
    let blocker = &pruned["result"]["tasks"][1]["decision"]["blockers"][0];
    assert_eq!(
        (&blocker["code"], &blocker["subject"]),
        (&"peer_without_cursor".into(), &A.into()),
        "{pruned}"
    );
    let (_, plan) = bench.json(&["plan"]).await;
    assert_eq!(plan["result"]["tasks"][0]["state"], "blocked");
    let (_, status) = bench.json(&["status"]).await;
    let warning = status["warnings"].as_array().unwrap().iter().find(|w| w["code"] == "blocked").cloned();
    assert!(warning.is_some_and(|w| w["text"].as_str().unwrap().contains(A)), "{status}");
    let doctor = bench.start(&["doctor"]).output().await.stdout;
    assert!(doctor.contains("WARN  retention") && doctor.contains("WARN  replay_guard"), "{doctor}");
    // What is off is blocked by nothing: cleanup that lacks a census, say.
    let warned = |status: &Value| -> Vec<String> {
        let all = status["warnings"].as_array().unwrap().iter().filter(|w| w["code"] == "blocked");
        all.map(|w| w["text"].as_str().unwrap().to_owned()).collect()
    };
    let off = bench.with(DAYS, "0");
    assert_eq!(off.json(&["prune"]).await.0, 0);
    assert_eq!(warned(&off.json(&["status"]).await.1), Vec::<String>::new());
    let bench = off.with(DAYS, "30");
    bench.run("TRUNCATE opsward.census, opsward.census_pass").await;
    let bench = bench.with("OPENAUDIO_MEDIORUM_OPS_CENSUS", "false");
    assert_eq!(bench.json(&["prune"]).await.0, 0);
    let all = warned(&bench.json(&["status"]).await.1);
    assert!(all.len() == 1 && all[0].contains(A), "{all:?}");
    // The operator's way out; then the same command deletes.
    let bench = bench.with("OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS", A);
    let (code, pruned) = bench.json(&["prune", "--strict"]).await;
    assert_eq!((code, bench.left().await), (0, 50));
    // It is shown wherever the decision is.
    let notice = &pruned["result"]["tasks"][1]["notices"][0];
    assert_eq!((&notice["code"], &notice["subject"]), (&"ignored_peer".into(), &A.into()), "{pruned}");
    assert_eq!(pruned["result"]["tasks"][0]["notices"], Value::Null, "what is off decides nothing");
    let text = bench.start(&["prune"]).output().await.stdout;
    assert!(text.contains("OPS_RETENTION_IGNORE_PEERS"), "{text}");
    let (_, status) = bench.json(&["status"]).await;
    let told = status["warnings"].as_array().unwrap().iter().find(|w| w["code"] == "ignored_peer").cloned();
    assert!(told.is_some_and(|w| w["text"].as_str().unwrap().contains(A)), "{status}");
    assert_eq!(status["result"]["bounding"]["notices"][0]["subject"], A);
    assert_eq!(warned(&status), Vec::<String>::new());
}

/// The setting alone guards nothing; what is on the log does.
#[tokio::test]
async fn the_guard_is_what_is_on_the_log() {
    let bench = Bench::new()
        .await
        .with("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
        .with("OPENAUDIO_MEDIORUM_READ_ONLY", "true");
    let told = async || {
        let (_, plan) = bench.json(&["plan"]).await;
        let (_, status) = bench.json(&["status"]).await;
        let of = |list: &Value| list.as_array().unwrap().iter().any(|n| n["code"] == "no_replay_guard");
        (of(&plan["result"]["notices"]), of(&status["warnings"]))
    };
    assert_eq!(told().await, (true, true));
    bench.run(opsward::db::guard::CREATE).await;
    assert_eq!(told().await, (false, false));
    // Nobody but who watches the gate looks at it while nothing may be written.
    let daemon = bench.daemon().await;
    let seen = async { while !metrics(&daemon).await.contains("opsward_guard_in_place 1") {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), seen).await.unwrap();
}

#[tokio::test]
async fn clocks_that_jump_block() {
    let mut peers = Vec::new();
    for _ in 0..3 {
        let page = |_: &_| Answer::page(&["Date: Mon, 15 Jun 2026 12:10:00 GMT"], "[]");
        peers.push(Peer::serving(page).await);
    }
    let urls: Vec<String> = peers.iter().map(Peer::url).collect();
    let bench = Bench::of_peers().await.with(PEERS, &urls.join(","));
    bench.log(200, 20).await;
    for url in &urls {
        bench.run(&format!("INSERT INTO cursors VALUES ('{url}', '{}')", ago(DAY_MS))).await;
        assert_eq!(bench.json(&["sweep", "--peer", url]).await.0, 0);
    }
    let codes = |pruned: &Value| -> Vec<String> {
        let blockers = pruned["result"]["tasks"][1]["decision"]["blockers"].as_array().cloned();
        blockers.unwrap_or_default().iter().map(|b| b["code"].as_str().unwrap().to_owned()).collect()
    };
    let (code, pruned) = bench.json(&["prune", "--strict"]).await;
    assert_eq!(
        (code, codes(&pruned), bench.left().await),
        (3, vec!["clock_off".to_owned()], 220),
        "{pruned}"
    );
    bench.run("UPDATE opsward.pulls SET clock_offset_ms = 0").await;
    let ahead = OpUlid::from_parts(now_ms() + 2 * 3_600_000, 1);
    bench
        .run(&format!(
            "INSERT INTO ops VALUES ('{ahead}', '{SELF}', 'create', 'uploads', '[{{\"id\":\"x\"}}]')"
        ))
        .await;
    let (code, pruned) = bench.json(&["prune", "--strict"]).await;
    assert_eq!((code, codes(&pruned)), (3, vec!["own_op_ahead".to_owned()]), "{pruned}");
    bench.run(&format!("DELETE FROM ops WHERE ulid = '{ahead}'")).await;
    assert_eq!(bench.json(&["prune", "--strict"]).await.0, 0);
    assert_eq!(bench.left().await, 20);
}

#[tokio::test]
async fn dormant_tables_are_cleaned_up_and_one_that_wakes_keeps_the_rest() {
    let bench = Bench::new().await.with(DAYS, "0").with("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", "true");
    let mut made = Ops::new(3).starting_at(now_ms() - 200 * DAY_MS).every(60_000).take(2_000);
    made.extend(Ops::new(4).starting_at(now_ms() - 3_600_000).take(1).into_iter().map(|mut op| {
        op.table = "uploads";
        op
    }));
    ops::insert(&bench.client, &made).await;
    let of = |table: &str| made.iter().filter(|op| op.table == table).count() as u64;
    // An old snapshot is in nobody's way.
    let snapshot = bench.database.old_snapshot().await;
    // One wakes up between the decision and the end: at its first delete.
    bench
        .run(&format!(
            "CREATE FUNCTION wake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO ops VALUES ('{}', 'h', 'create', 'audio_previews', '[{{\"cid\":\"new\"}}]')
                 ON CONFLICT DO NOTHING; RETURN NULL; END $$;
             CREATE TRIGGER wake AFTER DELETE ON ops FOR EACH STATEMENT EXECUTE FUNCTION wake()",
            ago(60_000)
        ))
        .await;
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!(code, 0, "{pruned}");
    let gone = deleted(&pruned);
    assert_eq!(gone.get("uploads"), None, "a single recent op protects");
    assert_eq!(gone["storage_and_db_sizes"], of("storage_and_db_sizes"));
    let woken = bench.number(
        "SELECT count(*) FROM ops WHERE \"table\" = 'audio_previews' AND data @> '[{\"cid\":\"new\"}]'",
    );
    assert_eq!(woken.await, 1, "what arrives meanwhile stays");
    assert_eq!(snapshot.query_one("SELECT count(*) FROM ops", &[]).await.unwrap().get::<_, i64>(0), 2_001);
}

/// However it came to the log after it was counted, and however much came since.
#[tokio::test]
async fn a_recent_op_that_nobody_counted_protects_its_table() {
    let bench = Bench::new().await.with(DAYS, "0").with("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", "true");
    let made = Ops::new(3).starting_at(now_ms() - 200 * DAY_MS).every(60_000).take(2_000);
    ops::insert(&bench.client, &made).await;
    let of = |table: &str| made.iter().filter(|op| op.table == table).count() as u64;
    assert_eq!(bench.json(&["census", "--full"]).await.0, 0);
    // As a node writes what it was late to pull.
    let late = OpUlid::from_parts(now_ms() - 20 * DAY_MS, 1);
    bench
        .run(&format!(
            "INSERT INTO ops VALUES ('{late}', 'h', 'create', 'audio_previews', '[{{\"cid\":\"late\"}}]');
             INSERT INTO ops SELECT overlay('{}' PLACING to_char(n, 'FM000000') FROM 21), 'h', 'create', 'uploads', '[]'
             FROM generate_series(1, 21000) n",
            ago(4 * DAY_MS)
        ))
        .await;
    let (code, pruned) = bench.json(&["prune"]).await;
    assert_eq!(code, 0, "{pruned}");
    let gone = deleted(&pruned);
    assert_eq!((gone.get("audio_previews"), gone.get("uploads")), (None, None), "{pruned}");
    assert_eq!(gone["storage_and_db_sizes"], of("storage_and_db_sizes"));
    let dormant = &pruned["result"]["tasks"][0]["deleted"];
    let active: Vec<&str> =
        dormant["active"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert!(active.contains(&"audio_previews") && active.contains(&"uploads"), "{dormant}");
    // It is counted now, and not looked for again; nor is what is empty.
    let (_, again) = bench.json(&["prune"]).await;
    let dormant = &again["result"]["tasks"][0];
    assert_eq!((&dormant["decision"]["cuts"], &dormant["deleted"]), (&serde_json::json!([]), &Value::Null));
}

#[tokio::test]
async fn an_old_census_cleans_nothing_up() {
    let bench = Bench::new()
        .await
        .with(DAYS, "0")
        .with("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", "true")
        .with("OPENAUDIO_MEDIORUM_OPS_CENSUS", "false");
    let made = Ops::new(3).starting_at(now_ms() - 200 * DAY_MS).every(60_000).take(500);
    ops::insert(&bench.client, &made).await;
    assert_eq!(bench.json(&["census"]).await.0, 0);
    bench.run("UPDATE opsward.census_pass SET last_finished_at = now() - interval '3 hours'").await;
    let (code, pruned) = bench.json(&["prune", "--strict"]).await;
    assert_eq!((code, bench.left().await), (3, 500), "{pruned}");
    let blockers = &pruned["result"]["tasks"][0]["decision"]["blockers"];
    assert_eq!(blockers[0]["code"], "census_old", "{pruned}");
    assert_eq!(bench.json(&["census"]).await.0, 0);
    assert_eq!(bench.json(&["prune", "--strict"]).await.0, 0);
    assert_eq!(bench.left().await, 0);
}

#[tokio::test]
async fn forty_peers_are_at_most_400_series_each_with_help() {
    let answers = [
        Answer::json("[]"),
        Answer::new(503, &[], b"no"),
        Answer::json("{"),
        Answer::new(404, &[], b""),
        Answer::json(r#"[{"ulid":"no","host":"h","action":"create","table":"uploads","data":[]}]"#),
    ];
    let mut peers = Vec::new();
    for n in 0..40 {
        // All that a peer may say, from another one on for each.
        let answers = answers.clone();
        let asked = std::sync::atomic::AtomicUsize::new(n);
        peers.push(
            Peer::serving(move |_| {
                let n = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                answers[n % answers.len()].clone()
            })
            .await,
        );
    }
    let urls: Vec<String> = peers.iter().map(Peer::url).collect();
    let bench = Bench::of_peers()
        .await
        .with(PEERS, &urls.join(","))
        .with("OPENAUDIO_MEDIORUM_SWEEP_INTERVAL", "10s")
        .with("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", "true")
        .with("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX", "true")
        .with("OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL", "10s");
    bench.log(400, 40).await;
    let hosts = urls.iter().map(|u| format!("('{u}')")).collect::<Vec<_>>().join(",");
    bench
        .run(&format!(
            "CREATE TEMP TABLE h AS SELECT * FROM (VALUES {hosts}) v(host);
             INSERT INTO cursors SELECT host, '{0}' FROM h;
             INSERT INTO opsward.readers SELECT host, date_trunc('hour', now()), '{0}', '{0}', 1, now() FROM h",
            ago(DAY_MS)
        ))
        .await;
    let daemon = bench.daemon().await;
    for peer in &peers {
        peer.asked(2).await;
    }
    let text = metrics(&daemon).await;
    let samples: Vec<&str> =
        text.lines().filter(|l| !l.starts_with('#') && !l.starts_with("process_")).collect();
    let of = |name: &str| samples.iter().filter(|l| l.starts_with(name)).count();
    let pulled = of("opsward_sweeps_pulled_total{");
    for by_peer in
        ["opsward_cursor_lag_seconds{", "opsward_reader_lag_seconds{", "opsward_reader_gap_seconds{"]
    {
        println!("{by_peer} {}", of(by_peer));
    }
    // In time every peer has had each of the three outcomes.
    let in_time = samples.len() - pulled + 3 * 40;
    println!("{} series at 40 peers, {in_time} in time", samples.len());
    assert!(pulled >= 40 && in_time <= 400, "{in_time} series: {text}");
    for line in &samples {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
        assert!(
            text.contains(&format!("# HELP {family} ")) || text.contains(&format!("# HELP {name} ")),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_plan_names_what_is_in_the_way_once() {
    for (retention, dormant) in [("30", "true"), ("30", "false"), ("0", "true"), ("0", "false")] {
        let bench = Bench::new()
            .await
            .with(DAYS, retention)
            .with("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", dormant)
            .with("OPENAUDIO_ARCHIVE", "true");
        let text = bench.start(&["plan"]).output().await.stdout;
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(flat.matches("OPENAUDIO_MEDIORUM_OPS_DELETE_ARCHIVED").count(), 1, "{text}");
        let is_off = flat.matches("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP=true").count() == 1;
        assert_eq!(is_off, dormant == "false", "{text}");
    }
}
