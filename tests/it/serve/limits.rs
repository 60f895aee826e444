//! Where a page ends, and that it gets past what is left out.

use super::{ONE, Port, fill, run, ulid};
use crate::harness::{Cluster, Database, Fault, Proxy, http::Response, target};
use opsward::db::Db;
use opsward::http::Limits;
use std::time::Duration;

fn limited(answer: &Response) -> bool {
    let limited = answer.header("x-crud-sweep-limited");
    assert!(matches!(limited, None | Some("true")));
    limited.is_some()
}

fn last_scanned(answer: &Response) -> &str {
    answer.header("x-crud-sweep-last-scanned-ulid").unwrap()
}

#[tokio::test]
async fn ten_thousand_rows_a_page() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=10_000, "audio_previews", ONE).await;
    let whole = port.after("").await;
    assert_eq!(whole.ulids().len(), 10_000);
    assert!(!limited(&whole), "the log ended, not the page");
    fill(&database, 10_001..=10_002, "audio_previews", ONE).await;
    let page = port.after("").await;
    assert_eq!(page.ulids().len(), 10_000);
    assert!(limited(&page));
    assert_eq!(last_scanned(&page), ulid(10_000));
    let rest = port.after(last_scanned(&page)).await;
    assert_eq!(rest.ulids(), [ulid(10_001), ulid(10_002)]);
    assert!(!limited(&rest));
}

/// 10,000 rows that gossip leaves out are `[]` of a stock node, for ever.
#[tokio::test]
async fn a_page_without_an_op_scans_on() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=25_000, "uploads", ONE).await;
    fill(&database, 25_001..=25_001, "audio_previews", ONE).await;
    fill(&database, 25_002..=40_000, "uploads", ONE).await;
    let page = port.after("").await;
    assert_eq!(page.ulids(), [ulid(25_001)]);
    assert!(limited(&page));
    assert_eq!(last_scanned(&page), ulid(30_000), "its slice is finished");
    let rest = port.after(last_scanned(&page)).await;
    assert_eq!(rest.text(), "[]");
    assert!(!limited(&rest));
    assert_eq!(last_scanned(&rest), ulid(40_000));
    assert_eq!(port.left_out("gossip"), 39_999);
}

/// Where the budget ends first, the header carries who reads it on.
#[tokio::test]
async fn scanning_on_has_a_budget() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=500_001, "uploads", "'[{}]'").await;
    fill(&database, 500_002..=500_003, "audio_previews", ONE).await;
    let (mut after, mut pages) = (String::new(), 0);
    let found = loop {
        let page = port.after(&after).await;
        let ulids = page.ulids();
        if !ulids.is_empty() {
            break ulids;
        }
        assert!(limited(&page));
        assert!(last_scanned(&page) > after.as_str(), "every page gets on");
        after = last_scanned(&page).to_owned();
        pages += 1;
    };
    assert!(pages >= 1);
    assert_eq!(found, [ulid(500_002), ulid(500_003)]);
}

#[tokio::test]
async fn sixty_four_mebibytes_a_page() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    let mebibyte = "jsonb_build_array(jsonb_build_object('x', repeat('x', 1048576)))";
    fill(&database, 1..=70, "audio_previews", mebibyte).await;
    let page = port.after("").await;
    let count = page.ulids().len() as u64;
    assert_eq!(count, 63, "the 64th would be over");
    assert!(page.body.len() <= 64 << 20);
    assert!(limited(&page));
    assert_eq!(last_scanned(&page), ulid(count));
    let rest = port.ask(&ulid(count), &["Accept-Encoding: gzip"]).await;
    assert_eq!(rest.ulids().len(), 7);
    assert!(!limited(&rest));
}

#[tokio::test]
async fn one_op_is_served_however_large() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=1, "uploads", ONE).await;
    let large = "jsonb_build_array(jsonb_build_object('x', repeat('x', 70 << 20)))";
    fill(&database, 2..=3, "audio_previews", large).await;
    let page = port.after("").await;
    assert_eq!(page.ulids(), [ulid(2)]);
    assert!(page.body.len() > 70 << 20);
    assert!(limited(&page));
    assert_eq!(last_scanned(&page), ulid(2));
}

/// A database that sends slowly: what came in time is a page.
#[tokio::test]
async fn three_seconds_of_reading() {
    let database = Database::new().await;
    drop(database.migrated().await);
    let kib = "jsonb_build_array(jsonb_build_object('x', repeat('x', 4096), 'self', 1))";
    fill(&database, 1..=9_000, "audio_previews", kib).await;
    let upstream = ([127, 0, 0, 1], Cluster::shared().port()).into();
    let proxy = Proxy::to(upstream).await;
    let mut through = target(Cluster::shared(), database.name());
    through.hosts = vec![("127.0.0.1".into(), proxy.address().port())];
    let db = Db::open(&through, "opsward slow", 8).await.unwrap();
    let port = Port::with(db, Limits::default()).await;
    proxy.set(Fault::Delay(Duration::from_millis(40)));
    let page = port.after("").await;
    assert_eq!(page.status, 200);
    let count = page.ulids().len() as u64;
    assert!((1..9_000).contains(&count), "{count}");
    assert!(limited(&page));
    assert_eq!(last_scanned(&page), ulid(count));
    proxy.set(Fault::None);
    assert_eq!(port.after(&ulid(8_999)).await.ulids(), [ulid(9_000)]);
}

/// No statement scans the log but by its key, whatever the statistics say.
#[tokio::test]
async fn the_log_is_read_by_its_key() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=2_000, "audio_previews", ONE).await;
    run(&database, "ANALYZE ops").await;
    let look = database.client().await;
    let scans = async || {
        let sql = "SELECT pg_stat_force_next_flush(), seq_scan, idx_scan
                   FROM pg_stat_user_tables WHERE relname = 'ops'";
        let row = look.query_one(sql, &[]).await.unwrap();
        (row.get::<_, i64>(1), row.get::<_, i64>(2))
    };
    let before = scans().await;
    assert_eq!(port.after(&ulid(1)).await.ulids().len(), 1_999);
    // A session tells what it did within a second of its transaction's end.
    super::until("the scans are counted", async || scans().await.1 > before.1).await;
    assert_eq!(scans().await.0, before.0, "a sequential scan");
}
