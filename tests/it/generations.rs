//! Contract 10: nodes of every generation, one after the other on one
//! database.

mod again;
mod every;
mod given_back;
mod locks;
mod shown;
mod synced;
mod unlogged;
mod upgraded;

use crate::harness::node::{ChainNode, upgrade_to_b, upgrade_to_c};
use crate::harness::{Answer, Daemon, Database, Peer, Schema, Start, http};
use jiff::{SignedDuration, Timestamp};
use opsward::bound::decide::{self, Decision};
use opsward::bound::facts;
use opsward::settings::{self, Source};
use opsward::values::{Host, OpUlid, Replication};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::Client;

const SELF: &str = "https://me.example";
const RETENTION: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS";

const DAY: u64 = 86_400_000;

fn now() -> Timestamp {
    "2026-11-15T12:00:00Z".parse().unwrap()
}

fn ago(ms: u64) -> OpUlid {
    OpUlid::first_of_ms(u64::try_from(now().as_millisecond()).unwrap() - ms)
}

#[tokio::test]
async fn a_node_of_the_chain_does_its_day_on_every_schema() {
    for schema in Schema::ALL {
        let database = Database::of(schema).await;
        let mut node = ChainNode::start(&database).await;
        let of_block = [(ago(DAY), "one", "new"), (ago(20 * DAY), "two", "late")];
        assert_eq!(node.block(now(), &of_block).await, 2, "{schema:?}");
        assert_eq!(node.execute_again(&of_block).await, 0, "{schema:?}");
        node.look_again(&of_block, now()).await;
        node.writes(ago(0), &json!([{"cid": "own"}])).await;
        let state = async |ulid: OpUlid| -> (String, bool) {
            let sql = "SELECT core_tx_status, core_confirmed_at IS NOT NULL FROM ops WHERE ulid = $1";
            let row = node.client.query_one(sql, &[&ulid.as_str()]).await.unwrap();
            (row.get(0), row.get(1))
        };
        assert_eq!(state(ago(DAY)).await, ("confirmed".into(), true), "{schema:?}");
        assert_eq!(state(ago(0)).await, ("pending".into(), false), "{schema:?}");
        node.submits().await;
        assert_eq!(state(ago(0)).await, ("confirmed".into(), true), "{schema:?}");
        // It spares nothing, and deletes by the ULID alone.
        assert_eq!(node.prunes(ago(10 * DAY)).await, 1, "{schema:?}");
        node.starts().await;
        node.state_sync("").await;
        let left: i64 = node.client.query_one("SELECT count(*) FROM ops", &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "{schema:?}");
    }
}

/// What retention of 30 days decides on this database: how ops reach the node,
/// and the days below which it deletes and by what, or why it does not.
async fn decided(database: &Database, env: &[(&str, &str)]) -> (Replication, Result<String, Vec<String>>) {
    let mut all = vec![(RETENTION, "30"), ("OPENAUDIO_MEDIORUM_PEERS", "none")];
    all.extend(env);
    let env = all.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let settings = settings::load(&Source { env, ..Source::process() }).unwrap().settings;
    let db = database.db().await;
    let client = db.client().await.unwrap();
    let facts = facts::gather(&client, &settings, &Host::normalise(SELF), now()).await.unwrap();
    let decision = match decide::retention(&facts) {
        Decision::Prune { cuts } => {
            let cut = &cuts[0];
            Ok(format!("{} {}", (ago(0).ms() - cut.cut.below.ms()) / DAY, cut.bound_by))
        }
        Decision::Skip { blockers } => Err(blockers.into_iter().map(|b| b.code.into_owned()).collect()),
    };
    (facts.replication, decision)
}

