//! Contract 11: no transaction of opsward outlives its bound, its COMMIT included,
//! whatever the server or the line does.

use crate::harness::cluster::TEMPLATE;
use crate::harness::{Cluster, Database, Fault, Ops, Proxy, Start, ops, target};
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::rejected::{self, Refused};
use opsward::db::{Db, Kind, migrate};
use opsward::values::Host;
use std::time::Duration;

/// What no test should ever wait for.
const PATIENCE: Duration = Duration::from_secs(60);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it ends by itself")
}

/// Many short statements are one long transaction: the client ends it.
#[tokio::test]
async fn a_transaction_ends_though_none_of_its_statements_is_long() {
    let database = Database::new().await;
    let db = database.db().await;
    let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();
    let tx = lease.begin().await.unwrap();
    let endless = async {
        loop {
            if let Err(error) = tx.batch_execute("SELECT pg_sleep(0.2)").await {
                return error;
            }
        }
    };
    let error = opsward::db::Error::of("sleep", in_time(endless).await);
    assert_eq!(error.kind(), Kind::TooLong, "{error}");
    drop(tx);
    lease.check().await.unwrap();
}

/// A busy machine takes longer over the schema than a batch may take, and another opsward waits
/// for it.
#[tokio::test]
async fn a_slow_migration_comes_to_its_end() {
    let database = Database::new().await;
    let slow = "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_sleep(5); END $$;
                CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION slow()";
    database.client().await.batch_execute(slow).await.unwrap();
    let db = database.db().await;
    let migrated = || async { migrate::migrate(&mut db.client().await.unwrap()).await };
    let (one, other) = tokio::join!(migrated(), migrated());
    one.unwrap();
    other.unwrap();
}

/// A large op that is refused is kept, though the disk takes longer over it than a batch may.
#[tokio::test]
async fn a_refused_op_is_kept_by_a_slow_disk() {
    let database = Database::new().await;
    let db = database.migrated().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_sleep(5); RETURN new; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON opsward.rejected_ops FOR EACH ROW EXECUTE FUNCTION slow()";
    database.client().await.batch_execute(slow).await.unwrap();
    let refused = Refused {
        ulid: None,
        table: "uploads".into(),
        code: "refused_by_database",
        detail: "x".into(),
        bytes: b"{}".to_vec(),
    };
    let peer = Host::parse("http://b.example").unwrap();
    let mut client = db.client().await.unwrap();
    let kept = rejected::keep(&mut client, &peer, &[refused], Clock::System.now()).await.unwrap();
    assert_eq!(kept.kept, 1);
}

/// A line that swallows everything: COMMIT is not waited for without an end.
#[tokio::test]
async fn a_commit_without_an_answer_ends() {
    let database = Database::new().await;
    let proxy = Proxy::to(([127, 0, 0, 1], database.cluster().port()).into()).await;
    let mut through = target(database.cluster(), database.name());
    through.hosts = vec![("127.0.0.1".into(), proxy.address().port())];
    let db = Db::open(&through, "opsward behind", 2).await.unwrap();
    let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();
    let tx = lease.begin().await.unwrap();
    proxy.set(Fault::BlackHole);
    let committed = in_time(tx.commit()).await;
    let error = opsward::db::Error::of("commit", committed.unwrap_err());
    assert!(error.is_away(), "{error}");
}

/// A synchronous standby that is not there holds the node's commits up, not ours; and
/// what does wait for it ends.
#[tokio::test]
async fn a_standby_that_is_missing_holds_nothing_up() {
    let cluster = tokio::task::spawn_blocking(Cluster::private).await.unwrap();
    cluster.create_database("openaudio", TEMPLATE).await;
    let db = Db::open(&target(&cluster, "openaudio"), "opsward test", 2).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let days_ago = |days: u64| Clock::System.now_ms() - days * 86_400_000;
    for (seed, days) in [(3, 90), (4, 40)] {
        let old = Ops::new(seed).starting_at(days_ago(days)).every(1_000).take(1_000);
        ops::insert(&cluster.connect("openaudio").await, &old).await;
    }
    drop(db);
    cluster.configure("synchronous_commit = on\nsynchronous_standby_names = 'nobody'");
    cluster.stop(crate::harness::Stop::Fast);
    cluster.start();

    let command = |line: &[&str]| {
        Start::new(line)
            .env("OPENAUDIO_DB_URL", cluster.url("openaudio"))
            .env("OPENAUDIO_NODE_ENDPOINT", "https://me.example")
            .env("OPENAUDIO_MEDIORUM_PEERS", "none")
            .env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1MiB")
    };
    let reclaim = ["reclaim", "--yes", "--mode", "in-place", "--policy", "window"];
    for (line, days) in [(&["census"][..], "60"), (&["prune"], "60"), (&reclaim, "30")] {
        let ran = command(line).env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", days).output().await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    // A transaction that asks for the standby all the same.
    let db = Db::open(&target(&cluster, "openaudio"), "opsward test", 2).await.unwrap();
    let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();
    let tx = lease.begin().await.unwrap();
    let wait = "SET LOCAL synchronous_commit = on; CREATE TABLE opsward.waits ()";
    tx.batch_execute(wait).await.unwrap();
    in_time(tx.commit()).await.unwrap();
    lease.check().await.unwrap();
}

/// The server answers nothing any more, and the command is told to stop.
#[tokio::test]
async fn sigterm_ends_a_command_whose_server_is_stuck() {
    let database = Database::new().await;
    database.migrated().await;
    let client = database.client().await;
    ops::insert(&client, &Ops::new(3).take(2_000)).await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END';
        CREATE TRIGGER slow AFTER DELETE ON ops FOR EACH STATEMENT EXECUTE FUNCTION slow()";
    client.batch_execute(slow).await.unwrap();
    let proxy = Proxy::to(([127, 0, 0, 1], database.cluster().port()).into()).await;
    let url =
        database.url().replace(&database.cluster().port().to_string(), &proxy.address().port().to_string());
    let prune = Start::new(&["prune"])
        .env("OPENAUDIO_DB_URL", url)
        .env("OPENAUDIO_NODE_ENDPOINT", "https://me.example")
        .env("OPENAUDIO_MEDIORUM_PEERS", "none")
        .env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1MiB")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "30")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_BATCH_LIMIT", "100")
        .spawn();
    let at_work = "SELECT count(*) > 0 FROM opsward.history";
    in_time(async {
        while !client.query_one(at_work, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    proxy.set(Fault::BlackHole);
    prune.signal("TERM");
    let ran = tokio::time::timeout(PATIENCE, prune.ran()).await.unwrap_or_else(|_| panic!("{}", prune.log()));
    assert!(matches!(ran.code, Some(0 | 1 | 75)), "{ran:?}");
}
