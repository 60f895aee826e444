//! Registered peers that ask are remembered.

use super::{ONE, PATH, Port, fill, run, ulid, until};
use crate::harness::{Database, http};
use jiff::Timestamp;
use opsward::db::readers;

const PEER: &str = "https://n1.example";
const AGENT: &str = "User-Agent: mediorum https://N1.example/";

/// Host, lowest, latest, requests.
async fn noted(database: &Database) -> Vec<(String, Option<String>, String, i64)> {
    let sql = "SELECT host, lowest, latest, requests FROM opsward.readers ORDER BY host, hour";
    let rows = database.client().await.query(sql, &[]).await.unwrap();
    let read = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3)));
    read.collect()
}

#[tokio::test]
async fn what_a_peer_asked_with_is_kept() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=9, "audio_previews", ONE).await;
    port.register(&[PEER]);
    // Nobody registered, nobody at all, only the headers, nothing readable.
    port.ask(&ulid(1), &["User-Agent: mediorum https://n2.example"]).await;
    port.ask(&ulid(1), &["User-Agent: curl/8"]).await;
    let target = format!("{PATH}?after={}", ulid(1));
    http::request("HEAD", port.address, &target, &[AGENT]).await;
    port.ask("zzz", &[AGENT]).await;

    let mut count = 0;
    let mut ask = async |after: &str, lowest: Option<u64>, latest: &str| {
        count += 1;
        assert_eq!(port.ask(after, &[AGENT]).await.status, 200);
        let wanted = [(PEER.to_owned(), lowest.map(ulid), latest.to_owned(), count)];
        until("the reader is noted", async || noted(&database).await == wanted).await;
    };
    ask("", None, "").await;
    ask(&ulid(7), Some(7), &ulid(7)).await;
    ask(&ulid(3), Some(3), &ulid(3)).await;
    ask(&ulid(5), Some(3), &ulid(5)).await;
    ask("", Some(3), "").await;
    // An implausible cursor is stored nowhere.
    ask("00000000000000000000000000", Some(3), "").await;

    let db = database.db().await;
    let client = db.client().await.unwrap();
    let at = Timestamp::from_millisecond(super::NOW_MS).unwrap();
    let found = readers::lowest_since(&client, at - jiff::SignedDuration::from_hours(24));
    let [reader] = &found.await.unwrap()[..] else {
        panic!("one reader");
    };
    assert_eq!(reader.host.as_str(), PEER);
    assert_eq!(reader.lowest, Some(ulid(3)));
    assert_eq!(reader.last_at, at);
    let later = at + jiff::SignedDuration::from_secs(1);
    assert!(readers::lowest_since(&client, later).await.unwrap().is_empty());
}

#[tokio::test]
async fn readers_of_other_days_go() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    port.register(&[PEER]);
    let sql = "INSERT INTO opsward.readers
        SELECT 'https://old.example', at, '', '', 1, at FROM (VALUES
            ('2026-11-21T11:59:59Z'::timestamptz), ('2026-11-21T12:00:01Z')) x(at)";
    run(&database, sql).await;
    port.ask("", &[AGENT]).await;
    until("old rows are gone", async || noted(&database).await.len() == 2).await;
}

/// The page is served where the reader cannot be noted.
#[tokio::test]
async fn a_page_does_not_wait_for_the_note() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=2, "audio_previews", ONE).await;
    port.register(&[PEER]);
    let locked = database.client().await;
    let sql = "BEGIN; LOCK TABLE opsward.readers IN ACCESS EXCLUSIVE MODE";
    locked.batch_execute(sql).await.unwrap();
    for _ in 0..5 {
        let answer = port.ask(&ulid(1), &[AGENT]).await;
        assert_eq!(answer.ulids(), [ulid(2)]);
    }
    locked.batch_execute("ROLLBACK").await.unwrap();
}
