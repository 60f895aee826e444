//! Contract 4: what hostile and newer peers may send, and what it may cost.

use crate::harness::daemon::Start;
use crate::harness::peer::{Answer, Peer};
use crate::harness::{Database, Schema, http};
use crate::puller::{host, puller};
use opsward::clock::Clock;
use opsward::pull::{Pulled, Puller};
use opsward::values::OpUlid;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const MINUTE: u64 = 60_000;

struct Bench {
    database: Database,
    client: Client,
    peer: Peer,
    puller: Puller,
    now: u64,
}

impl Bench {
    async fn new() -> Self {
        Self::on(Database::new().await).await
    }

    async fn of(schema: Schema) -> Self {
        Self::on(Database::of(schema).await).await
    }

    async fn on(database: Database) -> Self {
        let client = database.client().await;
        let puller = puller(&database.migrated().await);
        let peer = Peer::scripted([]).await;
        Self { client, database, peer, puller, now: Clock::System.now_ms() }
    }

    fn ago(&self, minutes: u64) -> OpUlid {
        OpUlid::from_parts(self.now - minutes * MINUTE, u128::from(minutes))
    }

    fn op(&self, minutes: u64, table: &str, data: &str) -> String {
        let ulid = self.ago(minutes);
        format!(
            r#"{{"ulid":"{ulid}","host":"http://h","action":"update","table":"{table}","data":{data},"transient":false}}"#
        )
    }

    async fn pull(&self, ops: &[String]) -> Pulled {
        self.peer.then(Answer::json(&format!("[{}]", ops.join(","))));
        self.puller.run_once(&host(&self.peer), &CancellationToken::new()).await.unwrap()
    }

