//! Contract 5, Supervision, and what the commands of contract 9 show of it:
//! the real binary, started, disturbed and asked.

use crate::harness::cluster::{self, PASSWORD_ROLE, TEMPLATE, binary, free_port};
use crate::harness::{Answer, Cluster, Daemon, Database, Peer, Schema, Start, Stop, http};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use tokio::io::AsyncWriteExt;

const SELF: &str = "https://me.example";

/// A daemon that pulls from these peers, whatever the schema; ready.
async fn ready(url: &str, peers: &[&Peer]) -> Daemon {
    let hosts: Vec<String> = peers.iter().map(|p| p.url()).collect();
    let mut start = Start::run(url, SELF);
    if !hosts.is_empty() {
        start = start
            .env("OPENAUDIO_MEDIORUM_PEERS", hosts.join(","))
            .env("OPENAUDIO_MEDIORUM_REPLICATION", "peers");
    }
    let daemon = start.spawn();
    daemon.ready().await;
    daemon
}

/// A command with a daemon's settings.
fn command(daemon: &Daemon, url: &str, args: &[&str]) -> Start {
    Start::new(args)
        .env("OPENAUDIO_DB_URL", url)
        .env("OPENAUDIO_NODE_ENDPOINT", SELF)
        .env("OPENAUDIO_MEDIORUM_PEERS", "none")
        .env("OPENAUDIO_MEDIORUM_REPLICATION", "peers")
        .env("OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN", daemon.admin().to_string())
}

