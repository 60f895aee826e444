//! What the replay guard costs a node: duplicates older than an hour and fresh
//! inserts, one a transaction in the node's own form, with and without the
//! guard in turns; and transaction ids and WAL of as many. Times are those of
//! the session's CPU, so that other load does not count. `cargo bench --bench
//! guard`, with a number of inserts as its argument (2,000 unless told).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

mod bed;

use bed::cluster::TEMPLATE;
use bed::target;
use opsward::db::lease::Lease;
use opsward::db::{Db, guard, migrate};
use opsward::values::OpUlid;
use std::time::Duration;
use tokio_postgres::{Client, Statement};

const ROUNDS: usize = 7;
const DAY_MS: u64 = 86_400_000;
/// As GORM writes it.
const INSERT: &str = r#"INSERT INTO "ops" ("ulid","host","action","table","data")
    VALUES ($1,'https://node1.example','update','uploads',$2::text::jsonb) ON CONFLICT DO NOTHING"#;

#[tokio::main(worker_threads = 2)]
async fn main() {
    if bed::is_test() {
        return;
    }
    let inserts = bed::rows(2_000);
    let cluster = bed::server("synchronous_commit = off").await;
    cluster.psql("postgres", &format!("CREATE DATABASE guard TEMPLATE {TEMPLATE}"));
    let db = Db::open(&target::local(cluster.port(), "guard"), "bench", 2).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();
    let mut node = cluster.connect("guard").await;
    let log = Log { now: opsward::clock::Clock::System.now_ms(), inserts };
    write(&mut node, &log.old()).await;
    // What was deleted lies below: 60 days ago and on.
    let floor = OpUlid::first_of_ms(log.now - 60 * DAY_MS);
    let sql = "INSERT INTO opsward.floors (table_name, floor, raised_at) VALUES ('uploads', $1, now())";
    node.execute(sql, &[&floor.as_str()]).await.unwrap();

    let mut best = [[Duration::MAX; 2]; 2];
    let mut wrote = [[(0, 0); 2]; 2];
    for round in 0..ROUNDS {
        for guarded in [0, 1] {
            let change = if guarded == 1 { guard::Change::Put } else { guard::Change::Take };
            guard::change(&mut lease, change).await.unwrap();
            for (kind, ops) in [log.old(), log.fresh(2 * round + guarded)].iter().enumerate() {
                let before = written(&node).await;
                let took = write(&mut node, ops).await;
                let after = written(&node).await;
                best[kind][guarded] = best[kind][guarded].min(took);
                wrote[kind][guarded] = (after.0 - before.0 - 1, after.1 - before.1);
            }
        }
    }
    println!("{inserts} inserts, one a transaction; the best of {ROUNDS} rounds");
    println!(
        "{:>12} {:>10} {:>10} {:>8} {:>18} {:>22}",
        "", "none", "guard", "us each", "XIDs", "bytes of WAL"
    );
    for (kind, name) in ["duplicates", "fresh"].into_iter().enumerate() {
        let [none, with] = best[kind];
        let each = (with.as_secs_f64() - none.as_secs_f64()) * 1e6 / inserts as f64;
        let [(ids, wal), (more_ids, more_wal)] = wrote[kind];
        println!(
            "{name:>12} {:>7.1} ms {:>7.1} ms {each:>+8.1} {ids:>8} → {more_ids:<7} {wal:>10} → {more_wal:<9}",
            bed::ms(none),
            bed::ms(with),
        );
    }
}

struct Log {
    now: u64,
    inserts: u64,
}

impl Log {
    /// Of two days ago.
    fn old(&self) -> Vec<String> {
        (0..self.inserts).map(|n| OpUlid::from_parts(self.now - 2 * DAY_MS, n.into()).to_string()).collect()
    }

    fn fresh(&self, round: usize) -> Vec<String> {
        let at = self.now + round as u64;
        (0..self.inserts).map(|n| OpUlid::from_parts(at, n.into()).to_string()).collect()
    }
}

async fn write(node: &mut Client, ulids: &[String]) -> Duration {
    let insert: Statement = node.prepare(INSERT).await.unwrap();
    let data = format!(r#"[{{"id":"{}","x":"{}"}}]"#, "a".repeat(26), "y".repeat(900));
    let begun = bed::cpu(node).await;
    for ulid in ulids {
        let tx = node.transaction().await.unwrap();
        tx.execute(&insert, &[ulid, &data]).await.unwrap();
        tx.commit().await.unwrap();
    }
    bed::cpu(node).await - begun
}

/// The server's count of transaction ids and bytes of WAL; takes one id itself.
async fn written(node: &Client) -> (i64, i64) {
    let sql = "SELECT pg_current_xact_id()::text::bigint, (pg_current_wal_insert_lsn() - '0/0')::bigint";
    let row = node.query_one(sql, &[]).await.unwrap();
    (row.get(0), row.get(1))
}
