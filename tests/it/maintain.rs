//! Contract 1: VACUUM and index builds never run without anybody watching
//! them, and leave the lease's session as they found it.

use crate::harness::{Daemon, Database, Ops, Start, ops};
use opsward::db::lease::Lease;
use opsward::db::maintain::{Ended, watched};
use opsward::db::{Db, Error};
use std::time::Duration;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// What no test should ever wait for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Works until it is ended; whoever wants the lock waits behind it.
const ENDLESS: &str = "SELECT pg_advisory_xact_lock(7), pg_sleep(100000)";
const AT_WORK: &str = "SELECT count(*) > 0 FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND query LIKE '%pg_sleep(100000)'";
/// The session that looks who waits.
const WATCHER: &str = "SELECT max(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%pg_blocking_pids%'";

async fn until(client: &Client, sql: &str) {
    let look = async {
        while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("it never came to: {sql}"));
}

async fn watcher(client: &Client, but: Option<i32>) -> i32 {
    let sql = format!("SELECT ({WATCHER}) IS NOT NULL AND ({WATCHER}) <> {}", but.unwrap_or(0));
    until(client, &sql).await;
    client.query_one(WATCHER, &[]).await.unwrap().get(0)
}

async fn terminate(client: &Client, pid: i32) {
    client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
}

async fn endless(db: &Db, lease: &mut Lease) -> Result<Ended, Error> {
    let settings = [("vacuum_cost_delay", "3ms".to_owned())];
    let stop = CancellationToken::new();
    let work = watched(lease, db, ENDLESS, &settings, &stop);
    tokio::time::timeout(PATIENCE, work).await.expect("it is ended")
}

