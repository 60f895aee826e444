//! Contract 7: what a real node did with some three hundred ops, done by a
//! real sweep over HTTP into a real database.

use crate::harness::Database;
use crate::harness::peer::{Answer, Peer};
use crate::puller::{host, puller};
use opsward::db::Db;
use opsward::pull::Puller;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const CASES: &str = include_str!("../fixtures/apply.jsonl");
const TABLES: [&str; 4] = ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"];
/// The op after the case's own: it is applied whatever becomes of that one.
const NEXT: &str = r#"{"ulid":"01J00000000000000000000000","host":"h","action":"create","table":"audio_previews","data":[{"cid":"next"}]}"#;
const NEXT_ULID: &str = "01J00000000000000000000000";

#[derive(serde::Deserialize)]
struct Case<'a> {
    name: String,
    expect: String,
    #[serde(borrow)]
    setup: Vec<&'a RawValue>,
    #[serde(borrow)]
    op: &'a RawValue,
    op_b64: Option<String>,
    #[serde(borrow)]
    op_row: &'a RawValue,
    #[serde(borrow)]
    rows_after: Option<&'a RawValue>,
    table: Option<String>,
    ops_added: i64,
}

struct Bench {
    _database: Database,
    db: Db,
    client: Client,
    peer: Peer,
    puller: Puller,
}

/// What a case left.
#[derive(Debug)]
struct Left {
    rows: Vec<Value>,
    ops: i64,
    as_recorded: bool,
    rejected: Vec<(String, Vec<u8>)>,
    cursor: Option<String>,
    next_applied: bool,
    held: bool,
    failed: bool,
}

impl Bench {
    async fn new() -> Self {
        let database = Database::new().await;
        let db = database.migrated().await;
        let client = database.client().await;
        let peer = Peer::scripted([]).await;
        let puller = puller(&db);
        // Today's nodes have it no longer; a case is about a table without a model.
        client.batch_execute("CREATE TABLE IF NOT EXISTS repair_trackers (id text)").await.unwrap();
        Self { _database: database, db, client, peer, puller }
    }

    async fn empty(&self) {
        let sql = "TRUNCATE ops, cursors, uploads, qm_audio_analyses, audio_previews, storage_and_db_sizes,
                   opsward.cursors, opsward.rejected_ops, opsward.holds, opsward.pulls";
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn sweep(&self, body: &[u8]) -> bool {
        self.peer.then(Answer::new(200, &["Content-Type: application/json"], body));
        self.puller.run_once(&host(&self.peer), &CancellationToken::new()).await.is_ok()
    }

    async fn rows(&self, table: Option<&str>) -> Vec<Value> {
        let Some(table) = table.filter(|t| TABLES.contains(t)) else {
            return Vec::new();
        };
        // What was recorded is of nodes before today's, with fewer columns.
        let sql = format!("SELECT (to_jsonb(t) - 'user_id')::text FROM {table} t");
        let rows = self.client.query(&sql, &[]).await.unwrap();
        let mut rows: Vec<Value> = rows.iter().map(|r| serde_json::from_str(r.get(0)).unwrap()).collect();
        rows.retain(|r| r["cid"] != "next");
        rows.sort_by_key(Value::to_string);
        rows
    }

    async fn run(&self, case: &Case<'_>) -> (Vec<Value>, Left) {
        self.empty().await;
        for op in &case.setup {
            self.sweep(format!("[{}]", op.get()).as_bytes()).await;
        }
        self.client.batch_execute("TRUNCATE opsward.cursors, cursors, opsward.rejected_ops").await.unwrap();
        let before = self.rows(case.table.as_deref()).await;
        let op = match &case.op_b64 {
            Some(text) => {
                let row = self.client.query_one("SELECT decode($1, 'base64')", &[text]).await.unwrap();
                row.get(0)
            }
            None => case.op.get().as_bytes().to_vec(),
        };
        let failed = !self.sweep(&[b"[", op.as_slice(), b",", NEXT.as_bytes(), b"]"].concat()).await;
        (before, self.left(case, failed).await)
    }

    async fn left(&self, case: &Case<'_>, failed: bool) -> Left {
        let client = self.db.client().await.unwrap();
        let ops =
            self.client.query_one("SELECT count(*) FROM ops WHERE ulid <> $1", &[&NEXT_ULID]).await.unwrap();
        // Compared by Postgres: some numbers are larger than a float.
        let same = "SELECT EXISTS (SELECT FROM ops o WHERE to_jsonb(o) - '{core_tx_hash,core_tx_status,core_tx_error,
                core_attempted_at,core_confirmed_at}'::text[] = $1::text::jsonb)";
        let same = self.client.query_one(same, &[&case.op_row.get()]).await.unwrap();
        let rejected = self.client.query("SELECT code, op FROM opsward.rejected_ops", &[]).await.unwrap();
        let cursor = self.client.query_opt("SELECT last_ulid FROM opsward.cursors", &[]).await.unwrap();
        let next = self
            .client
            .query_one("SELECT count(*) FROM audio_previews WHERE cid = 'next'", &[])
            .await
            .unwrap();
        Left {
            rows: self.rows(case.table.as_deref()).await,
            ops: ops.get(0),
            as_recorded: same.get(0),
            rejected: rejected.iter().map(|r| (r.get(0), r.get(1))).collect(),
            cursor: cursor.map(|r| r.get(0)),
            next_applied: next.get::<_, i64>(0) == 1,
            held: opsward::db::pulls::held(&client).await.unwrap() == 1,
            failed,
        }
    }
}

