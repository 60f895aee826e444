//! Contract 4: pulling, against peers that say anything.

use crate::harness::Database;
use crate::harness::daemon::Start;
use crate::harness::peer::{Answer, Peer, gzip, head};
use crate::puller::{OWN, host, puller_with};
use opsward::clock::Clock;
use opsward::metrics::Metrics;
use opsward::pull::{PullFailure, Pulled, Puller};
use opsward::values::OpUlid;
use std::sync::OnceLock;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const MINUTE: u64 = 60_000;

fn now() -> u64 {
    Clock::System.now_ms()
}

/// A ULID of so many minutes before the first one of this run: the same one
/// for the same minutes.
fn ago(minutes: u64) -> OpUlid {
    static BASE: OnceLock<u64> = OnceLock::new();
    OpUlid::from_parts(BASE.get_or_init(now) - minutes * MINUTE, u128::from(minutes))
}

fn op(ulid: impl std::fmt::Display, id: &str) -> String {
    record(ulid, "audio_previews", &format!(r#"{{"cid":"{id}"}}"#))
}

fn record(ulid: impl std::fmt::Display, table: &str, record: &str) -> String {
    format!(
        r#"{{"ulid":"{ulid}","host":"http://h","action":"update","table":"{table}","data":[{record}],"transient":false}}"#
    )
}

fn page(ops: &[String]) -> String {
    format!("[{}]", ops.join(","))
}

struct Bench {
    database: Database,
    db: opsward::db::Db,
    client: Client,
    peer: Peer,
    metrics: Metrics,
    puller: Puller,
}

impl Bench {
    async fn new() -> Self {
        let database = Database::new().await;
        let db = database.migrated().await;
        let metrics = Metrics::new().unwrap();
        let puller = puller_with(&db, Clock::System, &metrics);
        let client = database.client().await;
        // Where the node reads the chain, it has a row of its own there.
        client.batch_execute("DELETE FROM cursors").await.unwrap();
        Self { client, database, db, peer: Peer::scripted([]).await, metrics, puller }
    }

    async fn pull(&self, answer: Answer) -> Result<Pulled, PullFailure> {
        self.peer.then(answer);
        self.puller.run_once(&host(&self.peer), &CancellationToken::new()).await
    }

    async fn text(&self, sql: &str) -> Option<String> {
        self.client.query_opt(sql, &[]).await.unwrap().and_then(|r| r.get(0))
    }

    async fn own(&self) -> Option<String> {
        self.text("SELECT last_ulid FROM opsward.cursors").await
    }

    async fn node(&self) -> Option<String> {
        self.text("SELECT last_ulid FROM cursors").await
    }

    async fn count(&self, of: &str) -> i64 {
        self.client.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.unwrap().get(0)
    }

    async fn set_node(&self, ulid: Option<&str>) {
        let url = self.peer.url();
        let sql = "INSERT INTO cursors VALUES ($1, $2) ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid";
        self.client.execute(sql, &[&url, &ulid]).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_is_what_a_node_sends() {
    let bench = Bench::new().await;
    bench.set_node(Some(ago(60).as_str())).await;
    bench.pull(Answer::json("[]")).await.unwrap();
    let asked = bench.peer.requests();
    assert_eq!(asked[0].target, format!("/internal/crud/sweep?after={}", ago(60)));
    assert_eq!(asked[0].header("user-agent"), Some(format!("mediorum {OWN}").as_str()));
    assert_eq!(asked[0].header("accept-encoding"), Some("gzip"));
}

#[tokio::test]
async fn ops_are_applied_once_and_the_cursors_follow() {
    let bench = Bench::new().await;
    let body = page(&[op(ago(30), "a"), op(ago(20), "b")]);
    let pulled = bench.pull(Answer::json(&body)).await.unwrap();
    assert_eq!((pulled.sums.applied, pulled.sums.duplicates), (2, 0));
    assert_eq!(bench.own().await, Some(ago(20).to_string()));
    assert_eq!(bench.node().await, bench.own().await);
    let again = bench.pull(Answer::gzip(&[], &body)).await.unwrap();
    assert_eq!((again.sums.applied, again.sums.duplicates), (0, 2));
    assert_eq!(bench.count("ops").await, 2);
    assert_eq!(bench.metrics.ops_applied.get(), 2);
    assert_eq!(bench.peer.requests()[1].after(), Some(ago(20).as_str()));
}

#[tokio::test]
async fn a_cursor_is_stored_no_later_than_a_minute_ago() {
    let bench = Bench::new().await;
    let ahead = OpUlid::first_of_ms(now() + 20 * 60 * MINUTE);
    bench.pull(Answer::json(&page(&[op(ago(30), "a"), op(ahead, "b")]))).await.unwrap();
    let own = OpUlid::parse(&bench.own().await.unwrap()).unwrap();
    assert!(own > ago(2) && own.ms() <= now() - MINUTE, "{own}");
    assert_eq!(bench.count("audio_previews").await, 2);
}

#[tokio::test]
async fn the_nodes_row_is_healed_but_never_lowered() {
    let bench = Bench::new().await;
    for implausible in ["7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "01BEFORE"] {
        bench.set_node(Some(implausible)).await;
        bench.client.batch_execute("DELETE FROM opsward.cursors").await.unwrap();
        let healed = bench.metrics.cursors_healed.get();
        bench.pull(Answer::json(&page(&[op(ago(30), "a")]))).await.unwrap();
        assert_eq!(bench.node().await, Some(ago(30).to_string()));
        assert_eq!(bench.metrics.cursors_healed.get(), healed + 1);
        // Implausible: asked from the beginning.
        assert_eq!(bench.peer.requests().last().unwrap().after(), Some(""));
    }
    bench.set_node(Some(ago(5).as_str())).await;
    bench.pull(Answer::json(&page(&[op(ago(20), "b")]))).await.unwrap();
    assert_eq!(
        (bench.own().await, bench.node().await),
        (Some(ago(20).to_string()), Some(ago(5).to_string()))
    );
}

/// The node's sweep steps over what it fails to apply: where we began is not
/// forgotten because our own first sweeps failed.
#[tokio::test]
async fn a_first_sweep_that_fails_begins_there_again() {
    let bench = Bench::new().await;
    bench.set_node(Some(ago(600).as_str())).await;
    assert!(bench.pull(Answer::json("{}")).await.is_err());
    bench.set_node(Some(ago(60).as_str())).await;
    bench.pull(Answer::json("[]")).await.unwrap();
    assert_eq!(bench.peer.requests()[1].after(), Some(ago(600).as_str()));
    assert_eq!(bench.node().await, Some(ago(60).to_string()));
}

#[tokio::test]
async fn rows_of_others_are_left_alone() {
    let bench = Bench::new().await;
    let others =
        "INSERT INTO cursors VALUES ('qm_fix_truncated', 'baeaaaiqse'), ('core_mediorum_blocks', '123456')
        ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid";
    bench.client.batch_execute(others).await.unwrap();
    bench.pull(Answer::json(&page(&[op(ago(30), "a")]))).await.unwrap();
    let kept = "cursors WHERE (host, last_ulid) IN (('qm_fix_truncated', 'baeaaaiqse'), ('core_mediorum_blocks', '123456'))";
    assert_eq!((bench.count(kept).await, bench.count("cursors").await), (2, 3));
}

#[tokio::test]
async fn the_nodes_row_is_found_in_any_spelling() {
    let bench = Bench::new().await;
    let spelled = format!("{}/", bench.peer.url().to_uppercase());
    bench
        .client
        .execute("INSERT INTO cursors VALUES ($1, $2)", &[&spelled, &ago(60).as_str()])
        .await
        .unwrap();
    bench.pull(Answer::json(&page(&[op(ago(30), "a")]))).await.unwrap();
    assert_eq!((bench.count("cursors").await, bench.node().await), (1, Some(ago(30).to_string())));
}

#[tokio::test]
async fn a_row_that_an_operator_removes_is_a_reset() {
    let bench = Bench::new().await;
    let body = page(&[op(ago(30), "a")]);
    for remove in
        ["DELETE FROM cursors", "UPDATE cursors SET last_ulid = ''", "UPDATE cursors SET last_ulid = NULL"]
    {
        bench.pull(Answer::json(&body)).await.unwrap();
        assert!(bench.own().await.is_some());
        // Between two sweeps: read anew, from the beginning.
        bench.client.batch_execute(remove).await.unwrap();
        bench.pull(Answer::json(&body)).await.unwrap();
        assert_eq!(bench.peer.requests().last().unwrap().after(), Some(""), "{remove}");
        assert_eq!(bench.node().await, Some(ago(30).to_string()));
    }
    assert_eq!(bench.metrics.cursors_reset.get(), 3);
}

#[tokio::test]
async fn a_row_that_vanishes_during_the_sweep_is_a_reset() {
    let bench = Bench::new().await;
    bench.pull(Answer::json(&page(&[op(ago(30), "a")]))).await.unwrap();
    let body = page(&[op(ago(20), "b")]);
    let answer = Answer::json(&body);
    // The operator is as fast as a request is.
    let parts =
        Answer::Drip { bytes: answer.bytes().to_vec(), at_once: 400, pause: Duration::from_millis(1) };
    let url = bench.database.url();
    let peer = Peer::serving(move |_| {
        let url = url.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (client, connection) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute("DELETE FROM cursors").await.unwrap();
            });
        })
        .join()
        .unwrap();
        parts.clone()
    })
    .await;
    let own = "UPDATE opsward.cursors SET host = $1";
    bench.client.execute(own, &[&peer.url()]).await.unwrap();
    bench.client.execute("UPDATE cursors SET host = $1", &[&peer.url()]).await.unwrap();
    bench.puller.run_once(&host(&peer), &CancellationToken::new()).await.unwrap();
    assert_eq!((bench.own().await, bench.node().await), (None, None));
    assert_eq!(bench.count("audio_previews").await, 2);
}

