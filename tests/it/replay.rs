//! Contract 5: ops that come again act by what their records' traces say,
//! through opsward's pull and through the node's own insert.

use crate::harness::peer::{Answer, Peer};
use crate::harness::{Database, MadeOp, ops};
use crate::puller::{host, puller_with};
use opsward::clock::Clock;
use opsward::db::Db;
use opsward::metrics::Metrics;
use opsward::pull::{Pulled, Puller};
use opsward::values::OpUlid;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

mod foreign;
mod guard;
mod histories;
mod put_back;
mod replaced;

/// Ops of so many days ago.
pub fn ulid(days: u64, n: u64) -> OpUlid {
    OpUlid::from_parts(Clock::System.now_ms() / 86_400_000 * 86_400_000 - days * 86_400_000, n.into())
}

pub fn op(ulid: OpUlid, action: &'static str, table: &'static str, data: &str) -> MadeOp {
    MadeOp { ulid, host: "http://h".into(), action, table, data: data.into() }
}

pub fn upload(ulid: OpUlid, action: &'static str, id: &str, status: &str) -> MadeOp {
    op(ulid, action, "uploads", &format!(r#"[{{"id":"{id}","status":"{status}"}}]"#))
}

/// A node's database, a puller on it, a peer.
pub struct Bench {
    pub database: Database,
    pub db: Db,
    pub node: Client,
    pub metrics: Metrics,
    pub puller: Puller,
    pub peer: Peer,
}

impl Bench {
    pub async fn new() -> Self {
        let database = Database::new().await;
        let db = database.migrated().await;
        let metrics = Metrics::new().unwrap();
        let puller = puller_with(&db, Clock::System, &metrics);
        let (node, peer) = (database.client().await, Peer::scripted([]).await);
        Self { database, db, node, metrics, puller, peer }
    }

    /// Sent whole by a peer that is read from the beginning.
    pub async fn pull(&self, sent: &[MadeOp]) -> Pulled {
        self.node.batch_execute("DELETE FROM opsward.cursors; DELETE FROM cursors").await.unwrap();
        self.peer.then(Answer::json(&ops::page(sent)));
        self.puller.run_once(&host(&self.peer), &CancellationToken::new()).await.unwrap()
    }

    pub async fn run(&self, sql: &str) {
        self.node.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {}", opsward::db::describe(&e)));
    }

    pub async fn text(&self, sql: &str) -> String {
        let sql = format!("SELECT coalesce(string_agg(r::text, ' ' ORDER BY r), '') FROM ({sql}) q(r)");
        self.node.query_one(&sql, &[]).await.unwrap().get(0)
    }

    pub async fn uploads(&self) -> String {
        self.text("SELECT id || '=' || status FROM uploads").await
    }

    /// Deletes a table's ops below a ULID, as a batch of ours does.
    pub async fn prune(&self, table: &str, below: OpUlid) {
        prune(&self.node, table, below).await;
    }
}

pub const PRUNE: &str = "
    WITH gone AS (DELETE FROM ops WHERE \"table\" = $1 AND ulid < $2 RETURNING ulid, \"table\" t, data),
         kept AS (INSERT INTO opsward.floors (table_name, floor, raised_at) VALUES ($1, $2, now())
                  ON CONFLICT (table_name) DO UPDATE SET floor = greatest(floors.floor, excluded.floor)),
         left_behind AS (
             SELECT opsward.trace_key(t, r) AS key, max(ulid) AS ulid FROM gone, opsward.records(data) r
             WHERE opsward.trace_key(t, r) IS NOT NULL GROUP BY 1)
    INSERT INTO opsward.traces AS t SELECT key, ulid FROM left_behind
    ON CONFLICT (key) DO UPDATE SET ulid = greatest(t.ulid, excluded.ulid)";

pub async fn prune(client: &Client, table: &str, below: OpUlid) {
    client.execute(PRUNE, &[&table, &below.as_str()]).await.unwrap();
}

#[tokio::test]
async fn a_log_sent_again_leaves_newer_records_alone() {
    let bench = Bench::new().await;
    let log = [
        upload(ulid(30, 1), "create", "a", "new"),
        upload(ulid(29, 2), "update", "a", "busy"),
        upload(ulid(28, 3), "create", "b", "new"),
        upload(ulid(27, 4), "delete", "b", ""),
        op(ulid(26, 5), "update", "uploads", r#"[{"ID":"a","status":"done"},{"id":"c","status":"c1"}]"#),
        upload(ulid(1, 6), "update", "a", "best"),
    ];
    bench.pull(&log).await;
    assert_eq!(bench.uploads().await, "a=best c=c1");
    bench.prune("uploads", ulid(2, 0)).await;
    let pulled = bench.pull(&log).await;
    assert_eq!((pulled.sums.applied, pulled.sums.duplicates, pulled.sums.replays), (0, 1, 5));
    assert_eq!(bench.uploads().await, "a=best c=c1");
    assert_eq!(bench.metrics.ops_replayed.get(), 5);
    assert_eq!(pulled.to, Some(ulid(1, 6)), "replays settle");
    assert_eq!(bench.text("SELECT replays FROM opsward.pulls").await, "5");
    assert_eq!(bench.text("SELECT count(*) FROM ops").await, "1");
}

#[tokio::test]
async fn records_without_a_trace_act() {
    let bench = Bench::new().await;
    bench.pull(&[upload(ulid(30, 5), "update", "a", "seen")]).await;
    bench.prune("uploads", ulid(2, 0)).await;
    let two = r#"[{"id":"a","status":"old"},{"id":"z","status":"old"}]"#;
    let pulled = bench
        .pull(&[
            op(ulid(31, 1), "update", "uploads", two),
            upload(ulid(29, 9), "update", "a", "newer than the trace"),
            upload(ulid(29, 10), "update", "z", "second of the batch"),
        ])
        .await;
    assert_eq!((pulled.sums.applied, pulled.sums.replays), (3, 0));
    assert_eq!(bench.uploads().await, "a=newer than the trace z=second of the batch");
    let whole = bench.text("SELECT data->0->>'id' FROM ops WHERE jsonb_array_length(data) = 2").await;
    assert_eq!(whole, "a", "an op that acts in part is in the log whole");
    assert_eq!(bench.text("SELECT count(*) FROM opsward.traces").await, "1", "they leave no traces");
}

#[tokio::test]
async fn floors_are_a_tables_own_and_models_may_leave_no_traces() {
    let bench = Bench::new().await;
    bench.prune("audio_previews", ulid(2, 0)).await;
    bench.prune("storage_and_db_sizes", ulid(2, 0)).await;
    bench.run("UPDATE opsward.floors SET horizon = floor, floor = NULL WHERE table_name = 'storage_and_db_sizes'").await;
    let sizes = |day, n| {
        let data = format!(r#"[{{"LoggedAt":"2026-01-01T00:00:00Z","Host":"h{n}"}}]"#);
        op(ulid(day, n), "create", "storage_and_db_sizes", &data)
    };
    let pulled = bench
        .pull(&[
            upload(ulid(9, 1), "update", "a", "x"),
            sizes(9, 2),
            sizes(1, 3),
            op(ulid(8, 4), "create", "audio_previews", r#"[{"CID":"p"}]"#),
        ])
        .await;
    assert_eq!((pulled.sums.applied, pulled.sums.replays), (3, 1));
    assert_eq!(bench.text("SELECT host FROM storage_and_db_sizes").await, "h3");
    assert_eq!(bench.text("SELECT cid FROM audio_previews").await, "p");
}

#[tokio::test]
async fn a_row_below_the_watermark_lowers_it() {
    let bench = Bench::new().await;
    bench.run(&format!("UPDATE opsward.watermark SET ulid = '{}'", ulid(5, 0))).await;
    bench.pull(&[upload(ulid(4, 1), "create", "a", "x")]).await;
    assert_eq!(bench.text("SELECT ulid FROM opsward.watermark").await, ulid(5, 0).as_str());
    bench.pull(&[upload(ulid(7, 1), "create", "b", "x"), upload(ulid(6, 1), "create", "c", "x")]).await;
    assert_eq!(bench.text("SELECT ulid FROM opsward.watermark").await, ulid(7, 1).as_str());
}

/// A delete that commits while we are applying: the op is neither applied
/// again nor lost.
#[tokio::test]
async fn an_op_that_is_being_deleted_does_not_come_back() {
    let bench = Bench::new().await;
    let log = [upload(ulid(30, 1), "update", "a", "old"), upload(ulid(1, 2), "update", "a", "new")];
    bench.pull(&log).await;
    bench.prune("uploads", ulid(60, 0)).await;
    let mut deleter = bench.database.client().await;
    let tx = deleter.transaction().await.unwrap();
    tx.execute(PRUNE, &[&"uploads", &ulid(2, 0).as_str()]).await.unwrap();
    let waiting = async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        while bench.node.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        tx.commit().await.unwrap();
    };
    let (pulled, ()) = tokio::join!(bench.pull(&log[..1]), waiting);
    assert_eq!((pulled.sums.applied, pulled.sums.replays), (0, 1));
    assert_eq!(bench.uploads().await, "a=new");
    assert_eq!(bench.text("SELECT count(*) FROM ops").await, "1");
}
