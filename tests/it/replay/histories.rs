//! Any history, cut and sent again in any order and part, ends where it ended.

use super::{Bench, guard::node_applies, op, prune, ulid};
use crate::harness::{MadeOp, Ops};
use crate::work;
use opsward::bound::guard::ensure;
use opsward::db::lease::Lease;

fn history(dice: &mut Ops) -> Vec<MadeOp> {
    (0..40)
        .map(|n| {
            let action = ["create", "update", "update", "delete"][dice.below(4) as usize];
            let first = dice.below(4);
            let record = |key: u64| format!(r#"{{"id":"k{}","status":"s{n}"}}"#, key % 4);
            let records = match dice.below(3) {
                0 => format!("[{},{}]", record(first), record(first + 1)),
                _ => format!("[{}]", record(first)),
            };
            op(ulid(60 - n, n), action, "uploads", &records)
        })
        .collect()
}

#[tokio::test]
async fn a_cut_history_sent_again_changes_nothing() {
    let mut bench = Bench::new().await;
    let work = work::on(&bench.db, |_| {});
    let mut lease = Lease::take(&bench.db).await.unwrap().unwrap();
    ensure(&work, &mut lease).await.unwrap();
    for seed in 1..=40 {
        let mut dice = Ops::new(seed);
        let log = history(&mut dice);
        bench.run("TRUNCATE ops, uploads, opsward.floors, opsward.traces").await;
        bench.pull(&log).await;
        let want = bench.uploads().await;
        let mut cut = 0;
        for _ in 0..2 {
            cut = (cut + 1 + dice.below(25)).min(39);
            prune(&bench.node, "uploads", ulid(60 - cut, 0)).await;
            let mut again: Vec<MadeOp> = log.iter().filter(|_| dice.below(3) > 0).cloned().collect();
            for n in (1..again.len()).rev() {
                again.swap(n, dice.below(n as u64 + 1) as usize);
            }
            bench.pull(&again).await;
            assert_eq!(bench.uploads().await, want, "seed {seed}: pulled");
            for op in &again {
                node_applies(&mut bench.node, op).await;
            }
            assert_eq!(bench.uploads().await, want, "seed {seed}: by the node");
        }
    }
}

/// The rule knows the keys that the models have.
#[tokio::test]
async fn traces_have_the_models_keys() {
    let bench = Bench::new().await;
    for model in opsward::records::models().iter() {
        let key = &model.columns[model.key[0]].json;
        let sql = |key: &str| {
            format!(
                "SELECT opsward.trace_key('{0}', '{{\"{key}\": \"v\"}}') = md5(E'{0}\\nv')::uuid",
                model.table
            )
        };
        let want = if model.append_only { "" } else { "true" };
        for spelled in [key.clone(), key.to_uppercase(), key.to_lowercase()] {
            assert_eq!(bench.text(&sql(&spelled)).await, want, "{}: {spelled}", model.table);
        }
        assert!(model.append_only || model.key.len() == 1);
        let there =
            format!("SELECT opsward.is_there('{}', '{{\"{key}\": \"2026-01-01T00:00:00Z\"}}')", model.table);
        assert_eq!(bench.text(&there).await, "false");
    }
    let at = "SELECT opsward.ulid_at(to_timestamp(1672531200))";
    assert_eq!(bench.text(at).await, &opsward::values::EARLIEST_ULID[..10]);
}
