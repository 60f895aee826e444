//! The gap signal, the floors, and the one snapshot that they come from.

use super::{ONE, Port, SELF, fill, run, ulid, until};
use crate::harness::{Database, http::Response};
use opsward::db::ops::Lent;
use opsward::values::{Host, OpUlid};
use std::time::Duration;

const NOW_MS: u64 = super::NOW_MS as u64;

fn gap(answer: &Response) -> Option<&str> {
    let signalled = answer.header("x-mediorum-retention-gap");
    assert!(matches!(signalled, None | Some("true")));
    let minimum = answer.header("x-mediorum-available-min-ulid");
    assert_eq!(signalled.is_some(), minimum.is_some());
    minimum
}

#[tokio::test]
async fn a_cursor_below_the_log_is_told() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    assert_eq!(gap(&port.after(&ulid(1)).await), None, "an empty log");
    fill(&database, 5..=9, "audio_previews", ONE).await;
    assert_eq!(gap(&port.after("").await), None, "a first contact");
    for after in [5, 6, 9, 10] {
        assert_eq!(gap(&port.after(&ulid(after)).await), None, "{after}");
    }
    assert_eq!(port.metrics.gap_signals_sent.get(), 0);
    for after in [ulid(4), "00000000000000000000000000".to_owned()] {
        let answer = port.after(&after).await;
        assert_eq!(gap(&answer), Some(ulid(5).as_str()));
        assert_eq!(answer.ulids().len(), 5);
    }
    assert_eq!(port.metrics.gap_signals_sent.get(), 2);
}

#[tokio::test]
async fn implausible_rows_are_no_minimum() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 5..=5, "audio_previews", ONE).await;
    let old = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let far = "7ZZZZZZZZZZZZZZZZZZZZZZZZZ";
    // More than one look of rows that are no ULIDs, and sort before all.
    let sql = format!(
        "INSERT INTO ops SELECT u, 'h', 'create', 'foo', '[{{}}]' FROM (
             SELECT '01hh' || lpad(n::text, 22, '0') FROM generate_series(1, 350) n
             UNION ALL VALUES ('{old}'), ('{far}')) x(u)"
    );
    run(&database, &sql).await;
    let minimum = ulid(5);
    assert_eq!(gap(&port.after(&ulid(4)).await), Some(minimum.as_str()));
    assert_eq!(gap(&port.after(old).await), Some(minimum.as_str()));
    assert_eq!(gap(&port.after(&ulid(5)).await), None);
    let sql = format!("DELETE FROM ops WHERE ulid = '{minimum}'");
    run(&database, &sql).await;
    assert_eq!(gap(&port.after(&ulid(4)).await), None, "none is plausible");
}

#[tokio::test]
async fn the_minimum_is_looked_for_from_the_watermark_on() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=1, "audio_previews", ONE).await;
    fill(&database, 5..=9, "audio_previews", ONE).await;
    let sql = format!("UPDATE opsward.watermark SET ulid = '{}'", ulid(4));
    run(&database, &sql).await;
    // What was deleted up to the watermark is told, whatever arrived late.
    assert_eq!(gap(&port.after(&ulid(2)).await), Some(ulid(5).as_str()));
    // It is never above the first row scanned.
    let late = port.after(&ulid(0)).await;
    assert_eq!(gap(&late), Some(ulid(1).as_str()));
    assert_eq!(late.ulids()[0], ulid(1));
}

#[tokio::test]
async fn floors_above_after_are_named() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=9, "audio_previews", ONE).await;
    let sql = format!(
        "INSERT INTO opsward.floors VALUES ('uploads', '{}', now()),
         ('audio_previews', '{}', now())",
        ulid(3),
        ulid(6)
    );
    run(&database, &sql).await;
    let floors = async |after: &str| {
        let answer = port.after(after).await;
        answer.header("x-opsward-table-floors").map(str::to_owned)
    };
    let both = format!("audio_previews={},uploads={}", ulid(6), ulid(3));
    assert_eq!(floors(&ulid(1)).await, Some(both));
    let one = format!("audio_previews={}", ulid(6));
    assert_eq!(floors(&ulid(3)).await, Some(one));
    assert_eq!(floors(&ulid(6)).await, None);
    assert_eq!(floors("").await, None);
}

