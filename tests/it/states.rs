//! Contract 11: away, locked, denied, absent, read-only, a standby and a pooler are told
//! apart, each with its code, its sentence, its way out and its exit code.

use crate::harness::cluster::{TEMPLATE, free_port};
use crate::harness::{Cluster, Database, Start, Stop, http};
use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

fn start(url: &str, line: &[&str]) -> Start {
    Start::new(line)
        .env("OPENAUDIO_DB_URL", url)
        .env("OPENAUDIO_NODE_ENDPOINT", "https://me.example")
        .env("OPENAUDIO_MEDIORUM_PEERS", "none")
}

/// Between opsward and the server: forwards a session without its start-up options, or
/// refuses the session for them.
async fn pooler(server: SocketAddr, refuses: bool) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let length = client.read_u32().await? as usize;
                let mut body = vec![0; length - 4];
                client.read_exact(&mut body).await?;
                if refuses {
                    let words = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
                    client.write_u8(b'E').await?;
                    client.write_u32(words.len() as u32 + 4).await?;
                    return client.write_all(words).await;
                }
                let mut kept = body[..4].to_vec();
                let texts: Vec<&[u8]> = body[4..].split(|byte| *byte == 0).collect();
                for pair in texts.chunks_exact(2).filter(|pair| !pair[0].is_empty() && pair[0] != b"options")
                {
                    for text in pair {
                        kept.extend_from_slice(text);
                        kept.push(0);
                    }
                }
                kept.push(0);
                let mut server = TcpStream::connect(server).await?;
                server.write_u32(kept.len() as u32 + 4).await?;
                server.write_all(&kept).await?;
                copy_bidirectional(&mut client, &mut server).await.map(|_| ())
            });
        }
    });
    address
}

#[tokio::test]
async fn a_pooler_that_drops_options_or_refuses_them_is_named() {
    let database = Database::new().await;
    let server = ([127, 0, 0, 1], database.cluster().port()).into();
    for (refuses, word) in [(false, "statement_timeout = '0'"), (true, "unsupported startup parameter")] {
        let address = pooler(server, refuses).await;
        let url = format!("postgresql://postgres@{address}/{}?sslmode=disable", database.name());
        for line in [&["plan"][..], &["run"]] {
            let ran = start(&url, line).output().await;
            assert_eq!(ran.code, Some(64), "{ran:?}");
            assert!(ran.stderr.contains(word), "{}", ran.stderr);
            assert!(
                ran.stderr.contains("pooler") && ran.stderr.contains("OPENAUDIO_DB_URL"),
                "{}",
                ran.stderr
            );
        }
        let (_, said) = start(&url, &["plan"]).json().await;
        assert_eq!(said["error"]["code"], "database_pooler");
    }
}

async fn ready(daemon: &crate::harness::Daemon) -> (u16, Value) {
    let answer = http::get(daemon.admin(), "/readyz", &[]).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_locked_log_is_not_a_database_that_is_away() {
    let database = Database::new().await;
    let daemon = start(&database.url(), &["run"]).spawn();
    daemon.ready().await;
    let mut holder = database.client().await;
    let tx = holder.transaction().await.unwrap();
    tx.batch_execute("LOCK TABLE ops IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (status, said) = ready(&daemon).await;
    assert_eq!((status, &said["code"]), (503, &Value::from("database_locked")), "{said}");
    assert!(said["fix"].as_str().unwrap().contains("lock"), "{said}");
    let metrics = http::get(daemon.admin(), "/metrics", &[]).await.text();
    assert!(metrics.contains("opsward_database_up 1"), "{metrics}");
    assert!(metrics.contains("opsward_database_state{state=\"locked\"} 1"), "{metrics}");
    for admin in [daemon.admin().to_string(), "127.0.0.1:1".into()] {
        let ran = start(&database.url(), &["status", "--admin-listen", &admin]).output().await;
        assert!(ran.stdout.contains("ops is LOCKED"), "{ran:?}");
        let said = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("a lock on public.ops, held by process"), "{said}");
        assert!(!said.contains("no schema opsward") && !said.contains("PostgreSQL ?"), "{said}");
        assert!(!ran.stdout.contains("start the node's Postgres"), "{ran:?}");
    }
    tx.rollback().await.unwrap();
    daemon.ready().await;
}

/// What another validator's daemon says of itself is nothing about this one.
#[tokio::test]
async fn another_validators_daemon_is_told_as_one() {
    let (database, others) = (Database::new().await, Database::new().await);
    let daemon = start(&others.url(), &["run"]).spawn();
    daemon.ready().await;
    for command in ["doctor", "status"] {
        let asked = start(&database.url(), &[command, "--admin-listen", &daemon.admin().to_string()]);
        let ran = asked.env("OPENAUDIO_NODE_ENDPOINT", "https://another.example").output().await;
        let said = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("is that of https://me.example"), "{command}: {said}");
    }
}

#[tokio::test]
async fn a_standby_is_told_as_one() {
    let cluster = tokio::task::spawn_blocking(Cluster::private).await.unwrap();
    cluster.create_database("openaudio", TEMPLATE).await;
    cluster.stop(Stop::Fast);
    std::fs::write(cluster.data_dir().join("standby.signal"), "").unwrap();
    cluster.start();
    let url = cluster.url("openaudio");
    let ran = start(&url, &["run"]).output().await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("standby"), "{}", ran.stderr);
    let (code, said) = start(&url, &["status"]).json().await;
    assert_eq!(
        (code, &said["result"]["database"]["state"]),
        (0, &Value::from("database_read_only")),
        "{said}"
    );
    assert_eq!(said["result"]["database"]["up"], true);
    let ran = start(&url, &["doctor", "--read-only"]).output().await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("standby"), "{}", ran.stdout);
    // Set elsewhere, the variable would not be what has to be changed.
    assert!(ran.stdout.contains("set --read-only to false (command line)"), "{}", ran.stdout);
    let primary = format!("{url}?target_session_attrs=read-write");
    let (code, said) = start(&primary, &["plan"]).json().await;
    assert_eq!((code, &said["error"]["code"]), (1, &Value::from("database_read_only")), "{said}");
    let nobody = format!("postgresql://postgres@127.0.0.1:{}/x", free_port());
    let (code, said) = start(&nobody, &["plan"]).json().await;
    assert_eq!((code, &said["error"]["code"]), (75, &Value::from("database_away")), "{said}");
}

#[tokio::test]
async fn a_schema_of_somebody_else_is_not_one_that_is_missing() {
    let database = Database::new().await;
    let client = database.client().await;
    client
        .batch_execute("CREATE SCHEMA opsward; GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
        .await
        .unwrap();
    let plain = database.url().replace("postgres:postgres@", "plain@");
    let ran = start(&plain, &["doctor"]).output().await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("belongs to postgres"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("does not exist yet"), "{}", ran.stdout);
    client.batch_execute("CREATE TABLE opsward.theirs ()").await.unwrap();
    let ran = start(&database.url(), &["run"]).output().await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("made by no opsward"), "{}", ran.stderr);
}
