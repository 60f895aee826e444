//! Contract 4: ops that were refused, tried again later.

use crate::harness::Database;
use crate::harness::daemon::Start;
use crate::harness::peer::{Answer, Peer};
use opsward::clock::Clock;
use opsward::db::rejected::{self, Refused};
use opsward::pull::retry::{Retried, retry};
use opsward::values::{Host, OpUlid};

const MINUTE: u64 = 60_000;

struct Bench {
    database: Database,
    db: opsward::db::Db,
    client: tokio_postgres::Client,
    now: u64,
}

impl Bench {
    async fn new() -> Self {
        let database = Database::new().await;
        let db = database.migrated().await;
        Self { client: database.client().await, database, db, now: Clock::System.now_ms() }
    }

    fn ago(&self, minutes: u64) -> OpUlid {
        OpUlid::from_parts(self.now - minutes * MINUTE, u128::from(minutes))
    }

    /// Keeps an op as a pull would that refused it.
    async fn keep(&self, minutes: u64, data: &str) -> OpUlid {
        let ulid = self.ago(minutes);
        let bytes = format!(
            r#"{{"ulid":"{ulid}","host":"h","action":"update","table":"audio_previews","data":{data},"transient":false}}"#
        );
        let refused = Refused {
            ulid: Some(ulid),
            table: "audio_previews".into(),
            code: "refused_by_database",
            detail: "x".into(),
            bytes: bytes.into_bytes(),
        };
        let mut client = self.db.client().await.unwrap();
        let peer = Host::parse("http://b.example").unwrap();
        rejected::keep(&mut client, &peer, &[refused], Clock::System.now()).await.unwrap();
        ulid
    }

