//! A history from a seed: who is there, and what happens when. It is made
//! before it runs and depends on nothing that it does, so that any part of it
//! is a history too: a failing one is made as short as it can be.

use super::model::{HOUR, Kind, MOST};
use fastrand::Rng;

#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: Vec<(Kind, i64)>,
    /// Registered from the start, a bit each.
    pub registered: u8,
    /// Rows a page.
    pub page: usize,
    pub events: Vec<Event>,
}

/// What happens, and how many seconds after the event before it.
#[derive(Clone, Debug)]
pub struct Event {
    pub after_s: u32,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    /// An op of a node, committed some seconds after its ULID was made.
    Write {
        node: u8,
        table: u8,
        action: u8,
        key: u8,
        late_s: u8,
        owed: bool,
    },
    /// A node and its opsward read all their peers, to the end of what they get.
    Round {
        node: u8,
        lie: u8,
    },
    SweepStart {
        node: u8,
        peer: u8,
        lie: u8,
    },
    /// One op may be refused by the database, and is stepped over.
    SweepEnd {
        node: u8,
        peer: u8,
        fails: u8,
    },
    PullStart {
        node: u8,
        peer: u8,
        lie: u8,
    },
    /// It may be killed before the op of that number.
    PullEnd {
        node: u8,
        peer: u8,
        killed: Option<u8>,
    },
    /// So many batches before it is stopped; a row may be locked.
    Prune {
        node: u8,
        dormant: bool,
        batches: u8,
        locked: Option<u8>,
    },
    Census {
        node: u8,
    },
    Observe {
        node: u8,
    },
    Discover {
        node: u8,
    },
    /// The machine: what was under way is lost; opsward is back later.
    Crash {
        node: u8,
        down_min: u8,
    },
    /// An operator's hand on the node's cursors.
    Reset {
        node: u8,
        peer: u8,
        how: u8,
    },
    /// A newer node prunes its log by itself.
    OwnPrune {
        node: u8,
        hours: u8,
    },
    Register {
        node: u8,
    },
    Deregister {
        node: u8,
    },
    /// The chain has what it was owed.
    Confirm {
        node: u8,
    },
    /// An op of a node of the chain, which gets into a block so many hours
    /// later, or never.
    ChainWrite {
        node: u8,
        table: u8,
        action: u8,
        key: u8,
        delay_h: u16,
    },
    /// An old transaction is submitted again.
    Resubmit {
        op: u16,
    },
    /// Blocks of so many hours are executed again.
    Again {
        node: u8,
        back_h: u8,
    },
    /// A node reads no blocks for so many hours.
    Stuck {
        node: u8,
        hours: u8,
    },
}

/// Which nodes there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mix {
    Any,
    PlainOnly,
    /// Nodes of the chain: any of them, or all of one kind, whose syncers are
    /// never stuck.
    Chain,
    ChainOf(Kind),
}

pub fn plan(seed: u64, mix: Mix) -> Plan {
    let mut dice = Rng::with_seed(seed);
    if let Mix::Chain | Mix::ChainOf(_) = mix {
        return chain_plan(&mut dice, mix);
    }
    let count = dice.usize(3..=MOST);
    let nodes = (0..count).map(|n| node(&mut dice, n, mix)).collect();
    let late_ones = if dice.u8(..3) == 0 { 1 << (count - 1) } else { 0 };
    let busy = dice.u32(1..4);
    let events = (0..dice.usize(50..120)).map(|_| event(&mut dice, count as u8, busy)).collect();
    Plan { nodes, registered: ((1 << count) - 1) & !late_ones, page: dice.usize(2..9), events }
}

/// Some months of a few nodes.
fn chain_plan(dice: &mut Rng, mix: Mix) -> Plan {
    let kind = |dice: &mut Rng| match (mix, dice.u8(..8)) {
        (Mix::ChainOf(kind), _) => kind,
        (_, 0) => Kind::Chain,
        (_, 1) => Kind::ChainWard { guard: false, ahead: true },
        (_, 2) => Kind::ChainWard { guard: true, ahead: false },
        _ => Kind::ChainWard { guard: true, ahead: true },
    };
    let count = dice.usize(2..=3);
    let nodes = (0..count).map(|_| (kind(dice), dice.i64(-100_000..100_000))).collect();
    let mut events: Vec<Event> = (0..dice.usize(60..140)).map(|_| chain_event(dice, count as u8)).collect();
    if let Mix::ChainOf(_) = mix {
        events.retain(|event| !matches!(event.what, What::Stuck { .. }));
    }
    Plan { nodes, registered: 0, page: 8, events }
}

