//! Contract 5: the gate of a node whose ops come from peers, from rows in a
//! database to cuts or reasons.

use crate::harness::daemon::Start;
use crate::harness::peer::{Answer, Peer};
use crate::harness::{Database, Schema, ops};
use crate::puller::{host, puller_with};
use jiff::{Timestamp, ToSpan};
use opsward::bound::decide::{self, Decision, Facts};
use opsward::bound::facts;
use opsward::clock::Clock;
use opsward::db::{Db, gate, peers};
use opsward::metrics::Metrics;
use opsward::settings::{self, Settings, Source};
use opsward::values::{BoundBy, Host, OpUlid, PeerSet, PeerSource};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const SELF: &str = "https://me.example";
const A: &str = "https://a.example";
const B: &str = "https://b.example";
const DAYS: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS";
const PEERS: &str = "OPENAUDIO_MEDIORUM_PEERS";
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// A time that every test shares: no test asks the wall.
fn now() -> Timestamp {
    "2026-06-15T12:00:00Z".parse().unwrap()
}

fn ago(ms: u64) -> String {
    OpUlid::first_of_ms(u64::try_from(now().as_millisecond()).unwrap() - ms).to_string()
}

fn settings(env: &[(&str, &str)]) -> Settings {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    let source = Source { env, ..Source::process() };
    let mut settings = settings::load(&source).unwrap().settings;
    settings.node_endpoint = Host::parse(SELF);
    settings
}

struct Bench {
    /// Gone with it.
    database: Database,
    db: Db,
    client: Client,
}

impl Bench {
    async fn new() -> Self {
        let database = Database::of(Schema::A).await;
        let (db, client) = (database.migrated().await, database.client().await);
        Self { database, db, client }
    }

