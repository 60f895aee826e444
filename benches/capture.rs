//! What a writer pays while its writes are captured for a swap: INSERT and
//! DELETE of 10,000 rows in one statement, with and without the capture in
//! turns; and transaction ids of each. Times are those of the session's CPU, so
//! that other load does not count. `cargo bench --bench capture`, with a
//! number of rows as its argument.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

mod bed;

use bed::cluster::TEMPLATE;
use bed::target;
use opsward::db::lease::Lease;
use opsward::db::{Db, capture, migrate, short_lock};
use std::time::Duration;
use tokio_postgres::Client;

const ROUNDS: usize = 7;
/// Its own table's worth of rows, written and deleted again and again.
const SOURCE: &str = r#"
    CREATE TABLE opsward.source AS
    SELECT '01KA' || lpad(n::text, 22, '0') AS ulid, 'https://node1.example' AS host, 'update' AS action,
           'uploads' AS "table", jsonb_build_array(jsonb_build_object('id', n, 'x', repeat(md5(n::text), 26))) AS data
    FROM generate_series(1, ROWS) n;
    INSERT INTO opsward.reclaim (checkpoint, updated_at) VALUES ('{}', now() + interval '1 day')"#;
const WRITES: [(&str, &str); 2] =
    [("INSERT", "INSERT INTO ops SELECT * FROM opsward.source"), ("DELETE", "DELETE FROM ops")];

#[tokio::main(worker_threads = 2)]
async fn main() {
    if bed::is_test() {
        return;
    }
    let rows = bed::rows(10_000);
    let cluster = bed::server("").await;
    cluster.psql("postgres", &format!("CREATE DATABASE capture TEMPLATE {TEMPLATE}"));
    let db = Db::open(&target::local(cluster.port(), "capture"), "bench", 2).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();
    let node = cluster.connect("capture").await;
    node.batch_execute(&SOURCE.replace("ROWS", &rows.to_string())).await.unwrap();

    let mut took = [[Duration::MAX; 2]; 2];
    let mut ids = [[0; 2]; 2];
    for _ in 0..ROUNDS {
        for captured in [0, 1] {
            let tx = lease.begin().await.unwrap();
            short_lock::strong(&tx, std::time::Duration::from_millis(200)).await.unwrap();
            match captured {
                0 => capture::remove(&tx).await.unwrap(),
                _ => drop(capture::install(&tx).await.unwrap()),
            }
            tx.commit().await.unwrap();
            for (kind, (_, sql)) in WRITES.iter().enumerate() {
                let before = xid(&node).await;
                let begun = bed::cpu(&node).await;
                assert_eq!(node.execute(*sql, &[]).await.unwrap(), rows);
                took[kind][captured] = took[kind][captured].min(bed::cpu(&node).await - begun);
                ids[kind][captured] = xid(&node).await - before - 1;
            }
            let sql = "SELECT count(*) FROM opsward.captured";
            let noted: i64 = node.query_one(sql, &[]).await.unwrap().get(0);
            assert_eq!(noted, 2 * captured as i64 * rows as i64);
            for sql in ["TRUNCATE opsward.captured", "VACUUM ops"] {
                node.batch_execute(sql).await.unwrap();
            }
        }
    }
    println!("{rows} rows of 1 kB in one statement; the best of {ROUNDS} rounds");
    println!("{:>8} {:>11} {:>11} {:>8} {:>16}", "", "none", "captured", "ratio", "XIDs");
    for (kind, (name, _)) in WRITES.iter().enumerate() {
        let [none, with] = took[kind];
        let [id, more] = ids[kind];
        println!(
            "{name:>8} {:>8.1} ms {:>8.1} ms {:>8.2} {id:>6} → {more}",
            bed::ms(none),
            bed::ms(with),
            with.as_secs_f64() / none.as_secs_f64()
        );
    }
}

/// The next transaction id; takes one.
async fn xid(node: &Client) -> i64 {
    node.query_one("SELECT pg_current_xact_id()::text::bigint", &[]).await.unwrap().get(0)
}
