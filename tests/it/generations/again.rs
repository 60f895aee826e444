//! What comes by the chain comes again: a block executed once more, an old
//! transaction submitted once more. Each of them in a random history.

use super::{ChainNode, Database, Schema, real_ago, ulid_of};
use crate::work;
use jiff::{SignedDuration, Timestamp};
use opsward::bound::guard::ensure;
use opsward::bound::tick::{Which, tick};
use opsward::bound::{facts, foreign};
use opsward::db::lease::Lease;
use opsward::values::{Host, OpUlid, Replication};
use opsward::work::Pacer;
use serde_json::json;
use std::collections::BTreeMap;

const RECORDS: u64 = 12;

/// An op of the chain: when it was born, its record, what it sets, and when
/// its block was made.
struct Op {
    ulid: OpUlid,
    cid: String,
    status: String,
    at: Timestamp,
}

/// Ops of 45 days in the chain's order: an op in four was delayed, by up to 20
/// hours, so that births are in another order.
fn history(random: &mut fastrand::Rng) -> Vec<Op> {
    let minutes = |n: i64| SignedDuration::from_mins(n);
    let op = |n: i64| {
        let at = real_ago(45) + minutes(n * 150);
        let delay = if random.u8(..4) == 0 { random.i64(1..20 * 60) } else { 0 };
        Op {
            ulid: OpUlid::from_parts(ulid_of(at - minutes(delay)).ms(), random.u128(..) >> 48),
            cid: format!("record {}", random.u64(..RECORDS)),
            status: format!("set by {n}"),
            at,
        }
    };
    (0..430).map(op).collect()
}

async fn apply(node: &mut ChainNode, ops: &[Op]) {
    for op in ops {
        let of_block = [(op.ulid, op.cid.as_str(), op.status.as_str())];
        assert_eq!(node.block(op.at, &of_block).await, 1);
        node.look_again(&of_block, op.at).await;
    }
    node.block(Timestamp::now(), &[]).await;
    node.look_again(&[], Timestamp::now()).await;
}

/// All of them again, in any order; says how many were taken for new.
async fn again(node: &mut ChainNode, ops: &[Op], random: &mut fastrand::Rng) -> u64 {
    let mut order: Vec<&Op> = ops.iter().collect();
    random.shuffle(&mut order);
    let mut new = 0;
    for op in order {
        new += node.execute_again(&[(op.ulid, &op.cid, &op.status)]).await;
    }
    new
}

async fn records(node: &ChainNode) -> BTreeMap<String, String> {
    let rows = node.client.query("SELECT cid, status FROM qm_audio_analyses", &[]).await.unwrap();
    rows.iter().map(|r| (r.get(0), r.get(1))).collect()
}

#[tokio::test]
async fn what_the_node_pruned_comes_again_over_newer_state() {
    let mut random = fastrand::Rng::with_seed(1);
    let ops = history(&mut random);
    let database = Database::of(Schema::C).await;
    let mut node = ChainNode::start(&database).await;
    apply(&mut node, &ops).await;
    let before = records(&node).await;
    assert!(node.prunes(ulid_of(real_ago(30))).await > 0);
    assert!(again(&mut node, &ops, &mut random).await > 0);
    assert_ne!(records(&node).await, before);
}

#[tokio::test]
async fn ahead_of_the_node_no_record_goes_back() {
    let mut random = fastrand::Rng::with_seed(2);
    let ops = history(&mut random);
    let database = Database::of(Schema::C).await;
    let db = database.migrated().await;
    let mut node = ChainNode::start(&database).await;
    apply(&mut node, &ops).await;
    let owed = ulid_of(real_ago(40));
    node.writes(owed, &json!([{"cid": "owed"}])).await;
    node.client
        .batch_execute("INSERT INTO opsward.pace (percent, set_at) VALUES (100, now())")
        .await
        .unwrap();
    let before = records(&node).await;

    let work = work::on(&db, |settings| {
        settings.bounding.retention_days = 29;
        settings.bounding.replay_guard = true;
        settings.bounding.min_free_disk = 1 << 20;
    });
    let mut lease = Lease::take(&db).await.unwrap().unwrap();
    ensure(&work, &mut lease).await.unwrap();
    foreign::observe(&work).await.unwrap();
    let mut pacer = Pacer::new(&work, Some(100));
    let done = tick(&work, &mut lease, &mut pacer, &[Which::Retention], std::time::Duration::from_secs(60))
        .await
        .unwrap();
    let gone = done[0].deleted.as_ref().unwrap_or_else(|| panic!("{done:?}")).rows();
    assert!(gone > 100, "{done:?}");
    foreign::observe(&work).await.unwrap();
    // The node's own pruner finds what the chain has not got, and no more.
    assert_eq!(node.prunes(ulid_of(real_ago(30))).await, 1);
    foreign::observe(&work).await.unwrap();

    assert_eq!(again(&mut node, &ops, &mut random).await, 0);
    assert_eq!(records(&node).await, before);

    // What arrives for the first time is stored and applied, however old.
    for (n, days) in [(0, 1), (1, 10), (2, 20), (3, 28)] {
        let ulid = OpUlid::from_parts(ulid_of(real_ago(days)).ms(), 1_000 + n);
        let (cid, status) = (format!("record {n}"), format!("first {days}"));
        assert_eq!(node.block(Timestamp::now(), &[(ulid, &cid, &status)]).await, 1, "{days} days");
        assert_eq!(records(&node).await[&cid], status);
    }
    // In chain mode peers were never asked for.
    let client = db.client().await.unwrap();
    let found = facts::gather(&client, &work.settings, &Host::normalise(super::SELF), Timestamp::now()).await;
    assert_eq!(found.unwrap().replication, Replication::Chain);
}

