//! Registered peers are served before strangers, whatever strangers do.

use super::{ONE, PATH, Port, fill, run, ulid};
use crate::harness::{Database, http};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const PEER: &str = "https://n1.example";
const AGENT: &str = "User-Agent: mediorum https://n1.example";

/// A session that locks the log until it commits.
async fn locked(database: &Database) -> tokio_postgres::Client {
    let client = database.client().await;
    client.batch_execute("BEGIN; LOCK TABLE ops").await.unwrap();
    client
}

/// A request at once from each of these addresses; their statuses.
fn ask_from(port: &Port, addresses: impl IntoIterator<Item = u8>) -> JoinSet<u16> {
    let address = port.address;
    let ask = |n| async move {
        let forwarded = format!("X-Forwarded-For: 203.0.113.{n}");
        http::get(address, &format!("{PATH}?after="), &[&forwarded]).await.status
    };
    addresses.into_iter().map(ask).collect()
}

/// More half-open connections than there are slots, all of one address.
#[tokio::test]
async fn half_open_connections_shut_nobody_out() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=9, "audio_previews", ONE).await;
    port.register(&[PEER]);
    let mut held = Vec::new();
    for _ in 0..600 {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        held.push(stream);
    }
    let asked = port.ask("", &[AGENT]);
    let page = tokio::time::timeout(Duration::from_secs(10), asked).await.expect("it is shut out");
    assert_eq!((page.status, page.ulids().len()), (200, 9));
    drop(held);
}

#[tokio::test]
async fn a_strangers_page_over_rows_that_are_left_out_is_cheap() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=40_000, "uploads", ONE).await;
    fill(&database, 40_001..=40_001, "audio_previews", ONE).await;
    port.register(&[PEER]);
    let stranger = port.after("").await;
    assert_eq!(stranger.header("x-crud-sweep-last-scanned-ulid"), Some(ulid(20_000).as_str()));
    assert_eq!(port.ask("", &[AGENT]).await.ulids(), [ulid(40_001)]);
}

/// Strangers never have the last builder: each of theirs waits for a lock.
#[tokio::test]
async fn strangers_leave_a_builder_to_peers() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=9, "audio_previews", ONE).await;
    port.register(&[PEER]);
    let client = locked(&database).await;
    let mut strangers = ask_from(&port, 0..40);
    // They wait half a second for the lock, two at a time: for ten seconds.
    tokio::time::sleep(Duration::from_millis(700)).await;
    client.batch_execute("COMMIT").await.unwrap();
    let page = port.ask("", &[AGENT]).await;
    assert_eq!((page.status, page.ulids().len()), (200, 9));
    while strangers.join_next().await.is_some() {}
}

#[tokio::test]
async fn one_address_has_few_requests_at_a_time() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=9, "audio_previews", ONE).await;
    port.register(&[PEER]);
    let client = locked(&database).await;
    let mut asked = ask_from(&port, [7; 9]);
    // Five of them are told to come again while the others still wait.
    for _ in 0..5 {
        assert_eq!(asked.join_next().await.unwrap().unwrap(), 503);
    }
    client.batch_execute("COMMIT").await.unwrap();
    while asked.join_next().await.is_some() {}
    assert_eq!(port.after("").await.status, 200);
}

#[tokio::test]
async fn implausible_ulids_do_not_go_out() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=2, "audio_previews", ONE).await;
    let sql = "INSERT INTO ops SELECT u, 'h', 'create', 'audio_previews', '[{\"cid\":\"x\"}]' \
        FROM unnest(ARRAY['00000000000000000000000001', '7ZZZZZZZZZZZZZZZZZZZZZZZZZ']) u";
    run(&database, sql).await;
    for after in ["", ulid(1).as_str()] {
        let page = port.after(after).await;
        assert_eq!(page.ulids().last(), Some(&ulid(2)));
        assert!(page.ulids().iter().all(|ulid| ulid.starts_with("01HK")));
        assert_eq!(page.header("x-crud-sweep-last-scanned-ulid"), Some(ulid(2).as_str()));
        assert_eq!(page.header("x-mediorum-retention-gap"), None);
    }
}
