//! Contract 5, Census: what it says is what the log holds.

use crate::harness::{Database, Ops, ops};
use crate::work;
use opsward::bound::census::{CensusReport, Finished, Scope, run_once};
use opsward::clock::Clock;
use opsward::db::census::{self, Entry, day_of};
use opsward::db::lease::Lease;
use opsward::db::{Db, census_pass, census_slice};
use opsward::settings::{Settings, Source, load};
use opsward::values::OpUlid;
use opsward::work::{Halt, Pacer, Stop, Work};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// 2026-06-30: half a year after the first of the harness' ops.
const NOW_MS: i64 = 1_782_777_600_000;
const LONG: Duration = Duration::from_secs(600);
const DAY_MS: u64 = 86_400_000;

fn settings() -> Settings {
    let env = BTreeMap::from([("nodeEndpoint".to_owned(), "http://n1.example".into())]);
    let read = Box::new(|_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into()));
    load(&Source { flags: BTreeMap::new(), config: None, env, read }).unwrap().settings
}

struct Counting {
    work: Work,
    lease: Lease,
}

impl Counting {
    async fn new(db: &Db) -> Self {
        let work = Work { clock: Clock::fixed(NOW_MS), ..work::on(db, |_| {}) };
        Self { work, lease: Lease::take(db).await.unwrap().unwrap() }
    }

    async fn once(&mut self, scope: Scope, budget: Duration) -> Result<CensusReport, Stop> {
        let mut pacer = Pacer::new(&self.work, Some(100));
        run_once(&self.work, &mut self.lease, &mut pacer, scope, budget).await
    }

    async fn all(&mut self, scope: Scope) -> CensusReport {
        let report = self.once(scope, LONG).await.unwrap();
        assert_eq!(report.finished, Finished::All);
        report
    }

    /// Moves the clock.
    async fn later(&mut self, ms: i64) {
        let Clock::Fixed(at) = &self.work.clock else { panic!() };
        at.fetch_add(ms, std::sync::atomic::Ordering::Relaxed);
    }
}

type Figures = BTreeMap<(String, String), (i64, i64, i64, String, String)>;

/// The same by one GROUP BY, with another notion of a ULID's time.
async fn truth(client: &tokio_postgres::Client) -> Figures {
    const SQL: &str = r#"
        SELECT coalesce("table", ''),
               CASE WHEN length(ulid) = 26 AND ulid COLLATE "C" ~ '^[0-7][0-9A-Z]*$' AND ulid !~ '[ILOU]'
                     AND ms BETWEEN 1672531200000 AND $1::bigint
                    THEN (timestamp 'epoch' + ms * interval '1 ms')::date ELSE 'epoch' END::text AS day,
               count(*), sum(32 + pg_column_size(ulid) + coalesce(pg_column_size(host), 0)
                   + coalesce(pg_column_size(action), 0) + coalesce(pg_column_size("table"), 0)
                   + coalesce(pg_column_size(data), 0))::bigint,
               min(ulid COLLATE "C"), max(ulid COLLATE "C")
        FROM (SELECT *, (SELECT sum(((position(substr(ulid, i, 1) IN '0123456789ABCDEFGHJKMNPQRSTVWXYZ') - 1)::bigint
                                 << (5 * (10 - i)))) FROM generate_series(1, 10) i)::bigint AS ms FROM ops) o
        GROUP BY 1, 2"#;
    let latest = NOW_MS + 86_400_000;
    let rows = client.query(SQL, &[&latest]).await.unwrap();
    rows.iter()
        .map(|r| {
            let day: String = r.get(1);
            let ends = if day == "1970-01-01" { Default::default() } else { (r.get(4), r.get(5)) };
            ((r.get(0), day), (r.get(2), r.get(3), 0, ends.0, ends.1))
        })
        .collect()
}