#[tokio::test]
async fn each_schema_has_its_gate() {
    let by_age = || Ok("30 age".to_owned());
    for (schema, by) in
        [(Schema::A, Replication::Peers), (Schema::B, Replication::Both), (Schema::C, Replication::Chain)]
    {
        let database = Database::of(schema).await;
        database.migrated().await;
        let client = database.client().await;
        let (found, decision) = decided(&database, &[]).await;
        assert_eq!(found, by);
        let blocked = |code: &str| Err(vec![code.to_owned()]);
        assert_eq!(decision, if by.has_chain() { blocked("chain_unknown") } else { by_age() });
        let run = async |sql: &str| client.batch_execute(sql).await.unwrap();
        if by.has_chain() {
            run("INSERT INTO core_blocks (height, chain_id, hash, proposer, created_at) VALUES
                 (100, 'main', '', '', '2026-11-15 11:58:00'), (101, 'main', '', '', '2026-11-15 11:59:00')")
            .await;
            let cursor = async |text: &str| {
                run(&format!(
                    "INSERT INTO cursors VALUES ('core_mediorum_blocks', '{text}')
                     ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid"
                ))
                .await;
                decided(&database, &[]).await.1
            };
            assert_eq!(cursor("101").await, by_age());
            for odd in ["", "letters", "-5", "12345678901234567890123", "99"] {
                assert_eq!(cursor(odd).await, blocked("chain_unknown"), "{odd:?}");
            }
            assert_eq!(cursor("34000000").await, blocked("chain_changed"));
            // Heights of a chain that is over tell nothing of the new one.
            assert_eq!(cursor("101").await, by_age());
            run("INSERT INTO core_blocks (height, chain_id, hash, proposer, created_at) VALUES
                 (5800, 'next', '', '', '2026-11-15 11:59:30')")
            .await;
            assert_eq!(cursor("101").await, blocked("chain_unknown"));
            assert_eq!(cursor("34000000").await, blocked("chain_changed"));
            assert_eq!(cursor("5800").await, by_age());
            run("UPDATE core_blocks SET created_at = created_at - interval '2 h'").await;
            assert_eq!(cursor("5800").await, blocked("chain_behind"));
            // A time that is none, and a table of another make, tell nothing.
            run("ALTER TABLE core_blocks ALTER created_at DROP NOT NULL").await;
            for odd in ["'infinity'", "'-infinity'", "'20000-01-01'", "NULL"] {
                run(&format!("UPDATE core_blocks SET created_at = {odd}")).await;
                assert_eq!(cursor("5800").await, blocked("chain_unknown"), "{odd}");
            }
            run("UPDATE core_blocks SET created_at = '2026-11-15 11:59:30'").await;
            for (change, back) in [
                ("created_at TYPE timestamptz", "created_at TYPE timestamp"),
                ("height TYPE text", "height TYPE bigint USING height::bigint"),
            ] {
                run(&format!("ALTER TABLE core_blocks ALTER {change}")).await;
                assert_eq!(cursor("5800").await, blocked("chain_unknown"), "{change}");
                run(&format!("ALTER TABLE core_blocks ALTER {back}")).await;
            }
            assert_eq!(cursor("5800").await, by_age());
            run("ALTER TABLE core_blocks RENAME created_at TO made_at").await;
            assert_eq!(cursor("5800").await, blocked("chain_unknown"));
            run("DROP TABLE core_blocks").await;
            assert_eq!(cursor("5800").await, blocked("chain_unknown"));
        }
        let set = |by| [("OPENAUDIO_MEDIORUM_REPLICATION", by)];
        assert_eq!(decided(&database, &set("peers")).await, (Replication::Peers, by_age()));
        assert_eq!(decided(&database, &set("chain")).await, (Replication::Chain, blocked("chain_unknown")));
    }
}

fn real_ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}

fn ulid_of(at: Timestamp) -> OpUlid {
    OpUlid::first_of_ms(u64::try_from(at.as_millisecond()).unwrap())
}

/// Ops of 40 days ago, each with what the chain made of it and when.
async fn old_ops(client: &Client) {
    let rows = [
        ("confirmed", Some(40)),
        ("confirmed", Some(1)),
        ("pending", None),
        ("error", None),
        ("rejected", None),
        ("legacy", None),
        ("", None),
    ];
    let old = ulid_of(real_ago(40)).ms();
    for (n, (status, confirmed)) in (0..).zip(rows) {
        let (ulid, at) = (OpUlid::first_of_ms(old + n), confirmed.map(real_ago));
        let name = format!("{status} {}", confirmed.unwrap_or(0));
        let data = json!([{"cid": name}]).to_string();
        client
            .execute(
                "INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status, core_confirmed_at)
                 VALUES ($1, 'http://o.example', 'create', 'qm_audio_analyses', $2::text::jsonb, $3, $4)",
                &[&ulid.as_str(), &data, &status, &at],
            )
            .await
            .unwrap();
    }
    client
        .execute(
            "INSERT INTO ops (ulid, host, action, \"table\", data) VALUES
                ($1, 'http://o.example', 'create', 'qm_audio_analyses', '[{\"cid\": \"new\"}]')",
            &[&ulid_of(real_ago(2)).as_str()],
        )
        .await
        .unwrap();
}

fn start(database: &Database, args: &[&str]) -> Start {
    Start::new(args)
        .env("OPENAUDIO_DB_URL", database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", SELF)
        .env("OPENAUDIO_MEDIORUM_PEERS", "none")
        .env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1MiB")
        .env(RETENTION, "30")
}

async fn json(database: &Database, args: &[&str]) -> (i32, Value) {
    start(database, args).json().await
}

#[tokio::test]
async fn what_the_chain_has_not_got_and_what_came_lately_stays() {
    let ways = [
        &["prune", "--pace", "full"][..],
        &["reclaim", "--policy=window", "--mode=swap", "--yes", "--pace", "full"],
        &["reclaim", "--policy=window", "--mode=in-place", "--yes", "--pace", "full"],
    ];
    for schema in [Schema::B, Schema::C] {
        for way in ways {
            let database = Database::of(schema).await;
            database.migrated().await;
            let mut node = ChainNode::start(&database).await;
            old_ops(&node.client).await;
            // Of its table nothing goes.
            let only = OpUlid::first_of_ms(ulid_of(real_ago(39)).ms());
            let owed = "INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status) VALUES
                ($1, 'http://o.example', 'create', 'audio_previews', '[{\"cid\": \"only\"}]', 'pending')";
            node.client.execute(owed, &[&only.as_str()]).await.unwrap();
            node.block(Timestamp::now(), &[]).await;
            node.look_again(&[], Timestamp::now()).await;
            assert_eq!(json(&database, &["census", "--full", "--pace", "full"]).await.0, 0);
            let (code, done) = json(&database, way).await;
            assert_eq!(code, 0, "{schema:?} {way:?}: {done}");
            let rows =
                node.client.query("SELECT data -> 0 ->> 'cid' FROM ops ORDER BY ulid", &[]).await.unwrap();
            let left: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
            let stays = ["confirmed 1", "pending 0", "error 0", "rejected 0", "only", "new"];
            assert_eq!(left, stays, "{schema:?} {way:?}");
            // The node's own pruner deletes it, and remembers nothing. What the chain rejected
            // was never anywhere else: nothing of others' is outdated by it.
            let remembered = "SELECT cid FROM unnest($1::text[]) AS cid
                JOIN opsward.floors f ON f.floor IS NOT NULL
                JOIN opsward.traces t ON t.key = opsward.trace_key(f.table_name, jsonb_build_object('cid', cid))
                ORDER BY cid";
            let rows = node.client.query(remembered, &[&stays.as_slice()]).await.unwrap();
            let remembered: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
            assert_eq!(remembered, ["confirmed 1", "error 0", "only", "pending 0"], "{schema:?} {way:?}");
        }
    }
}

/// A node as it is seen over HTTP: its registry, and its sweep route until
/// that is gone.
async fn node_http(peer: String, is_gone: Arc<AtomicBool>) -> Peer {
    Peer::serving(move |request| match request.target.as_str() {
        target if target.starts_with("/eth.v1.EthService/") => {
            Answer::json(&json!({"endpoints": [{"endpoint": peer, "serviceType": "validator"}]}).to_string())
        }
        target if target.starts_with("/internal/crud/sweep") && !is_gone.load(Ordering::SeqCst) => {
            Answer::json("[]")
        }
        _ => Answer::new(404, &[], b""),
    })
    .await
}

async fn until(daemon: &Daemon, path: &str, wanted: &str) {
    let look = async {
        while !http::get(daemon.admin(), path, &[]).await.text().contains(wanted) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(90), look).await;
    waited.unwrap_or_else(|_| panic!("{path} never said {wanted}:\n{}", daemon.log()));
}

#[tokio::test]
async fn a_node_is_upgraded_under_a_running_daemon() {
    let database = Database::of(Schema::A).await;
    let client = database.client().await;
    let is_gone = Arc::new(AtomicBool::new(false));
    let peer = Peer::scripted([]).await;
    let node = node_http(peer.url(), is_gone.clone()).await;
    let daemon = Start::new(&["run"])
        .env("OPENAUDIO_DB_URL", database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", SELF)
        .env("OPENAUDIO_MEDIORUM_NODE_URL", node.url())
        .env("OPENAUDIO_MEDIORUM_SWEEP_INTERVAL", "10s")
        .spawn();
    daemon.ready().await;
    until(&daemon, "/metrics", "opsward_node_replication{by=\"peers\"} 1").await;
    peer.asked(1).await;

    upgrade_to_b(&client).await;
    until(&daemon, "/metrics", "opsward_node_replication{by=\"both\"} 1").await;
    daemon.line(|l| l.contains("another way now") && l.contains("both")).await;
    peer.asked(peer.requests().len() + 1).await;

    is_gone.store(true, Ordering::SeqCst);
    until(&daemon, "/metrics", "opsward_node_replication{by=\"chain\"} 1").await;
    daemon.line(|l| l.contains("off: ops reach this node by the chain alone")).await;
    daemon.line(|l| l.contains("no longer pulled")).await;
    until(&daemon, "/status", "ops reach this node by the chain alone").await;
    let asked = peer.requests().len();
    // Peers are still served.
    let page = http::get(daemon.public(), "/internal/crud/sweep?after=", &[]).await;
    assert_eq!((page.status, page.text().as_str()), (200, "[]"));

    // The column tells it by itself; a node that was put back is pulled again.
    upgrade_to_c(&client).await;
    until(&daemon, "/status", "uploads has the column user_id").await;
    assert_eq!(peer.requests().len(), asked);
    is_gone.store(false, Ordering::SeqCst);
    client.batch_execute("ALTER TABLE uploads DROP COLUMN user_id").await.unwrap();
    until(&daemon, "/metrics", "opsward_node_replication{by=\"both\"} 1").await;
    peer.asked(asked + 1).await;
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[tokio::test]
async fn doctor_tells_what_a_restore_left() {
    let database = Database::of(Schema::C).await;
    database.migrated().await;
    let client = database.client().await;
    client.batch_execute("ALTER TABLE ops SET UNLOGGED").await.unwrap();
    let (code, found) = json(&database, &["doctor"]).await;
    let checks = found["result"]["checks"].as_array().unwrap();
    let check = |name: &str| checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{found}"));
    assert_eq!((code, &check("unlogged")["verdict"]), (1, &"fail".into()));
    assert!(check("unlogged")["fix"].as_str().unwrap().contains("ALTER TABLE public.ops SET LOGGED"));
    assert!(check("node")["found"].as_str().unwrap().contains("by the chain alone"), "{found}");
    // It asks for what it cannot know.
    assert!(check("node_pruner")["fix"].as_str().unwrap().contains("OPENAUDIO_OPS_RETENTION"), "{found}");
    // Nobody reads from it: whether its public URL leads here is no matter.
    assert!(checks.iter().all(|c| c["name"] != "public_url"), "{found}");
}

#[tokio::test]
async fn an_unknown_way_of_replication_ends_the_start() {
    let database = Database::of(Schema::C).await;
    for odd in ["sideways", "Chains", "peers,chain"] {
        let ran =
            start(&database, &["config", "check"]).env("OPENAUDIO_MEDIORUM_REPLICATION", odd).output().await;
        assert_eq!(ran.code, Some(64), "{ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        for part in ["OPENAUDIO_MEDIORUM_REPLICATION", odd, "auto", "peers", "both", "chain"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