fn chain_event(dice: &mut Rng, count: u8) -> Event {
    let node = dice.u8(..count);
    let after_s = match dice.u8(..10) {
        0..=2 => dice.u32(0..600),
        3..=6 => dice.u32(600..40_000),
        _ => dice.u32(40_000..260_000),
    };
    let what = match dice.u8(..100) {
        0..=49 => {
            let delay_h = match dice.u8(..16) {
                0..=10 => 0,
                11 | 12 => dice.u16(1..48),
                13 | 14 => dice.u16(48..1_000),
                _ => u16::MAX,
            };
            let table = [0, 0, 0, 0, 2, 1][dice.usize(..6)];
            What::ChainWrite { node, table, action: dice.u8(..), key: dice.u8(..), delay_h }
        }
        50..=64 => What::Again { node, back_h: dice.u8(1..240) },
        65..=76 => What::Resubmit { op: dice.u16(..) },
        77..=84 => What::OwnPrune { node, hours: 0 },
        85..=88 => What::Prune { node, dormant: false, batches: dice.u8(1..4), locked: None },
        89..=92 => What::Observe { node },
        93..=95 => What::Crash { node, down_min: dice.u8(..90) },
        _ => What::Stuck { node, hours: dice.u8(..60) },
    };
    Event { after_s, what }
}

fn node(dice: &mut Rng, n: usize, mix: Mix) -> (Kind, i64) {
    let guard = dice.u8(..4) > 0;
    let kind = match (mix, dice.u8(..12)) {
        (Mix::PlainOnly, 0..=8) => Kind::Plain,
        (Mix::PlainOnly, _) => Kind::Newer,
        (Mix::Any, 0..=2) if n > 0 => Kind::Plain,
        (Mix::Any, 3) if n > 0 => Kind::Newer,
        (Mix::Any, 4) if n > 0 => Kind::Hostile,
        (Mix::Any, 5) => Kind::NewerWard { guard },
        (Mix::Any, _) => Kind::Ward { guard },
        (Mix::Chain | Mix::ChainOf(_), _) => Kind::Chain,
    };
    let skew = match (kind.is_ward(), dice.u8(..8)) {
        (false, 0) => -27 * HOUR as i64,
        (_, 1 | 2) => dice.i64(-100_000..100_000),
        _ => 0,
    };
    (kind, skew)
}

fn event(dice: &mut Rng, count: u8, busy: u32) -> Event {
    let (node, peer, lie) = (dice.u8(..count), dice.u8(..count), dice.u8(..));
    let after_s = match dice.u8(..40) {
        0..=9 => dice.u32(0..100),
        10..=24 => dice.u32(60..1_800),
        25..=38 => dice.u32(1_800..14_400) * busy,
        _ => dice.u32(40_000..260_000),
    };
    let what = match dice.u8(..100) {
        0..=23 => {
            let table = [0, 0, 0, 1, 1, 2][dice.usize(..6)];
            let late_s = if dice.u8(..4) == 0 { dice.u8(1..50) } else { 0 };
            What::Write {
                node,
                table,
                action: dice.u8(..),
                key: dice.u8(..),
                late_s,
                owed: dice.u8(..8) == 0,
            }
        }
        24..=49 => What::Round { node, lie },
        50..=55 => What::SweepStart { node, peer, lie },
        56..=59 => What::SweepEnd { node, peer, fails: dice.u8(..12) },
        60..=65 => What::PullStart { node, peer, lie },
        66..=70 => {
            let killed = if dice.u8(..3) == 0 { Some(dice.u8(..6)) } else { None };
            What::PullEnd { node, peer, killed }
        }
        71..=82 => {
            let batches = if dice.u8(..3) == 0 { dice.u8(..4) } else { u8::MAX };
            let locked = if dice.u8(..5) == 0 { Some(dice.u8(..20)) } else { None };
            What::Prune { node, dormant: dice.u8(..4) == 0, batches, locked }
        }
        83 | 84 => What::Census { node },
        85 | 86 => What::Observe { node },
        87 | 88 => What::Discover { node },
        89..=91 => What::Crash { node, down_min: dice.u8(..90) },
        92 | 93 => What::Reset { node, peer, how: dice.u8(..) },
        94 | 95 => What::OwnPrune { node, hours: dice.u8(26..80) },
        96 => What::Register { node },
        97 => What::Deregister { node },
        _ => What::Confirm { node },
    };
    Event { after_s, what }
}

/// The shortest history that still fails, by dropping ever smaller stretches
/// of it. The time that a dropped event took passes before the next one.
pub fn shortest(plan: &Plan, fails: impl Fn(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut size = best.events.len().div_ceil(2);
    loop {
        let mut at = 0;
        let mut shrunk = false;
        while at < best.events.len() {
            let end = (at + size).min(best.events.len());
            let mut shorter = best.clone();
            let passed: u32 = shorter.events.drain(at..end).map(|e| e.after_s).sum();
            if let Some(next) = shorter.events.get_mut(at) {
                next.after_s = next.after_s.saturating_add(passed);
            }
            if fails(&shorter) {
                (best, shrunk) = (shorter, true);
            } else {
                at += size;
            }
        }
        if size == 1 && !shrunk {
            return best;
        }
        size = size.div_ceil(2);
    }
}
