//! Contract 6: the log begun anew.

use crate::harness::node::{Generation, node_starts};
use crate::harness::{Daemon, Database, Start, daemon::Ran, ops};
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::values::OpUlid;
use serde_json::Value;
use std::time::Duration;

const HOUR: u64 = 3_600_000;

async fn opsward(database: &Database, own: &str, line: &[&str]) -> Ran {
    let start = Start::new(line)
        .env("OPENAUDIO_DB_URL", database.url())
        .env("OPENAUDIO_MEDIORUM_REPLICATION", "peers");
    let start = start.env("OPENAUDIO_NODE_ENDPOINT", format!("https://{own}.example"));
    start.env("OPENAUDIO_MEDIORUM_REPLICATION", "peers").output().await
}

/// A validator with a log: old ops, one that is owed, one of a table without
/// a model, one of `blobs`, and one of the last minutes.
async fn validator() -> Database {
    let database = Database::new().await;
    database.migrated().await;
    let now = Clock::System.now_ms();
    let ulid = |hours: u64, n: u128| OpUlid::from_parts(now - hours * HOUR, n);
    let client = database.client().await;
    client.batch_execute("ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_status text").await.unwrap();
    let old = ops::Ops::new(7).starting_at(now - 90 * 24 * HOUR).take(3_000);
    ops::insert(&client, &old).await;
    let sql = format!(
        "INSERT INTO uploads (id) SELECT 'u' || n FROM generate_series(1, 100) n;
         INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status) VALUES
            ('{}', 'https://c.example', 'create', 'uploads', '[{{\"id\":\"o\"}}]', 'pending'),
            ('{}', 'https://c.example', 'create', 'uploads', '[{{\"id\":\"p\"}}]', 'confirmed'),
            ('{}', 'https://c.example', 'create', 'unheard_of', '[]', NULL),
            ('{}', 'https://c.example', 'create', 'blobs', '[]', NULL),
            ('{}', 'https://c.example', 'update', 'uploads', '[{{\"id\":\"u1\"}}]', 'confirmed')",
        ulid(50, 1),
        ulid(50, 2),
        ulid(50, 3),
        ulid(50, 4),
        ulid(1, 5),
    );
    client.batch_execute(&sql).await.unwrap();
    database
}

async fn randoms(database: &Database) -> Vec<u128> {
    let rows = database.client().await.query("SELECT ulid FROM ops ORDER BY ulid", &[]).await.unwrap();
    rows.iter().map(|r| ulid::Ulid::from_string(r.get(0)).unwrap().random()).collect()
}

/// A command that goes on meanwhile.
fn spawn(database: &Database, line: &[&str]) -> Daemon {
    let start = Start::new(line)
        .env("OPENAUDIO_DB_URL", database.url())
        .env("OPENAUDIO_MEDIORUM_REPLICATION", "peers");
    start.env("OPENAUDIO_NODE_ENDPOINT", "https://b.example").spawn()
}

/// A reset that has copied what stays and waits for its lock.
const AT_THE_SWAP: &str = "SELECT EXISTS (SELECT FROM opsward.reclaim WHERE checkpoint ->> 'phase' = 'swap')";

async fn until(database: &Database, sql: &str) {
    let client = database.client().await;
    while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Tables, triggers and checkpoints that a reset left.
async fn left_over(database: &Database) -> i64 {
    let sql = "SELECT (SELECT count(*) FROM pg_class WHERE relname IN ('ops_next', 'ops_old'))
                    + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'opsward_capture%')
                    + (SELECT count(*) FROM opsward.reclaim)";
    database.client().await.query_one(sql, &[]).await.unwrap().get(0)
}