/// Rows of the fixture against rows of the database: `<now>` is a time within
/// a minute, numbers are compared as numbers.
fn same_rows(want: &[Value], got: &[Value]) -> bool {
    let mut got = got.to_vec();
    want.len() == got.len()
        && want.iter().all(|w| match got.iter().position(|g| same_row(w, g)) {
            Some(i) => {
                got.remove(i);
                true
            }
            None => false,
        })
}

fn same_row(want: &Value, got: &Value) -> bool {
    let (Some(want), Some(got)) = (want.as_object(), got.as_object()) else {
        return false;
    };
    want.len() == got.len()
        && want.iter().all(|(k, w)| match (w, got.get(k)) {
            (Value::String(now), Some(Value::String(time))) if now == "<now>" => {
                let time: jiff::Timestamp = time.parse().unwrap();
                opsward::clock::Clock::System.now().duration_since(time).as_secs().abs() < 60
            }
            (Value::Number(a), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
            (w, Some(g)) => w == g,
            _ => false,
        })
}

fn applied(case: &Case<'_>, left: &Left) -> Result<(), String> {
    let want: Vec<Value> = case.rows_after.map_or(vec![], |r| serde_json::from_str(r.get()).unwrap());
    let check = [
        (same_rows(&want, &left.rows), "the rows differ"),
        (left.rejected.is_empty(), "it was rejected"),
        (left.next_applied, "the next op was not applied"),
        (left.cursor.as_deref() == Some(NEXT_ULID), "the cursor is not at the end"),
        (case.ops_added == 0 || left.as_recorded, "the op is not in the log"),
    ];
    verdict(&check)
}

fn rejected(before: &[Value], left: &Left) -> Result<(), String> {
    let check = [
        (left.rejected.len() == 1, "not one rejected op"),
        (left.rows == before, "rows changed"),
        (left.next_applied, "the next op was not applied"),
        (left.cursor.as_deref() == Some(NEXT_ULID), "the cursor is not at the end"),
        (!left.failed, "the page was refused"),
    ];
    verdict(&check)
}

fn verdict(checks: &[(bool, &str)]) -> Result<(), String> {
    let wrong: Vec<&str> = checks.iter().filter(|c| !c.0).map(|c| c.1).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join(", ")) }
}

fn judge(case: &Case<'_>, before: &[Value], left: &Left) -> Result<(), String> {
    match case.expect.as_str() {
        "apply" => applied(case, left),
        "reject" => rejected(before, left).and_then(|()| {
            // What is kept is the op, whole.
            let whole = case.op_b64.is_some() || left.rejected[0].1 == case.op.get().as_bytes();
            verdict(&[(whole, "it is not kept whole")])
        }),
        "either" => {
            applied(case, left).or_else(|a| rejected(before, left).map_err(|r| format!("{a}; or {r}")))
        }
        "hold" => verdict(&[
            (left.held, "no hold"),
            (left.cursor.is_none(), "the cursor moved"),
            (!left.next_applied && left.rejected.is_empty(), "something was taken"),
        ]),
        "skip" => verdict(&[
            (left.ops == 0 && left.rejected.is_empty(), "something was taken"),
            (left.next_applied && left.cursor.as_deref() == Some(NEXT_ULID), "the cursor did not move on"),
        ]),
        "page" => verdict(&[
            (left.failed && left.cursor.is_none(), "the page was not refused"),
            (left.ops == 0 && left.rows == before, "something was taken"),
        ]),
        other => Err(format!("no such expectation: {other}")),
    }
}

#[tokio::test]
async fn every_recorded_case_ends_as_it_says() {
    let bench = Bench::new().await;
    let mut wrong = Vec::new();
    for line in CASES.lines() {
        let case: Case<'_> = serde_json::from_str(line).unwrap();
        let (before, left) = bench.run(&case).await;
        if let Err(why) = judge(&case, &before, &left) {
            wrong.push(format!("{} ({}): {why}\n    {}", case.name, case.expect, json!(format!("{left:?}"))));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), CASES.lines().count(), wrong.join("\n"));
}
