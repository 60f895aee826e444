//! Contract 11: what a session is like is set by opsward and read back, whatever the
//! database or the role says.

use crate::harness::node::{Load, Writer};
use crate::harness::{Database, Start};
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::reclaim::reset;
use opsward::values::{Beginning, OpUlid};
use std::collections::BTreeMap;

/// What an operator may have set for the database. Each would harm in its own way.
const ODD: [(&str, &str); 18] = [
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("lock_timeout", "1ms"),
    ("statement_timeout", "1h"),
    ("idle_in_transaction_session_timeout", "1h"),
    ("default_tablespace", "elsewhere"),
    ("default_table_access_method", "another"),
    ("quote_all_identifiers", "on"),
    ("session_replication_role", "replica"),
    ("search_path", "pg_temp"),
    ("standard_conforming_strings", "off"),
    ("enable_indexscan", "off"),
    ("plan_cache_mode", "force_custom_plan"),
    ("DateStyle", "German"),
    ("synchronous_commit", "remote_apply"),
    ("jit", "on"),
    ("idle_session_timeout", "2min"),
];

async fn defaults(database: &Database, settings: &[(&str, &str)]) {
    let client = database.client().await;
    for (name, value) in settings {
        let sql = format!("ALTER DATABASE \"{}\" SET {name} = '{value}'", database.name());
        client.batch_execute(&sql).await.unwrap();
    }
}

#[tokio::test]
async fn the_facts_hold_whatever_the_database_says() {
    let database = Database::new().await;
    let admin = database.client().await;
    admin
        .batch_execute("CREATE ACCESS METHOD another TYPE TABLE HANDLER heap_tableam_handler")
        .await
        .unwrap();
    // A tablespace's name is only looked up when it is used.
    defaults(&database, &ODD.map(|(n, v)| if n == "default_tablespace" { (n, "pg_global") } else { (n, v) }))
        .await;
    let db = database.db().await;
    let client = db.client().await.unwrap();
    for (name, value) in ODD {
        let row = client.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
        assert_ne!(
            row.get::<_, &str>(0),
            if name == "default_tablespace" { "pg_global" } else { value },
            "{name}"
        );
    }
    database.migrated().await;
}

/// Whoever decides under a lock sees what was committed before the lock, not before
/// the transaction.
#[tokio::test]
async fn a_transaction_sees_what_was_committed_after_it_began() {
    for level in ["repeatable read", "serializable"] {
        let database = Database::new().await;
        database.migrated().await;
        defaults(&database, &[("default_transaction_isolation", level)]).await;
        let writer = database.client().await;
        let db = database.db().await;
        let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();
        let tx = lease.begin().await.unwrap();
        tx.query_one("SELECT count(*) FROM public.ops", &[]).await.unwrap();
        writer
            .batch_execute(
                "INSERT INTO ops VALUES ('01HKFACTS00000000000000001', 'h', 'create', 'uploads', '[]')",
            )
            .await
            .unwrap();
        let rows: i64 = tx.query_one("SELECT count(*) FROM public.ops", &[]).await.unwrap().get(0);
        assert_eq!(rows, 1, "{level}");
    }
}

/// Resets beside writers, again and again: nothing young is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_beside_writers_lose_nothing() {
    let database = Database::new().await;
    database.migrated().await;
    defaults(&database, &[("default_transaction_isolation", "repeatable read")]).await;
    let config = database.cluster().config(database.name());
    let load = Load { rate: 200, sessions: 4, late: 0, updates: 0, deletes: 0, ..Load::default() };
    let writer = Writer::start(&config, &load, 200).await;
    let db = database.db().await;
    let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();
    let work = crate::work::on(&db, |_| {});
    let young = OpUlid::first_of_ms(Clock::System.now_ms() - 2 * 3_600_000);
    for _ in 0..4 {
        let beginning = Beginning { cursors: BTreeMap::new(), young, reference: "x".into() };
        reset::carry_out(&work, &mut lease, beginning).await.unwrap();
        writer.more(20).await;
    }
    let written = writer.stop().await;
    let complaints = written.verify(&database.client().await, |_| false).await;
    assert_eq!(complaints.len(), 0);
}

/// What only a superuser may set ends the start of anybody else, by name.
#[tokio::test]
async fn what_cannot_be_set_ends_the_start_and_is_named() {
    let database = Database::new().await;
    let admin = database.client().await;
    admin.batch_execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain").await.unwrap();
    defaults(&database, &[("session_replication_role", "replica")]).await;
    let url = database.url().replace("postgres:postgres@", "plain@");
    let ran = Start::new(&["plan"])
        .env("OPENAUDIO_DB_URL", url)
        .env("OPENAUDIO_NODE_ENDPOINT", "https://a.example")
        .output()
        .await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for word in ["session_replication_role = 'replica'", "RESET session_replication_role"] {
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
}