async fn digest(database: &Database, dir: &tempfile::TempDir) -> String {
    let ran = opsward(database, "a", &["digest"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let path = dir.path().join("digest");
    std::fs::write(&path, &ran.stdout).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn cursor(database: &Database, table: &str, host: &str) -> Option<String> {
    let sql = format!("SELECT last_ulid FROM {table} WHERE rtrim(lower(host), '/') = $1");
    let row = database.client().await.query_opt(&sql, &[&host]).await.unwrap();
    row.map(|r| r.get(0))
}

#[tokio::test]
async fn the_log_begins_anew() {
    let (a, b) = (validator().await, validator().await);
    let dir = tempfile::tempdir().unwrap();
    let now = Clock::System.now_ms();
    let ulid = |hours: u64| OpUlid::from_parts(now - hours * HOUR, 9).to_string();
    let (low, mid, high, wild) = (ulid(5), ulid(4), ulid(3), "7ZZZZZZZZZ0000000000000000".to_owned());
    let rows = |c: &str, d: &str, e: &str| {
        format!(
            "INSERT INTO cursors VALUES ('https://C.example/', '{c}'), ('https://d.example', '{d}'),
                ('https://e.example', '{e}'), ('qm_fix_truncated', 'Qm1')"
        )
    };
    a.client().await.batch_execute(&rows(&mid, &mid, &mid)).await.unwrap();
    // Behind, ahead, implausible.
    b.client().await.batch_execute(&rows(&low, &high, &wild)).await.unwrap();
    let reference = digest(&a, &dir).await;

    let line = ["reset", "--reference", &reference];
    let ran = opsward(&b, "b", &line).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stdout.contains("retention gap") && ran.stderr.contains("--yes"), "{ran:?}");
    assert_eq!(randoms(&b).await.len(), 3_005);

    let ran = opsward(&b, "b", &[&line[..], &["--yes", "--output=json"]].concat()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["changed"], true);
    assert_eq!(json["result"]["kept"], 3);
    let [before, after] = ["bytes_before", "bytes_after"].map(|key| json["result"][key].as_u64().unwrap());
    assert!(after > 0 && after < before / 10, "{json}");
    assert_eq!(json["warnings"][0]["code"], "peers_behind");
    // Owed, of no model, young.
    assert_eq!(randoms(&b).await, [1, 3, 5]);
    let client = b.client().await;
    let owed = "SELECT count(*) FROM ops WHERE core_tx_status = 'pending' AND data = '[{\"id\":\"o\"}]'";
    assert_eq!(client.query_one(owed, &[]).await.unwrap().get::<_, i64>(0), 1);

    for table in ["cursors", "opsward.cursors"] {
        assert_eq!(cursor(&b, table, "https://c.example").await, Some(mid.clone()), "{table}");
        assert_eq!(cursor(&b, table, "https://e.example").await, Some(mid.clone()), "{table}");
        assert!(cursor(&b, table, "https://a.example").await.is_some(), "the reference's own log");
        assert!(cursor(&b, table, "https://b.example").await.is_none(), "self is no peer");
    }
    assert_eq!(cursor(&b, "cursors", "https://d.example").await, Some(high), "never lower");
    assert_eq!(cursor(&b, "cursors", "qm_fix_truncated").await.as_deref(), Some("Qm1"));

    let floors = client.query("SELECT floor, foreign_floor FROM opsward.floors", &[]).await.unwrap();
    assert_eq!(floors.len(), 4);
    for row in floors {
        assert_eq!(row.get::<_, Option<String>>(0), None, "no traces were left");
        let floor = OpUlid::parse(row.get(1)).unwrap();
        assert!(floor.ms() <= Clock::System.now_ms() - 2 * HOUR);
    }
    let history =
        client.query_one("SELECT task, outcome, bound_by, bytes FROM opsward.history", &[]).await.unwrap();
    let freed: i64 = history.get(3);
    let history: Vec<&str> = (0..3).map(|i| history.get(i)).collect();
    assert_eq!(history, ["reset", "done", "https://a.example"]);
    assert!(freed > 0 && freed as u64 <= before, "{freed} of {before}");
    assert_eq!(left_over(&b).await, 0);
}

#[tokio::test]
async fn anything_odd_and_nothing_is_done() {
    let (a, b) = (validator().await, validator().await);
    let dir = tempfile::tempdir().unwrap();
    let reference = digest(&a, &dir).await;
    let line = ["reset", "--yes", "--settle=0", "--reference", &reference];
    let with = |more: &[&'static str]| [&line[..], more].concat();
    let refused = async |line: &[&str], code: i32, words: &str| {
        let ran = opsward(&b, "b", line).await;
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
        assert_eq!(randoms(&b).await.len(), 3_005);
    };
    refused(&with(&["--read-only"]), 3, "READ_ONLY").await;
    refused(&with(&["--leave-out=uploads"]), 3, "leaves out uploads").await;
    refused(&with(&["--max-age=0"]), 3, "0 s old at most: take a new one").await;
    // A file that is cut, of another version, or of this node under any name.
    let whole = std::fs::read_to_string(&reference).unwrap();
    let other = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cut = other("cut", &whole[..whole.len() - 9]);
    let newer = other("newer", &whole.replacen("\"version\":1", "\"version\":2", 1));
    let own = other("own", &opsward(&b, "b", &["digest"]).await.stdout);
    let renamed = other("renamed", &opsward(&b, "x", &["digest"]).await.stdout);
    for (file, words) in [
        (&cut, "cut off"),
        (&newer, "of version 2: this opsward reads"),
        (&own, "this very validator: take one of another"),
        (&renamed, "this very database: take one of another"),
    ] {
        refused(&["reset", "--yes", "--reference", file], 3, words).await;
    }

    let lease = Lease::take(&b.db().await).await.unwrap().ok().unwrap();
    refused(&line, 4, "the lease is held").await;
    drop(lease);
    let presence = opsward::db::presence::Presence::take(&b.db().await).await.unwrap();
    refused(&line, 4, "a daemon is connected").await;
    drop(presence);

    let client = b.client().await;
    client.batch_execute("UPDATE uploads SET status = 'odd' WHERE id = 'u7'").await.unwrap();
    refused(&line, 3, "uploads differ: u7").await;
    client.batch_execute("UPDATE uploads SET status = NULL WHERE id = 'u7'").await.unwrap();

    // A reader that stays: the log is never locked while it is in use, and a
    // stop undoes all.
    let mut holder = b.client().await;
    let tx = holder.transaction().await.unwrap();
    tx.execute("SELECT FROM ops LIMIT 1", &[]).await.unwrap();
    let running = spawn(&b, &line);
    until(&b, AT_THE_SWAP).await;
    running.signal("INT");
    until(&b, "SELECT EXISTS (SELECT FROM opsward.reclaim WHERE checkpoint ->> 'aborting' IS NOT NULL)")
        .await;
    drop(tx);
    let ran = running.ran().await;
    assert_eq!((ran.code, randoms(&b).await.len()), (Some(1), 3_005), "{ran:?}");
    assert!(ran.stderr.contains("nothing was done"), "{}", ran.stderr);
    assert_eq!(left_over(&b).await, 0);
}

/// Another validator's database as the reference: what it says is as it is now.
#[tokio::test]
async fn a_database_is_a_reference_too() {
    let (a, b) = (validator().await, validator().await);
    let now = Clock::System.now_ms();
    let read = |hours: u64| OpUlid::from_parts(now - hours * HOUR, 9).to_string();
    let cursors = |c: &str, d: &str| {
        format!("INSERT INTO cursors VALUES ('https://c.example', '{c}'), ('https://D.example/', '{d}')")
    };
    // What no clock can say is taken of nobody.
    a.client().await.batch_execute(&cursors(&read(3), "7ZZZZZZZZZ0000000000000000")).await.unwrap();
    b.client().await.batch_execute(&cursors(&read(5), &read(6))).await.unwrap();
    let url = a.url().replace(":postgres@", ":hunter2@");
    let reset = ["reset", "--yes", "--reference", &url];
    let refused = async |line: &[&str], code: i32, words: &[&str]| {
        let ran = opsward(&b, "b", line).await;
        assert_eq!((ran.code, randoms(&b).await.len()), (Some(code), 3_005), "{ran:?}");
        assert!(words.iter().all(|w| ran.stderr.contains(w)) && !ran.stderr.contains("hunter2"), "{ran:?}");
    };

    // It lags: one record there is not, one has another value.
    let there = a.client().await;
    let lag = "DELETE FROM uploads WHERE id = 'u7'; UPDATE uploads SET template = '' WHERE id = 'u8'";
    there.batch_execute(lag).await.unwrap();
    let at_once = [&reset[..], &["--settle=0"]].concat();
    let words = ["nothing was done", "uploads only here: u7", "uploads differ: u8", "opsward verify"];
    refused(&at_once, 3, &words).await;
    let own = b.url();
    refused(&["reset", "--yes", "--reference", &own], 3, &["this very database", "another validator"]).await;
    let none = ["reset", "--yes", "--reference", "https://a.example"];
    refused(&none, 2, &["URL of a database", "opsward digest > FILE"]).await;
    refused(&["reset", "--yes", "--reference", "/none"], 3, &["cannot be read", "opsward digest"]).await;
    refused(&["reset", "--yes", "--reference", "postgres://x:hunter2@127.0.0.1:1/x"], 75, &["reference"])
        .await;
    // Nobody may ask which database it is.
    let deny = "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC;
                GRANT USAGE ON SCHEMA public, opsward TO plain;
                GRANT SELECT ON ALL TABLES IN SCHEMA public, opsward TO plain";
    there.batch_execute(deny).await.unwrap();
    let plain = a.url().replace("postgres:postgres@", "plain@");
    refused(&["reset", "--yes", "--reference", &plain], 3, &["cannot be told", "GRANT EXECUTE"]).await;

    // It catches up while it is looked at again.
    let start = Start::new(&[&reset[..], &["--settle=10m"]].concat()).env("OPENAUDIO_DB_URL", b.url());
    let start = start.env("OPENAUDIO_MEDIORUM_REPLICATION", "peers");
    let running = start.env("OPENAUDIO_NODE_ENDPOINT", "https://b.example").spawn();
    running.line(|line| line.contains("records that differ")).await;
    let caught_up =
        "INSERT INTO uploads (id) VALUES ('u7'); UPDATE uploads SET template = NULL WHERE id = 'u8'";
    there.batch_execute(caught_up).await.unwrap();
    let ran = running.ran().await;
    assert_eq!((ran.code, randoms(&b).await), (Some(0), vec![1, 3, 5]), "{ran:?}");
    for table in ["cursors", "opsward.cursors"] {
        assert_eq!(cursor(&b, table, "https://c.example").await, Some(read(3)), "{table}");
    }
    assert_eq!(cursor(&b, "cursors", "https://d.example").await, Some(read(6)), "as it was");

    // The node and the planner find it ready.
    let mut node = b.client().await;
    let rows = "SELECT reltuples::float8 FROM pg_class WHERE oid = 'ops'::regclass";
    assert_eq!(node.query_one(rows, &[]).await.unwrap().get::<_, f64>(0), 3.0);
    node_starts(&mut node, Generation::Newer).await.unwrap();
}

/// The replay guard keeps out what would not act again, and what is put back
/// would not: it must be there all the same.
#[tokio::test]
async fn the_guard_refuses_nothing_that_is_put_back() {
    let (a, b) = (validator().await, validator().await);
    let dir = tempfile::tempdir().unwrap();
    for database in [&a, &b] {
        database.client().await.batch_execute("INSERT INTO uploads (id) VALUES ('o')").await.unwrap();
    }
    let client = b.client().await;
    client.batch_execute(opsward::db::guard::CREATE).await.unwrap();
    let trigger = "SELECT tgenabled::text FROM pg_trigger WHERE tgname = 'opsward_replay_guard'";
    let reference = digest(&a, &dir).await;
    // The second one meets floors of the first.
    for n in 1..=2 {
        let ran = opsward(&b, "b", &["reset", "--yes", "--reference", &reference]).await;
        assert_eq!((ran.code, randoms(&b).await), (Some(0), vec![1, 3, 5]), "{n}: {ran:?}");
        assert_eq!(client.query_one(trigger, &[]).await.unwrap().get::<_, &str>(0), "O");
    }
    // What somebody else's trigger eats is not lost for the sake of a reset.
    client
        .batch_execute(
            "CREATE FUNCTION eat() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER eat BEFORE INSERT ON ops FOR EACH ROW EXECUTE FUNCTION eat()",
        )
        .await
        .unwrap();
    let ran = opsward(&b, "b", &["reset", "--yes", "--reference", &reference]).await;
    assert_eq!((ran.code, randoms(&b).await), (Some(3), vec![1, 3, 5]), "{ran:?}");
    assert!(ran.stderr.contains("trigger eat on table ops"), "{}", ran.stderr);
    assert_eq!(left_over(&b).await, 0);
}

/// What comes or changes while what stays is copied stays as it is: rows that
/// are owed from now on, late ones of tables without a model.
#[tokio::test]
async fn what_comes_meanwhile_stays() {
    let (a, b) = (validator().await, validator().await);
    let dir = tempfile::tempdir().unwrap();
    let reference = digest(&a, &dir).await;
    let mut holder = b.client().await;
    let tx = holder.transaction().await.unwrap();
    tx.execute("SELECT FROM ops LIMIT 1", &[]).await.unwrap();
    let running = spawn(&b, &["reset", "--yes", "--reference", &reference]);
    until(&b, AT_THE_SWAP).await;
    let now = Clock::System.now_ms();
    let ulid = |minutes: u64, n: u128| OpUlid::from_parts(now - minutes * HOUR / 60, n);
    let sql = format!(
        "UPDATE ops SET core_tx_status = 'error' WHERE core_tx_status = 'pending';
         UPDATE ops SET core_tx_status = 'pending' WHERE right(ulid, 3) = '002' AND core_tx_status = 'confirmed';
         INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status) VALUES ('{}', 'h', 'create', 'uploads', '[]', 'confirmed'),
             ('{}', 'h', 'create', 'unheard_of', '[]', NULL);
         DELETE FROM ops WHERE \"table\" = 'unheard_of' AND right(ulid, 3) = '003'",
        ulid(30, 77),
        ulid(6_000, 78)
    );
    b.client().await.batch_execute(&sql).await.unwrap();
    drop(tx);
    let ran = running.ran().await;
    assert_eq!((ran.code, randoms(&b).await), (Some(0), vec![78, 1, 2, 5, 77]), "{ran:?}");
    let owed = "SELECT string_agg(core_tx_status, ' ' ORDER BY ulid) FROM ops WHERE core_tx_status IN ('pending', 'error')";
    assert_eq!(b.client().await.query_one(owed, &[]).await.unwrap().get::<_, &str>(0), "error pending");
}

/// A record changed here since the reference was taken hides whether an op that
/// only the reference has read would change it, too.
#[tokio::test]
async fn no_cursor_goes_over_an_op_that_was_never_read() {
    let (a, b) = (validator().await, validator().await);
    let dir = tempfile::tempdir().unwrap();
    let now = Clock::System.now_ms();
    let ulid = |hours: u64| OpUlid::from_parts(now - hours * HOUR, 9).to_string();
    let read = |hours| format!("INSERT INTO cursors VALUES ('https://c.example', '{}')", ulid(hours));
    // Only the reference has read c's op of 5 hours ago.
    a.client().await.batch_execute(&read(4)).await.unwrap();
    a.client().await.batch_execute("UPDATE uploads SET status = 'of c' WHERE id = 'u1'").await.unwrap();
    b.client().await.batch_execute(&read(6)).await.unwrap();
    let reference = digest(&a, &dir).await;
    let changed = format!(
        "UPDATE uploads SET status = 'of b' WHERE id = 'u1';
         INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status) VALUES
            ('{}', 'https://b.example', 'update', 'uploads', '[{{\"id\":\"u1\"}}]', 'confirmed')",
        OpUlid::from_parts(Clock::System.now_ms(), 6)
    );
    b.client().await.batch_execute(&changed).await.unwrap();
    let line = ["reset", "--yes", "--settle=0", "--reference", &reference];
    let ran = opsward(&b, "b", &line).await;
    assert_eq!((ran.code, randoms(&b).await.len()), (Some(3), 3_006), "{ran:?}");
    assert!(ran.stderr.contains("https://c.example"), "{}", ran.stderr);
    assert_eq!(cursor(&b, "cursors", "https://c.example").await, Some(ulid(6)));
    // Once it has read as much of every peer's log, nothing is hidden.
    let newest = "SELECT max(ulid) FROM ops";
    let newest: String = a.client().await.query_one(newest, &[]).await.unwrap().get(0);
    let caught_up = format!(
        "UPDATE cursors SET last_ulid = '{}'; INSERT INTO cursors VALUES ('https://a.example', '{newest}')",
        ulid(4)
    );
    b.client().await.batch_execute(&caught_up).await.unwrap();
    let ran = opsward(&b, "b", &line).await;
    assert_eq!((ran.code, randoms(&b).await), (Some(0), vec![1, 3, 5, 6]), "{ran:?}");
}