/// The session is as every one is.
async fn is_as_before(lease: &mut Lease) {
    for (name, value) in [("statement_timeout", "4500ms"), ("lock_timeout", "4s"), ("vacuum_cost_delay", "0")]
    {
        let row = lease.client().unwrap().query_one(&format!("SHOW {name}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), value, "{name}");
    }
}

#[tokio::test]
async fn a_watcher_that_is_lost_is_replaced() {
    let database = Database::new().await;
    let (db, client, waits) = (database.db().await, database.client().await, database.client().await);
    let mut lease = Lease::take(&db).await.unwrap().unwrap_or_else(|_| panic!("the lease is free"));
    let disturbed = async {
        let first = watcher(&client, None).await;
        terminate(&client, first).await;
        watcher(&client, Some(first)).await;
        // The statement goes on, and ends when somebody waits behind it.
        until(&client, AT_WORK).await;
        waits.batch_execute("SELECT pg_advisory_xact_lock(7)").await.unwrap();
    };
    let (ended, ()) = tokio::join!(endless(&db, &mut lease), disturbed);
    assert_eq!(ended.unwrap(), Ended::Yielded);
    is_as_before(&mut lease).await;
}

/// An operator's timeouts do not end it: they would begin it again for ever.
#[tokio::test]
async fn it_has_timeouts_of_its_own() {
    let database = Database::new().await;
    let alter = format!("ALTER DATABASE {} SET lock_timeout = '1ms'", database.name());
    database.client().await.batch_execute(&alter).await.unwrap();
    let db = database.db().await;
    let mut lease = Lease::take(&db).await.unwrap().unwrap_or_else(|_| panic!("the lease is free"));
    let check = "DO $$ BEGIN
        ASSERT current_setting('lock_timeout') = '0' AND current_setting('statement_timeout') = '0';
    END $$";
    let stop = CancellationToken::new();
    assert_eq!(watched(&mut lease, &db, check, &[], &stop).await.unwrap(), Ended::Done);
    is_as_before(&mut lease).await;
}

#[tokio::test]
async fn without_a_watcher_it_ends() {
    let database = Database::new().await;
    let (db, client) = (database.db().await, database.client().await);
    let mut lease = Lease::take(&db).await.unwrap().unwrap_or_else(|_| panic!("the lease is free"));
    let own = lease.pid();
    let elsewhere = database.cluster().connect("postgres").await;
    let allow = |yes: bool| format!("ALTER DATABASE {} ALLOW_CONNECTIONS {yes}", database.name());
    let disturbed = async {
        let first = watcher(&client, None).await;
        elsewhere.batch_execute(&allow(false)).await.unwrap();
        terminate(&client, first).await;
    };
    let (ended, ()) = tokio::join!(endless(&db, &mut lease), disturbed);
    elsewhere.batch_execute(&allow(true)).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
    // Nothing of it goes on, and the session is the same and free.
    assert!(!client.query_one(AT_WORK, &[]).await.unwrap().get::<_, bool>(0));
    assert_eq!(lease.pid(), own);
    lease.check().await.unwrap();
    is_as_before(&mut lease).await;
}

/// A log on whose VACUUM a page takes a quarter of a second.
async fn of_slow_vacuum(database: &Database, client: &Client) {
    ops::insert(client, &Ops::new(1).take(1_500)).await;
    client
        .batch_execute(&format!(
            "ALTER TABLE ops SET (autovacuum_enabled = off);
             INSERT INTO opsward.pace (percent, set_at) VALUES (1, now());
             ALTER DATABASE {} SET vacuum_cost_limit = 1",
            database.name()
        ))
        .await
        .unwrap();
}

fn prune(database: &Database, task: &str) -> Daemon {
    Start::new(&["prune", "--task", task])
        .env("OPENAUDIO_DB_URL", database.url())
        .env("OPENAUDIO_NODE_ENDPOINT", "https://me.example")
        .env("OPENAUDIO_MEDIORUM_PEERS", "none")
        .env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1MiB")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "30")
        .env("OPENAUDIO_MEDIORUM_OPS_CENSUS", "false")
        .env("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX", "true")
        .spawn()
}

const AT_VACUUM: &str = "SELECT count(*) > 0 FROM pg_stat_progress_vacuum WHERE datname = current_database()";
const AT_INDEX: &str =
    "SELECT count(*) > 0 FROM pg_stat_progress_create_index WHERE datname = current_database()";
const NO_SESSION: &str = "SELECT count(*) = 0 FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'opsward%'";

#[tokio::test]
async fn what_a_killed_process_began_ends_with_it() {
    let database = Database::new().await;
    database.migrated().await;
    let client = database.client().await;
    of_slow_vacuum(&database, &client).await;
    // The index waits for this snapshot, for ever.
    let held = database.old_snapshot().await;
    for (task, at_work) in [("retention", AT_VACUUM), ("index", AT_INDEX)] {
        let command = prune(&database, task);
        until(&client, at_work).await;
        command.signal("KILL");
        command.exit().await;
        until(&client, NO_SESSION).await;
    }
    held.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn an_index_is_made_though_nobody_can_be_told_how_far_it_is() {
    let database = Database::new().await;
    database.migrated().await;
    let client = database.client().await;
    let elsewhere = database.cluster().connect("postgres").await;
    let held = database.old_snapshot().await;
    let command = prune(&database, "index");
    until(&client, AT_INDEX).await;
    watcher(&client, None).await;
    let allow = |yes: bool| format!("ALTER DATABASE {} ALLOW_CONNECTIONS {yes}", database.name());
    elsewhere.batch_execute(&allow(false)).await.unwrap();
    // All but the one at work and the one that watches it.
    let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'opsward%'
          AND query NOT LIKE '%pg_blocking_pids%' AND query NOT LIKE 'CREATE INDEX%'";
    client.query_one(others, &[]).await.unwrap();
    command.line(|l| l.contains("how far the index is")).await;
    elsewhere.batch_execute(&allow(true)).await.unwrap();
    held.batch_execute("ROLLBACK").await.unwrap();
    let ran = command.ran().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("made"), "{ran:?}");
}