/// What the census says, not estimated.
async fn said(client: &tokio_postgres::Client) -> Figures {
    let sql = "SELECT table_name, day::text, rows, bytes, owed, oldest, newest FROM opsward.census
               WHERE NOT estimated";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|r| ((r.get(0), r.get(1)), (r.get(2), r.get(3), r.get(4), r.get(5), r.get(6)))).collect()
}

async fn insert_raw(client: &tokio_postgres::Client, ulid: &str, table: Option<&str>, data: &str) {
    let sql = r#"INSERT INTO ops (ulid, action, "table", data) VALUES ($1, 'update', $2, $3::text::jsonb)"#;
    client.execute(sql, &[&ulid, &table, &data]).await.unwrap();
}

/// Ops on several days, dense and sparse, and what no node writes.
async fn fill(client: &tokio_postgres::Client) {
    ops::insert(client, &Ops::new(1).take(600)).await;
    ops::insert(client, &Ops::new(2).every(3_600_000).take(900)).await;
    let recent = NOW_MS as u64 - 2 * DAY_MS;
    ops::insert(client, &Ops::new(3).starting_at(recent).every(600_000).take(250)).await;
    let noise: String = (0..400_000u64)
        .map(|i| char::from(b'a' + (i.wrapping_mul(i).wrapping_mul(2_654_435_761) >> 9) as u8 % 26))
        .collect();
    let at = |ms: u64, n: u128| OpUlid::from_parts(ms, n).to_string();
    let middle = 1_767_225_600_000 + 40 * DAY_MS;
    insert_raw(client, &at(middle, 1), Some("uploads"), &format!(r#"[{{"id":"{noise}"}}]"#)).await;
    insert_raw(client, &at(middle, 2), None, "[]").await;
    // The edges of a day, and of what is plausible.
    let day = middle - middle % DAY_MS;
    for (n, ms) in [(3, day - 1), (4, day), (5, 1_672_531_199_999), (6, 1_672_531_200_000)] {
        insert_raw(client, &at(ms, n), Some("uploads"), "[]").await;
    }
    insert_raw(client, &at(NOW_MS as u64 + DAY_MS, 7), Some("uploads"), "[]").await;
    insert_raw(client, &at(NOW_MS as u64 + DAY_MS + 1, 8), Some("blobs"), "[]").await;
    let lower = at(middle, 9).to_lowercase();
    for ulid in ["", "0", &lower, &lower[..25], "zzz", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "A,B"] {
        insert_raw(client, ulid, Some("uploads"), "[]").await;
    }
}

#[tokio::test]
async fn it_says_what_the_log_holds() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    let mut counting = Counting::new(&db).await;
    let report = counting.all(Scope::Due).await;
    assert!(report.estimated);
    let truth = truth(&client).await;
    assert!(truth.len() > 50, "{} days", truth.len());
    assert_eq!(said(&client).await, truth);
    let rows: i64 = client.query_one("SELECT count(*) FROM ops", &[]).await.unwrap().get(0);
    assert_eq!(report.rows as i64, rows);
    // Implausible rows decide nothing.
    let entries = census::load(&db.client().await.unwrap()).await.unwrap();
    assert!(entries.iter().all(|e| e.day > census::EPOCH && !e.estimated));
    let newest = entries.iter().map(|e| e.newest).max().unwrap();
    assert_eq!(newest.ms(), NOW_MS as u64 + DAY_MS);
    let implausible = census::implausible(&db.client().await.unwrap()).await.unwrap();
    let of = |t: &str| implausible.iter().find(|i| i.table == t).map(|i| i.rows);
    assert_eq!((of("uploads"), of("blobs")), (Some(8), Some(1)));
    let shown = counting.work.metrics.census_rows.with_label_values(&["other"]).get();
    assert_eq!(shown, 2, "a row without a table, and one of blobs");
    // Nothing is due now.
    assert_eq!(counting.all(Scope::Due).await.rows, 0);
}

#[tokio::test]
async fn an_empty_log_has_an_empty_census() {
    let database = Database::new().await;
    let db = database.migrated().await;
    let report = Counting::new(&db).await.all(Scope::Due).await;
    assert_eq!(report.rows, 0);
    assert!(census::load(&db.client().await.unwrap()).await.unwrap().is_empty());
}

#[tokio::test]
async fn it_goes_on_where_it_stopped() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    // A slice a run, each as if by another process: a lease, a walk of its own.
    let mut rows = 0;
    for runs in 0.. {
        assert!(runs < 1_000);
        let report = Counting::new(&db).await.once(Scope::Due, Duration::ZERO).await.unwrap();
        assert!(report.slices <= 1);
        rows += report.rows as i64;
        if report.finished == Finished::All {
            assert!(runs > 3, "{runs} runs");
            break;
        }
        free(&client).await;
    }
    assert_eq!(said(&client).await, truth(&client).await);
    let all: i64 = client.query_one("SELECT count(*) FROM ops", &[]).await.unwrap().get(0);
    assert_eq!(rows, all, "each row once");
}

