//! Who is in the way of a swap's locks is named, and nobody has to wait behind
//! one that waits.

use super::stands::{until, while_};
use super::*;
use crate::harness::Cluster;
use crate::harness::cluster::unique;
use tokio::sync::watch;
use tokio_postgres::Client;

const ROWS: usize = 400;

/// A session of the node's.
async fn session(bed: &Bed) -> (Client, i32) {
    let client = bed.database.client().await;
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    (client, pid)
}

/// Runs a request that meets somebody's lock: the holder and what it does are
/// told, other writers go on meanwhile; it is released, and comes to its end.
async fn waits(bed: &Bed, request: Request, words: [&str; 2], release: impl AsyncFnOnce()) -> Report {
    let (tell, mut told) = watch::channel(Progress::default());
    let work = Work { tell: Arc::new(move |progress| drop(tell.send_replace(progress))), ..bed.work.clone() };
    let load = Load { rate: 100, late_by: Duration::from_secs(20 * 86_400), ..Load::default() };
    let writer = Writer::start(&bed.database.cluster().config(bed.database.name()), &load, 5).await;
    writer.more(10).await;
    let mut lease = bed.lease().await;
    let released = async {
        let named =
            |p: &Progress| p.waiting.as_ref().is_some_and(|w| words.iter().all(|word| w.contains(word)));
        let waiting = told.wait_for(named).await.unwrap().waiting.clone();
        writer.more(50).await;
        release().await;
        println!("{}", waiting.unwrap_or_default());
        std::future::pending::<()>().await;
    };
    let ask = asked(bed.gate());
    let report = tokio::select! {
        report = reclaim::run(&work, &mut lease, &request, &ask) => report.unwrap(),
        () = released => unreachable!(),
    };
    let written = writer.stop().await;
    println!("{}", written.summary());
    assert!(written.errors.is_empty(), "{}", written.summary());
    let complaints = written.verify(&bed.database.client().await, |_| false).await;
    assert!(complaints.is_empty(), "{complaints:?}");
    bed.nothing_is_left().await;
    report
}

async fn held(bed: &Bed) -> Request {
    let request = Request { hold: true, ..bed.request(Policy::Window) };
    assert_eq!(bed.run(&request).await.unwrap().outcome, Outcome::Held);
    bed.again(Action::Swap)
}

fn op() -> OpUlid {
    OpUlid::from_parts(now_ms() - 60 * DAY_MS, 9)
}