    /// A discovered set, seen at a time.
    async fn peers(&self, hosts: &[&str], at: Timestamp) {
        let of = |host: &&str| opsward::values::Peer { host: Host::normalise(host), wallet: String::new() };
        let set = PeerSet::new(PeerSource::Discovered, hosts.iter().map(of).collect(), None);
        peers::replace(&mut self.db.client().await.unwrap(), &set, "", at).await.unwrap();
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn node(&self, host: &str, ulid: &str) {
        self.run(&format!(
            "INSERT INTO cursors VALUES ('{host}', '{ulid}') ON CONFLICT (host) DO UPDATE SET last_ulid = '{ulid}'"
        ))
        .await;
    }

    async fn own(&self, host: &str, ulid: &str) {
        self.run(&format!("INSERT INTO opsward.cursors VALUES ('{host}', '{ulid}', '{ulid}', now())")).await;
    }

    async fn facts(&self, env: &[(&str, &str)], at: Timestamp) -> Facts {
        let client = self.db.client().await.unwrap();
        facts::gather(&client, &settings(env), &Host::normalise(SELF), at).await.unwrap()
    }

    /// The cut of uploads, in milliseconds before now, and what bounds it; or
    /// the reasons, code and subject.
    async fn decided(&self, env: &[(&str, &str)]) -> Result<(u64, BoundBy), Vec<String>> {
        let mut env = env.to_vec();
        env.push((DAYS, "30"));
        shown(decide::retention(&self.facts(&env, now()).await))
    }
}

fn shown(decision: Decision) -> Result<(u64, BoundBy), Vec<String>> {
    match decision {
        Decision::Prune { cuts } => {
            let of = cuts.into_iter().find(|b| b.cut.table == "uploads").unwrap();
            let now_ms = u64::try_from(now().as_millisecond()).unwrap();
            Ok((now_ms - of.cut.below.ms(), of.bound_by))
        }
        Decision::Skip { blockers } => {
            Err(blockers.into_iter().map(|b| format!("{} {}", b.code, b.subject).trim().to_owned()).collect())
        }
    }
}

fn by_age() -> Result<(u64, BoundBy), Vec<String>> {
    Ok((30 * DAY, BoundBy::Age))
}

fn by_peer(ms: u64, host: &str) -> Result<(u64, BoundBy), Vec<String>> {
    Ok((ms + HOUR, BoundBy::Peer(Host::normalise(host))))
}

#[tokio::test]
async fn only_rows_of_peers_that_count_matter() {
    let bench = Bench::new().await;
    assert_eq!(bench.decided(&[]).await, Err(vec!["peers_unknown".to_owned()]));
    bench.peers(&[A, B], now()).await;
    for host in [
        "qm_fix_truncated",
        "core_mediorum_blocks",
        "https://stranger.example",
        SELF,
        " HTTPS://ME.example//",
    ] {
        bench.node(host, &ago(300 * DAY)).await;
    }
    bench.run("UPDATE cursors SET last_ulid = 'baeaaaiqse' WHERE host = 'qm_fix_truncated'").await;
    bench.run("UPDATE cursors SET last_ulid = '4711' WHERE host = 'core_mediorum_blocks'").await;
    bench.run("INSERT INTO cursors VALUES ('https://null.example', NULL)").await;
    let without = |hosts: &[&str]| Err(hosts.iter().map(|h| format!("peer_without_cursor {h}")).collect());
    assert_eq!(bench.decided(&[]).await, without(&[A, B]));
    bench.node(A, &ago(HOUR)).await;
    bench.run(&format!("INSERT INTO cursors VALUES ('{B}', NULL)")).await;
    assert_eq!(bench.decided(&[]).await, without(&[B]));
    bench.node(B, &ago(HOUR).to_lowercase()).await;
    assert_eq!(bench.decided(&[]).await, without(&[B]));
    bench.node(B, &ago(HOUR)).await;
    assert_eq!(bench.decided(&[]).await, by_age());
    // The same peer, as the node spells it elsewhere: the freshest counts.
    bench.node("HTTPS://B.example/", &ago(50 * DAY)).await;
    assert_eq!(bench.decided(&[]).await, by_age());
    bench.node("HTTPS://B.example//", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ").await;
    assert_eq!(bench.decided(&[]).await, by_age());
    bench.node(B, &ago(60 * DAY)).await;
    assert_eq!(bench.decided(&[]).await, by_peer(50 * DAY, B));
    let ignored = [("OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS", B)];
    assert_eq!(bench.decided(&ignored).await, by_age());
}

#[tokio::test]
async fn a_peer_that_vanished_counts_for_seven_days() {
    for (days, counts) in [(6, true), (8, false)] {
        let bench = Bench::new().await;
        // We were away for three weeks in between: nobody saw it go.
        bench.peers(&[A, B], now() - (21 * 24).hours() - (days * 24).hours()).await;
        bench.peers(&[A], now() - (days * 24).hours()).await;
        bench.peers(&[A], now()).await;
        bench.node(A, &ago(HOUR)).await;
        bench.node(B, &ago(50 * DAY)).await;
        let expected = if counts { by_peer(50 * DAY, B) } else { by_age() };
        assert_eq!(bench.decided(&[]).await, expected, "{days}");
    }
}

#[tokio::test]
async fn a_static_set_is_what_counts() {
    let bench = Bench::new().await;
    assert_eq!(bench.decided(&[(PEERS, "none")]).await, by_age());
    assert_eq!(bench.decided(&[(PEERS, A)]).await, Err(vec![format!("peer_without_cursor {A}")]));
    bench.node(A, &ago(40 * DAY)).await;
    assert_eq!(bench.decided(&[(PEERS, A)]).await, by_peer(40 * DAY, A));
    // What was discovered long ago, and is still marked, does not.
    bench.peers(&[B], now() - (24 * 9).hours()).await;
    assert_eq!(bench.decided(&[(PEERS, A)]).await, by_peer(40 * DAY, A));
    bench.peers(&[], now() - (24 * 8).hours()).await;
    assert_eq!(bench.decided(&[]).await, by_age());
}

#[tokio::test]
async fn the_lowest_of_thirty_minutes_counts() {
    let bench = Bench::new().await;
    bench.peers(&[A], now()).await;
    let sample = async |minutes: i64| {
        let client = bench.db.client().await.unwrap();
        gate::sample_cursors(&client, now() - minutes.minutes()).await.unwrap();
    };
    bench.own(A, &ago(HOUR)).await;
    bench.node(A, &ago(70 * DAY)).await;
    sample(90).await;
    bench.node(A, &ago(60 * DAY)).await;
    sample(29).await;
    bench.node(A, &ago(HOUR)).await;
    assert_eq!(bench.decided(&[]).await, by_peer(60 * DAY, A));
    // An hour later only our own is behind.
    sample(0).await;
    let later = bench.facts(&[(DAYS, "30")], now() + 61.minutes()).await;
    assert!(
        matches!(decide::retention(&later), Decision::Prune { cuts } if cuts[0].bound_by == BoundBy::Age)
    );
    bench.run(&format!("UPDATE opsward.cursors SET last_ulid = '{}'", ago(45 * DAY))).await;
    let later = bench.facts(&[(DAYS, "30")], now() + 61.minutes()).await;
    let Decision::Prune { cuts } = decide::retention(&later) else { panic!() };
    assert_eq!(cuts[0].bound_by, BoundBy::Peer(Host::normalise(A)));
    let kept: i64 =
        bench.client.query_one("SELECT count(*) FROM opsward.cursor_samples", &[]).await.unwrap().get(0);
    assert_eq!(kept, 2, "the one of 90 minutes ago is gone");
}

#[tokio::test]
async fn a_row_that_an_operator_removed_blocks() {
    let bench = Bench::new().await;
    bench.peers(&[A], now()).await;
    bench.own(A, &ago(HOUR)).await;
    assert_eq!(bench.decided(&[]).await, Err(vec![format!("peer_without_cursor {A}")]));
    bench.node(A, &ago(HOUR)).await;
    assert_eq!(bench.decided(&[]).await, by_age());
}

#[tokio::test]
async fn readers_of_the_last_day_hold() {
    let bench = Bench::new().await;
    bench.peers(&[A], now()).await;
    bench.node(A, &ago(HOUR)).await;
    let client = bench.db.client().await.unwrap();
    let lowest = OpUlid::parse(&ago(40 * DAY));
    for (host, hours) in [(A, 23), ("https://stranger.example", 1)] {
        opsward::db::readers::seen(&client, &Host::normalise(host), lowest, now() - hours.hours())
            .await
            .unwrap();
    }
    assert_eq!(bench.decided(&[]).await, Ok((40 * DAY, BoundBy::Reader(Host::normalise(A)))));
    let off = [("OPENAUDIO_MEDIORUM_OPS_RETENTION_READER_HOLD", "0")];
    assert_eq!(bench.decided(&off).await, by_age());
    let later = bench.facts(&[(DAYS, "30")], now() + 2.hours()).await;
    assert!(later.readers.iter().all(|r| r.host.as_str() != A), "{:?}", later.readers);
}

#[tokio::test]
async fn clocks_and_own_ops_ahead_block() {
    let bench = Bench::new().await;
    bench.peers(&[A], now()).await;
    bench.node(A, &ago(HOUR)).await;
    let ahead = |hours: u64, random| {
        OpUlid::from_parts(u64::try_from(now().as_millisecond()).unwrap() + hours * HOUR, random)
    };
    let op = |ulid: OpUlid, host: &str| ops::MadeOp {
        ulid,
        host: host.into(),
        action: "create",
        table: "uploads",
        data: "[]".into(),
    };
    // Another's, one that is implausible, one that is not yet an hour ahead.
    let fine = [op(ahead(3, 1), B), op(ahead(30, 2), SELF), op(ahead(0, 3), SELF)];
    ops::insert(&bench.client, &fine).await;
    assert_eq!(bench.decided(&[]).await, by_age());
    ops::insert(&bench.client, &[op(ahead(2, 4), "https://ME.example/")]).await;
    assert_eq!(bench.decided(&[]).await, Err(vec!["own_op_ahead".to_owned()]));
    bench.run("TRUNCATE ops").await;
    let hosts = [A, B, "https://c.example"];
    bench.peers(&hosts, now()).await;
    for host in hosts {
        bench.node(host, &ago(HOUR)).await;
        bench
            .run(&format!(
                "INSERT INTO opsward.pulls (host, last_at, last_ok_at, outcome, detail, clock_offset_ms)
                 VALUES ('{host}', now(), '{}', 'ok', '', 301000)",
                now() - 30.minutes()
            ))
            .await;
    }
    assert_eq!(bench.decided(&[]).await, Err(vec!["clock_off".to_owned()]));
    bench.run(&format!("UPDATE opsward.pulls SET clock_offset_ms = 0 WHERE host <> '{A}'")).await;
    assert_eq!(bench.decided(&[]).await, by_age());
    // Found before this clock jumped, or while it was ahead: no word on it.
    for (found, expected) in [("-", Err(vec!["clock_unknown".to_owned()])), ("+", by_age())] {
        bench.run(&format!("UPDATE opsward.pulls SET last_ok_at = '{}' WHERE host = '{B}'", now())).await;
        let found = format!("UPDATE opsward.pulls SET last_ok_at = '{}'::timestamptz {found}", now());
        bench.run(&format!("{found} interval '30 minutes' - interval '1 ms' WHERE host = '{A}'")).await;
        assert_eq!(bench.decided(&[]).await, expected, "{found}");
    }
    // One that is no longer pulled is not waited for.
    bench.run(&format!("UPDATE opsward.pulls SET last_ok_at = NULL WHERE host = '{A}'")).await;
    assert_eq!(bench.decided(&[]).await, by_age());
    bench.run("UPDATE opsward.pulls SET last_ok_at = '2025-01-01'").await;
    assert_eq!(bench.decided(&[]).await, Err(vec!["clock_unknown".to_owned()]));
    bench.peers(&[B, "https://c.example"], now()).await;
    assert_eq!(bench.decided(&[]).await, by_age());
}

#[tokio::test]
async fn pulling_tells_of_clocks_and_of_peers_that_have_nothing() {
    let bench = Bench::new().await;
    let clock = Clock::fixed(now().as_millisecond());
    let puller = puller_with(&bench.db, clock.clone(), &Metrics::new().unwrap());
    let peer = Peer::scripted([]).await;
    bench.node(&peer.url(), &ago(HOUR)).await;
    let pull = async |answer| {
        peer.then(answer);
        puller.run_once(&host(&peer), &CancellationToken::new()).await.unwrap();
        let sql = "SELECT empty_since, clock_offset_ms FROM opsward.pulls";
        let row = bench.client.query_one(sql, &[]).await.unwrap();
        (row.get::<_, Option<Timestamp>>(0), row.get::<_, Option<i64>>(1))
    };
    let dated = |body: &str| Answer::new(200, &["Date: Mon, 15 Jun 2026 12:10:00 GMT"], body.as_bytes());
    assert_eq!(pull(dated("[]")).await, (Some(now()), Some(600_000)));
    let Clock::Fixed(at) = &clock else { panic!() };
    at.fetch_add(60_000, std::sync::atomic::Ordering::Relaxed);
    // Since the first; an answer without a date tells nothing of its clock now.
    assert_eq!(pull(Answer::json("[]")).await, (Some(now()), None));
    let op = format!(
        r#"[{{"ulid":"{}","host":"h","action":"create","table":"audio_previews","data":[{{"cid":"x"}}]}}]"#,
        ago(60_000)
    );
    assert_eq!(pull(Answer::json(&op)).await.0, None);
    assert_eq!(pull(Answer::json("[]")).await.0, Some(now() + 1.minute()));
}

#[tokio::test]
async fn since_when_is_kept_and_what_is_gone_forgotten() {
    let bench = Bench::new().await;
    let client = bench.db.client().await.unwrap();
    bench.peers(&[A, B], now()).await;
    let env = [(DAYS, "30")];
    facts::note(&client, &bench.facts(&env, now()).await, now()).await.unwrap();
    bench.node(A, &ago(HOUR)).await;
    let later = now() + 5.minutes();
    let facts = bench.facts(&env, later).await;
    facts::note(&client, &facts, later).await.unwrap();
    let Decision::Skip { blockers } = decide::retention(&facts) else { panic!() };
    assert_eq!((blockers[0].subject.as_str(), blockers[0].since), (B, now()));
    let known = gate::blockers(&client).await.unwrap();
    let about_a = known.keys().any(|(_, subject)| subject == A);
    assert!(!about_a && known.contains_key(&("peer_without_cursor".into(), B.into())), "{known:?}");
}

/// Census rows by hand: (table, days ago, rows).
async fn census(bench: &Bench, rows: &[(&str, u64, i64)]) {
    let now_ms = Clock::System.now_ms();
    for (table, days_ago, rows) in rows {
        let at = now_ms - days_ago * DAY;
        let (oldest, newest) = (OpUlid::first_of_ms(at), OpUlid::first_of_ms(at + 1));
        bench
            .run(&format!(
                "INSERT INTO opsward.census VALUES ('{table}', (to_timestamp({at} / 1000.0) AT TIME ZONE 'UTC')::date,
                 {rows}, {rows} * 1000::bigint, '{oldest}', '{newest}', 0, false, now())"
            ))
            .await;
    }
    bench
        .run(
            "INSERT INTO opsward.census_pass (kind, began_at, finished_at, last_finished_at, position, day,
                 partial, rows, bytes)
             VALUES ('full', now(), now(), now(), '', current_date, '[]', 0, 0)",
        )
        .await;
}

