//! Nodes whose ops come by the chain (contract 10): all of them execute the
//! same ops in the order of the blocks, some of them more than once. The node's
//! own pruner deletes by the ULID alone, and remembers nothing.
//!
//! opsward is not blamed for what the node's pruner deleted while it could not
//! come first, as it was away or the node read no blocks for a day; and for an
//! op that came between the floor and the cut since its last run, and was gone
//! before the next.
//! An op that comes for the first time, and was born before the window, acts
//! only where nothing newer of its record is known; one born before what the
//! node's own pruner was seen to have deleted, only where its record is not
//! there. These are limits.

use super::bug::Bug;
use super::claims::fail;
use super::model::*;
use super::world::{Done, World};
use opsward::bound::decide::{ChainFact, Facts};
use opsward::values::{Action, Replication};

/// What a node of the chain keeps, and how often its pruner runs.
const NODE_KEEPS: U = 30 * DAY;
const NODE_PRUNES_EVERY: U = 6 * HOUR;
const AHEAD_DAYS: u32 = 29;
const AHEAD: U = 29 * DAY;
const BEHIND_DAYS: u32 = 31;
/// 604,800 blocks are kept, a snapshot is made every 100,000, and there is
/// about one in a second: so old may a block be that is executed again.
const BLOCKS_AGAIN: U = 10 * DAY;

pub const BACK: &str = "no record goes back as a block is executed again";
pub const FIRST: &str = "what the chain brings for the first time, born within the window, is not refused";
pub const KNOWN_NEWER: &str = "what the chain brings for the first time is refused for newer state alone";
pub const AHEAD_OF_NODE: &str = "what the node's own pruner deletes is remembered";
pub const CHAIN_GATE: &str = "nothing is deleted that was born or confirmed within the window";

impl World {
    pub fn is_chain(&self) -> bool {
        self.nodes[0].kind.is_chain()
    }

    /// The last op gets into a block so many hours later.
    pub fn submit(&mut self, delay_h: u16) {
        if delay_h < u16::MAX {
            self.mempool.push((self.now + U::from(delay_h) * HOUR, self.ops.len() as OpId - 1));
        }
    }

    pub fn resubmit(&mut self, op: u16) {
        if !self.chain.is_empty() {
            let (_, op) = self.chain[usize::from(op) % self.chain.len()];
            self.mempool.push((self.now, op));
        }
    }

    /// Time passes: blocks are made and executed, opsward deletes, and then the
    /// node's own pruner.
    pub fn pass_on_chain(&mut self, until: U) -> Done {
        loop {
            self.now = until.min((self.now / NODE_PRUNES_EVERY + 1) * NODE_PRUNES_EVERY);
            let due: Vec<(U, OpId)> = self.mempool.iter().filter(|m| m.0 <= self.now).copied().collect();
            self.mempool.retain(|m| m.0 > self.now);
            self.chain.extend(due.iter().map(|(_, op)| (self.now, *op)));
            for node in 0..self.nodes.len() {
                self.execute(node)?;
                if self.now.is_multiple_of(NODE_PRUNES_EVERY) {
                    self.observe(node);
                    self.tick(node)?;
                    self.node_prunes(node)?;
                }
            }
            if self.now == until {
                return Ok(());
            }
        }
    }

    fn tick(&mut self, node: usize) -> Done {
        let it = &mut self.nodes[node];
        if it.log.first().is_some_and(|row| row.u + AHEAD <= self.now + HOUR) {
            return self.prune(node, false, (u8::MAX, None));
        }
        if self.now >= it.ward.down_until && self.now >= it.stuck_until {
            it.ward.ticked_at = self.now;
        }
        Ok(())
    }

    fn execute(&mut self, node: usize) -> Done {
        if self.now < self.nodes[node].stuck_until {
            return Ok(());
        }
        for n in self.nodes[node].height..self.chain.len() {
            let (at, op) = self.chain[n];
            self.executed(node, op, at)?;
        }
        (self.nodes[node].height, self.nodes[node].read_at) = (self.chain.len(), self.now);
        Ok(())
    }

    /// A node begins anew at an older height.
    pub fn again(&mut self, node: usize, back: U) -> Done {
        let since = self.now - back.min(BLOCKS_AGAIN);
        for n in self.chain.partition_point(|(at, _)| *at < since)..self.nodes[node].height {
            let (at, op) = self.chain[n];
            self.executed(node, op, at)?;
        }
        Ok(())
    }

    /// An op of a block, for the first time or again, and the syncer's second
    /// look at it.
    fn executed(&mut self, node: usize, op: OpId, at: U) -> Done {
        let of = self.op(op).clone();
        let mut places: Vec<usize> = (0..of.recs.len()).collect();
        if !self.nodes[node].has(of.u) {
            self.record(node, Taped::Swept { op });
            if self.nodes[node].kind.has_guard() {
                let it = &self.nodes[node];
                match it.ward.acting(&of, |rec| it.record(rec) != 0, true) {
                    Some(acting) if acting.is_empty() => return self.refused(node, op),
                    // opsward applies what acts, and nothing else.
                    Some(acting) => {
                        places = acting;
                        self.remember_at_the_door(node, &of);
                    }
                    None if of.u + AHEAD < self.now => self.ghost.between.push((node, op)),
                    None => {}
                }
            }
            self.goes_back(node, op, &places)?;
            self.put(node, op, (of.action, &places), false);
        }
        if let Ok(place) = self.nodes[node].place(of.u) {
            let row = &mut self.nodes[node].log[place];
            row.owed = false;
            if row.confirmed == 0 {
                row.confirmed = at;
                self.record(node, Taped::InBlock { op, at });
            }
        }
        Ok(())
    }