/// Waits until no session holds the lease.
async fn free(client: &tokio_postgres::Client) {
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn told_to_stop_it_keeps_what_it_counted() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    let mut counting = Counting::new(&db).await;
    counting.once(Scope::Due, Duration::ZERO).await.unwrap();
    let before = census_pass::load(&db.client().await.unwrap()).await.unwrap();
    counting.work.stop.cancel();
    let stopped = counting.once(Scope::Due, LONG).await;
    assert!(matches!(stopped, Err(Stop::Halt(Halt::Stopped))), "{stopped:?}");
    assert_eq!(census_pass::load(&db.client().await.unwrap()).await.unwrap()[0].position, before[0].position);
    drop(counting);
    free(&client).await;
    Counting::new(&db).await.all(Scope::Due).await;
    assert_eq!(said(&client).await, truth(&client).await);
}

#[tokio::test]
async fn killed_anywhere_it_counts_nothing_twice() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    for run in 0..25 {
        // Dropped at whatever it waits for; what was not written is gone.
        let mut counting = Counting::new(&db).await;
        let part = if run % 2 == 0 { LONG } else { Duration::ZERO };
        let _ = tokio::time::timeout(Duration::from_millis(run), counting.once(Scope::Full, part)).await;
        drop(counting);
        free(&client).await;
    }
    Counting::new(&db).await.all(Scope::Full).await;
    assert_eq!(said(&client).await, truth(&client).await);
}

#[tokio::test]
async fn ops_that_arrive_during_a_pass_are_counted_in_the_end() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    let mut counting = Counting::new(&db).await;
    let middle = 1_767_225_600_000 + 10 * DAY_MS;
    let position = || async {
        let passes = census_pass::load(&db.client().await.unwrap()).await.unwrap();
        passes[0].position.clone()
    };
    while position_of(&counting.once(Scope::Due, Duration::ZERO).await.unwrap(), position().await) < middle {}
    for (n, ms) in [middle - 9 * DAY_MS, middle + 15 * DAY_MS, NOW_MS as u64 - 5].into_iter().enumerate() {
        insert_raw(&client, OpUlid::from_parts(ms, n as u128).as_str(), Some("uploads"), "[]").await;
    }
    let late = [middle - 9 * DAY_MS, middle + 15 * DAY_MS].map(day_of);
    census::touch(&db.client().await.unwrap(), &late).await.unwrap();
    counting.all(Scope::Due).await;
    let ours: i64 = said(&client).await.values().map(|f| f.0).sum();
    let all: i64 = truth(&client).await.values().map(|f| f.0).sum();
    assert_eq!(ours, all - 1, "the one behind it is not counted yet");
    counting.all(Scope::Now).await;
    assert_eq!(said(&client).await, truth(&client).await);
}

fn position_of(report: &CensusReport, position: String) -> u64 {
    assert_eq!(report.finished, Finished::More);
    OpUlid::parse(&position).map_or(0, |u| u.ms())
}

