//! The harness holds what it says.

use crate::harness::cluster::{self, PASSWORD, PASSWORD_ROLE, TEMPLATE};
use crate::harness::{Answer, Cluster, Database, Fault, Ops, Peer, Proxy, Start, Stop, http, ops, target};
use opsward::db::Db;

#[tokio::test]
async fn a_database_is_as_a_node_made_it() {
    let database = Database::new().await;
    let client = database.client().await;
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int / 10000,
                    pg_encoding_to_char(encoding), datcollate,
                    (SELECT count(*) FROM ops), pg_get_userbyid(datdba)::text
             FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 15);
    assert_eq!(row.get::<_, &str>(1), "UTF8");
    assert_eq!(row.get::<_, &str>(2), "en_US.UTF-8");
    assert_eq!(row.get::<_, i64>(3), 0);
    assert_eq!(row.get::<_, &str>(4), "postgres");
    database.migrated().await;
}

#[tokio::test]
async fn databases_share_nothing() {
    let (a, b) = tokio::join!(Database::new(), Database::new());
    assert_ne!(a.name(), b.name());
    let sql = "INSERT INTO cursors VALUES ('http://a', '')";
    a.client().await.batch_execute(sql).await.unwrap();
    let row = b
        .client()
        .await
        .query_one("SELECT count(*) FROM cursors WHERE host = 'http://a'", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn one_role_has_to_say_its_password() {
    let cluster = Cluster::shared();
    let mut config = cluster.config("postgres");
    config.user(PASSWORD_ROLE).password("wrong");
    let refused = config.connect(tokio_postgres::NoTls).await.map(|_| ());
    assert_eq!(refused.unwrap_err().code().unwrap().code(), "28P01");
    config.password(PASSWORD);
    cluster::connect(&config).await;
}

#[tokio::test]
async fn a_private_cluster_is_stopped_killed_and_comes_back() {
    let cluster = Cluster::private();
    cluster.create_database("openaudio", TEMPLATE).await;
    for how in [Stop::Immediate, Stop::Fast] {
        cluster.stop(how);
        let away = Db::open(&target(&cluster, "openaudio"), "test", 1).await;
        assert!(away.err().unwrap().is_away());
        cluster.start();
        Db::open(&target(&cluster, "openaudio"), "test", 1).await.unwrap();
    }
    let root = cluster.socket_dir().to_owned();
    drop(cluster);
    assert!(!root.exists(), "{} is still there", root.display());
}

#[tokio::test]
async fn the_proxy_fails_as_told() {
    let peer = Peer::serving(|_| Answer::json(&"x".repeat(1000))).await;
    let proxy = Proxy::to(peer.address()).await;
    let whole = http::raw(peer.address(), GET).await.unwrap();
    let through = async || http::raw(proxy.address(), GET).await;
    assert_eq!(through().await.unwrap(), whole);
    assert_eq!(proxy.downstream_bytes(), whole.len() as u64);

    proxy.set(Fault::EndAfter(100));
    assert_eq!(through().await.unwrap(), whole[..100]);
    proxy.set(Fault::CutAfter(100));
    let cut = through().await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
    proxy.set(Fault::Corrupt(100));
    let bad = through().await.unwrap();
    let differ: Vec<usize> = (0..whole.len()).filter(|i| bad[*i] != whole[*i]).collect();
    assert_eq!(differ, [100]);
    proxy.set(Fault::Refuse);
    let refused = loop {
        match through().await {
            // The listener closes a moment after it was told to.
            Ok(_) => tokio::task::yield_now().await,
            Err(e) => break e.kind(),
        }
    };
    assert!(matches!(refused, std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset));
    proxy.set(Fault::None);
    while through().await.is_err() {
        tokio::task::yield_now().await;
    }
    let count = proxy.accepted();
    proxy.set(Fault::BlackHole);
    tokio::select! {
        _ = through() => panic!("a black hole answered"),
        () = proxy.wait_accepted(count + 1) => {}
    }
}

#[tokio::test]
async fn a_peer_says_what_it_is_told_and_remembers() {
    let page = r#"[{"ulid":"x"}]"#;
    let peer = Peer::scripted([
        Answer::gzip(&["X-Crud-Sweep-Limited: true"], page),
        Answer::Cut(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Answer::Drip {
            bytes: Answer::json(page).bytes().to_vec(),
            at_once: 7,
            pause: std::time::Duration::ZERO,
        },
    ])
    .await;
    let at = peer.address();
    let first = http::get(at, "/internal/crud/sweep?after=01A", &["User-Agent: m x"]).await;
    assert_eq!(first.text(), page);
    assert_eq!(first.header("x-crud-sweep-limited"), Some("true"));
    assert!(http::try_request("GET", at, "/", &[]).await.is_err());
    assert_eq!(http::get(at, "/", &[]).await.text(), page);
    assert_eq!(http::get(at, "/", &[]).await.text(), "[]");
    let asked = peer.asked(4).await;
    assert_eq!(asked[0].after(), Some("01A"));
    assert_eq!(asked[0].header("user-agent"), Some("m x"));
}

#[tokio::test]
async fn made_ops_are_a_log() {
    let (a, b) = (Ops::new(1).take(300), Ops::new(1).take(300));
    assert_eq!(a, b);
    assert_ne!(a, Ops::new(2).take(300));
    assert!(a.is_sorted_by(|x, y| x.ulid < y.ulid));
    for table in ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"] {
        assert!(a.iter().any(|op| op.table == table), "{table}");
    }
    let page: serde_json::Value = serde_json::from_str(&ops::page(&a)).unwrap();
    assert_eq!(page.as_array().unwrap().len(), 300);
    let database = Database::new().await;
    let client = database.client().await;
    ops::insert(&client, &a).await;
    let row = client.query_one("SELECT count(*), max(ulid) FROM ops", &[]);
    let row = row.await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 300);
    assert_eq!(row.get::<_, &str>(1), a[299].ulid.as_str());
}

#[tokio::test]
async fn the_binary_is_followed_to_its_end() {
    let ran = Start::new(&["no-such-command"]).output().await;
    assert!(ran.code.is_some(), "{ran:?}");
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
