//! A node writes, at a rate, while the disk is given back at full pace: nothing
//! that was acknowledged is lost, and no writer meets an error.
//!
//! At 500 transactions a second, for longer, with figures:
//! `cargo test --test it reclaim::load -- --ignored --nocapture --test-threads 1`,
//! with a log of `ROWS` ops (200,000).

use super::*;
use tokio::time::Instant;

const LOCKS: &str = "
    SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_stat_activity a ON a.pid = l.pid
                   WHERE l.granted AND c.relname IN ('ops', 'ops_old') AND a.application_name = 'opsward test'
                     AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))";

impl Bed {
    /// The longest time for which writers were locked out, as seen by looks
    /// that never end before `until`.
    async fn longest_lock(&self, until: CancellationToken) -> Duration {
        let client = self.database.client().await;
        let statement = client.prepare(LOCKS).await.unwrap();
        let (mut since, mut longest) = (None, Duration::ZERO);
        while !until.is_cancelled() {
            let locked: bool = client.query_one(&statement, &[]).await.unwrap().get(0);
            since = locked.then(|| since.unwrap_or_else(Instant::now));
            longest = longest.max(since.map_or(Duration::ZERO, |at| at.elapsed()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        longest
    }

    async fn under_load(&self, mode: Mode, policy: Policy, rate: u32) {
        let client = self.database.client().await;
        let sql = "SELECT ulid FROM ops WHERE ulid >= $1 AND length(ulid) = 26 ORDER BY random() LIMIT 5000";
        let old = client.query(sql, &[&self.cut.as_str()]).await.unwrap();
        let load = Load {
            rate,
            sessions: if rate > 100 { 8 } else { 4 },
            late_by: Duration::from_secs(25 * 86_400),
            updates: 30,
            deletes: 10,
            old: old.iter().filter_map(|r| OpUlid::parse(r.get(0))).collect(),
            ..Load::default()
        };
        let old: std::collections::BTreeSet<OpUlid> = load.old.iter().copied().collect();
        let mut config = self.database.cluster().config(self.database.name());
        config.options("-c default_transaction_isolation=read\\ committed");
        let writer = Writer::start(&config, &load, u64::from(rate)).await;
        writer.more(u64::from(rate) / 2).await;
        let over = CancellationToken::new();
        let reclaim = async {
            let report = self.run(&Request { mode: Some(mode), ..self.request(policy) }).await;
            over.cancel();
            report
        };
        let (report, locked) = tokio::join!(reclaim, self.longest_lock(over.clone()));
        writer.more(u64::from(rate) / 2).await;
        let written = writer.stop().await;
        let report = report.unwrap();
        println!(
            "{mode:?} {policy:?} at {rate}/s: {} s, {} bytes became {}; writers locked out {locked:.1?}; {}",
            report.seconds,
            report.bytes_before,
            report.bytes_after,
            written.summary()
        );
        assert_eq!(report.outcome, Outcome::Done);
        assert!(report.dropped.values().sum::<u64>() > 0, "{report:?}");
        assert!(written.errors.is_empty(), "{}", written.summary());
        // Compaction may drop what was there before.
        let may_go = |ulid| policy == Policy::Compact && old.contains(&ulid);
        let complaints = written.verify(&client, may_go).await;
        assert!(complaints.is_empty(), "{complaints:?}");
        self.nothing_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_of_a_window() {
    Bed::new(3_000).await.under_load(Mode::Swap, Policy::Window, 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_of_what_is_compacted() {
    Bed::new(3_000).await.under_load(Mode::Swap, Policy::Compact, 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_a_window() {
    Bed::new(3_000).await.under_load(Mode::InPlace, Policy::Window, 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_what_is_compacted() {
    Bed::new(3_000).await.under_load(Mode::InPlace, Policy::Compact, 50).await;
}

/// The isolation level that the database or the role has as its default is not opsward's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_where_another_isolation_is_the_default() {
    for level in ["repeatable read", "serializable"] {
        for whose in ["DATABASE", "ROLE postgres IN DATABASE"] {
            let database = Database::new().await;
            let sql = format!(
                "ALTER {whose} \"{}\" SET default_transaction_isolation = '{level}'",
                database.name()
            );
            database.client().await.batch_execute(&sql).await.unwrap();
            Bed::on(database, 1_000, |_| {}).await.under_load(Mode::Swap, Policy::Window, 50).await;
        }
    }
}

/// A log of `ROWS` ops; prints when which phase began.
async fn at_500_a_second(mode: Mode, policy: Policy) {
    let rows: usize = std::env::var("ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let (begun, last) = (Instant::now(), std::sync::Mutex::new(String::new()));
    let bed = Bed::of(1_000, move |phase| {
        let mut last = last.lock().unwrap();
        if *last != phase {
            phase.clone_into(&mut last);
            println!("{:.1?} {phase}", begun.elapsed());
        }
    })
    .await;
    bed.fill(rows).await;
    bed.under_load(mode, policy, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes long; prints figures"]
async fn a_swap_of_a_window_at_500_a_second() {
    at_500_a_second(Mode::Swap, Policy::Window).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes long; prints figures"]
async fn a_swap_of_what_is_compacted_at_500_a_second() {
    at_500_a_second(Mode::Swap, Policy::Compact).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes long; prints figures"]
async fn in_place_a_window_at_500_a_second() {
    at_500_a_second(Mode::InPlace, Policy::Window).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes long; prints figures"]
async fn in_place_what_is_compacted_at_500_a_second() {
    at_500_a_second(Mode::InPlace, Policy::Compact).await;
}