    /// The guard lets an old op pass that nobody may remember later.
    fn remember_at_the_door(&mut self, node: usize, of: &Op) {
        if of.table != SIZES && !self.has(Bug::DoorForgets) {
            of.recs.iter().for_each(|rec| self.nodes[node].ward.leave_trace(*rec, of.u));
        }
    }

    /// The node's own pruner: below its window, whatever it is.
    pub fn node_prunes(&mut self, node: usize) -> Done {
        let below = self.clock(node) - NODE_KEEPS;
        let count = self.nodes[node].log.partition_point(|row| row.u < below);
        let gone: Vec<Row> = self.nodes[node].log.drain(..count).collect();
        self.record(node, Taped::NodePruned { below });
        for row in gone {
            let of = self.op(row.op).clone();
            let (kind, ward) = (self.nodes[node].kind, &self.nodes[node].ward);
            let is_remembered = match of.table {
                SIZES => ward.floors[usize::from(SIZES)] > Some(row.u),
                _ => of.recs.iter().all(|rec| ward.trace(*rec) >= row.u),
            };
            let is_late =
                ward.ticked_at < row.u + AHEAD + 2 * MIN || self.ghost.between.contains(&(node, row.op));
            if !is_remembered && kind.is_ahead() && kind.has_guard() && !is_late {
                return fail(
                    AHEAD_OF_NODE,
                    format!("n{node}'s own pruner deleted {}, and nobody remembers it", self.name(row.op)),
                );
            }
            if !is_remembered {
                self.ghost.unlogged[node].push(row.op);
            }
        }
        Ok(())
    }

    pub fn chain_facts(&self, node: usize, facts: &mut Facts) {
        let (it, now) = (&self.nodes[node], self.now);
        let is_ahead = it.kind.is_ahead() && !self.has(Bug::BehindTheNode);
        facts.settings.retention_days = if is_ahead { AHEAD_DAYS } else { BEHIND_DAYS };
        facts.replication = Replication::Chain;
        facts.guarded = it.kind.has_guard();
        facts.chain = ChainFact {
            has_blocks: true,
            grant: None,
            cursor: Some((it.read_at / 1_000).to_string()),
            tip: Some(("main".into(), now / 1_000)),
            read_until_ms: Some(it.read_at),
        };
    }

    /// An op is about to act for the second time.
    fn goes_back(&mut self, node: usize, op: OpId, places: &[usize]) -> Done {
        let of = self.op(op);
        if !self.ghost.has_applied(node, op) {
            return Ok(());
        }
        let changes = |n: &usize| match (of.action, self.nodes[node].record(of.recs[*n])) {
            (Action::Create, is) => is == 0,
            (Action::Update, is) => is != op + 1,
            (Action::Delete, is) => is != 0,
        };
        if !places.iter().any(changes) {
            return Ok(());
        }
        if self.nodes[node].kind.has_guard() && !self.ghost.unlogged[node].contains(&op) {
            return fail(BACK, format!("n{node} executed {} again, and a record went back", self.name(op)));
        }
        self.ghost.breakages.back += 1;
        Ok(())
    }

    /// The guard took an op for known.
    fn refused(&mut self, node: usize, op: OpId) -> Done {
        if self.ghost.has_applied(node, op) || self.ghost.is_dismissed(node, op) {
            return Ok(());
        }
        let of = self.op(op);
        let is_foreign = self.nodes[node].ward.foreign[usize::from(of.table)] > Some(of.u);
        if of.u + AHEAD > self.clock(node) && !is_foreign {
            return fail(FIRST, format!("n{node} refused {}, and never had it", self.name(op)));
        }
        let newer = |rec: &u16| self.ghost.order[node].get(usize::from(*rec)).is_some_and(|o| o.0 > of.u);
        if of.table != SIZES && !is_foreign && !of.recs.iter().all(newer) {
            return fail(KNOWN_NEWER, format!("n{node} refused {}: it has nothing newer", self.name(op)));
        }
        self.ghost.dismissed.push((node, op));
        Ok(())
    }

    /// A batch of a node of the chain is about to be committed.
    pub fn chain_allows(&self, node: usize, gone: &[Row]) -> Done {
        let young = |row: &&Row| row.u.max(row.confirmed) + AHEAD > self.clock(node);
        match gone.iter().find(young) {
            Some(row) => fail(CHAIN_GATE, format!("n{node} deleted {}", self.name(row.op))),
            None => Ok(()),
        }
    }
}
