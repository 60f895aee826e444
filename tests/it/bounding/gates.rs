//! The gate as an operator sees it: what bounds, what blocks, what lifts it.

use super::*;

const A: &str = "https://a.example";
const B: &str = "https://b.example";
const HOUR_MS: u64 = 3_600_000;
const LAG: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_MAX_PEER_LAG";
const IGNORE: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS";
const HOLD: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_READER_HOLD";
const BYTES: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES";

/// A log with fifty ops on each of these days ago, and how to ask about it.
struct Gate(Bench);

impl Gate {
    const OF: [u64; 8] = [60, 50, 40, 25, 20, 10, 8, 2];

    async fn new() -> Self {
        let bench = Bench::of_peers().await.with(PEERS, &format!("{A},{B}"));
        bench.on_days(&Self::OF, 50).await;
        Self(bench)
    }

    /// The node's row of a peer, and no other.
    async fn cursor(&self, host: &str, behind_ms: u64) {
        let ulid = ago(behind_ms);
        let sql = format!(
            "DELETE FROM cursors WHERE host = '{host}'; INSERT INTO cursors VALUES ('{host}', '{ulid}')"
        );
        self.0.run(&sql).await;
    }

    /// A peer that asked us, an hour ago.
    async fn reader(&self, host: &str, after_ms: u64) {
        self.0
            .run(&format!(
                "DELETE FROM opsward.readers WHERE host = '{host}';
                 INSERT INTO opsward.readers VALUES ('{host}', date_trunc('hour', now()), '{0}', '{0}', 1,
                     now() - interval '1 hour')",
                ago(after_ms)
            ))
            .await;
    }

    async fn plan(&self, env: &[(&str, &str)]) -> Value {
        let start = env.iter().fold(self.0.start(&["plan"]), |start, (name, value)| start.env(name, *value));
        let (code, plan) = start.json().await;
        assert_eq!(code, 0, "{plan}");
        plan["result"].clone()
    }

    /// How old the newest op is that goes, in hours, by whom; and what is noted.
    async fn bound(&self, env: &[(&str, &str)]) -> (u64, String, Vec<String>) {
        let plan = self.plan(env).await;
        let retention = &plan["tasks"][0];
        assert_eq!(retention["state"], "would_run", "{plan}");
        let delete = &retention["deletes"][0];
        let below = OpUlid::parse(delete["below"].as_str().unwrap()).unwrap();
        let by = &delete["bound_by"];
        let host = by["host"].as_str().map_or(String::new(), |host| format!(" {host}"));
        // A minute, lest a plan that takes its time is an hour off.
        let hours = (now_ms() + 60_000 - below.ms()) / HOUR_MS;
        let ours = ["no_replay_guard", "no_readers", "routing_unknown", "reclaim"];
        let codes = plan["notices"].as_array().unwrap().iter().filter_map(|n| n["code"].as_str());
        let codes = codes.filter(|code| !ours.contains(code)).map(str::to_owned).collect();
        (hours, format!("{}{host}", by["by"].as_str().unwrap()), codes)
    }

    /// What stands in the way, each with whom it is about.
    async fn blocked(&self, env: &[(&str, &str)]) -> Vec<String> {
        let plan = self.plan(env).await;
        assert_eq!(plan["tasks"][0]["state"], "blocked", "{plan}");
        let blockers = plan["tasks"][0]["blockers"].as_array().unwrap();
        blockers
            .iter()
            .map(|b| format!("{} {}", b["code"].as_str().unwrap(), b["subject"].as_str().unwrap()))
            .collect()
    }
}

fn bound(hours: u64, by: &str, notes: &[&str]) -> (u64, String, Vec<String>) {
    (hours, by.to_owned(), notes.iter().map(|n| (*n).to_owned()).collect())
}

