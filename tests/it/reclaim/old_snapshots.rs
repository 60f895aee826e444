//! Time that passes before a swap: copies that spoil, snapshots from before it.

use super::stands::{in_time, until, while_};
use super::*;
use opsward::reclaim::decide::OldSnapshots;
use tokio_postgres::Client;

impl Bed {
    /// The same work, so many minutes later.
    fn later(&self, minutes: i64) -> Work {
        let now = self.work.clock.now().as_millisecond() + minutes * 60_000;
        Work { clock: Clock::fixed(now), ..self.work.clone() }
    }

    async fn spoils(&self) {
        let sql = "UPDATE opsward.ops_next SET host = 'spoilt' WHERE ulid = (SELECT max(ulid) FROM opsward.ops_next)";
        assert_eq!(self.database.client().await.execute(sql, &[]).await.unwrap(), 1);
    }

    /// A session whose snapshot is from now, and which did not read the log yet.
    async fn snapshot(&self) -> Client {
        let old = self.database.client().await;
        old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
            .await
            .unwrap();
        old
    }
}

async fn ops(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM ops", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_copy_that_spoils_while_it_is_held_is_not_swapped() {
    for action in [Action::Swap, Action::Resume] {
        let bed = Bed::new(400).await;
        let hold = action == Action::Swap;
        if hold {
            bed.held().await;
        } else {
            bed.run_until(&bed.request(Policy::Window), "swap").await;
        }
        let all = bed.ulids().await;
        bed.spoils().await;
        let report = in_time(bed.work_on(&bed.later(16), &bed.again(action))).await.unwrap();
        assert!(matches!(&report.outcome, Outcome::Aborted(why) if why.contains("differs")), "{report:?}");
        assert_eq!(bed.ulids().await, all);
        bed.nothing_is_left().await;
    }
}

/// What was compared lately is not compared again; what was long ago is, and
/// then it is swapped.
#[tokio::test]
async fn a_copy_that_is_held_is_compared_again_after_a_while() {
    for (minutes, again) in [(14, false), (16, true)] {
        let bed = Bed::new(400).await;
        bed.held().await;
        let (tell, told) = std::sync::mpsc::channel();
        let tell = Arc::new(move |progress: Progress| drop(tell.send(progress.phase)));
        let work = Work { tell, ..bed.later(minutes) };
        assert_eq!(bed.work_on(&work, &bed.again(Action::Swap)).await.unwrap().outcome, Outcome::Done);
        assert_eq!(told.try_iter().any(|phase| phase == "verify"), again, "after {minutes} minutes");
        bed.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_swap_waits_for_old_snapshots_and_follows_the_log_meanwhile() {
    let bed = Bed::new(400).await;
    let old = bed.snapshot().await;
    let (work, mut told) = bed.told();
    let client = bed.database.client().await;
    let late = bed.ops[0].ulid;
    let released = async {
        let named =
            |p: &Progress| p.waiting.as_ref().is_some_and(|w| w.contains("a snapshot held by process"));
        told.wait_for(named).await.unwrap();
        client.batch_execute(&format!("UPDATE ops SET host = 'late' WHERE ulid = '{late}'")).await.unwrap();
        until(&client, "SELECT NOT EXISTS (SELECT FROM opsward.captured)").await;
        let noted =
            "SELECT what LIKE '%a snapshot held by process%' FROM opsward.waiting WHERE work = 'reclaim'";
        until(&client, noted).await;
        assert_eq!(ops(&old).await, 401);
        old.batch_execute("COMMIT").await.unwrap();
    };
    let request = bed.request(Policy::Window);
    let report = while_(bed.work_on(&work, &request), released).await;
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    assert!(bed.ulids().await.contains(&late.to_string()));
    bed.nothing_is_left().await;
}

/// What is written and replayed after a snapshot was taken is not for that snapshot to see,
/// though it saw it in the log: however young it is, it is waited for.
#[tokio::test]
async fn a_snapshot_from_before_the_last_replay_is_waited_for() {
    let bed = Bed::new(400).await;
    bed.held().await;
    let (work, mut told) = bed.told();
    let client = bed.database.client().await;
    let reader = bed.database.client().await;
    reader.batch_execute("BEGIN; SELECT 1 FROM ops LIMIT 1").await.unwrap();
    // Whoever has it for so long is not waited for in vain.
    let is_old = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'idle in transaction' AND xact_start < clock_timestamp() - interval '1 second'";
    until(&client, is_old).await;
    let late = bed.ops[0].ulid;
    let released = async {
        told.wait_for(|p| p.waiting.as_ref().is_some_and(|w| w.contains("a lock on"))).await.unwrap();
        client.batch_execute(&format!("UPDATE ops SET host = 'late' WHERE ulid = '{late}'")).await.unwrap();
        let young = bed.snapshot().await;
        reader.batch_execute("COMMIT").await.unwrap();
        told.wait_for(|p| p.waiting.as_ref().is_some_and(|w| w.contains("a snapshot held"))).await.unwrap();
        let seen = young.query_one("SELECT count(*) FROM ops WHERE host = 'late'", &[]).await.unwrap();
        assert_eq!(seen.get::<_, i64>(0), 1);
        young.batch_execute("COMMIT").await.unwrap();
    };
    let request = bed.again(Action::Swap);
    let report = while_(bed.work_on(&work, &request), released).await;
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    bed.nothing_is_left().await;
}

#[tokio::test]
async fn old_snapshots_are_ignored_where_it_is_asked_for() {
    let bed = Bed::new(400).await;
    let old = bed.snapshot().await;
    let request = Request { old_snapshots: Some(OldSnapshots::Ignore), ..bed.request(Policy::Window) };
    assert_eq!(in_time(bed.run(&request)).await.unwrap().outcome, Outcome::Done);
    assert!(ops(&old).await < 401);
    old.batch_execute("COMMIT").await.unwrap();
    bed.nothing_is_left().await;
}

/// Under an old snapshot nothing that was replayed can be removed from the list
/// of noted keys: it is emptied all the same, before the capture ends itself.
#[tokio::test]
async fn a_long_wait_does_not_end_the_capture() {
    let bed = Bed::new(400).await;
    bed.held().await;
    let old = bed.snapshot().await;
    let client = bed.database.client().await;
    client
        .batch_execute(
            "INSERT INTO opsward.captured SELECT md5(n::text) FROM generate_series(1, 300000) n;
             DELETE FROM opsward.captured;
             UPDATE opsward.reclaim SET updated_at = now() - interval '20 hours'",
        )
        .await
        .unwrap();
    let size = "SELECT pg_relation_size('opsward.captured') > 16 * 1024 * 1024";
    assert!(client.query_one(size, &[]).await.unwrap().get::<_, bool>(0));
    let released = async {
        until(&client, "SELECT pg_relation_size('opsward.captured') < 1024 * 1024").await;
        until(&client, "SELECT updated_at > now() - interval '1 hour' FROM opsward.reclaim").await;
        old.batch_execute("COMMIT").await.unwrap();
    };
    let request = bed.again(Action::Swap);
    let report = while_(bed.run(&request), released).await;
    assert_eq!(report.unwrap().outcome, Outcome::Done);
    bed.nothing_is_left().await;
}