#[tokio::test]
async fn the_command_counts_and_shows_or_says_who_works() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    ops::insert(&client, &Ops::new(1).take(300)).await;
    let run = async |more: &[&str]| {
        let url = database.url();
        let line = [&["census", "--output", "json", "--pace", "full"], more].concat();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_opsward"));
        command.env_clear().env("OPENAUDIO_DB_URL", url).env("nodeEndpoint", "http://n1.example");
        command.env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1MiB").args(line);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), json)
    };
    let (code, json) = run(&["--days"]).await;
    assert_eq!(code, 0, "{json}");
    assert_eq!(json["result"]["rows"], 300, "{json}");
    let days = json["result"]["days"].as_array().unwrap();
    assert_eq!(days.iter().map(|d| d["rows"].as_u64().unwrap()).sum::<u64>(), 300);
    let lease = Lease::take(&db).await.unwrap().unwrap();
    let (code, json) = run(&["--full"]).await;
    assert_eq!((code, json["error"]["code"].as_str()), (4, Some("lease_held")), "{json}");
    assert!(json["error"]["text"].as_str().unwrap().contains("opsward test"), "{json}");
    drop(lease);
}

#[tokio::test]
async fn pulled_ops_mark_their_days() {
    let now = NOW_MS as u64;
    let ulid = |ms| OpUlid::from_parts(ms, 1);
    let recent = day_of(now - 2 * DAY_MS);
    let old = now - 40 * DAY_MS;
    let late =
        census::late_days([ulid(now), ulid(old), ulid(old + 1), ulid(now - 2 * DAY_MS)].into_iter(), now);
    assert_eq!(late, [day_of(old)]);
    assert!(census::recent_from(now) < recent, "a day more is counted than is not marked");
}

#[tokio::test]
async fn marked_and_recent_days_are_counted_again_and_no_other() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    let mut counting = Counting::new(&db).await;
    counting.all(Scope::Due).await;
    let marked = 1_767_225_600_000 + 20 * DAY_MS;
    let silent = marked + 3 * DAY_MS;
    for ms in [marked, silent, NOW_MS as u64 - 1] {
        insert_raw(&client, OpUlid::from_parts(ms, 77).as_str(), Some("new"), "[]").await;
    }
    census::touch(&db.client().await.unwrap(), &[day_of(marked)]).await.unwrap();
    counting.all(Scope::Now).await;
    let days = |entries: Vec<Entry>| {
        entries.into_iter().filter(|e| e.table == "new").map(|e| e.day).collect::<Vec<_>>()
    };
    let expected = vec![day_of(marked), day_of(NOW_MS as u64 - 1)];
    assert_eq!(days(census::load(&db.client().await.unwrap()).await.unwrap()), expected);
    // A week later all of the log is.
    counting.later(7 * DAY_MS as i64 - 1).await;
    counting.all(Scope::Due).await;
    assert_eq!(days(census::load(&db.client().await.unwrap()).await.unwrap()).len(), 2);
    counting.later(1).await;
    counting.all(Scope::Due).await;
    assert_eq!(days(census::load(&db.client().await.unwrap()).await.unwrap()).len(), 3);
}