#[tokio::test]
async fn a_gap_is_crossed_counted_and_recorded() {
    let bench = Bench::new().await;
    bench.set_node(Some(ago(600).as_str())).await;
    let min = ago(300);
    let headers = ["X-Mediorum-Retention-Gap: true", &format!("X-Mediorum-Available-Min-Ulid: {min}")];
    let pulled = bench.pull(Answer::page(&headers, &page(&[op(min, "a")]))).await.unwrap();
    assert_eq!(pulled.sums.gap, Some((ago(600), min)));
    assert_eq!(bench.metrics.gap_advances.get(), 1);
    assert_eq!(bench.count("opsward.pulls WHERE gap_advances = 1 AND last_gap_to IS NOT NULL").await, 1);
    // Once: the next request is from above it.
    bench.pull(Answer::page(&headers, "[]")).await.unwrap();
    assert_eq!(bench.metrics.gap_advances.get(), 1);
}

#[tokio::test]
async fn a_gap_without_ops_moves_the_cursor_too() {
    let bench = Bench::new().await;
    bench.set_node(Some(ago(600).as_str())).await;
    let headers = ["X-Mediorum-Retention-Gap: true", &format!("X-Mediorum-Available-Min-Ulid: {}", ago(300))];
    bench.pull(Answer::page(&headers, "[]")).await.unwrap();
    assert_eq!(bench.own().await, Some(ago(300).to_string()));
}

