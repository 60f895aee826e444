//! Somebody else pruned: seen, never guessed.

use super::{Bench, ulid, upload};
use crate::work;
use opsward::bound::foreign::{Found, observe};

async fn filled() -> (Bench, opsward::work::Work) {
    let bench = Bench::new().await;
    let ops: Vec<_> = (0..20).map(|n| upload(ulid(40 - n, n), "create", &format!("u{n}"), "new")).collect();
    bench.pull(&ops).await;
    let work = work::on(&bench.db, |_| {});
    (bench, work)
}

#[tokio::test]
async fn what_somebody_else_pruned_raises_the_floors() {
    let (bench, work) = filled().await;
    assert_eq!(observe(&work).await.unwrap(), Found::Unknown, "a first look");
    assert_eq!(observe(&work).await.unwrap(), Found::Nothing);
    bench.prune("uploads", ulid(35, 0)).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Nothing, "ours");
    bench.run(&format!("DELETE FROM ops WHERE ulid < '{}'", ulid(30, 0))).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Pruned(ulid(30, 10)));
    assert_eq!(observe(&work).await.unwrap(), Found::Nothing);
    assert_eq!(work.metrics.foreign_prunes.get(), 1);
    assert_eq!(bench.text("SELECT count(*) FROM opsward.floors WHERE foreign_floor IS NOT NULL").await, "4");

    bench.run("DELETE FROM uploads WHERE id IN ('u6', 'u7')").await;
    let pulled = bench
        .pull(&[
            upload(ulid(34, 6), "update", "u6", "where none is"),
            upload(ulid(34, 61), "update", "u6", "over what was just put"),
            upload(ulid(33, 7), "delete", "u8", ""),
            upload(ulid(32, 8), "update", "u9", "over what is there"),
            upload(ulid(32, 9), "create", "u7", "where none is"),
        ])
        .await;
    assert_eq!((pulled.sums.applied, pulled.sums.replays), (2, 3));
    let read =
        bench.text("SELECT id || '=' || status FROM uploads WHERE id IN ('u6', 'u7', 'u8', 'u9')").await;
    assert_eq!(read, "u6=where none is u7=where none is u8=new u9=new");
}

/// What is kept longest tells, however high another table's floor is.
#[tokio::test]
async fn floors_that_differ_hide_nothing() {
    let (bench, work) = filled().await;
    let sizes = |day: u64, n: u64| {
        let data = format!(r#"[{{"LoggedAt":"2026-01-01T00:00:00Z","Host":"h{n}"}}]"#);
        super::op(ulid(day, n), "create", "storage_and_db_sizes", &data)
    };
    bench.pull(&[sizes(39, 100), sizes(31, 101), sizes(24, 102), sizes(3, 103)]).await;
    bench.prune("storage_and_db_sizes", ulid(5, 0)).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Unknown);
    assert_eq!(observe(&work).await.unwrap(), Found::Nothing);
    bench.run(&format!("DELETE FROM ops WHERE ulid < '{}'", ulid(30, 0))).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Pruned(ulid(30, 10)));
    let pulled = bench.pull(&[upload(ulid(34, 6), "update", "u6", "over what is there")]).await;
    assert_eq!((pulled.sums.applied, pulled.sums.replays), (0, 1));
    // Ours again, of the table with the lower floor: nobody else's.
    bench.prune("uploads", ulid(27, 0)).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Nothing);
    // Rows that stay below their table's floor hide nothing either.
    let owed: Vec<_> = (0..300).map(|n| upload(ulid(29, n), "create", "owed", "new")).collect();
    crate::harness::ops::insert(&bench.node, &owed).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Nothing);
    bench.run(&format!("DELETE FROM ops WHERE ulid < '{}'", ulid(24, 0))).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Pruned(ulid(24, 16)));
}

#[tokio::test]
async fn no_conclusion_without_a_witness() {
    let (bench, work) = filled().await;
    observe(&work).await.unwrap();
    // A log put back: its newest rows are gone, too.
    bench.run(&format!("DELETE FROM ops WHERE ulid < '{}' OR ulid > '{}'", ulid(30, 0), ulid(25, 0))).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Unknown);
    assert_eq!(observe(&work).await.unwrap(), Found::Nothing);
    bench.run("TRUNCATE ops").await;
    assert_eq!(observe(&work).await.unwrap(), Found::Unknown, "an empty log");
    bench.pull(&[upload(ulid(3, 3), "create", "z", "new")]).await;
    assert_eq!(observe(&work).await.unwrap(), Found::Unknown, "nothing was kept of an empty log");
    assert_eq!(bench.text("SELECT count(*) FROM opsward.floors").await, "0");
}

#[tokio::test]
async fn a_nodes_own_row_below_the_watermark_lowers_it() {
    let (bench, work) = filled().await;
    bench.run(&format!("UPDATE opsward.watermark SET ulid = '{}'", ulid(35, 0))).await;
    observe(&work).await.unwrap();
    assert_eq!(bench.text("SELECT ulid FROM opsward.watermark").await, ulid(40, 0).as_str());
}