    async fn texts(&self, sql: &str) -> Vec<Option<String>> {
        self.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn is_in_log(&self, minutes: u64) -> bool {
        let sql = "SELECT FROM ops WHERE ulid = $1";
        self.client.query_opt(sql, &[&self.ago(minutes).as_str()]).await.unwrap().is_some()
    }
}

#[tokio::test]
async fn user_id_is_taken_as_a_node_takes_it() {
    let bench = Bench::of(Schema::C).await;
    let valued =
        [r#"{"Int64":7,"Valid":true}"#, r#"{"Int64":7,"Valid":false}"#, "null", "{}", r#"{"Int64":7}"#];
    let bad = [r#""7""#, "7", "[7]", r#"{"Int64":"7","Valid":true}"#];
    let mut ops = vec![bench.op(90, "uploads", r#"[{"id":"absent"}]"#)];
    for (n, value) in (0u64..).zip(valued.iter().chain(&bad)) {
        ops.push(bench.op(80 - n, "uploads", &format!(r#"[{{"id":"{n}","user_id":{value}}}]"#)));
    }
    let pulled = bench.pull(&ops).await;
    assert_eq!((pulled.sums.applied, pulled.sums.rejected, pulled.hold), (6, 4, None));
    let ids = bench.texts("SELECT user_id::text FROM uploads ORDER BY id").await;
    assert_eq!(ids, [Some("7".into()), None, None, None, None, None]);
}

#[tokio::test]
async fn a_relation_without_user_id_is_no_drift() {
    let bench = Bench::of(Schema::A).await;
    let op = bench.op(30, "uploads", r#"[{"id":"a","user_id":{"Int64":7,"Valid":true}}]"#);
    assert_eq!(bench.pull(&[op]).await.sums.applied, 1);
    // Nor is a column that comes in mid-page one that is not seen.
    bench.client.batch_execute("ALTER TABLE uploads ADD user_id bigint").await.unwrap();
    let op = bench.op(20, "uploads", r#"[{"id":"a","user_id":{"Int64":7,"Valid":true}}]"#);
    assert_eq!(bench.pull(&[op]).await.sums.applied, 1);
    assert_eq!(bench.texts("SELECT user_id::text FROM uploads").await, [Some("7".into())]);
}

#[tokio::test]
async fn retries_of_other_hosts_are_applied_and_not_stored() {
    let retry = r#"[{"id":"a","status":"error","error_count":6,"results":{}}]"#;
    let bench = Bench::of(Schema::C).await;
    let ops = [
        bench.op(50, "uploads", retry),
        bench.op(40, "uploads", &retry.replace("6", "5").replace("\"a\"", "\"b\"")),
        bench.op(30, "uploads", &retry.replace("{}", r#"{"320":"x"}"#).replace("\"a\"", "\"c\"")),
        bench.op(20, "uploads", &retry.replace("\"a\"", "\"d\"")).replace("http://h", "http://self.example"),
    ];
    let pulled = bench.pull(&ops).await;
    assert_eq!((pulled.sums.applied, pulled.sums.rejected), (4, 0));
    let stored = [bench.is_in_log(50).await, bench.is_in_log(40).await, bench.is_in_log(30).await];
    assert_eq!(stored, [false, true, true]);
    assert!(bench.is_in_log(20).await, "an own one");
    assert_eq!(bench.texts("SELECT status FROM uploads WHERE id = 'a'").await, [Some("error".into())]);
    // A node without ops on the chain stores it.
    let bench = Bench::of(Schema::A).await;
    bench.pull(&[bench.op(50, "uploads", retry)]).await;
    assert!(bench.is_in_log(50).await);
}

#[tokio::test]
async fn an_op_of_more_records_than_a_node_can_apply_is_refused() {
    let bench = Bench::new().await;
    let many = |n: usize| {
        let records: Vec<String> = (0..n).map(|i| format!(r#"{{"id":"{i}"}}"#)).collect();
        format!("[{}]", records.join(","))
    };
    let columns = if Schema::of_run() == Schema::C { 27 } else { 26 };
    let most = 65_535 / columns;
    let ops = [
        bench.op(40, "uploads", &many(most)),
        bench.op(30, "uploads", &many(most + 1)),
        bench.op(20, "uploads", &many(most + 1)).replace("update", "delete"),
    ];
    let pulled = bench.pull(&ops).await;
    assert_eq!((pulled.sums.applied, pulled.sums.rejected), (2, 1));
    let codes = bench.texts("SELECT code FROM opsward.rejected_ops").await;
    assert_eq!(codes, [Some("too_many_records".into())]);
    assert_eq!(pulled.to, Some(bench.ago(20)));
}

#[tokio::test]
async fn a_slow_op_is_applied_alone_or_refused_and_its_peer_goes_on() {
    let bench = Bench::new().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
        PERFORM pg_sleep(CASE NEW.cid WHEN 'slow' THEN 2.5 WHEN 'stuck' THEN 60 ELSE 0 END); RETURN NEW; END $$; \
        CREATE TRIGGER slow BEFORE INSERT ON audio_previews FOR EACH ROW EXECUTE FUNCTION slow()";
    bench.client.batch_execute(slow).await.unwrap();
    let op = |minutes, cid: &str| bench.op(minutes, "audio_previews", &format!(r#"[{{"cid":"{cid}"}}]"#));
    let pulled = bench.pull(&[op(40, "a"), op(30, "slow"), op(20, "stuck"), op(10, "b")]).await;
    assert_eq!((pulled.sums.applied, pulled.sums.rejected), (3, 1));
    assert_eq!(pulled.to, Some(bench.ago(10)));
    assert_eq!(bench.texts("SELECT code FROM opsward.rejected_ops").await, [Some("too_slow".into())]);
}

#[tokio::test]
async fn a_table_of_the_past_holds_no_peer() {
    let bench = Bench::new().await;
    let past = "CREATE TABLE server_healths (host text); CREATE TABLE log_lines (id text)";
    bench.client.batch_execute(past).await.unwrap();
    let ops = [
        bench.op(40, "server_healths", r#"[{"host":"a"}]"#),
        bench.op(30, "log_lines", r#"[{"id":"a"}]"#),
        bench.op(20, "audio_previews", r#"[{"cid":"a"}]"#),
    ];
    let pulled = bench.pull(&ops).await;
    assert_eq!((pulled.sums.applied, pulled.sums.rejected, pulled.hold), (1, 2, None));
    let codes = bench.texts("SELECT DISTINCT code FROM opsward.rejected_ops").await;
    assert_eq!(codes, [Some("table_of_the_past".into())]);
}

/// Pages of ops of tiny records, more than a node can apply, as small as gzip
/// makes them.
fn hostile(now: u64, records: usize, ops: usize) -> String {
    let data = vec![r#"{"id":"a"}"#; records].join(",");
    let op = |n: usize| {
        let ulid = OpUlid::from_parts(now - 60 * MINUTE + n as u64, n as u128);
        format!(
            r#"{{"ulid":"{ulid}","host":"http://h","action":"create","table":"uploads","data":[{data}],"transient":false}}"#
        )
    };
    format!("[{}]", (0..ops).map(op).collect::<Vec<_>>().join(","))
}

/// What 60 hostile peers make a daemon hold, beside what it holds without them.
#[tokio::test]
async fn hostile_peers_cost_bounded_memory() {
    const MIB: u64 = 1 << 20;
    let bench = Bench::of(Schema::A).await;
    let pages = [(370_000, 1), (24_000, 8), (2_400, 20)];
    let pages: Vec<Arc<Answer>> = pages
        .iter()
        .map(|(records, ops)| Arc::new(Answer::gzip(&[], &hostile(bench.now, *records, *ops))))
        .collect();
    let mut peers = Vec::new();
    for n in 0..60 {
        let page = pages[n % pages.len()].clone();
        peers.push(Peer::serving(move |_| (*page).clone()).await);
    }
    let urls: Vec<String> = peers.iter().map(Peer::url).collect();
    let daemon = Start::run(&bench.database.url(), "http://self.example")
        .env("OPENAUDIO_MEDIORUM_PEERS", urls.join(","))
        .spawn();
    daemon.ready().await;
    let before = daemon.resident();
    let mut most = before;
    let settled = async {
        // Each was asked, and its page taken or refused.
        for peer in &peers {
            peer.asked(1).await;
        }
        loop {
            let text = http::get(daemon.admin(), "/metrics", &[]).await.text();
            let pulled: f64 = text
                .lines()
                .filter(|line| line.starts_with("opsward_sweeps_pulled_total{"))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum();
            if pulled >= 60.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let watched = async {
        loop {
            most = most.max(daemon.resident());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! { () = settled => {}, () = watched => {} }
    println!("{} MiB before, {} MiB at most", before / MIB, most / MIB);
    assert!(most - before.min(most) < 128 * MIB, "{} MiB more", (most - before) / MIB);
    assert_eq!(
        bench.texts("SELECT DISTINCT code FROM opsward.rejected_ops").await,
        [Some("too_many_records".into())]
    );
}