#[tokio::test]
async fn a_writer_is_in_the_way_of_the_capture() {
    let bed = Bed::new(ROWS).await;
    let (node, pid) = session(&bed).await;
    let sql = format!("BEGIN; UPDATE ops SET host = 'written' WHERE ulid = '{}'", bed.ops[ROWS - 1].ulid);
    node.batch_execute(&sql).await.unwrap();
    let words = [&*format!("held by process {pid} (postgres"), "UPDATE ops SET host = 'written'"];
    let report = waits(&bed, bed.request(Policy::Window), words, async || {
        node.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(report.await.outcome, Outcome::Done);
    let sql = "SELECT count(*) FROM ops WHERE host = 'written'";
    assert_eq!(bed.database.client().await.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1);
}

/// It began before others that committed long ago: what it wrote is there.
#[tokio::test]
async fn a_writer_is_in_the_way_of_the_swap() {
    let bed = Bed::new(ROWS).await;
    let request = held(&bed).await;
    let ((node, pid), late) = (session(&bed).await, op());
    let sql = format!("BEGIN; INSERT INTO ops (ulid, \"table\") VALUES ('{late}', 'uploads')");
    node.batch_execute(&sql).await.unwrap();
    let words = [&*format!("held by process {pid} (postgres"), "INSERT INTO ops"];
    let report = waits(&bed, request, words, async || node.batch_execute("COMMIT").await.unwrap());
    assert_eq!(report.await.outcome, Outcome::Done);
    assert!(bed.ulids().await.contains(&late.to_string()));
}

#[tokio::test]
async fn a_long_reader_is_in_the_way_of_the_swap() {
    let bed = Bed::new(ROWS).await;
    let request = held(&bed).await;
    let (node, pid) = session(&bed).await;
    node.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ops").await.unwrap();
    let words = [&*format!("held by process {pid} (postgres"), "SELECT count(*) FROM ops"];
    let report = waits(&bed, request, words, async || node.batch_execute("COMMIT").await.unwrap());
    assert_eq!(report.await.outcome, Outcome::Done);
}

#[tokio::test]
async fn somebody_is_in_the_way_of_the_drop() {
    let bed = Bed::new(ROWS).await;
    bed.run_until(&bed.request(Policy::Window), "drop").await;
    let (node, pid) = session(&bed).await;
    node.batch_execute("BEGIN; LOCK TABLE opsward.ops_old IN ACCESS SHARE MODE").await.unwrap();
    let words = [&*format!("opsward.ops_old, held by process {pid} (postgres"), "LOCK TABLE"];
    let report = waits(&bed, bed.again(Action::Resume), words, async || {
        node.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(report.await.outcome, Outcome::Done);
}

/// From the first moment of an abort nothing is noted; the triggers go when
/// they can.
#[tokio::test]
async fn a_reader_is_in_the_way_of_an_abort() {
    let bed = Bed::new(ROWS).await;
    held(&bed).await;
    let (node, pid) = session(&bed).await;
    node.batch_execute("BEGIN; SELECT count(*) FROM ops").await.unwrap();
    let words = [&*format!("held by process {pid} (postgres"), "SELECT count(*)"];
    let report = waits(&bed, bed.again(Action::Abort), words, async || {
        let (client, ulid) = (bed.database.client().await, bed.ops[ROWS - 1].ulid);
        client.batch_execute(&format!("UPDATE ops SET host = 'x' WHERE ulid = '{ulid}'")).await.unwrap();
        let noted = format!("SELECT count(*) FROM opsward.captured WHERE ulid = '{ulid}'");
        assert_eq!(client.query_one(&noted, &[]).await.unwrap().get::<_, i64>(0), 0);
        node.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(report.await.outcome, Outcome::Aborted("by the operator".into()));
}

/// So slow that it never ends by itself.
const SLOWLY: &str =
    "SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1; SET vacuum_cost_page_dirty = 1000";

#[tokio::test]
async fn a_vacuum_by_hand_is_in_the_way_of_the_swap() {
    let bed = Bed::new(ROWS).await;
    let request = held(&bed).await;
    let (operator, pid) = session(&bed).await;
    operator.batch_execute(SLOWLY).await.unwrap();
    let cancel = operator.cancel_token();
    let vacuum = tokio::spawn(async move { operator.batch_execute("VACUUM (FREEZE) ops").await });
    let looks = bed.database.client().await;
    let begun = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE pid = $1";
    while looks.query_one(begun, &[&pid]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
    let words = [&*format!("held by process {pid} (postgres"), "VACUUM (FREEZE) ops"];
    let report = waits(&bed, request, words, async || {
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        vacuum.await.unwrap().unwrap_err();
    });
    assert_eq!(report.await.outcome, Outcome::Done);
}

/// An autovacuum would keep its lock for minutes; it yields.
#[tokio::test]
async fn an_autovacuum_yields_to_the_swap() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::private()));
    let bed = Bed::on(Database::on(cluster, unique("vacuumed")).await, ROWS, |_| {}).await;
    let client = bed.database.client().await;
    client
        .batch_execute(
            "ALTER TABLE ops SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 150,
                                  autovacuum_vacuum_insert_threshold = -1,
                                  autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)",
        )
        .await
        .unwrap();
    let request = held(&bed).await;
    client.batch_execute("UPDATE ops SET host = host WHERE ulid > '01'").await.unwrap();
    for sql in ["ALTER SYSTEM SET autovacuum_naptime = '1s'", "SELECT pg_reload_conf()"] {
        client.batch_execute(sql).await.unwrap();
    }
    let at_work = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 'ops'::regclass";
    while client.query_one(at_work, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = bed.run(&request).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    assert!(cluster.log().contains("canceling autovacuum task"), "{}", cluster.log());
    bed.nothing_is_left().await;
    cluster.stop(crate::harness::Stop::Fast);
}

/// A transaction that was prepared holds its locks without a process, and outlives a restart: it
/// is named, and no try keeps others waiting; meanwhile the copy follows the log.
#[tokio::test]
async fn a_prepared_transaction_is_named_and_waited_for() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::private()));
    cluster.stop(crate::harness::Stop::Fast);
    cluster.configure("max_prepared_transactions = 1");
    cluster.start();
    let bed = Bed::on(Database::on(cluster, unique("rare")).await, ROWS, |_| {}).await;
    let request = held(&bed).await;
    let (reader, client, late) = (bed.database.client().await, bed.database.client().await, op());
    reader.batch_execute("BEGIN; SELECT count(*) FROM ops; PREPARE TRANSACTION 'theirs'").await.unwrap();
    let (work, mut told) = bed.told();
    let beside = async {
        let named = "held by the prepared transaction theirs of postgres, begun 2";
        told.wait_for(|p| p.waiting.as_ref().is_some_and(|w| w.contains(named))).await.unwrap();
        let sql = format!("INSERT INTO ops (ulid, \"table\") VALUES ('{late}', 'uploads')");
        client.batch_execute(&sql).await.unwrap();
        until(&client, &format!("SELECT EXISTS (SELECT FROM opsward.ops_next WHERE ulid = '{late}')")).await;
        until(&client, &format!("SELECT what LIKE '%{named}%' FROM opsward.waiting")).await;
        client.batch_execute("COMMIT PREPARED 'theirs'").await.unwrap();
    };
    let report = while_(bed.work_on(&work, &request), beside).await;
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    assert_eq!(cluster.log().matches("canceling statement due to lock timeout").count(), 0);
    bed.nothing_is_left().await;
    cluster.stop(crate::harness::Stop::Fast);
}
