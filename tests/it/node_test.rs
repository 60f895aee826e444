//! The harness' node finds what would stop a real one, and accounts for its
//! writes.

use crate::harness::node::{Generation, Load, Writer, node_starts};
use crate::harness::{Database, Ops, ops};
use opsward::values::OpUlid;
use std::time::Instant;

fn config(database: &Database) -> tokio_postgres::Config {
    database.cluster().config(database.name())
}

#[tokio::test]
async fn a_node_starts_again_and_again() {
    let database = Database::new().await;
    database.migrated().await;
    let mut client = database.client().await;
    for generation in [Generation::Recorded, Generation::Newer, Generation::Newer] {
        let start = node_starts(&mut client, generation).await.unwrap();
        assert!(start.took.len() > 20, "{:?}", start.longest());
    }
    let count =
        client.query_one("SELECT count(*) FROM ops JOIN audio_previews ON cid = 'start-' || ulid", &[]);
    assert_eq!(count.await.unwrap().get::<_, i64>(0), 3);
}

#[tokio::test]
async fn what_stops_a_node_is_found() {
    for (sabotage, complaint) in [
        ("CREATE SCHEMA x; CREATE VIEW x.ops_1 AS SELECT 1 AS one", "rewrite ops"),
        ("DROP TABLE ops; CREATE VIEW ops AS SELECT 1 AS one", "no plain table ops"),
        ("ALTER TABLE ops DROP COLUMN data; ALTER TABLE ops ADD data text", "would alter ops"),
        ("ALTER TABLE ops DROP CONSTRAINT ops_pkey; ALTER TABLE ops ALTER ulid DROP NOT NULL", "primary key"),
        (
            "ALTER TABLE ops RENAME TO old; ALTER TABLE old RENAME CONSTRAINT ops_pkey TO old_pkey;
             CREATE TABLE ops (LIKE old, CONSTRAINT ops_pkey PRIMARY KEY (ulid)) PARTITION BY RANGE (ulid)",
            "CONCURRENTLY",
        ),
        (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER nothing BEFORE INSERT ON ops FOR EACH ROW EXECUTE FUNCTION nothing()",
            "[0, 0] rows",
        ),
        ("ALTER TABLE uploads RENAME ff_probe TO probe", "ff_probe"),
    ] {
        let database = Database::new().await;
        let mut client = database.client().await;
        client.batch_execute(sabotage).await.unwrap();
        let why = node_starts(&mut client, Generation::Newer).await.unwrap_err();
        assert!(why.contains(complaint), "{sabotage}: {why}");
    }
}

#[tokio::test]
async fn waits_are_measured() {
    let database = Database::new().await;
    let (blocker, watcher) = (database.client().await, database.client().await);
    let mut client = database.client().await;
    blocker.batch_execute("BEGIN; LOCK TABLE ops IN SHARE MODE").await.unwrap();
    let held = async {
        let sql = "SELECT count(*) FROM pg_locks WHERE relation = 'ops'::regclass AND NOT granted";
        while watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        let seen = Instant::now();
        tokio::task::yield_now().await;
        let held = seen.elapsed();
        blocker.batch_execute("COMMIT").await.unwrap();
        held
    };
    let (start, held) = tokio::join!(node_starts(&mut client, Generation::Recorded), held);
    let start = start.unwrap();
    let inserts = start.took.iter().filter(|(sql, _)| sql.starts_with("INSERT INTO \"ops\""));
    assert!(inserts.map(|(_, took)| *took).max().unwrap() >= held, "{:?}", start.longest());
}

fn busy(old: &[OpUlid]) -> Load {
    Load { rate: 1000, old: old.to_vec(), ..Load::default() }
}

#[tokio::test]
async fn every_acknowledged_write_is_found_or_missed() {
    let database = Database::new().await;
    let mut client = database.client().await;
    node_starts(&mut client, Generation::Newer).await.unwrap();
    let old = Ops::new(3).take(200);
    ops::insert(&client, &old).await;
    let old: Vec<_> = old.iter().map(|op| op.ulid).collect();
    let writer = Writer::start(&config(&database), &busy(&old), 1).await;
    writer.more(600).await;
    // Which kind comes next is by chance; deletes of old ones are the rarest.
    let keys: Vec<&str> = old.iter().map(|ulid| ulid.as_str()).collect();
    let left = "SELECT count(*) FROM ops WHERE ulid = ANY($1)";
    while client.query_one(left, &[&keys]).await.unwrap().get::<_, i64>(0) == 200 {
        writer.more(100).await;
    }
    let written = writer.stop().await;
    assert!(written.acknowledged() >= 600 && written.errors.is_empty(), "{}", written.summary());
    assert!(written.percentile(50.0) <= written.percentile(99.9));
    assert_eq!(written.verify(&client, |_| false).await, Vec::<String>::new());

    // The mixture has all of it.
    let mixture = "SELECT count(*) FILTER (WHERE core_tx_status IS NOT NULL),
                          count(*) FILTER (WHERE length(data::text) > 6000),
                          count(*) FILTER (WHERE host = 'http://writer.example' AND ulid < $1)
                   FROM ops";
    let yesterday = OpUlid::first_of_ms(opsward::clock::Clock::System.now_ms() - 86_400_000);
    let row = client.query_one(mixture, &[&yesterday.as_str()]).await.unwrap();
    assert!((0..3).all(|i| row.get::<_, i64>(i) > 0), "{row:?}");

    // Each loss is noticed, and forgiven only where it may be.
    let one = "SELECT ulid FROM ops WHERE host = 'http://writer.example' AND core_tx_status IS";
    for (which, sabotage, complaint) in [
        ("NULL", "DELETE FROM ops WHERE ulid = $1", "is missing"),
        ("NULL", "UPDATE ops SET data = '[]' WHERE ulid = $1", "other data"),
        ("NOT NULL", "UPDATE ops SET core_tx_hash = 'x' WHERE ulid = $1", "lacks its update"),
    ] {
        let mut client = database.client().await;
        let transaction = client.transaction().await.unwrap();
        let row = transaction.query_one(&format!("{one} {which} LIMIT 1"), &[]).await.unwrap();
        let ulid: String = row.get(0);
        transaction.execute(sabotage, &[&ulid]).await.unwrap();
        let complaints = written.verify(transaction.client(), |_| false).await;
        assert!(complaints.len() == 1 && complaints[0].contains(complaint), "{complaints:?}");
        let forgiven = written.verify(transaction.client(), |u| u.as_str() == ulid).await;
        assert_eq!(forgiven.is_empty(), complaint == "is missing", "{forgiven:?}");
    }
}

#[tokio::test]
async fn errors_are_counted_by_their_state() {
    let database = Database::new().await;
    let client = database.client().await;
    ops::insert(&client, &Ops::new(4).take(300)).await;
    let load = Load { reads: 50, ..busy(&[]) };
    let writer = Writer::start(&config(&database), &load, 2).await;
    writer.more(50).await;
    client.batch_execute("ALTER TABLE ops ADD COLUMN more text").await.unwrap();
    writer.more(200).await;
    client
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await
        .unwrap();
    let written = writer.ended().await;
    // A prepared `SELECT *` fails once a session when a column was added.
    assert_eq!(written.errors["0A000"].0, 4, "{}", written.summary());
    let lost: u64 = written.errors.iter().filter(|(s, _)| *s != "0A000").map(|(_, e)| e.0).sum();
    assert_eq!(lost, 4, "{}", written.summary());
    assert_eq!(written.verify(&client, |_| false).await, Vec::<String>::new());
}
