//! The second session of a swap is behind the copy: what it had not told when a
//! reclaim ended is done again.

use super::{Bed, Policy};
use opsward::reclaim::{Action, Error, Outcome};
use opsward::values::Progress;
use opsward::work::Work;
use std::sync::Arc;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// Ends when a range is copied, and before anything is told of it.
async fn copied(bed: &Bed) -> Client {
    let (stop, seen) = (CancellationToken::new(), bed.work.tell.clone());
    let own = stop.clone();
    let tell = Arc::new(move |progress: Progress| {
        if progress.phase == "copy" && progress.done > 0 {
            own.cancel();
        }
        seen(progress);
    });
    let work = Work { stop, tell, ..bed.work.clone() };
    let ended = bed.work_on(&work, &bed.request(Policy::Window)).await;
    assert!(matches!(ended, Err(Error::Halted(_))), "{ended:?}");
    let client = bed.database.client().await;
    let behind = "SELECT checkpoint ->> 'position' > '0' AND checkpoint -> 'comparison' -> 'parts' = '[]'
        FROM opsward.reclaim";
    assert!(client.query_one(behind, &[]).await.unwrap().get::<_, bool>(0));
    client
}

#[tokio::test]
async fn traces_that_were_not_told_are_left_again() {
    let bed = Bed::new(9_000).await;
    let client = copied(&bed).await;
    let doomed = format!("CREATE TEMP TABLE doomed AS SELECT * FROM ops WHERE ulid < '{}'", bed.cut);
    client.batch_execute(&doomed).await.unwrap();
    client.batch_execute("TRUNCATE opsward.traces").await.unwrap();
    assert_eq!(bed.run(&bed.again(Action::Resume)).await.unwrap().outcome, Outcome::Done);
    let missing = "SELECT count(*), count(*) FILTER (WHERE key NOT IN (SELECT t.key FROM opsward.traces t))
        FROM (SELECT DISTINCT opsward.trace_key(o.\"table\", r) AS key
              FROM doomed o, opsward.records(o.data) r) k WHERE key IS NOT NULL";
    let row = client.query_one(missing, &[]).await.unwrap();
    let (records, missing): (i64, i64) = (row.get(0), row.get(1));
    assert!(records > 1_000 && missing == 0, "{missing} of {records}");
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn a_copy_that_was_not_compared_is_compared() {
    let bed = Bed::new(9_000).await;
    let client = copied(&bed).await;
    let spoilt = "INSERT INTO opsward.ops_next SELECT * FROM ops ORDER BY ulid LIMIT 1";
    client.batch_execute(spoilt).await.unwrap();
    let report = bed.run(&bed.again(Action::Resume)).await.unwrap();
    assert!(matches!(&report.outcome, Outcome::Aborted(why) if why.contains("differs")), "{report:?}");
    bed.nothing_is_left().await;
}

/// Nothing is copied in vain: what is rolled back takes its room in the new table.
#[tokio::test]
async fn the_new_table_is_no_larger_than_its_rows() {
    let mut bed = Bed::new(6_000).await;
    bed.cut = bed.ops[1_000].ulid;
    assert_eq!(bed.run(&bed.request(Policy::Window)).await.unwrap().outcome, Outcome::Done);
    let client = bed.database.client().await;
    client.batch_execute("CREATE TABLE again AS SELECT * FROM ops ORDER BY ulid").await.unwrap();
    let larger = "SELECT (pg_relation_size('ops') - pg_relation_size('again')) / 8192";
    assert!(bed.number(larger).await <= 2);
}

/// At full pace a session of its own does most of it while the rest is copied.
#[tokio::test]
async fn the_new_table_is_made_ready_for_readers_before_the_end() {
    let bed = Bed::new(9_000).await;
    assert_eq!(bed.run(&bed.request(Policy::Window)).await.unwrap().outcome, Outcome::Done);
    let client = bed.database.client().await;
    let times = "SELECT vacuum_count, analyze_count FROM pg_stat_all_tables WHERE relid = 'ops'::regclass";
    let row = client.query_one(times, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 1), "the rest is vacuumed at the end");
}