/// What comes weeks after it was born is kept by us for as long as its block
/// may be executed again; the node's own pruner goes by its birth.
#[tokio::test]
async fn what_came_late_and_what_is_owed_is_remembered_before_the_node_deletes_it() {
    let database = Database::of(Schema::C).await;
    let db = database.migrated().await;
    let mut node = ChainNode::start(&database).await;
    let hours = |h: i64| Timestamp::now() - SignedDuration::from_hours(h);
    let born = |h: i64, n: u128| OpUlid::from_parts(ulid_of(hours(h)).ms(), n);
    let mut lease = Lease::take(&db).await.unwrap().unwrap();
    let work = work::on(&db, |settings| {
        settings.bounding.retention_days = 29;
        settings.bounding.replay_guard = true;
        settings.bounding.min_free_disk = 1 << 20;
    });
    ensure(&work, &mut lease).await.unwrap();
    let mut retention = async |node: &mut ChainNode| {
        node.block(Timestamp::now(), &[]).await;
        node.look_again(&[], Timestamp::now()).await;
        let mut pacer = Pacer::new(&work, Some(100));
        let budget = std::time::Duration::from_secs(60);
        let done = tick(&work, &mut lease, &mut pacer, &[Which::Retention], budget).await.unwrap();
        done[0].deleted.as_ref().unwrap_or_else(|| panic!("{done:?}")).rows()
    };
    let old = [(born(800, 1), "old", "old"), (born(29 * 24 + 2, 2), "near", "near")];
    node.block(hours(690), &old).await;
    node.look_again(&old, hours(699)).await;
    // Born before the cut: one that came three days ago, and one of this
    // node's that the chain never got.
    let late = [(born(29 * 24 + 10, 3), "late", "first")];
    node.block(hours(72), &late).await;
    node.look_again(&late, hours(72)).await;
    let owed = [(born(29 * 24 + 12, 4), "owed", "first")];
    node.execute_again(&owed).await;
    node.client
        .execute("UPDATE ops SET core_tx_status = 'pending' WHERE ulid = $1", &[&owed[0].0.as_str()])
        .await
        .unwrap();
    let newer = [(born(48, 5), "late", "newer"), (born(47, 6), "owed", "newer")];
    node.block(hours(47), &newer).await;
    node.look_again(&newer, hours(47)).await;

    assert_eq!(retention(&mut node).await, 2);
    // And one that comes after that, of a record with newer state.
    let last = [(born(35 * 24, 7), "last", "first")];
    assert_eq!(node.block(Timestamp::now(), &last).await, 1);
    let newest = [(born(1, 8), "last", "newer")];
    node.block(Timestamp::now(), &newest).await;
    let before = records(&node).await;
    assert!(["late", "owed", "last"].iter().all(|cid| before[*cid] == "newer"), "{before:?}");

    assert_eq!(node.prunes(ulid_of(hours(29 * 24))).await, 3);
    for again in [late, owed, last] {
        assert_eq!(node.execute_again(&again).await, 0, "{again:?}");
    }
    assert_eq!(records(&node).await, before);
    let failed: i64 =
        node.client.query_one("SELECT last_value FROM opsward.guard_failed", &[]).await.unwrap().get(0);
    assert_eq!(failed, 0);
}