#[tokio::test]
async fn a_deletion_in_the_middle_is_neither_lost_nor_taken_off_twice() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    // One dense day, so that passes stop inside it.
    let start = 1_767_225_600_000;
    ops::insert(&client, &Ops::new(5).starting_at(start).every(10_000).take(6_000)).await;
    let mut counting = Counting::new(&db).await;
    counting.all(Scope::Due).await;
    counting.later(8 * DAY_MS as i64).await;
    counting.all(Scope::Now).await;
    let position = loop {
        let report = counting.once(Scope::Due, Duration::ZERO).await.unwrap();
        assert_eq!(report.finished, Finished::Days);
        let passes = census_pass::load(&db.client().await.unwrap()).await.unwrap();
        let pass = passes.into_iter().find(|p| p.finished_at.is_none()).unwrap();
        if pass.rows > 0 {
            break pass.position;
        }
    };
    // One op that was counted in this pass, and one that was not.
    let sql = r#"
        WITH gone AS (
            DELETE FROM ops WHERE ulid IN (
                (SELECT max(ulid) FROM ops WHERE ulid <= $1), (SELECT min(ulid) FROM ops WHERE ulid > $1))
            RETURNING *)
        SELECT "table", ulid, (32 + pg_column_size(ulid) + pg_column_size(host) + pg_column_size(action)
            + pg_column_size("table") + pg_column_size(data))::bigint FROM gone"#;
    let mut own = db.client().await.unwrap();
    let tx = opsward::db::begin(&mut own, opsward::db::Isolation::Write).await.unwrap();
    let rows = tx.query(sql, &[&position]).await.unwrap();
    let gone: Vec<_> = rows
        .iter()
        .map(|r| {
            let ulid = OpUlid::parse(r.get(1)).unwrap();
            (r.get(0), day_of(ulid.ms()), 1, r.get::<_, i64>(2) as u64)
        })
        .collect();
    assert_eq!(gone.len(), 2);
    census::subtract(&tx, &gone).await.unwrap();
    tx.commit().await.unwrap();
    let rows_said = |f: Figures| f.into_iter().map(|(k, v)| (k, (v.0, v.1))).collect::<BTreeMap<_, _>>();
    let right = rows_said(truth(&client).await);
    assert_eq!(rows_said(said(&client).await), right, "at once");
    counting.all(Scope::Due).await;
    assert_eq!(rows_said(said(&client).await), right, "when the pass has gone by");
    counting.all(Scope::Now).await;
    assert_eq!(said(&client).await, truth(&client).await, "its ends too");
}

#[tokio::test]
async fn a_sample_of_all_blocks_is_right_and_no_toast_is_read() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    let mut own = db.client().await.unwrap();
    let reading = census_slice::Reading::of_catalog(&own).await.unwrap();
    // Lost TOAST: whoever reads the value fails.
    let lose = "UPDATE pg_class SET relfilenode = 4000000000
                WHERE oid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'ops'::regclass)";
    client.batch_execute(lose).await.unwrap();
    let read = client.query("SELECT data::text FROM ops", &[]).await;
    assert!(read.is_err(), "the value can still be read");
    let counts = census_slice::estimate(&mut own, &reading, NOW_MS as u64).await.unwrap();
    let tx = opsward::db::begin(&mut own, opsward::db::Isolation::Write).await.unwrap();
    census::put(&tx, &counts, census::Estimated::Yes, Clock::System.now()).await.unwrap();
    tx.commit().await.unwrap();
    assert!(census::load(&db.client().await.unwrap()).await.unwrap().iter().all(|e| e.estimated));
    client.batch_execute("UPDATE opsward.census SET estimated = false").await.unwrap();
    assert_eq!(said(&client).await, truth(&client).await);
    client.batch_execute("UPDATE opsward.census SET estimated = true").await.unwrap();
    let mut counting = Counting::new(&db).await;
    counting.all(Scope::Due).await;
    assert_eq!(said(&client).await, truth(&client).await);
}

#[tokio::test]
async fn rows_owed_to_the_chain_are_counted() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    fill(&client).await;
    client
        .batch_execute(
            "ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_status text, ADD COLUMN IF NOT EXISTS core_tx_hash text;
             UPDATE ops SET core_tx_status = (ARRAY['pending', 'error', 'done'])[1 + length(data::text) % 3]",
        )
        .await
        .unwrap();
    Counting::new(&db).await.all(Scope::Due).await;
    let sql = "SELECT count(*) FILTER (WHERE core_tx_status IN ('pending', 'error')),
                      (SELECT sum(owed)::bigint FROM opsward.census) FROM ops";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 0);
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn buckets_are_days(times in proptest::collection::vec(1_672_531_200_000u64..1_790_000_000_000, 1..200)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = crate::harness::Cluster::shared().connect("postgres").await;
            let (from, to) = (day_of(1_672_531_200_000), day_of(1_790_000_000_000));
            let starts = census::day_starts(from, to);
            let ulids: Vec<String> =
                times.iter().map(|ms| OpUlid::from_parts(*ms, u128::from(*ms)).to_string()).collect();
            let sql = r#"SELECT width_bucket(u COLLATE "C", $1::text[]) FROM unnest($2::text[]) u"#;
            let rows = client.query(sql, &[&starts, &ulids]).await.unwrap();
            for (row, ms) in rows.iter().zip(&times) {
                let bucket: i32 = row.get(0);
                let day = from.saturating_add(jiff::Span::new().days(bucket - 1));
                assert_eq!(day, day_of(*ms));
            }
        });
    }
}