#[tokio::test]
async fn table_floors_above_the_cursor_are_counted() {
    let bench = Bench::new().await;
    bench.set_node(Some(ago(600).as_str())).await;
    let floors = format!("X-Opsward-Table-Floors: uploads={},audio_previews={}", ago(400), ago(700));
    let pulled = bench.pull(Answer::page(&[&floors], &page(&[op(ago(300), "a")]))).await.unwrap();
    assert_eq!(pulled.table_gaps, [("uploads".to_owned(), ago(400))]);
    assert_eq!(bench.metrics.table_gaps.with_label_values(&["uploads"]).get(), 1);
}

/// Cut at every byte: the cursor never moves past what was applied, nor does
/// a gap that was announced count.
#[tokio::test]
async fn a_body_cut_anywhere_moves_nothing() {
    let bench = Bench::new().await;
    bench.set_node(Some(ago(600).as_str())).await;
    let min = ago(300);
    let body = page(&[op(min, "a"), op(ago(20), "b")]);
    let headers = ["X-Mediorum-Retention-Gap: true", &format!("X-Mediorum-Available-Min-Ulid: {min}")];
    for packed in [false, true] {
        let answer = if packed { Answer::gzip(&headers, &body) } else { Answer::page(&headers, &body) };
        let bytes = answer.bytes().to_vec();
        for end in 0..bytes.len() {
            let cut = if end % 2 == 0 {
                Answer::Cut(bytes[..end].to_vec())
            } else {
                Answer::Bytes(bytes[..end].to_vec())
            };
            let pulled = bench.pull(cut).await;
            // The array is whole once its bracket was unpacked: the rest of the
            // gzip stream is its checksum.
            if pulled.is_ok() {
                assert!(packed && bytes.len() - end <= 16, "cut at {end} of {} was taken", bytes.len());
                bench.client.batch_execute("DELETE FROM opsward.cursors").await.unwrap();
                bench.set_node(Some(ago(600).as_str())).await;
                continue;
            }
            assert_eq!(bench.own().await, Some(ago(600).to_string()), "cut at {end}");
            assert_eq!(bench.node().await, Some(ago(600).to_string()), "cut at {end}");
        }
    }
    bench.client.batch_execute("DELETE FROM opsward.cursors").await.unwrap();
    bench.set_node(Some(ago(600).as_str())).await;
    let gaps = bench.metrics.gap_advances.get();
    bench.pull(Answer::page(&headers, &body)).await.unwrap();
    assert_eq!(bench.metrics.gap_advances.get(), gaps + 1);
}