#[tokio::test]
async fn what_blocks_and_what_lifts_it() {
    let gate = Gate::new().await;
    // Of no peer: not even of this node, however it is spelled.
    gate.0
        .run(&format!(
            "INSERT INTO cursors VALUES ('qm_fix_truncated', 'baeaaaiqse'), ('core_mediorum_blocks', '4711'),
                 ('https://gone.example', '{0}'), ('HTTPS://Me.Example/', '{0}'), ('{SELF}', '')",
            ago(300 * DAY_MS)
        ))
        .await;
    assert_eq!(gate.blocked(&[(PEERS, "")]).await, ["peers_unknown "]);
    let ran = gate.0.start(&["plan"]).env(PEERS, "").output().await;
    assert!(ran.stdout.contains("never found") && ran.stdout.contains("OPENAUDIO_MEDIORUM_PEERS"), "{ran:?}");
    let ran = gate.0.start(&["prune", "--strict"]).env(PEERS, "").output().await;
    assert_eq!((ran.code, gate.0.left().await), (Some(3), 400), "{ran:?}");
    assert!(ran.stdout.contains("retention: skipped: the set of peers was never found"), "{ran:?}");

    let without = |host: &str| format!("peer_without_cursor {host}");
    assert_eq!(gate.blocked(&[]).await, [without(A), without(B)]);
    gate.cursor(A, HOUR_MS).await;
    // Since when, as the last tick noted it.
    assert_eq!(gate.0.json(&["prune"]).await.0, 0);
    gate.0.run("UPDATE opsward.blockers SET since = '2026-02-03T04:05:06Z'").await;
    let plan = gate.plan(&[]).await;
    let blocker = &plan["tasks"][0]["blockers"][0];
    assert_eq!((&blocker["subject"], &blocker["since"]), (&B.into(), &"2026-02-03T04:05:06Z".into()));
    let text = gate.0.start(&["plan"]).output().await.stdout;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["active peer https://b.example (since 2026-02-03T04:05:06Z)", IGNORE, LAG] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // What nobody saw for long may be gone, and is not shown.
    let shown =
        async || gate.0.json(&["status"]).await.1["result"]["bounding"]["blockers"].as_array().unwrap().len();
    assert_eq!(shown().await, 1);
    gate.0.run("UPDATE opsward.blockers SET seen_at = now() - interval '61 minutes'").await;
    assert_eq!(shown().await, 0);
    let ignored = gate.bound(&[(IGNORE, "HTTPS://B.example/")]).await;
    assert_eq!(ignored, bound(720, "age", &["ignored_peer"]));
    // A peer without a cursor is behind since it was first seen.
    assert_eq!(gate.blocked(&[(LAG, "960h")]).await, [without(B)]);
    gate.0
        .run(&format!(
            "INSERT INTO opsward.peers VALUES ('{B}', '', true, now() - interval '41 days', now())"
        ))
        .await;
    assert_eq!(gate.bound(&[(LAG, "960h")]).await, bound(720, "age", &["lagging_peer"]));

    gate.cursor(B, 45 * DAY_MS).await;
    assert_eq!(gate.bound(&[]).await, bound(45 * 24 + 1, &format!("peer {B}"), &[]));
    assert_eq!(gate.bound(&[(LAG, "1104h")]).await.1, format!("peer {B}"));
    assert_eq!(gate.bound(&[(LAG, "960h")]).await, bound(720, "age", &["lagging_peer"]));
    let text = gate.0.start(&["plan"]).env(LAG, "960h").output().await.stdout;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(&format!("note: {B} is 1080 h behind and holds nothing: {LAG}")), "{text}");

    let (code, pruned) = gate.0.json(&["prune", "--strict"]).await;
    let cut = &pruned["result"]["tasks"][1]["decision"]["cuts"][0];
    assert_eq!((code, &cut["bound_by"]["host"]), (0, &B.into()), "{pruned}");
    assert_eq!(gate.0.left().await, 300);
    let ran = gate.0.start(&["prune"]).env(LAG, "960h").output().await;
    assert_eq!((ran.code, gate.0.left().await), (Some(0), 250), "{ran:?}");
    assert!(ran.stdout.contains("(bound by age)"), "{ran:?}");
}