/// The node deletes, and leaves no word: what is gone is not counted any more.
#[tokio::test]
async fn what_the_node_deleted_is_corrected() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    ops::insert(&client, &Ops::new(5).every(3_600_000).take(900)).await;
    let mut counting = Counting::new(&db).await;
    counting.all(Scope::Full).await;
    opsward::bound::foreign::observe(&counting.work).await.unwrap();
    client
        .batch_execute("DELETE FROM ops WHERE ulid IN (SELECT ulid FROM ops ORDER BY ulid LIMIT 610)")
        .await
        .unwrap();
    opsward::bound::foreign::observe(&counting.work).await.unwrap();
    let below = "SELECT count(*) FROM opsward.census WHERE newest < (SELECT min(ulid) FROM ops)";
    assert_eq!(client.query_one(below, &[]).await.unwrap().get::<_, i64>(0), 0);
    counting.all(Scope::Now).await;
    assert_eq!(said(&client).await, truth(&client).await);
}

/// Where the key does not sort as bytes, ranges of it would leave ops out.
#[tokio::test]
async fn another_order_is_refused_and_named() {
    let database = Database::new().await;
    let (db, client) = (database.migrated().await, database.client().await);
    ops::insert(&client, &Ops::new(6).take(100)).await;
    let fault = async || opsward::db::order::look(&db.client().await.unwrap()).await.unwrap();
    assert_eq!(fault().await, None);
    client
        .batch_execute(
            "CREATE COLLATION numerically (provider = icu, locale = 'en-u-kn-true');
             ALTER TABLE ops ALTER COLUMN ulid TYPE text COLLATE numerically",
        )
        .await
        .unwrap();
    assert!(fault().await.unwrap().text.contains("does not put ULIDs"), "{:?}", fault().await);
    let refused = Counting::new(&db).await.once(Scope::Full, LONG).await.unwrap_err();
    assert!(refused.to_string().contains("restore"), "{refused}");
    let line = |args: &[&str]| {
        let start = crate::harness::Start::new(args).env("OPENAUDIO_DB_URL", database.url());
        let start = start.env("OPENAUDIO_NODE_ENDPOINT", "https://n1.example");
        start.env("OPENAUDIO_MEDIORUM_PEERS", "none").env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "30")
    };
    let pruned = line(&["prune", "--strict"]).output().await;
    assert_eq!(pruned.code, Some(3), "{pruned:?}");
    assert!(
        pruned.stderr.contains("does not put ULIDs") || pruned.stdout.contains("does not put ULIDs"),
        "{pruned:?}"
    );
    let doctor = line(&["doctor"]).output().await;
    assert!(doctor.stdout.contains("does not put ULIDs"), "{doctor:?}");

    client
        .batch_execute(
            "ALTER TABLE ops ALTER COLUMN ulid TYPE text COLLATE \"default\";
             UPDATE pg_database SET datcollversion = '1' WHERE datname = current_database();
             ALTER TABLE ops SET UNLOGGED",
        )
        .await
        .unwrap();
    assert!(fault().await.unwrap().fix.contains("REFRESH COLLATION VERSION"), "{:?}", fault().await);
    let doctor = line(&["doctor"]).output().await;
    assert!(doctor.stdout.contains("REINDEX"), "{doctor:?}");
}