/// Waits until a daemon has marked the database as served.
async fn marked(client: &tokio_postgres::Client) {
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while client.query_one(held, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
}

fn dump(database: &Database) -> String {
    dump_but(database, "none")
}

/// What is there, but for a schema.
fn dump_but(database: &Database, schema: &str) -> String {
    let but = format!("--exclude-schema={schema}");
    let output = Command::new(binary("pg_dump"))
        .args(["--schema-only", &but, "-d", &database.url()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // Newer minor versions put a key of their own around the dump.
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines();
    lines
        .filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test]
async fn a_database_that_goes_away_and_comes_back_is_survived() {
    let cluster = Cluster::private();
    cluster.create_database("openaudio", TEMPLATE).await;
    let peer = Peer::scripted([]).await;
    let daemon = ready(&cluster.url("openaudio"), &[&peer]).await;
    peer.asked(1).await;

    cluster.stop(Stop::Immediate);
    daemon.status_of("/readyz", 503).await;
    let live = http::get(daemon.admin(), "/healthz", &[]).await;
    assert_eq!(live.status, 200);
    let page = http::get(daemon.public(), "/internal/crud/sweep?after=", &[]).await;
    assert_eq!(page.status, 503);
    assert!(page.header("retry-after").is_some());
    let status = http::get(daemon.admin(), "/status", &[]).await.json();
    assert_eq!(status["result"]["database"]["up"], false);
    assert!(status["result"]["daemon"]["tasks"].as_array().unwrap().len() > 3);
    daemon.line(|l| l.contains("presence") && l.contains("failed")).await;

    cluster.start();
    daemon.ready().await;
    marked(&cluster.connect("openaudio").await).await;
    let page = http::get(daemon.public(), "/internal/crud/sweep?after=", &[]).await;
    assert_eq!((page.status, page.text().trim()), (200, "[]"));
    // A busy loop would have filled the log.
    assert!(daemon.log().lines().count() < 60, "{}", daemon.log());
}

#[tokio::test]
async fn a_signal_ends_it_and_a_hanging_peer_does_not_keep_it() {
    for signal in ["TERM", "INT"] {
        let database = Database::new().await;
        let hanging = Peer::serving(|_| Answer::Hang(b"HTTP/1.1 200 OK\r\n\r\n[".to_vec())).await;
        let daemon = ready(&database.url(), &[&hanging]).await;
        hanging.asked(1).await;
        daemon.signal(signal);
        assert_eq!(daemon.exit().await.code(), Some(0), "{}", daemon.log());
        let log = daemon.log();
        let listeners = log.find("listeners take nothing more").unwrap();
        assert!(listeners < log.find("tasks are told").unwrap());
        assert!(log.contains("stopped") && !log.contains("cut off"), "{log}");
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let database = Database::new().await;
    let daemon = ready(&database.url(), &[]).await;
    // A request that never comes to its end holds the listener for a while.
    let mut half = tokio::net::TcpStream::connect(daemon.public()).await.unwrap();
    half.write_all(b"GET /internal/crud/sweep?after= HTTP/1.1\r\nHost: ").await.unwrap();
    let served = http::get(daemon.public(), "/internal/crud/sweep?after=", &[]).await;
    assert_eq!(served.status, 200);
    daemon.signal("TERM");
    daemon.line(|l| l.contains("tasks are told")).await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit().await.code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("a second signal"), "{}", daemon.log());
}

#[tokio::test]
async fn one_hanging_peer_delays_no_other() {
    let database = Database::new().await;
    let hanging = Peer::serving(|_| Answer::Hang(b"HTTP/1.1 200 OK\r\n\r\n[".to_vec())).await;
    let honest = Peer::scripted([]).await;
    let _daemon = ready(&database.url(), &[&hanging, &honest]).await;
    hanging.asked(1).await;
    let asked = honest.asked(1).await;
    assert_eq!(asked[0].header("user-agent"), Some("mediorum https://me.example"));
}

#[tokio::test]
async fn a_port_in_use_says_which() {
    let database = Database::new().await;
    for name in ["OPENAUDIO_MEDIORUM_SIDECAR_LISTEN", "OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN"] {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let ran = Start::run(&database.url(), SELF).env(name, &address).output().await;
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        let said = ran.stderr.contains(&format!("{address} ({name}): the port is in use"));
        assert!(said, "{}", ran.stderr);
    }
}

/// A server that offers TLS and then speaks something else.
fn bad_tls() -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 8];
            stream.read_exact(&mut request).unwrap();
            // Until the client has enough of it.
            let _ = stream.write_all(b"SHTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    address
}

#[tokio::test]
async fn a_database_that_will_not_do_is_its_own_sentence() {
    let database = Database::new().await;
    let cluster = Cluster::shared();
    let (name, port) = (database.name(), cluster.port());
    let at = |user: &str, name: &str| format!("postgresql://{user}@127.0.0.1:{port}/{name}");
    let nobody = format!("postgresql://postgres:sesame@127.0.0.1:{}/x", free_port());
    let plain = cluster::PLAIN_ROLE;
    let cases = [
        (at(&format!("{PASSWORD_ROLE}:sesame"), name), 1, "refused the login"),
        (at("postgres:sesame", "no_such_database"), 1, "there is no database"),
        (at("postgres:sesame", "postgres"), 1, "holds no table public.ops"),
        (at(&format!("{plain}:sesame"), name), 1, "GRANT"),
        (at("postgres:sesame", &format!("{name}?sslmode=require")), 1, "see sslmode"),
        (format!("postgresql://postgres:sesame@{}/x?sslmode=verify-full", bad_tls()), 1, "see sslmode"),
        (at("postgres:sesame", &format!("{name}?no_such_parameter=1")), 1, "correct OPENAUDIO_DB_URL"),
        (nobody, 75, "the database is away"),
    ];
    for (url, code, words) in cases {
        let ran = Start::run(&url, SELF).output().await;
        assert_eq!(ran.code, Some(code), "{url}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{url}: {}", ran.stderr);
        assert!(!ran.stderr.contains("sesame"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("backtrace"), "{}", ran.stderr);
        // Nothing listens at port 1: no daemon answers for the database.
        let ran = Start::new(&["status", "--admin-listen", "127.0.0.1:1"])
            .env("OPENAUDIO_DB_URL", &url)
            .output()
            .await;
        let down = ran.stdout.contains("DOWN");
        if !words.contains("GRANT") {
            assert_eq!((ran.code, down), (Some(code), code == 75), "{}", ran.stdout);
        }
    }
}

#[tokio::test]
async fn read_only_pulls_nothing_and_says_so() {
    let database = Database::new().await;
    let peer = Peer::scripted([]).await;
    let before = dump_but(&database, "opsward");
    let daemon = Start::run(&database.url(), SELF)
        .env("OPENAUDIO_MEDIORUM_PEERS", peer.url())
        .env("OPENAUDIO_MEDIORUM_READ_ONLY", "true")
        .spawn();
    daemon.ready().await;
    daemon.line(|l| l.contains("pull") && l.contains("OPENAUDIO_MEDIORUM_READ_ONLY=false turns it on")).await;
    // Known, shown and kept, but not pulled.
    daemon.line(|l| l.contains("the peers are known")).await;
    let text = command(&daemon, &database.url(), &["status"]).output().await;
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    assert!(text.stdout.starts_with("READ-ONLY"), "{}", text.stdout);
    daemon.signal("TERM");
    daemon.exit().await;
    assert!(peer.requests().is_empty());
    assert_eq!(before, dump_but(&database, "opsward"));
}

#[tokio::test]
async fn uninstall_leaves_no_trace() {
    let database = Database::new().await;
    let before = dump(&database);
    let daemon = ready(&database.url(), &[]).await;
    let url = database.url();
    daemon.line(|l| l.contains("started")).await;
    let client = database.client().await;
    marked(&client).await;
    let ran = command(&daemon, &url, &["uninstall", "--yes"]).output().await;
    assert_eq!(ran.code, Some(4), "{}", ran.stderr);
    daemon.signal("TERM");
    daemon.exit().await;

    let ran = command(&daemon, &url, &["uninstall"]).output().await;
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(ran.stderr.contains("--yes"), "{}", ran.stderr);
    assert_ne!(dump(&database), before);

    client
        .batch_execute(
            "CREATE INDEX ours ON cursors (last_ulid);
             INSERT INTO opsward.owned (kind, name, drop_sql)
             VALUES ('index', 'public.ours', 'DROP INDEX public.ours')",
        )
        .await
        .unwrap();
    let read_only = command(&daemon, &url, &["uninstall", "--yes"]);
    let ran = read_only.env("OPENAUDIO_MEDIORUM_READ_ONLY", "true").output().await;
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(ran.stderr.contains("public.ours"), "{}", ran.stderr);

    let ran = command(&daemon, &url, &["uninstall", "--yes", "--output", "json"]).output().await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["changed"], true);
    assert_eq!(dump(&database), before);

    let again = command(&daemon, &url, &["uninstall", "--yes"]).output().await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stdout.contains("nothing of opsward"), "{}", again.stdout);
}

#[tokio::test]
async fn the_operators_port_reads_only() {
    let database = Database::new().await;
    let daemon = ready(&database.url(), &[]).await;
    let admin = daemon.admin();
    let metrics = http::get(admin, "/metrics", &[]).await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for name in ["opsward_build_info", "opsward_task_runs_total", "opsward_database_up 1"] {
        assert!(metrics.text().contains(name), "{name}");
    }
    for path in ["/", "/metrics", "/healthz", "/readyz", "/status"] {
        let head = http::request("HEAD", admin, path, &[]).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        let post = http::request("POST", admin, path, &["Content-Length: 0"]).await;
        assert_eq!(post.status, 405, "{path}");
        assert_eq!(post.header("allow"), Some("GET, HEAD"));
    }
    assert_eq!(http::get(admin, "/debug", &[]).await.status, 404);
    assert_eq!(http::get(daemon.public(), "/metrics", &[]).await.status, 404);
    let page = http::get(admin, "/", &[]).await;
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let html = page.text();
    assert!(html.contains("https://me.example") && !html.contains("<script"), "{html}");
}

#[tokio::test]
async fn status_is_the_daemons_then_the_databases_then_nobodys() {
    let cluster = Cluster::private();
    cluster.create_database("openaudio", TEMPLATE).await;
    let url = cluster.url("openaudio");
    let peer = Peer::scripted([]).await;
    let daemon = ready(&url, &[&peer]).await;
    peer.asked(1).await;
    let args = ["status", "--output", "json"];

    let ran = command(&daemon, &url, &args).output().await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&json["schema"], &json["command"]), (&1.into(), &"status".into()));
    assert_eq!(json["result"]["daemon"]["pid"], daemon.pid());
    assert_eq!(json["result"]["database"]["schema_version"], opsward::db::migrate::LATEST);
    assert!(json["result"]["database"]["ops_bytes"].is_u64());
    let shown = http::get(daemon.admin(), "/status", &[]).await.json();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&shown), keys(&json));
    assert_eq!(keys(&shown["result"]), keys(&json["result"]));
    let alive = command(&daemon, &url, &["healthcheck"]).output().await;
    assert_eq!((alive.code, alive.stdout + &alive.stderr), (Some(0), String::new()));
    let doctor = command(&daemon, &url, &["doctor"]).output().await;
    assert_eq!(doctor.code, Some(0), "{}", doctor.stdout);
    for check in ["database", "privileges", "schema", "models", "discovery", "public_url"] {
        assert!(doctor.stdout.contains(&format!(" {check} ")), "{check}: {}", doctor.stdout);
    }

    daemon.signal("TERM");
    daemon.exit().await;
    let ran = command(&daemon, &url, &args).output().await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["result"]["daemon"], Value::Null);
    assert_eq!(json["result"]["peers"]["list"][0]["host"], peer.url());
    let dead = command(&daemon, &url, &["healthcheck"]).output().await;
    assert_eq!(dead.code, Some(1));

    cluster.stop(Stop::Fast);
    let ran = command(&daemon, &url, &args).output().await;
    assert_eq!(ran.code, Some(75), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["result"]["database"]["up"], false);
    let doctor = command(&daemon, &url, &["doctor"]).output().await;
    assert_eq!(doctor.code, Some(1), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("FAIL  database"), "{}", doctor.stdout);
}

