//! A simulated fleet: plain nodes, newer ones that prune by themselves,
//! hostile ones, and nodes with an opsward beside them, through a history that
//! a seed makes: late commits, clocks that are off, crashes, pages that cross
//! each other, operators' resets, peers that leave, join and come back, locked
//! rows, rows owed to the chain. What opsward decides is decided by its own
//! code (`Sweep`, `pull::decide`, `serve::decide`, the gate); what it does in
//! SQL is a few lines of `glue` (floors, traces, the rule for ops that come
//! again, batches, the watermark, headers), and `tests/it/sim.rs` holds those
//! to a real database. `claims` lists what must hold; it is looked at in every
//! step, and at the end, when everybody has swept until nothing is new.
//!
//! Plain nodes alone break some of it (`plain_nodes_alone` counts how often).
//! opsward is not blamed for this, and excused for nothing else:
//! - an op that came to a peer's log after the reader had read past its ULID
//!   (a late commit, or the peer got it from others): no cursor finds it there;
//! - an op that the node's own sweep stepped over, before opsward began where
//!   that sweep was (the cursor that it takes over at first sight);
//! - an op that was gone from a peer before it was first read, or lies within
//!   a gap that was counted, or still before the cursor;
//! - an op that a stock peer never gets to serve, as a whole page before it
//!   holds nothing for anybody;
//! - an op that a node pruned itself while an older row came back to its log
//!   and no opsward there has seen it: its minimum tells of no gap. Such an op
//!   left no trace, so only it may act again;
//! - replays in nodes without the guard; first deliveries by a hostile peer,
//!   by one that does not count, and by one that is read from its beginning,
//!   for what lay below the floors by then;
//! - records are compared where their writer is honest and both sides applied
//!   all of their ops once and in order.
//!
//! A history that fails is printed as short as it can be made.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "sim/bug.rs"]
mod bug;
#[path = "sim/chain.rs"]
mod chain;
#[path = "sim/claims.rs"]
mod claims;
#[path = "sim/glue.rs"]
mod glue;
#[path = "sim/model.rs"]
mod model;
#[path = "sim/plan.rs"]
mod plan;
#[path = "sim/world.rs"]
mod world;

use bug::{BUGS, Bug};
use claims::{Breakages, Violation};
use model::Kind;
use plan::{Mix, Plan, plan, shortest};
use world::World;

/// Seeds of every run.
const SEEDS: u64 = 10_000;
const CHAIN_SEEDS: u64 = 400;
/// Seeds in which a bug is to be found.
const FOUND_WITHIN: u64 = 600;

fn run(plan: &Plan, bug: Option<Bug>) -> Result<Breakages, Violation> {
    let mut world = World::new(plan, bug);
    world.run(plan).map(|()| world.ghost.breakages)
}

/// The shortest history of a seed that fails, and what it fails.
fn told(seed: u64, mix: Mix, bug: Option<Bug>, claim: &str) -> String {
    let fails = |plan: &Plan| run(plan, bug).is_err_and(|v| v.claim == claim);
    let short = shortest(&plan(seed, mix), fails);
    let nodes: Vec<String> = short
        .nodes
        .iter()
        .enumerate()
        .map(|(n, (k, s))| format!("  n{n}: {k:?}, clock {s} ms off"))
        .collect();
    let mut at = 0;
    let events: Vec<String> = short
        .events
        .iter()
        .map(|e| {
            at += e.after_s;
            format!("  {:.2} h  {:?}", f64::from(at) / 3600.0, e.what)
        })
        .collect();
    let what = run(&short, bug).err().map_or(String::new(), |v| v.what);
    format!(
        "seed {seed}: not so: {claim}\n  {what}\n{}\n  registered {:#b}, pages of {}\n{}",
        nodes.join("\n"),
        short.registered,
        short.page,
        events.join("\n")
    )
}

fn seeds(range: std::ops::Range<u64>, mix: Mix) {
    for seed in range {
        if let Err(violation) = run(&plan(seed, mix), None) {
            panic!("{}", told(seed, mix, None, violation.claim));
        }
    }
}

#[test]
fn every_claim_holds() {
    seeds(0..SEEDS, Mix::Any);
}

#[test]
fn every_claim_holds_on_the_chain() {
    seeds(0..CHAIN_SEEDS, Mix::Chain);
}

#[test]
#[ignore = "a long run"]
fn every_claim_holds_for_longer() {
    seeds(SEEDS..100 * SEEDS, Mix::Any);
}

#[test]
#[ignore = "a long run"]
fn every_claim_holds_on_the_chain_for_longer() {
    seeds(CHAIN_SEEDS..100 * CHAIN_SEEDS, Mix::Chain);
}

/// The same histories with a node of today alone, with an opsward that deletes
/// after the node's own pruner, and with one that deletes a day before it.
#[test]
fn a_day_ahead_of_the_nodes_pruner_no_record_goes_back() {
    let back = |kind| {
        let of = |seed| {
            run(&plan(seed, Mix::ChainOf(kind)), None).unwrap_or_else(|v| panic!("{seed}: {v:?}")).back
        };
        (0..60).map(of).sum::<u32>()
    };
    let alone = back(Kind::Chain);
    let unguarded = back(Kind::ChainWard { guard: false, ahead: true });
    let behind = back(Kind::ChainWard { guard: true, ahead: false });
    let ahead = back(Kind::ChainWard { guard: true, ahead: true });
    println!(
        "records gone back: alone {alone}, unguarded {unguarded}, behind the node {behind}, ahead {ahead}"
    );
    assert!(alone > 0 && unguarded > 0 && behind > 0, "{alone} {unguarded} {behind}");
    assert_eq!(ahead, 0);
}

#[test]
fn every_bug_is_found() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let found = [Mix::Any, Mix::Chain].into_iter().find_map(|mix| {
            (0..FOUND_WITHIN).find_map(|seed| Some((seed, run(&plan(seed, mix), Some(bug)).err()?)))
        });
        match found {
            Some((seed, v)) => println!("{bug:?}: seed {seed}: not so: {}: {}", v.claim, v.what),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn plain_nodes_alone() {
    let mut sum = Breakages::default();
    for seed in 0..300 {
        let b = run(&plan(seed, Mix::PlainOnly), None).unwrap();
        sum.late += b.late;
        sum.stepped_over += b.stepped_over;
        sum.pruned += b.pruned;
        sum.again += b.again;
        sum.disorder += b.disorder;
    }
    println!("{sum:?}");
    assert!(sum.late > 0 && sum.stepped_over > 0 && sum.pruned > 0 && sum.again > 0 && sum.disorder > 0);
}
