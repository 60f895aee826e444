//! Contract 10: a backup that holds the newest op, and older cursors. What the peers sent
//! since is asked for again.

use super::{Bench, op, ulid};
use crate::harness::cluster::binary;
use crate::harness::daemon::Start;
use crate::harness::peer::{Answer, Peer};
use crate::harness::{MadeOp, ops};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Ops of a day on which the peer wrote.
const OPS: u64 = 20;

fn written(day: u64) -> Vec<MadeOp> {
    let data = |n| format!(r#"[{{"cid":"{day}-{n}"}}]"#);
    (1..=OPS).map(|n| op(ulid(day, n), "create", "audio_previews", &data(n))).collect()
}

fn run(url: &str, program: &str, args: &[&str]) {
    let ran = Command::new(binary(program)).args(args).args(["-d", url]).output().unwrap();
    assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn put_back(url: &str, file: &str, how: &str) {
    if how == "other tables" {
        return run(url, "pg_restore", &["--clean", "--if-exists", "-n", "public", file]);
    }
    run(url, "psql", &["-c", "TRUNCATE ops, cursors, audio_previews"]);
    let tables = ["-t", "ops", "-t", "cursors", "-t", "audio_previews"];
    run(url, "pg_restore", &[&["--data-only"], &tables[..], &[file]].concat());
}

type Once = Box<dyn FnOnce() + Send>;

/// A node with an op of today, newer than all that its peer has.
struct Node {
    bench: Bench,
    peer: Peer,
    log: Arc<Mutex<Vec<MadeOp>>>,
    /// Happens before the next answer.
    meanwhile: Arc<Mutex<Option<Once>>>,
    dir: tempfile::TempDir,
}

impl Node {
    async fn new() -> Self {
        let bench = Bench::new().await;
        ops::insert(&bench.node, &[op(ulid(0, 1), "create", "audio_previews", r#"[{"cid":"own"}]"#)]).await;
        let log = Arc::new(Mutex::new(written(2)));
        let meanwhile = Arc::new(Mutex::new(None::<Once>));
        let (held, happens) = (log.clone(), meanwhile.clone());
        let peer = Peer::serving(move |request| {
            if let Some(happens) = happens.lock().unwrap().take() {
                happens();
            }
            let after = request.after().unwrap_or_default();
            let held = held.lock().unwrap();
            let page: Vec<MadeOp> = held.iter().filter(|op| op.ulid.as_str() > after).cloned().collect();
            Answer::json(&ops::page(&page))
        })
        .await;
        Self { bench, peer, log, meanwhile, dir: tempfile::tempdir().unwrap() }
    }

    fn start(&self, args: &[&str]) -> Start {
        Start::new(args)
            .env("OPENAUDIO_DB_URL", self.bench.database.url())
            .env("OPENAUDIO_NODE_ENDPOINT", "http://self.example")
            .env("OPENAUDIO_MEDIORUM_PEERS", self.peer.url())
            .env("OPENAUDIO_MEDIORUM_REPLICATION", "peers")
    }

    /// Pulls by hand; returns what was applied.
    async fn sweep(&self) -> i64 {
        let (code, told) = self.start(&["sweep"]).json().await;
        assert_eq!(code, 0, "{told}");
        told["result"]["peers"][0]["applied"].as_i64().unwrap()
    }

    /// Lets a daemon pull until it asks for more than the page that it read.
    async fn daemon(&self) {
        let before = self.peer.requests().len();
        let daemon = self.start(&["run"]).spawn();
        self.peer.asked(before + 2).await;
        daemon.signal("TERM");
        daemon.exit().await;
    }

    fn dump(&self) {
        let file = self.file();
        run(&self.bench.database.url(), "pg_dump", &["-Fc", "-n", "public", "-f", &file]);
        self.log.lock().unwrap().extend(written(1));
    }

    fn put_back(&self, how: &str) {
        put_back(&self.bench.database.url(), &self.file(), how);
    }

    fn file(&self) -> String {
        self.dir.path().join("dump").to_str().unwrap().to_owned()
    }

    async fn text(&self, sql: &str) -> String {
        self.bench.text(sql).await
    }

    /// The log and the records are whole, and the node's cursor stands at the peer's last op.
    async fn is_whole(&self, how: &str) {
        let counts = "SELECT (SELECT count(*) FROM ops) || ' ' || (SELECT count(*) FROM audio_previews)";
        assert_eq!(self.text(counts).await, format!("{} {}", 2 * OPS + 1, 2 * OPS), "{how}");
        let cursor = format!("SELECT last_ulid FROM cursors WHERE host = '{}'", self.peer.url());
        assert_eq!(self.text(&cursor).await, ulid(1, OPS).as_str(), "{how}");
        let told = self.text("SELECT count(*) FROM opsward.history WHERE task = 'log'").await;
        assert_eq!(told, "1", "{how}");
    }

    async fn asked_with(&self) -> String {
        self.peer.requests().last().unwrap().after().unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn what_was_pulled_since_is_asked_for_again() {
    for how in ["the same tables", "other tables"] {
        let node = Node::new().await;
        assert_eq!(node.sweep().await, OPS as i64);
        node.bench
            .run("INSERT INTO opsward.floors (table_name, floor, raised_at) VALUES ('uploads', '01', now())")
            .await;
        node.dump();
        assert_eq!(node.sweep().await, OPS as i64);
        node.put_back(how);
        assert_eq!(node.sweep().await, OPS as i64, "{how}");
        node.is_whole(how).await;
        // Another table is another log altogether, though no daemon ever ran.
        let floors = node.text("SELECT count(*) FROM opsward.floors").await;
        assert_eq!(floors, if how == "other tables" { "0" } else { "1" });
        let (_, status) = node.start(&["status"]).json().await;
        let codes: Vec<_> = status["warnings"].as_array().unwrap().iter().map(|w| &w["code"]).collect();
        assert!(codes.iter().any(|code| *code == "log_replaced"), "{how}: {status}");
        assert_eq!(node.sweep().await, 0);
        node.is_whole(how).await;
    }
}

#[tokio::test]
async fn a_daemon_that_was_stopped_meanwhile_asks_again() {
    let node = Node::new().await;
    node.daemon().await;
    node.dump();
    node.daemon().await;
    node.put_back("the same tables");
    node.daemon().await;
    node.is_whole("the same tables").await;
}

/// What was applied of it before went with the log.
#[tokio::test]
async fn a_page_that_was_under_way_moves_no_cursor() {
    let node = Node::new().await;
    assert_eq!(node.sweep().await, OPS as i64);
    node.dump();
    let (url, file) = (node.bench.database.url(), node.file());
    *node.meanwhile.lock().unwrap() = Some(Box::new(move || put_back(&url, &file, "the same tables")));
    assert_eq!(node.start(&["sweep"]).json().await.0, 1);
    node.sweep().await;
    assert_eq!(node.asked_with().await, ulid(2, OPS).as_str());
    let cursor = node.text("SELECT last_ulid FROM opsward.cursors").await;
    assert_eq!(cursor, ulid(1, OPS).as_str());
}

/// The node writes an older value where its own sweep began earlier; tables are rewritten.
#[tokio::test]
async fn a_late_write_of_the_nodes_or_a_rewritten_table_is_no_restore() {
    let node = Node::new().await;
    node.sweep().await;
    node.log.lock().unwrap().extend(written(1));
    node.sweep().await;
    let back = format!("UPDATE cursors SET last_ulid = '{}' WHERE host LIKE 'http%'", ulid(2, 5));
    let pruned = format!("DELETE FROM ops WHERE ulid < '{}'; {back}", ulid(1, 1));
    for change in [&back, "VACUUM FULL ops", "VACUUM FULL cursors", &back, &pruned] {
        node.bench.run(change).await;
        node.sweep().await;
        assert_eq!(node.asked_with().await, ulid(1, OPS).as_str(), "{change}");
    }
    assert_eq!(node.text("SELECT outcome FROM opsward.history WHERE task = 'log'").await, "");
}