#[tokio::test]
async fn peers_are_discovered_and_remembered() {
    let database = Database::of(Schema::A).await;
    let peer = Peer::scripted([]).await;
    let answer = format!(
        r#"{{"endpoints":[{{"endpoint":"{}/","delegateWallet":"0x1","serviceType":"Validator"}},
            {{"endpoint":"{SELF}","serviceType":"validator"}}]}}"#,
        peer.url()
    );
    let node = Peer::serving(move |_| Answer::json(&answer)).await;
    let start = |node: &str| {
        Start::run(&database.url(), SELF)
            .env("OPENAUDIO_MEDIORUM_PEERS", "")
            .env("OPENAUDIO_MEDIORUM_NODE_URL", node)
            .spawn()
    };
    let daemon = start(&node.url());
    let asked = node.asked(1).await;
    assert_eq!(asked[0].target, "/eth.v1.EthService/GetRegisteredEndpoints");
    assert_eq!(asked[0].header("x-forwarded-proto"), Some("https"));
    let first = peer.asked(1).await.len();
    daemon.signal("TERM");
    daemon.exit().await;

    // The node is gone; the peer is known all the same.
    drop(node);
    let daemon = start(&format!("http://127.0.0.1:{}", free_port()));
    peer.asked(first + 1).await;
    daemon.line(|l| l.contains("the last known peers are used")).await;
    let metrics = http::get(daemon.admin(), "/metrics", &[]).await.text();
    assert!(metrics.contains("opsward_peers 1"), "{metrics}");
}

#[tokio::test]
async fn run_needs_to_know_who_it_is() {
    let database = Database::new().await;
    let ran = Start::new(&["run"]).env("OPENAUDIO_DB_URL", database.url()).output().await;
    assert_eq!(ran.code, Some(64), "{}", ran.stderr);
    assert!(ran.stderr.contains("OPENAUDIO_NODE_ENDPOINT"), "{}", ran.stderr);
}