fn json(bench: &Bench, env: &[(&str, &str)]) -> Start {
    started(bench, &["plan", "--output", "json"], env)
}

fn plan(bench: &Bench, env: &[(&str, &str)]) -> Start {
    started(bench, &["plan"], env)
}

fn started(bench: &Bench, args: &[&str], env: &[(&str, &str)]) -> Start {
    let start = Start::new(args)
        .env("OPENAUDIO_DB_URL", bench.database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", SELF)
        .env(PEERS, "none");
    env.iter().fold(start, |start, (name, value)| start.env(name, *value))
}

#[tokio::test]
async fn plan_says_what_each_task_would_do() {
    let bench = Bench::new().await;
    census(
        &bench,
        &[("uploads", 100, 1_000), ("uploads", 1, 10), ("storage_and_db_sizes", 50, 500), ("blobs", 400, 7)],
    )
    .await;
    let ran = json(&bench, &[]).output().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let states = |answer: &serde_json::Value| -> Vec<String> {
        let tasks = answer["result"]["tasks"].as_array().unwrap();
        tasks.iter().map(|t| format!("{} {}", t["name"], t["state"]).replace('"', "")).collect()
    };
    assert_eq!(states(&answer)[..2], ["retention off", "dormant_cleanup off"]);
    assert_eq!(answer["result"]["tasks"][0]["blockers"][0]["code"], "off");
    let on = [(DAYS, "30"), ("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", "true")];
    let ran = json(&bench, &on).output().await;
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(states(&answer)[..2], ["retention would_run", "dormant_cleanup would_run"]);
    let result = &answer["result"];
    assert_eq!([&result["rows"], &result["bytes"]], [1_507, 1_507_000]);
    // Neither blobs nor what is append-only leaves traces.
    assert_eq!(result["trace_bytes_about"], 100_000);
    assert_eq!(result["tasks"][1]["deletes"][0]["table"], "blobs");
    assert_eq!(result["tasks"][0]["deletes"][0]["bound_by"]["by"], "age");
    let codes: Vec<&str> =
        result["notices"].as_array().unwrap().iter().filter_map(|n| n["code"].as_str()).collect();
    assert!(codes.contains(&"no_replay_guard") && codes.contains(&"routing_unknown"), "{codes:?}");
    let read_only = [on[0], ("OPENAUDIO_MEDIORUM_READ_ONLY", "true")];
    let ran = json(&bench, &read_only).output().await;
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(states(&answer)[0], "retention blocked");
    assert_eq!(answer["result"]["tasks"][0]["blockers"][0]["code"], "read_only");
    assert_eq!(answer["result"]["tasks"][0]["deletes"][0]["rows"], 1_000);
}

#[tokio::test]
async fn plan_asks_whether_peers_can_read_from_here() {
    let bench = Bench::new().await;
    let client = bench.db.client().await.unwrap();
    // Somebody who reads directly says nothing of the others.
    opsward::db::readers::seen(&client, &Host::normalise(A), None, Clock::System.now()).await.unwrap();
    for (answer, expected, notice) in [
        (Answer::page(&["X-Opsward-Version: 0.2.0"], "[]"), "routed", None),
        (Answer::page(&[], "[]"), "not_routed", Some("no_readers")),
        (Answer::new(502, &[], b""), "not_known", Some("routing_unknown")),
    ] {
        let me = Peer::serving(move |_| answer.clone()).await;
        let ran = json(&bench, &[("OPENAUDIO_NODE_ENDPOINT", &me.url())]).output().await;
        let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(answer["result"]["routed"], expected, "{answer}");
        let codes =
            answer["result"]["notices"].as_array().unwrap().iter().map(|n| n["code"].as_str().unwrap());
        let codes: Vec<&str> = codes.filter(|c| ["no_readers", "routing_unknown"].contains(c)).collect();
        assert_eq!(codes, notice.into_iter().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn plan_fits_a_terminal_and_names_what_lifts() {
    let bench = Bench::new().await;
    census(&bench, &[("storage_and_db_sizes", 100, 123_456_789), ("uploads", 3, 1_234_567)]).await;
    let peer = "https://a-peer-of-a-rather-long-name.in-some-domain.example";
    let env = [(DAYS, "30"), (PEERS, peer), ("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", "true")];
    let blocked = plan(&bench, &env).output().await;
    bench.node(peer, OpUlid::first_of_ms(Clock::System.now_ms() - 90 * DAY).as_str()).await;
    let bound = plan(&bench, &env).output().await;
    for (ran, expected) in [
        (
            blocked,
            ["retention: BLOCKED", "OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS", "no usable cursor"],
        ),
        (bound, ["retention: would run", "123,456,789", "bound by peer https://a-peer-of-a"]),
    ] {
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let joined = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in expected {
            assert!(joined.contains(words), "{words}: {}", ran.stdout);
        }
        for line in ran.stdout.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