/// Whatever is deleted after the minimum was read, the rows are still there.
#[tokio::test]
async fn minimum_floors_and_rows_are_of_one_snapshot() {
    let database = Database::new().await;
    let db = database.migrated().await;
    fill(&database, 1..=500, "audio_previews", ONE).await;
    let mut lent = Lent::new(db.client().await.unwrap());
    let second = Duration::from_secs(1);
    let snapshot = lent.snapshot(second, 3 * second).await.unwrap();
    let minimum = snapshot.minimum(NOW_MS).await.unwrap();
    assert_eq!(minimum, OpUlid::parse(&ulid(1)));
    let sql = format!(
        "DELETE FROM ops; INSERT INTO opsward.floors VALUES ('audio_previews', '{}', now())",
        ulid(500)
    );
    run(&database, &sql).await;
    let own = Host::parse(SELF).unwrap();
    let scan = snapshot.scan("", &own).await.unwrap();
    let mut count = 0;
    for _ in 0..2 {
        let mut rows = snapshot.fetch(&scan, 300, 3 * second).await.unwrap();
        while let Some(row) = rows.next().await.unwrap() {
            count += 1;
            assert_eq!(row.fields().unwrap().ulid, ulid(count));
        }
    }
    assert_eq!(count, 500);
    let after = OpUlid::parse(&ulid(1)).unwrap();
    assert!(snapshot.floors_above(after).await.unwrap().is_empty());
    snapshot.close().await.unwrap();
    let snapshot = lent.snapshot(second, 3 * second).await.unwrap();
    assert_eq!(snapshot.minimum(NOW_MS).await.unwrap(), None);
    assert_eq!(snapshot.floors_above(after).await.unwrap().len(), 1);
}

/// The log is cut while it is read: what a page lacks, its header covers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_log_never_yields_a_page_that_its_header_does_not_cover() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=4_000, "audio_previews", ONE).await;
    let client = database.client().await;
    let cutting = tokio::spawn(async move {
        for below in (20..=3_900).step_by(20) {
            let sql = format!("DELETE FROM ops WHERE ulid < '{}'", ulid(below));
            client.batch_execute(&sql).await.unwrap();
        }
    });
    let mut asked = 0;
    while !cutting.is_finished() || asked == 0 {
        let answer = port.after(&ulid(1)).await;
        let ulids = answer.ulids();
        let first = gap(&answer).map_or(ulid(2), str::to_owned);
        assert_eq!(ulids[0], first, "the page begins where its header says");
        assert_eq!(ulids.last(), Some(&ulid(4_000)));
        let numbers = ulids.iter().map(|u| u[10..].parse::<u64>().unwrap());
        let numbers: Vec<u64> = numbers.collect();
        assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]));
        asked += 1;
    }
    cutting.await.unwrap();
}

/// A reader that waits behind a swap of the table reads the new one whole.
#[tokio::test]
async fn a_reader_behind_a_swap_misses_nothing() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=3, "audio_previews", ONE).await;
    // Statements are prepared: the swap finds a reader in its stride.
    assert_eq!(port.after("").await.ulids().len(), 3);
    let (swap, look) = tokio::join!(database.client(), database.client());
    swap.batch_execute(
        "BEGIN; LOCK TABLE ops IN ACCESS EXCLUSIVE MODE;
         CREATE TABLE opsward.ops_next (LIKE public.ops INCLUDING ALL);
         INSERT INTO opsward.ops_next SELECT * FROM ops;
         ALTER TABLE public.ops RENAME TO ops_old;
         ALTER TABLE opsward.ops_next RENAME TO ops;
         ALTER TABLE opsward.ops SET SCHEMA public;",
    )
    .await
    .unwrap();
    let reading = port.after("");
    let swapping = async {
        until("the reader waits for the lock", async || {
            let sql = "SELECT count(*) FROM pg_locks l WHERE NOT granted AND database =
                       (SELECT oid FROM pg_database WHERE datname = current_database())";
            look.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
        let sql = format!(
            "INSERT INTO public.ops SELECT '{}', host, action, \"table\", data
             FROM public.ops LIMIT 1; DROP TABLE public.ops_old; COMMIT",
            ulid(4)
        );
        swap.batch_execute(&sql).await.unwrap();
    };
    let (answer, ()) = tokio::join!(reading, swapping);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.ulids(), [ulid(1), ulid(2), ulid(3), ulid(4)]);
}