    /// What a node wrote: the op in its log, and its record.
    async fn wrote(&self, minutes: u64, key: &str, cid: &str, by: &str) {
        let data = format!(r#"[{{"{key}":"{cid}","created_by":"{by}"}}]"#);
        let sql = r#"INSERT INTO ops (ulid, host, action, "table", data) VALUES ($1, 'h', 'update', 'audio_previews', $2::text::jsonb)"#;
        self.client.execute(sql, &[&self.ago(minutes).as_str(), &data]).await.unwrap();
        let sql = "INSERT INTO audio_previews (cid, created_by) VALUES ($1, $2)";
        self.client.execute(sql, &[&cid, &by]).await.unwrap();
    }

    async fn retry(&self) -> Vec<Retried> {
        let mut client = self.db.client().await.unwrap();
        let kept = rejected::list(&client, None, 0, 100).await.unwrap();
        retry(&mut client, &kept, &Clock::System).await.unwrap()
    }

    async fn by(&self, cid: &str) -> Option<String> {
        let sql = "SELECT created_by FROM audio_previews WHERE cid = $1";
        self.client.query_opt(sql, &[&cid]).await.unwrap().map(|row| row.get(0))
    }

    async fn is_in_log(&self, ulid: OpUlid) -> bool {
        let sql = "SELECT FROM ops WHERE ulid = $1";
        self.client.query_opt(sql, &[&ulid.as_str()]).await.unwrap().is_some()
    }
}

#[tokio::test]
async fn a_retry_puts_no_old_state_over_what_is_newer_in_the_log() {
    let bench = Bench::new().await;
    let old = bench.keep(60, r#"[{"cid":"a","created_by":"old"}]"#).await;
    // Keys of JSON match whatever their case.
    bench.wrote(30, "CID", "a", "new").await;
    assert_eq!(bench.retry().await, [Retried::Replay]);
    assert_eq!(bench.by("a").await.as_deref(), Some("new"));
    assert!(!bench.is_in_log(old).await);
}

#[tokio::test]
async fn a_retry_applies_what_has_nothing_newer() {
    let bench = Bench::new().await;
    let old = bench.keep(60, r#"[{"cid":"a","created_by":"old"},{"cid":"b","created_by":"old"}]"#).await;
    bench.wrote(30, "cid", "a", "new").await;
    bench.wrote(90, "cid", "c", "older").await;
    let later = bench.keep(50, r#"[{"cid":"c","created_by":"old"}]"#).await;
    // Both in one go: the older one first, though the other was kept before it.
    bench.keep(70, r#"[{"cid":"c","created_by":"oldest"}]"#).await;
    let retried = bench.retry().await;
    assert!(matches!(&retried[0], Retried::AppliedInPart(why) if why.contains("1 of 2")), "{retried:?}");
    assert_eq!(retried[1..], [Retried::Applied, Retried::Applied]);
    assert_eq!(bench.by("a").await.as_deref(), Some("new"));
    assert_eq!(bench.by("b").await.as_deref(), Some("old"));
    assert_eq!(bench.by("c").await.as_deref(), Some("old"));
    assert!(bench.is_in_log(old).await && bench.is_in_log(later).await);
}

/// A number that jsonb can't hold, in a field of no model: nothing looks at it before.
#[tokio::test]
async fn one_that_the_database_cannot_read_keeps_no_other_back() {
    let bench = Bench::new().await;
    bench.keep(60, r#"[{"cid":"a","created_by":"x","odd":1e200000}]"#).await;
    bench.keep(50, r#"[{"cid":"b","created_by":"x"}]"#).await;
    let ran = Start::new(&["rejected", "retry", "--all"])
        .env("OPENAUDIO_DB_URL", bench.database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", "http://own.example")
        .output()
        .await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("still refused: ") && ran.stdout.contains("overflows"), "{ran:?}");
    assert_eq!((bench.by("a").await, bench.by("b").await.as_deref()), (None, Some("x")));
}

#[tokio::test]
async fn a_retry_obeys_traces_above_every_floor() {
    let bench = Bench::new().await;
    bench.keep(600, r#"[{"cid":"a","created_by":"old"}]"#).await;
    let sql = "INSERT INTO opsward.traces (key, ulid) \
        SELECT opsward.trace_key('audio_previews', '{\"cid\":\"a\"}'), $1";
    bench.client.execute(sql, &[&bench.ago(500).as_str()]).await.unwrap();
    assert_eq!(bench.retry().await, [Retried::Replay]);
    assert_eq!(bench.by("a").await, None);
}

/// Tables whose names move a terminal's cursor: one that is refused, one that
/// holds its peer, one in the history.
#[tokio::test]
async fn nothing_that_a_peer_sent_reaches_the_terminal_raw() {
    let bench = Bench::new().await;
    let setup = "CREATE TABLE \"\u{9b}1mheld\" (id text); INSERT INTO opsward.history \
        (run, task, table_name, began_at, ended_at, below, rows, bytes, bound_by, took_ms, outcome) \
        VALUES ('r', 'retention', E'\\x1b[2J', now(), now(), 'x', 1, 1, 'age', 1, E'\\x1b[31m')";
    bench.client.batch_execute(setup).await.unwrap();
    let op = |minutes: u64, table: &str| {
        format!(
            r#"{{"ulid":"{}","host":"h","action":"update","table":"{table}","data":[{{"id":"a"}}],"transient":false}}"#,
            bench.ago(minutes)
        )
    };
    let page = format!("[{},{}]", op(60, r"\u001b[2J\u202e"), op(50, r"\u009b1mheld"));
    let peer = Peer::serving(move |_| Answer::json(&page)).await;
    let url = peer.url();
    let lines: [&[&str]; 6] = [
        &["sweep", "--peer", &url],
        &["rejected", "list"],
        &["rejected", "list", "--whole"],
        &["status"],
        &["plan"],
        &["history"],
    ];
    for line in lines {
        for output in ["text", "json"] {
            let ran = Start::new(&[line, &["--output", output]].concat())
                .env("OPENAUDIO_DB_URL", bench.database.url())
                .env("OPENAUDIO_NODE_ENDPOINT", "http://self.example")
                .env("OPENAUDIO_MEDIORUM_PEERS", &url)
                .output()
                .await;
            let said = format!("{}{}", ran.stdout, ran.stderr);
            let raw = said.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t') || *c == '\u{202e}');
            assert_eq!(raw, None, "{line:?} {output}: {said:?}");
        }
    }
    let said = Start::new(&["rejected", "list"]).env("OPENAUDIO_DB_URL", bench.database.url()).output().await;
    assert!(said.stdout.contains(r"\u001b[2J\u202e"), "{}", said.stdout);
}