#[tokio::test]
async fn readers_hold_and_a_size_shortens() {
    let gate = Gate::new().await;
    gate.cursor(A, HOUR_MS).await;
    gate.cursor(B, HOUR_MS).await;
    gate.reader(A, 40 * DAY_MS).await;
    gate.reader("https://stranger.example", 59 * DAY_MS).await;
    let by_a = format!("reader {A}");
    assert_eq!(gate.bound(&[]).await, bound(40 * 24, &by_a, &[]));
    let text = gate.0.start(&["plan"]).output().await.stdout;
    assert!(text.contains(&format!("bound by {by_a}")), "{text}");
    // Never longer than the hold beyond the window.
    assert_eq!(gate.bound(&[(HOLD, "120h")]).await, bound(35 * 24, &by_a, &[]));
    assert_eq!(gate.bound(&[(HOLD, "0")]).await, bound(720, "age", &[]));
    assert_eq!(gate.bound(&[(IGNORE, A)]).await, bound(720, "age", &["ignored_peer", "ignored_reader"]));

    // A GiB on each day, as the census says, but on what it counts again: four
    // are more than the newest of 24 days have.
    gate.0
        .run(
            "UPDATE opsward.census c SET bytes =
                 (1 << 30) / (SELECT count(*) FROM opsward.census d WHERE d.day = c.day)
             WHERE day < current_date - 5",
        )
        .await;
    let hold = (HOLD, "0");
    let midnight = (now_ms() / HOUR_MS) % 24;
    let sized = gate.bound(&[hold, (DAYS, "0"), (BYTES, "3.5GiB")]).await;
    assert_eq!(sized, bound(24 * 24 + midnight, "size", &[]));
    assert_eq!(gate.bound(&[hold, (BYTES, "3.5GiB")]).await.1, "size");
    assert_eq!(gate.bound(&[hold, (BYTES, "6.5GiB")]).await, bound(720, "age", &[]), "30 days are shorter");
    let least = gate.bound(&[hold, (BYTES, "1KiB")]).await;
    assert_eq!(least, bound(7 * 24, "size", &["size_not_reached"]), "never below 7 days");
    assert_eq!(gate.bound(&[(BYTES, "3.5GiB")]).await.1, by_a, "never past what readers hold");
    gate.cursor(B, 55 * DAY_MS).await;
    assert_eq!(gate.bound(&[hold, (BYTES, "1KiB")]).await.1, format!("peer {B}"), "never past the gate");

    gate.cursor(B, HOUR_MS).await;
    let start = [hold, (DAYS, "0"), (BYTES, "3.5GiB")].into_iter();
    let start = start.fold(gate.0.start(&["prune"]), |start, (name, value)| start.env(name, value));
    let ran = start.output().await;
    assert_eq!((ran.code, gate.0.left().await), (Some(0), 200), "{ran:?}");
    assert!(ran.stdout.contains("(bound by size)"), "{ran:?}");
}

#[tokio::test]
async fn a_peer_that_was_removed_says_how_to_let_it_go() {
    let gate = Gate::new().await;
    gate.cursor(A, HOUR_MS).await;
    gate.cursor(B, 40 * DAY_MS).await;
    gate.0
        .run(&format!(
            "INSERT INTO opsward.peers (host, wallet, active, first_seen, last_seen)
             VALUES ('{B}', '', false, now() - interval '90 days', now() - interval '1 day')"
        ))
        .await;
    let (_, by, noted) = gate.bound(&[(PEERS, A)]).await;
    assert_eq!((by, noted), (format!("peer {B}"), vec!["peer_removed".to_owned()]));
    assert_eq!(gate.bound(&[(PEERS, A), (IGNORE, B)]).await, bound(720, "age", &["ignored_peer"]));
    // Status tells the same once a tick has noted it.
    assert_eq!(gate.0.start(&["prune"]).env(PEERS, A).json().await.0, 0);
    let text = gate.0.start(&["status"]).env(PEERS, A).output().await.stdout;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("no longer peers") && text.contains(IGNORE), "{text}");
}