#[tokio::test]
async fn a_bad_op_takes_no_neighbour_down() {
    let bench = Bench::new().await;
    // Only the database can refuse it: too long for the index on status.
    let mut state = 88_172_645_463_325_252u64;
    let long: String = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    })
    .take(6_000)
    .collect();
    let mut ops: Vec<String> = (1..40).map(|i| op(ago(100 - i), &format!("n{i}"))).collect();
    ops.insert(17, record(ago(200), "uploads", &format!(r#"{{"id":"u","status":"{long}"}}"#)));
    ops.insert(3, "{\"ulid\":7}".into());
    let pulled = bench.pull(Answer::json(&page(&ops))).await.unwrap();
    assert_eq!((pulled.sums.applied, pulled.sums.rejected), (39, 2));
    assert_eq!((bench.count("audio_previews").await, bench.count("uploads").await), (39, 0));
    assert_eq!(bench.count("opsward.rejected_ops WHERE code = 'refused_by_database'").await, 1);
    assert_eq!(bench.own().await, Some(ago(61).to_string()));
    // The same again is not kept twice.
    bench.pull(Answer::json(&page(&ops))).await.unwrap();
    assert_eq!(bench.count("opsward.rejected_ops").await, 2);
    assert_eq!(bench.count("opsward.rejected_ops WHERE times = 2").await, 2);
}

#[tokio::test]
async fn refused_ops_of_one_peer_are_bounded_and_the_rest_is_counted() {
    let bench = Bench::new().await;
    let ops: Vec<String> = (0..1_500)
        .map(|i| op(OpUlid::from_parts(now() - 90 * MINUTE, i), "x").replace("update", "upsert"))
        .collect();
    let pulled = bench.pull(Answer::json(&page(&ops))).await.unwrap();
    assert_eq!((pulled.sums.rejected, pulled.sums.rejected_unkept), (1_500, 500));
    assert_eq!(bench.count("opsward.rejected_ops").await, 1_000);
}

#[tokio::test]
async fn refused_ops_of_one_peer_are_bounded_in_bytes() {
    let bench = Bench::new().await;
    for i in 0..3 {
        let large = format!(r#"{{"cid":"{i}","x":"{}"}}"#, "a".repeat(30 << 20));
        let large = record(ago(90 - i), "audio_previews", &large).replace("update", "upsert");
        let pulled = bench.pull(Answer::json(&page(&[large]))).await.unwrap();
        assert_eq!(pulled.sums.rejected_unkept, i64::from(i == 2));
    }
    assert_eq!(bench.count("opsward.rejected_ops").await, 2);
}

#[tokio::test]
async fn what_no_node_can_apply_is_refused_and_holds_nothing() {
    let bench = Bench::new().await;
    let empty = record(ago(20), "repair_trackers", "");
    let null = record(ago(15), "repair_trackers", "").replace("[]", "null");
    let body = page(&[empty, null, op(ago(10), "b")]);
    let pulled = bench.pull(Answer::json(&body)).await.unwrap();
    assert_eq!((pulled.hold, pulled.sums.rejected), (None, 2));
    assert_eq!(bench.own().await, Some(ago(10).to_string()));
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_not_used() {
    let bench = Bench::new().await;
    let listed = bench.peer.url();
    let node = Peer::serving(move |_| {
        Answer::json(&format!(r#"{{"endpoints":[{{"endpoint":"{listed}","serviceType":"validator"}}]}}"#))
    })
    .await;
    bench.peer.then(Answer::json(&page(&[op(ago(10), "a")])));
    let ran = Start::new(&["sweep"])
        .env("OPENAUDIO_DB_URL", bench.database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", OWN)
        .env("OPENAUDIO_MEDIORUM_NODE_URL", node.url())
        .env("http_proxy", "http://127.0.0.1:1")
        .output()
        .await;
    assert_eq!((ran.code, bench.count("ops").await), (Some(0), 1), "{ran:?}");
}

#[tokio::test]
async fn what_is_not_understood_is_held_and_lifted() {
    let bench = Bench::new().await;
    bench.client.batch_execute("ALTER TABLE uploads ADD COLUMN newer text").await.unwrap();
    let body = page(&[op(ago(30), "a"), record(ago(20), "uploads", r#"{"id":"u"}"#), op(ago(10), "b")]);
    let pulled = bench.pull(Answer::json(&body)).await.unwrap();
    assert_eq!(pulled.hold.as_ref().map(|h| h.ulid), Some(ago(20)));
    assert!(pulled.hold.unwrap().reason.contains("newer"));
    assert_eq!((bench.own().await, bench.count("audio_previews").await), (Some(ago(30).to_string()), 1));
    assert_eq!(bench.metrics.peers_held.get(), 1);
    bench.client.batch_execute("ALTER TABLE uploads DROP COLUMN newer").await.unwrap();
    bench.pull(Answer::json(&body)).await.unwrap();
    assert_eq!((bench.own().await, bench.count("opsward.holds").await), (Some(ago(10).to_string()), 0));
    assert_eq!(bench.metrics.peers_held.get(), 0);
}

/// Each of these fails, moves nothing, and is recorded as the peer's failure.
#[tokio::test]
async fn hostile_answers_move_nothing() {
    let bench = Bench::new().await;
    let good = op(ago(30), "a");
    let elsewhere = Peer::scripted([Answer::json(&page(std::slice::from_ref(&good)))]).await;
    let redirect =
        format!("Location: {}/internal/crud/sweep", elsewhere.url().replace("127.0.0.1", "localhost"));
    let answers = [
        Answer::new(500, &[], b"[]"),
        Answer::new(204, &[], b""),
        Answer::new(201, &[], page(std::slice::from_ref(&good)).as_bytes()),
        Answer::new(302, &[&redirect], b""),
        Answer::json("null"),
        Answer::json("{}"),
        Answer::json(""),
        Answer::json("<html>"),
        Answer::json(&format!("[{good},")),
        Answer::json(&format!("[{good}{good}]")),
        Answer::new(200, &["Content-Encoding: gzip"], b"no gzip at all"),
        Answer::Bytes(b"HTTP/9.9 what\r\n\r\n".to_vec()),
        Answer::Bytes(b"".to_vec()),
        Answer::Cut(head(200, &["Content-Length: 5000"])),
    ];
    for answer in answers {
        let shown = format!("{answer:?}");
        let failure = bench.pull(answer).await.expect_err(&shown);
        assert!(matches!(failure, PullFailure::Peer(_)), "{failure}");
        assert_eq!(bench.own().await, None, "{shown}");
    }
    assert_eq!(elsewhere.requests().len(), 0);
    let failed = "opsward.pulls WHERE outcome = 'failed' AND failures_in_a_row = 14";
    assert_eq!(bench.count(failed).await, 1);
    bench.pull(Answer::json("[]")).await.unwrap();
    assert_eq!(bench.count("opsward.pulls WHERE outcome = 'ok' AND failures_in_a_row = 0").await, 1);
}

#[tokio::test]
async fn a_redirect_on_the_same_host_is_followed() {
    let bench = Bench::new().await;
    bench.peer.then(Answer::new(302, &["Location: /elsewhere"], b""));
    let pulled = bench.pull(Answer::json(&page(&[op(ago(30), "a")]))).await.unwrap();
    assert_eq!(pulled.sums.applied, 1);
}

#[tokio::test]
async fn bombs_and_endless_bodies_end() {
    let bench = Bench::new().await;
    // 600 MiB of blanks in some 600 KiB: larger than a page may be.
    let blanks = gzip(&vec![b' '; 100 << 20]);
    let bomb = [gzip(b"["), blanks].concat();
    let failure = bench.pull(Answer::new(200, &["Content-Encoding: gzip"], &bomb)).await;
    assert!(failure.is_err());
    let head = head(200, &["Content-Type: application/json", "Connection: close", ""]);
    let failure = bench.pull(Answer::Endless { head, chunk: vec![b'['; 1 << 20] }).await;
    // One op without an end is one that we cannot hold.
    assert!(failure.unwrap().hold.is_some());
    assert_eq!(bench.own().await, None);
    // Deep nesting costs nothing: the op is refused.
    let deep = format!("[{}{}]", "[".repeat(200_000), "]".repeat(200_000));
    let pulled = bench.pull(Answer::json(&deep)).await.unwrap();
    assert_eq!(pulled.sums.rejected, 1);
    assert_eq!(bench.text("SELECT code FROM opsward.rejected_ops").await.as_deref(), Some("nesting"));
}

#[tokio::test]
async fn an_op_too_large_to_hold_keeps_the_cursor_before_it() {
    let bench = Bench::new().await;
    let huge = record(ago(20), "audio_previews", &format!(r#"{{"cid":"h","x":"{}"}}"#, "a".repeat(33 << 20)));
    let pulled = bench.pull(Answer::json(&page(&[op(ago(30), "a"), huge]))).await.unwrap();
    assert_eq!(bench.own().await, Some(ago(30).to_string()));
    assert!(pulled.hold.unwrap().reason.contains("larger than"));
}

#[tokio::test]
async fn a_log_that_ends_in_implausible_ulids_is_no_trap() {
    let bench = Bench::new().await;
    let future = "7ZZZZZZZZZZZZZZZZZZZZZZZZZ";
    let body = page(&[op(ago(30), "a"), op(future, "b")]);
    let scanned =
        [format!("X-Crud-Sweep-Last-Scanned-Ulid: {future}"), "X-Crud-Sweep-Limited: true".to_owned()];
    let headers: Vec<&str> = scanned.iter().map(String::as_str).collect();
    bench.pull(Answer::page(&headers, &body)).await.unwrap();
    assert_eq!(bench.own().await, Some(ago(30).to_string()));
    // Again: nothing moves, so nothing follows at once.
    let again = bench.pull(Answer::page(&headers, &page(&[op(future, "b")]))).await.unwrap();
    assert_eq!((again.next, bench.own().await), (None, Some(ago(30).to_string())));
    assert_eq!(bench.count("opsward.rejected_ops").await, 1);
}

#[tokio::test]
async fn catching_up_follows_at_once_but_not_without_a_pause() {
    let bench = Bench::new().await;
    let old = bench.pull(Answer::json(&page(&[op(ago(60), "a")]))).await.unwrap();
    assert!(old.next.unwrap() >= Duration::from_secs(2));
    assert_eq!(bench.pull(Answer::json("[]")).await.unwrap().next, None);
    assert_eq!(bench.pull(Answer::json(&page(&[op(ago(2), "b")]))).await.unwrap().next, None);
}

#[tokio::test]
async fn a_hanging_peer_ends_when_we_stop() {
    let bench = Bench::new().await;
    bench.peer.then(Answer::Hang(head(200, &["Content-Length: 10", ""])));
    let stop = CancellationToken::new();
    let peer = host(&bench.peer);
    let (pulled, ()) = tokio::join!(bench.puller.run_once(&peer, &stop), async {
        bench.peer.asked(1).await;
        stop.cancel();
    });
    assert!(matches!(pulled, Err(PullFailure::Stopped)));
}

#[tokio::test]
async fn the_node_is_never_waited_for_over_its_row() {
    let bench = Bench::new().await;
    bench.set_node(Some(ago(60).as_str())).await;
    bench.client.batch_execute("BEGIN; UPDATE cursors SET last_ulid = last_ulid").await.unwrap();
    let busy = bench.pull(Answer::json(&page(&[op(ago(30), "a")]))).await;
    assert!(matches!(busy, Err(PullFailure::Db(_))), "{busy:?}");
    bench.client.batch_execute("ROLLBACK").await.unwrap();
    bench.pull(Answer::json(&page(&[op(ago(30), "a")]))).await.unwrap();
    assert_eq!(bench.node().await, Some(ago(30).to_string()));
}

#[tokio::test]
async fn an_op_that_the_node_is_writing_is_met_with_patience() {
    let bench = Bench::new().await;
    let ulid = ago(30);
    let insert = format!("BEGIN; INSERT INTO ops VALUES ('{ulid}', 'h', 'update', 'audio_previews', '[]')");
    bench.client.batch_execute(&insert).await.unwrap();
    let peer = host(&bench.peer);
    bench.peer.then(Answer::json(&page(&[op(ulid, "a"), op(ago(20), "b")])));
    let stop = CancellationToken::new();
    let pulling = bench.puller.run_once(&peer, &stop);
    let (pulled, ()) = tokio::join!(pulling, async {
        // Once our insert waits for the node's, the node commits.
        let waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
        let other = bench.db.client().await.unwrap();
        while other.query_opt(waits, &[]).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        bench.client.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(
        (pulled.unwrap().sums, bench.count("ops").await),
        (opsward::db::pulls::PageSums { applied: 1, duplicates: 1, ..Default::default() }, 2)
    );
}

/// A peer that dawdles over a large op keeps the others' large ops waiting,
/// but never a batch of theirs: it would hold rows and a turn to apply.
#[tokio::test]
async fn waiting_for_a_large_op_leaves_no_batch_half_applied() {
    let bench = Bench::new().await;
    let large =
        record(ago(20), "audio_previews", &format!(r#"{{"cid":"h","x":"{}"}}"#, "a".repeat(400 << 10)));
    let ops = |from: u128| -> Vec<String> {
        let ulid = |i| OpUlid::from_parts(now() - 90 * MINUTE, from + i);
        (0..1_000).map(|i| op(ulid(i), &(from + i).to_string())).collect()
    };
    let slow = page(&[ops(0), vec![large.clone()]].concat());
    let slow = [head(200, &[]), b"\r\n".to_vec(), slow.into_bytes()].concat();
    let slow = Peer::scripted([Answer::Hang(slow[..slow.len() - 1_000].to_vec())]).await;
    bench.peer.then(Answer::json(&page(&[ops(10_000), vec![large]].concat())));
    let stop = CancellationToken::new();
    let pulled = async {
        let applied = async |n| while bench.count("ops").await < n {};
        let slow = host(&slow);
        let honest = host(&bench.peer);
        tokio::select! {
            _ = bench.puller.run_once(&slow, &stop) => panic!("it never ends"),
            () = async {
                applied(1_000).await;
                tokio::select! {
                    _ = bench.puller.run_once(&honest, &stop) => panic!("the large op waits"),
                    () = applied(2_000) => {}
                }
            } => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(30), pulled).await.expect("a batch was left half applied");
}

/// Silence in the middle of a large op counts as well: its turn is another peer's.
#[tokio::test]
async fn a_large_op_that_never_comes_gives_its_turn_back() {
    let bench = Bench::new().await;
    let large =
        record(ago(20), "audio_previews", &format!(r#"{{"cid":"h","x":"{}"}}"#, "a".repeat(400 << 10)));
    let sent = [head(200, &[]), b"\r\n".to_vec(), page(&[large]).into_bytes()].concat();
    let slow = Peer::scripted([Answer::Hang(sent[..sent.len() - 1_000].to_vec())]).await;
    let ended = bench.puller.run_once(&host(&slow), &CancellationToken::new()).await;
    let why = ended.unwrap_err().to_string();
    assert!(why.contains("did not arrive within 20 s"), "{why}");
}

#[tokio::test]
async fn what_comes_again_is_no_news() {
    let bench = Bench::new().await;
    // It has no plausible time, so no cursor ever passes it.
    let sent = page(&[op("7ZZZZZZZZZ0000000000000000", "a")]);
    let mut news = Vec::new();
    for _ in 0..2 {
        let pulled = bench.pull(Answer::json(&sent)).await.unwrap();
        news.push((pulled.sums.rejected, pulled.sums.rejected_new));
    }
    assert_eq!(news, [(1, 1), (1, 0)]);
    let client = bench.db.client().await.unwrap();
    let other = opsward::values::Host::parse("https://other.example").unwrap();
    let hold = opsward::db::pulls::Hold { ulid: ago(5), table: "t".into(), reason: "r".into() };
    for (second, new) in [(1, true), (2, false)] {
        let now = jiff::Timestamp::from_second(second).unwrap();
        let told = opsward::db::pulls::hold(&client, &other, Some(&hold), now).await;
        assert_eq!(told.unwrap(), new);
    }
}

#[tokio::test]
async fn a_departed_peers_hold_counts_no_more() {
    let bench = Bench::new().await;
    let held = async || opsward::db::pulls::held(&bench.db.client().await.unwrap()).await.unwrap();
    let hold = "INSERT INTO opsward.holds VALUES ('http://gone', '', 't', 'r', now())";
    bench.client.batch_execute(hold).await.unwrap();
    assert_eq!(held().await, 1);
    let departed = "INSERT INTO opsward.peers VALUES ('http://gone', '', false, now(), now())";
    bench.client.batch_execute(departed).await.unwrap();
    assert_eq!(held().await, 0);
}
