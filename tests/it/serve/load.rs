//! Slow readers, too many readers, a database that is away.

use super::{ONE, PATH, Port, fill, ulid, until};
use crate::harness::cluster::TEMPLATE;
use crate::harness::{Cluster, Database, Fault, Proxy, Stop, http, target};
use futures_util::future::join_all;
use opsward::db::{Db, migrate};
use opsward::http::Limits;
use opsward::serve::BUDGET;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const SLOW: usize = 150;
/// Ops of 16 KiB: a page of them is larger than a socket's buffers.
const WIDE: &str = "jsonb_build_array(jsonb_build_object('x', repeat('x', 16384)))";

/// Asks for a page over small buffers, and reads nothing yet.
async fn ask_slowly(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = format!("GET {PATH}?after= HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_hold_no_snapshot_and_starve_nobody() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=400, "audio_previews", WIDE).await;
    let address = port.address;
    let slow = (0..SLOW).map(|_| {
        tokio::spawn(async move {
            let mut stream = ask_slowly(address).await;
            // One byte a second, until it is dropped or the test ends.
            while let Ok(1) = stream.read(&mut [0]).await {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    });
    let slow: Vec<_> = slow.collect();
    let held = port.metrics.built_page_bytes.clone();
    let watching = tokio::spawn(async move {
        let mut most = 0;
        loop {
            most = held.get().max(most);
            assert!(most <= BUDGET as i64, "{most}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    until("memory is full, and somebody went", async || port.dropped("slow") > 0).await;
    // An honest reader comes again where it is told to.
    until("an honest reader is served", async || {
        let answer = http::try_request("GET", address, &format!("{PATH}?after="), &[]).await;
        answer.is_ok_and(|a| a.status == 200 && a.ulids().len() == 400)
    })
    .await;
    let answered = || port.served("ok") + port.served("overloaded");
    until("every slow reader has its answer", async || answered() > SLOW as u64).await;
    assert!(port.dropped("slow") > 0);
    assert!(port.metrics.built_page_bytes.get() > 0, "some are still slow");
    let look = database.client().await;
    let sql = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)";
    let open: i64 = look.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(open, 0, "a transaction is open while only sockets are waited for");
    assert!(!watching.is_finished(), "held more than the budget");
    watching.abort();
    slow.iter().for_each(|task| task.abort());
    until("what was held is free", async || port.metrics.built_page_bytes.get() == 0).await;
}

/// One page may be larger than the budget; the slow one goes for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversize_page_is_allowed_alone() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    let large = "jsonb_build_array(jsonb_build_object('x', repeat('x', 60 << 20)))";
    fill(&database, 1..=1, "audio_previews", large).await;
    let mut slow = ask_slowly(port.address).await;
    until("the page is held", async || port.metrics.built_page_bytes.get() > BUDGET as i64).await;
    let answer = port.after("").await;
    assert_eq!(answer.ulids(), [ulid(1)]);
    assert_eq!(port.dropped("slow"), 1);
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(rest.len() < 60 << 20, "the slow one was cut off");
}

#[tokio::test]
async fn a_response_has_a_deadline() {
    let database = Database::new().await;
    let limits = Limits { response: Duration::from_millis(300), ..Limits::default() };
    let port = Port::with(database.migrated().await, limits).await;
    fill(&database, 1..=400, "audio_previews", WIDE).await;
    let _slow = ask_slowly(port.address).await;
    until("the page is given up", async || port.dropped("deadline") == 1).await;
    until("its memory is free", async || port.metrics.built_page_bytes.get() == 0).await;
    assert_eq!(port.after("").await.ulids().len(), 400);
}

#[tokio::test]
async fn a_database_that_is_away_is_said_so_and_comes_back() {
    let cluster = tokio::task::spawn_blocking(Cluster::private).await.unwrap();
    cluster.create_database("openaudio", TEMPLATE).await;
    let db = Db::open(&target(&cluster, "openaudio"), "opsward", 8).await;
    let db = db.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let port = Port::with(db, Limits::default()).await;
    assert_eq!(port.after("").await.status, 200);
    for how in [Stop::Fast, Stop::Immediate] {
        cluster.stop(how);
        let answer = port.after("").await;
        assert_eq!(answer.status, 503);
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!(seconds > 0);
        assert!(answer.json()["error"].is_string());
        cluster.start();
        until("it is served again", async || port.after("").await.status == 200).await;
    }
    assert!(port.served("away") >= 2);
}

/// A line on the way to the database, and a port behind it.
async fn behind_proxy(database: &Database) -> (Proxy, Port) {
    drop(database.migrated().await);
    let upstream = ([127, 0, 0, 1], Cluster::shared().port()).into();
    let proxy = Proxy::to(upstream).await;
    let mut through = target(Cluster::shared(), database.name());
    through.hosts = vec![("127.0.0.1".into(), proxy.address().port())];
    let db = Db::open(&through, "opsward behind", 8).await.unwrap();
    (proxy, Port::with(db, Limits::default()).await)
}

/// A network that swallows everything: the answer comes all the same, and
/// the connections that hung in it are not used again.
#[tokio::test]
async fn a_database_that_says_nothing_is_away() {
    let database = Database::new().await;
    let (proxy, port) = behind_proxy(&database).await;
    fill(&database, 1..=3, "audio_previews", ONE).await;
    assert_eq!(port.after("").await.ulids().len(), 3);
    proxy.set(Fault::BlackHole);
    let answers = join_all((0..4).map(|_| port.after(""))).await;
    for answer in answers {
        assert_eq!(answer.status, 503);
        assert!(answer.header("retry-after").is_some());
    }
    proxy.set(Fault::None);
    until("it is served again", async || port.after("").await.status == 200).await;
}

#[tokio::test]
async fn more_than_can_be_built_waits_and_is_then_refused() {
    let database = Database::new().await;
    let (proxy, port) = behind_proxy(&database).await;
    fill(&database, 1..=4_000, "audio_previews", WIDE).await;
    // A page takes its three seconds: some ten are built before the last
    // one's patience ends.
    proxy.set(Fault::Delay(Duration::from_millis(30)));
    let answers = join_all((0..40).map(|_| port.after(""))).await;
    let refused: Vec<_> = answers.iter().filter(|a| a.status == 503).collect();
    let served = answers.iter().filter(|a| a.status == 200).count();
    assert!(!refused.is_empty() && served > 0);
    assert_eq!(served + refused.len(), 40);
    for answer in &refused {
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(port.served("overloaded"), refused.len() as u64);
}

/// Somebody holds the table: the answer does not wait for long.
#[tokio::test]
async fn a_table_that_stays_locked_is_no_page() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=3, "audio_previews", ONE).await;
    assert_eq!(port.after("").await.status, 200);
    let locked = database.client().await;
    let sql = "BEGIN; LOCK TABLE ops IN ACCESS EXCLUSIVE MODE";
    locked.batch_execute(sql).await.unwrap();
    let answer = port.after("").await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some());
    locked.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(port.after("").await.status, 200);
}

/// An asker that goes away in the middle leaves nothing behind.
#[tokio::test]
async fn an_asker_that_goes_away_leaves_nothing_behind() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=1_000, "audio_previews", WIDE).await;
    for _ in 0..20 {
        let mut stream = ask_slowly(port.address).await;
        let _ = stream.read(&mut [0; 1]).await;
    }
    for _ in 0..20 {
        drop(ask_slowly(port.address).await);
    }
    until("what was held is free", async || port.metrics.built_page_bytes.get() == 0).await;
    assert_eq!(port.after("").await.ulids().len(), 1_000);
}