#[tokio::test]
async fn a_second_spelling_and_an_own_op_ahead_are_named() {
    let gate = Gate::new().await;
    let second = "HTTPS://B.example/";
    for (host, behind_ms) in [(A, HOUR_MS), (B, HOUR_MS), (second, 45 * DAY_MS)] {
        gate.cursor(host, behind_ms).await;
    }
    let found = async |code: &str| {
        assert_eq!(gate.0.json(&["prune"]).await.0, 0);
        let plan = gate.plan(&[]).await;
        let all = [&plan["notices"], &plan["tasks"][0]["blockers"]].map(|of| of.as_array().unwrap());
        let said = all.into_iter().flatten().find(|of| of["code"] == code).cloned();
        let said = said.unwrap_or_else(|| panic!("{code}: {plan}"));
        let status = gate.0.json(&["status"]).await.1;
        let warned = status["warnings"].as_array().unwrap();
        let text = said["text"].as_str().unwrap();
        let same = |of: &&Value| of["text"].as_str().unwrap().contains(text) && of["fix"] == said["fix"];
        assert!(warned.iter().any(|of| same(&of)), "{said}: {status}");
        for command in ["plan", "status"] {
            let shown = gate.0.start(&[command]).output().await.stdout;
            let shown = shown.split_whitespace().collect::<String>();
            for words in [text, said["fix"].as_str().unwrap()] {
                assert!(shown.contains(&words.split_whitespace().collect::<String>()), "{words}: {shown}");
            }
        }
        (said["subject"].clone(), format!("{text}; {}", said["fix"].as_str().unwrap()))
    };
    assert_eq!(gate.bound(&[]).await, bound(720, "age", &["cursor_spelling"]));
    let (subject, said) = found("cursor_spelling").await;
    assert_eq!(subject, second);
    let rows = format!("the row {second} of cursors is ignored: {B} is the same host and counts");
    let delete = format!("DELETE FROM cursors WHERE host = '{second}'");
    assert!(said.contains(&rows) && said.contains(&delete), "{said}");
    // As told.
    gate.0.run(&delete).await;
    let plan = gate.plan(&[]).await;
    assert!(!plan["notices"].to_string().contains("cursor_spelling"), "{plan}");

    // 20 h ahead: it blocks for 19.
    let ahead = OpUlid::from_parts(now_ms() / 1_000 * 1_000 + 20 * HOUR_MS, 1);
    gate.0.run(&format!("INSERT INTO ops VALUES ('{ahead}', '{SELF}', 'create', 'uploads', '[]')")).await;
    assert_eq!(gate.blocked(&[]).await, ["own_op_ahead "]);
    let (_, said) = found("own_op_ahead").await;
    let at = |ms: u64| format!("{:.0}", opsward::values::timestamp(ms));
    let of = format!("op {ahead} of this host is of {}", at(ahead.ms()));
    let until = format!("nothing is deleted until {}", at(ahead.ms() - HOUR_MS));
    assert!(said.contains(&of) && said.contains(&until), "{said}");
}

/// Others' rows hang on the log's, or others' rules: nothing is deleted, and it is said why.
#[tokio::test]
async fn nothing_goes_where_more_than_the_log_would_change() {
    let gate = Gate::new().await;
    gate.cursor(A, HOUR_MS).await;
    gate.cursor(B, HOUR_MS).await;
    for (make, drop, word) in [
        (
            "CREATE TABLE archive () INHERITS (ops); INSERT INTO archive SELECT * FROM ops LIMIT 10",
            "DROP TABLE archive",
            "table archive",
        ),
        (
            "CREATE TABLE notes (u text REFERENCES ops (ulid) ON DELETE CASCADE); INSERT INTO notes SELECT ulid FROM ops",
            "DROP TABLE notes",
            "foreign key notes_u_fkey",
        ),
        ("CREATE RULE keep AS ON DELETE TO ops DO INSTEAD NOTHING", "DROP RULE keep ON ops", "rule keep"),
        (
            "CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER veto BEFORE DELETE ON ops FOR EACH ROW EXECUTE FUNCTION veto()",
            "DROP TRIGGER veto ON ops",
            "trigger veto",
        ),
    ] {
        gate.0.run(make).await;
        let all = gate.0.number("SELECT count(*) FROM ops").await;
        let plan = gate.plan(&[]).await;
        assert_eq!(plan["tasks"][0]["state"], "blocked", "{plan}");
        assert!(plan["tasks"][0]["blockers"].to_string().contains(word), "{plan}");
        let (_, pruned) = gate.0.json(&["prune"]).await;
        assert!(pruned.to_string().contains(word), "{pruned}");
        assert_eq!(gate.0.number("SELECT count(*) FROM ops").await, all, "{make}");
        gate.0.run(drop).await;
    }
    let all = gate.0.number("SELECT count(*) FROM ops").await;
    let (code, pruned) = gate.0.json(&["prune"]).await;
    assert_eq!(code, 0, "{pruned}");
    assert!(gate.0.number("SELECT count(*) FROM ops").await < all);
}
