//! Contract 5 as an operator sees it: the real binary, with and without a
//! daemon, and what is left in the database after whatever happened.

mod gates;
mod guarded;
mod halts;
mod jobs;
mod kills;
mod node;
mod privileges;
mod reclaims;
mod shown;
mod uninstall;

use crate::harness::{Daemon, Database, MadeOp, Ops, Schema, Start, http, ops};
use opsward::values::OpUlid;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio_postgres::Client;

const SELF: &str = "https://me.example";
const DAY_MS: u64 = 86_400_000;
const DAYS: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS";
const PEERS: &str = "OPENAUDIO_MEDIORUM_PEERS";
const BATCH: &str = "OPENAUDIO_MEDIORUM_OPS_RETENTION_BATCH_LIMIT";

/// A database with a log in it, and settings for whoever works on it.
struct Bench {
    database: Database,
    client: Client,
    env: Vec<(String, String)>,
}

impl Bench {
    /// No peers, a window of 30 days, the pace of nobody's waiting.
    async fn new() -> Self {
        Self::on(Database::new().await).await
    }

    /// As [`Self::new`], of a node whose ops come from peers.
    async fn of_peers() -> Self {
        Self::on(Database::of(Schema::A).await).await
    }

    async fn on(database: Database) -> Self {
        database.migrated().await;
        let client = database.client().await;
        client
            .batch_execute(
                "ALTER TABLE ops SET (autovacuum_enabled = off);
                 INSERT INTO opsward.pace (percent, set_at) VALUES (100, now())",
            )
            .await
            .unwrap();
        let env = [(DAYS, "30"), (PEERS, "none"), ("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1MiB")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { database, client, env }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `old` ops of forty days ago and on, `recent` ones of yesterday.
    async fn log(&self, old: usize, recent: usize) -> Vec<MadeOp> {
        let now = now_ms();
        let mut made =
            Ops::new(1).starting_at(now - 60 * DAY_MS).every(10 * DAY_MS / old.max(1) as u64).take(old);
        made.extend(Ops::new(2).starting_at(now - DAY_MS).every(100).take(recent));
        ops::insert(&self.client, &made).await;
        made
    }

    /// So many ops on each of these days ago, in whole UTC days, counted.
    async fn on_days(&self, days: &[u64], each: usize) {
        for ago in days {
            let from = now_ms() / DAY_MS * DAY_MS - ago * DAY_MS + 3_600_000;
            let made = Ops::new(*ago).starting_at(from).every(100).take(each);
            ops::insert(&self.client, &made).await;
        }
        assert_eq!(self.json(&["census", "--full"]).await.0, 0);
    }

    fn start(&self, args: &[&str]) -> Start {
        self.start_at(args, self.database.url())
    }

    fn start_at(&self, args: &[&str], url: String) -> Start {
        started(&self.env, args, url)
    }

    async fn daemon(&self) -> Daemon {
        let daemon = self.start(&["run"]).spawn();
        daemon.ready().await;
        // It has the lease once it looked for jobs.
        self.until("SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                    WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND a.application_name = 'opsward'
                      AND a.datname = current_database()").await;
        daemon
    }

    /// Runs a command to its end: its exit code and envelope.
    async fn json(&self, args: &[&str]) -> (i32, Value) {
        self.start(args).json().await
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    async fn until(&self, sql: &str) {
        let look = async {
            while !self.client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), look).await;
        waited.unwrap_or_else(|_| panic!("it never came to: {sql}"));
    }

    /// Dead rows on some two thousand pages: seconds of a VACUUM at a slow pace.
    async fn dead_rows(&self) {
        self.run(
            "INSERT INTO ops SELECT 'dead' || g, 'h', 'create', 'x', to_jsonb(repeat(md5(g::text), 20))
              FROM generate_series(1, 20000) g; DELETE FROM ops WHERE ulid LIKE 'dead%'",
        )
        .await;
    }

    async fn left(&self) -> i64 {
        self.number("SELECT count(*) FROM ops").await
    }
}

fn started(env: &[(String, String)], args: &[&str], url: String) -> Start {
    let start = Start::new(args).env("OPENAUDIO_DB_URL", url).env("OPENAUDIO_NODE_ENDPOINT", SELF);
    env.iter().fold(start, |start, (name, value)| start.env(name, value.as_str()))
}

fn now_ms() -> u64 {
    opsward::clock::Clock::System.now_ms()
}

fn ago(ms: u64) -> String {
    OpUlid::first_of_ms(now_ms() - ms).to_string()
}

/// Rows by table that a run of `prune` says it deleted.
fn deleted(envelope: &Value) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for task in envelope["result"]["tasks"].as_array().into_iter().flatten() {
        for (table, sum) in task["deleted"]["tables"].as_object().into_iter().flatten() {
            *sums.entry(table.clone()).or_default() += sum["rows"].as_u64().unwrap();
        }
    }
    sums
}

async fn metrics(daemon: &Daemon) -> String {
    http::get(daemon.admin(), "/metrics", &[]).await.text()
}
