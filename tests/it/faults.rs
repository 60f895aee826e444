//! Faults on the line between a real opsward that serves and one that pulls:
//! cut, corrupted, delayed; and peers that delay no other.

use crate::harness::{Answer, Database, Peer, Schema, Start, http, peer};
use crate::puller::{host, puller};
use opsward::clock::Clock;
use opsward::values::{Host, OpUlid};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const HOUR: u64 = 3_600_000;

fn ago(hours: u64, n: u128) -> OpUlid {
    OpUlid::from_parts(Clock::System.now_ms() - hours * HOUR, n)
}

fn page(ulids: &[OpUlid]) -> String {
    let op = |u: &OpUlid| {
        format!(
            r#"{{"ulid":"{u}","host":"h","action":"create","table":"audio_previews","data":[{{"cid":"c{u}"}}],"transient":false}}"#
        )
    };
    format!("[{}]", ulids.iter().map(op).collect::<Vec<_>>().join(","))
}

async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|r| r.get(0)).collect()
}

/// A byte changed on the way may make another op of it, which nothing can see;
/// but whatever comes, the cursor stands where something was taken.
#[tokio::test]
async fn a_corrupted_byte_moves_the_cursor_nowhere_it_was_not() {
    let database = Database::new().await;
    let db = database.migrated().await;
    let client = database.client().await;
    client.batch_execute("TRUNCATE cursors").await.unwrap();
    let (peer, puller) = (Peer::scripted([]).await, puller(&db));
    let ulids = [ago(9, 1), ago(8, 2)];
    let answer = Answer::page(&["X-Crud-Sweep-Limited: false"], &page(&ulids));
    for at in 0..answer.bytes().len() {
        let mut bytes = answer.bytes().to_vec();
        bytes[at] ^= 1 << (at % 7);
        peer.then(Answer::Bytes(bytes));
        let _ = puller.run_once(&host(&peer), &CancellationToken::new()).await;
        let taken = texts(&client, "SELECT ulid FROM ops UNION SELECT ulid FROM opsward.rejected_ops").await;
        for cursor in
            texts(&client, "SELECT last_ulid FROM opsward.cursors UNION SELECT last_ulid FROM cursors").await
        {
            assert!(taken.contains(&cursor), "byte {at}: {cursor} of {taken:?}");
        }
        client
            .batch_execute(
                "TRUNCATE ops, audio_previews, cursors, opsward.cursors, opsward.rejected_ops, opsward.holds",
            )
            .await
            .unwrap();
    }
}

/// One peer hangs, one lets nobody in, one floods: the honest one is pulled
/// while they are still at it.
#[tokio::test]
async fn bad_peers_delay_no_other() {
    let database = Database::of(Schema::A).await;
    let hang = Peer::serving(|_| Answer::Hang(peer::head(200, &["Content-Length: 9", ""]))).await;
    let flood = Peer::serving(|_| Answer::Endless {
        head: peer::head(200, &["Connection: close", ""]),
        chunk: b"[1,1,1,1,1,1,1,1,1,".repeat(1000),
    })
    .await;
    let ulid = ago(1, 7);
    let honest = Peer::scripted([Answer::json(&page(&[ulid]))]).await;
    let peers = [hang.url(), flood.url(), "http://127.0.0.1:1".into(), honest.url()].join(",");
    let daemon =
        Start::run(&database.url(), "https://me.example").env("OPENAUDIO_MEDIORUM_PEERS", peers).spawn();
    daemon.ready().await;
    // Caught up: the second page of the honest one is asked for from above.
    let asked = honest.asked(2).await;
    assert_eq!(asked[1].after(), Some(ulid.as_str()));
    assert_eq!(hang.asked(1).await.len(), 1);
    assert!(daemon.resident() < 64 << 20, "{} bytes", daemon.resident());
}

/// Two real ones: what one serves the other pulls, plain nodes' rows and all.
#[tokio::test]
async fn one_opsward_reads_another() {
    let (source, copy) = (Database::new().await, Database::of(Schema::A).await);
    let from = source.client().await;
    let fill = "INSERT INTO ops SELECT $1::text || lpad(n::text, 13, '0'), 'http://h', 'update',
                   CASE n % 2 WHEN 0 THEN 'audio_previews' ELSE 'qm_audio_analyses' END,
                   jsonb_build_array(jsonb_build_object('cid', 'c' || n))
                FROM generate_series(1, 12000) n";
    let prefix = ago(2, 0).as_str()[..13].to_owned();
    from.execute(fill, &[&prefix]).await.unwrap();
    let bad = "INSERT INTO ops VALUES ($1::text || '0000000000000', NULL, NULL, NULL, NULL), ('zzz', 'h', 'x', 'foo', '[]')";
    from.execute(bad, &[&prefix]).await.unwrap();

    let serving = Start::run(&source.url(), "https://source.example").spawn();
    serving.ready().await;
    let peer = format!("http://{}", serving.public());
    let pulling =
        Start::run(&copy.url(), "https://copy.example").env("OPENAUDIO_MEDIORUM_PEERS", &peer).spawn();
    pulling.ready().await;
    let to = copy.client().await;
    let count = "SELECT count(*) FROM ops";
    // Two pages, the second at once after the first: the log ends in between.
    while to.query_one(count, &[]).await.unwrap().get::<_, i64>(0) < 12_000 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let records =
        "SELECT count(*)::text FROM audio_previews UNION ALL SELECT count(*)::text FROM qm_audio_analyses";
    assert_eq!(texts(&to, records).await, ["6000", "6000"]);
    let metrics = http::get(pulling.admin(), "/metrics", &[]).await.text();
    assert!(metrics.contains("opsward_ops_applied_total 12000"), "{metrics}");
    assert!(metrics.contains("opsward_gap_advances_total 0"), "{metrics}");
    let held = Host::parse(&peer).unwrap();
    let line = format!("opsward_sweeps_pulled_total{{outcome=\"ok\",peer=\"{held}\"}}");
    assert!(metrics.contains(&line), "{metrics}");
}
