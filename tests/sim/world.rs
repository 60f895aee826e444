//! The fleet, and what happens in it: time, writes, the nodes' own sweeps,
//! what an operator does. What opsward does is in `glue`.

use super::bug::Bug;
use super::claims::{Ghost, Violation, fail};
use super::model::*;
use super::plan::{Event, Plan, What};
use opsward::values::{Action, SweepHeaders};

pub type Done = Result<(), Violation>;

/// Rows a page when writes have stopped.
const LAST_PAGES: usize = 64;
/// A node's sweep is over after this (its request is given up after 60 s).
const SWEEP_AT_MOST: U = 8 * MIN;
/// And begins this long after the one before.
const SWEEP_EVERY: U = 10 * MIN;

pub struct World {
    pub now: U,
    pub nodes: Vec<Node>,
    pub ops: Vec<Op>,
    pub registered: u8,
    pub page: usize,
    pub bug: Option<Bug>,
    pub ghost: Ghost,
    /// What became of the first node, in order.
    pub tape: Vec<Taped>,
    /// Who sent what is being applied.
    pub from_peer: usize,
    /// Not committed yet: when, where, what, owed.
    pending: Vec<(U, usize, OpId, bool)>,
    sizes: u16,
    sampled_at: U,
    /// Ops in blocks, in their order, and when each block was made.
    pub chain: Vec<(U, OpId)>,
    /// Ops on their way into a block, and when they get there.
    pub mempool: Vec<(U, OpId)>,
}

/// Rows of a node's log, and where it is with each peer.
type Far = (usize, Vec<(Cell, Option<U>)>);

/// What a sweep asks with.
#[derive(Clone, Copy, Debug)]
pub enum After {
    Nothing,
    At(U),
    Garbage,
}

impl World {
    pub fn new(plan: &Plan, bug: Option<Bug>) -> Self {
        let nodes: Vec<Node> = plan.nodes.iter().map(|(kind, skew)| Node::new(*kind, *skew)).collect();
        Self {
            now: START,
            ghost: Ghost::new(nodes.len()),
            nodes,
            ops: Vec::new(),
            registered: plan.registered,
            page: plan.page,
            bug,
            tape: Vec::new(),
            from_peer: 0,
            pending: Vec::new(),
            sizes: 100,
            sampled_at: START,
            chain: Vec::new(),
            mempool: Vec::new(),
        }
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub fn is_registered(&self, node: usize) -> bool {
        self.registered & (1 << node) != 0
    }

    /// Now, by the clock of a node.
    pub fn clock(&self, node: usize) -> U {
        self.now.saturating_add_signed(self.nodes[node].skew)
    }

    pub fn op(&self, op: OpId) -> &Op {
        &self.ops[op as usize]
    }

    pub fn run(&mut self, plan: &Plan) -> Done {
        if !self.is_chain() {
            (0..self.nodes.len()).for_each(|n| self.discover(n));
        }
        for event in &plan.events {
            self.step(event)?;
        }
        self.settle()
    }

    pub fn step(&mut self, event: &Event) -> Done {
        self.pass(U::from(event.after_s) * 1_000)?;
        self.happen(event.what)?;
        self.claims()
    }

    fn happen(&mut self, what: What) -> Done {
        let index = |n: u8| usize::from(n) % self.nodes.len();
        match what {
            What::Write { node, table, action, key, late_s, owed } => {
                self.write(index(node), (table, action, key), U::from(late_s) * 1_000, owed)
            }
            What::Round { node, lie } => self.round(index(node), lie),
            What::SweepStart { node, peer, lie } => {
                self.sweep_start(index(node), index(peer), lie);
                Ok(())
            }
            What::SweepEnd { node, peer, fails } => {
                let (node, peer) = (index(node), index(peer));
                let sweeps = &self.nodes[node].sweeps;
                let under_way =
                    if sweeps[peer].is_some() { Some(peer) } else { sweeps.iter().position(Option::is_some) };
                self.sweep_end(node, under_way.unwrap_or(peer), Some(usize::from(fails)))
            }
            What::PullStart { node, peer, lie } => self.pull_start(index(node), index(peer), lie),
            What::PullEnd { node, peer, killed } => {
                let (node, peer) = (index(node), index(peer));
                let pulls = &self.nodes[node].ward.pulls;
                let under_way =
                    if pulls[peer].is_some() { Some(peer) } else { pulls.iter().position(Option::is_some) };
                self.pull_end(node, under_way.unwrap_or(peer), killed.map(usize::from)).map(|_| ())
            }
            What::Prune { node, dormant, batches, locked } => {
                self.prune(index(node), dormant, (batches, locked))
            }
            What::Census { node } => {
                self.census(index(node));
                Ok(())
            }
            What::Observe { node } => {
                self.observe(index(node));
                Ok(())
            }
            What::Discover { node } => {
                self.discover(index(node));
                Ok(())
            }
            What::Crash { node, down_min } => self.crash(index(node), U::from(down_min) * MIN),
            What::Reset { node, peer, how } => {
                self.reset(index(node), index(peer), how);
                Ok(())
            }
            What::OwnPrune { node, .. } if self.nodes[index(node)].kind.is_chain() => {
                self.node_prunes(index(node))
            }
            What::OwnPrune { node, hours } => {
                self.own_prune(index(node), U::from(hours) * HOUR);
                Ok(())
            }
            What::Register { node } => {
                self.registered |= 1 << index(node);
                Ok(())
            }
            What::Deregister { node } => {
                self.registered &= !(1 << index(node));
                Ok(())
            }
            What::ChainWrite { node, table, action, key, delay_h } => {
                self.write(index(node), (table, action, key), 0, true)?;
                self.submit(delay_h);
                Ok(())
            }
            What::Resubmit { op } => {
                self.resubmit(op);
                Ok(())
            }
            What::Again { node, back_h } => self.again(index(node), U::from(back_h) * HOUR),
            What::Stuck { node, hours } => {
                let node = index(node);
                self.nodes[node].stuck_until = self.now + U::from(hours) * HOUR;
                Ok(())
            }
            What::Confirm { node } => {
                let node = index(node);
                self.record(node, Taped::Confirmed);
                self.nodes[node].log.iter_mut().for_each(|row| row.owed = false);
                Ok(())
            }
        }
    }

    /// Time passes: what was to be committed is, sweeps come to their end, the
    /// nodes' rows are looked at.
    fn pass(&mut self, ms: U) -> Done {
        let until = self.now + ms;
        if self.is_chain() {
            return self.pass_on_chain(until);
        }
        loop {
            let commit = self.pending.iter().map(|p| p.0).min().filter(|at| *at <= until);
            let sweep = self.oldest_sweep().filter(|(at, ..)| *at <= until);
            match (commit, sweep) {
                (Some(at), sweep) if sweep.is_none_or(|(end, ..)| at <= end) => {
                    self.now = self.now.max(at);
                    let due = self.pending.iter().position(|p| p.0 == at).unwrap();
                    let (_, node, op, owed) = self.pending.remove(due);
                    self.commit(node, op, owed)?;
                }
                (_, Some((at, node, peer))) => {
                    self.now = self.now.max(at);
                    self.sample();
                    self.sweep_end(node, peer, None)?;
                }
                _ => break,
            }
        }
        self.now = until;
        self.sample();
        Ok(())
    }

    fn oldest_sweep(&self) -> Option<(U, usize, usize)> {
        let of = |n: usize| {
            let ends = self.nodes[n].sweeps.iter().enumerate();
            ends.filter_map(move |(p, s)| s.as_ref().map(|s| (s.began + SWEEP_AT_MOST, n, p)))
        };
        (0..self.nodes.len()).flat_map(of).min()
    }

    /// The nodes' rows are looked at every 3 minutes. In between nothing
    /// changed, so only the looks that tell something are kept.
    fn sample(&mut self) {
        if self.now < self.sampled_at + 3 * MIN {
            return;
        }
        let before = Some(self.now - 31 * MIN).filter(|at| *at > self.sampled_at + 3 * MIN);
        for at in before.into_iter().chain([self.now]) {
            for node in self.nodes.iter_mut().filter(|n| n.kind.is_ward() && n.ward.down_until <= at) {
                let cells = node.cells;
                node.ward.samples.retain(|(then, _)| then + HOUR >= at);
                node.ward.samples.push((at, cells));
            }
        }
        self.sampled_at = self.now;
    }

    fn write(&mut self, node: usize, (table, action, key): (u8, u8, u8), late: U, owed: bool) -> Done {
        let writer = node as u8;
        let recs: Vec<u16> = match table {
            SIZES => {
                self.sizes += 1;
                vec![self.sizes]
            }
            PREVIEWS => vec![60 + u16::from(writer) * 2 + u16::from(key % 2)],
            _ if key % 5 == 4 => vec![40 + u16::from(key / 5 % 2)],
            _ => {
                let own = |k: u8| u16::from(writer) * 4 + u16::from(k % 4);
                let first = key % 5;
                if key & 0x40 != 0 { vec![own(first), own(first + 1)] } else { vec![own(first)] }
            }
        };
        let there = recs.iter().any(|rec| self.nodes[node].record(*rec) != 0);
        let action = match (table, there, action % 8) {
            (SIZES, ..) | (_, false, 0..=5) => Action::Create,
            (_, false, _) => Action::Update,
            (_, true, 6 | 7) => Action::Delete,
            (_, true, _) => Action::Update,
        };
        let placed = (key >> 3) | 1 << writer | 1 << ((node + 1) % self.nodes.len());
        let u = self.new_ulid(self.clock(node));
        let op = self.ops.len() as OpId;
        self.ops.push(Op { u, writer, table, action, recs, placed });
        if late > 0 {
            self.pending.push((self.now + late, node, op, owed));
            return Ok(());
        }
        self.commit(node, op, owed)
    }

    pub fn new_ulid(&self, at: U) -> U {
        at / 1_000 * 1_000 + self.ops.len() as U % 1_000
    }

    fn commit(&mut self, node: usize, op: OpId, owed: bool) -> Done {
        let owed = owed && !self.nodes[node].kind.prunes_itself();
        let places: Vec<usize> = (0..self.op(op).recs.len()).collect();
        self.record(node, Taped::Wrote { op, owed });
        self.put(node, op, (self.op(op).action, &places), owed);
        Ok(())
    }

    pub fn record(&mut self, node: usize, taped: Taped) {
        if node == 0 {
            self.tape.push(taped);
        }
    }

    /// A row into a node's log, and its records into their tables.
    pub fn put(&mut self, node: usize, op: OpId, (action, places): (Action, &[usize]), owed: bool) {
        let of = self.ops[op as usize].clone();
        let Err(place) = self.nodes[node].place(of.u) else { return };
        self.nodes[node].log.insert(place, Row { u: of.u, op, owed, confirmed: 0 });
        for n in places {
            self.nodes[node].act(action, of.recs[*n], op);
        }
        self.came(node, op);
        self.ghost.note_applied(node, op, &of, places.len() == of.recs.len() && action == of.action);
    }

    /// The ghost remembers who had read past this row when it came.
    fn came(&mut self, node: usize, op: OpId) {
        let u = self.op(op).u;
        for reader in 0..self.nodes.len() {
            let ward = &self.nodes[reader].ward;
            let in_flight = ward.pulls[node].as_ref().map(|pull| {
                let last = pull.page.ops.iter().map(|op| self.ops[*op as usize].u).max();
                let scanned = pull.page.headers.last_scanned.map(|u| u.ms());
                let min = pull.page.headers.gap_min.map(|u| u.ms());
                last.max(scanned).max(min).unwrap_or(0)
            });
            if reader != node && ward.own[node].max(in_flight) >= Some(u) {
                self.ghost.late.push((reader, node, op));
            }
        }
        self.ghost.ever[node].push(op);
    }

    pub fn round(&mut self, node: usize, lie: u8) -> Done {
        for peer in 0..self.nodes.len() {
            self.sweep_start(node, peer, lie);
            self.sweep_end(node, peer, (lie % 16 == 9).then_some(usize::from(lie >> 4)))?;
        }
        if self.nodes[node].kind.is_ward() {
            self.discover(node);
            for peer in 0..self.nodes.len() {
                for _ in 0..4 {
                    self.pull_start(node, peer, lie)?;
                    if !self.pull_end(node, peer, None)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// A node asks; what is answered is on its way.
    fn sweep_start(&mut self, node: usize, peer: usize, lie: u8) {
        let it = &self.nodes[node];
        if node == peer
            || !self.is_registered(peer)
            || it.sweeps[peer].is_some()
            || (it.swept_at[peer] > 0 && self.now < it.swept_at[peer] + SWEEP_EVERY)
        {
            return;
        }
        let from = it.cells[peer];
        let after = match from {
            Cell::None | Cell::Empty => After::Nothing,
            Cell::At(u) => After::At(u),
            Cell::Garbage => After::Garbage,
        };
        self.nodes[node].swept_at[peer] = self.now;
        if matches!(after, After::Nothing) {
            self.ghost.first_contact(node, peer, self.now, &self.nodes[node].ward);
        }
        if let Some(page) = self.serve(peer, node, after, lie) {
            self.nodes[node].sweeps[peer] = Some(NodeSweep { began: self.now, from, page });
        }
    }

    /// What a node does with a page: all of it, and its cursor in any case.
    fn sweep_end(&mut self, node: usize, peer: usize, fails: Option<usize>) -> Done {
        let Some(sweep) = self.nodes[node].sweeps[peer].take() else { return Ok(()) };
        let mut cursor = sweep.from;
        self.from_peer = peer;
        for (n, op) in sweep.page.ops.iter().enumerate() {
            if fails == Some(n) {
                self.ghost.lost.push((node, peer, *op));
                continue;
            }
            self.node_applies(node, *op)?;
            cursor = Cell::At(self.op(*op).u);
        }
        if cursor == Cell::None {
            cursor = Cell::Empty;
        }
        self.set_cell(node, peer, cursor);
        Ok(())
    }

    pub fn set_cell(&mut self, node: usize, peer: usize, cell: Cell) {
        self.nodes[node].cells[peer] = cell;
        self.ghost.cell_set(node, peer, self.now, cell);
    }

    /// One op, as an unmodified node applies it; the guard stands before it.
    fn node_applies(&mut self, node: usize, op: OpId) -> Done {
        let of = self.ops[op as usize].clone();
        self.record(node, Taped::Swept { op });
        if self.nodes[node].has(of.u) {
            return Ok(());
        }
        if self.nodes[node].kind.has_guard() {
            let it = &self.nodes[node];
            let rule = !self.has(Bug::NoAppendOnlyRule);
            let acting = it.ward.acting(&of, |rec| it.record(rec) != 0, rule);
            let passes = self.has(Bug::GuardLetsCreatesPass) && of.action == Action::Create;
            if acting.is_some_and(|acting| acting.is_empty()) && !passes {
                return self.dismissed(node, op);
            }
            self.acts_again(node, op, "by the node, past the guard")?;
        }
        let places: Vec<usize> = (0..of.recs.len()).collect();
        self.put(node, op, (of.action, &places), false);
        Ok(())
    }

    /// What a peer answers; `None` is an error.
    pub fn serve(&mut self, peer: usize, by: usize, after: After, lie: u8) -> Option<Page> {
        if self.nodes[peer].kind.is_ward() {
            return self.ward_serves(peer, by, after);
        }
        let mut page = Page::default();
        let from = match after {
            After::Nothing => 0,
            After::At(u) => u + 1,
            // Sorts after all ULIDs.
            After::Garbage => U::MAX,
        };
        let log = &self.nodes[peer].log;
        let begin = log.partition_point(|row| row.u < from);
        let scanned = log[begin..].iter().take(self.page);
        page.ops.extend(scanned.map(|row| row.op).filter(|op| self.ops[*op as usize].served_by(peer)));
        match (self.nodes[peer].kind, after, log.first()) {
            (Kind::Newer, After::At(u), Some(first)) if u < first.u => {
                page.headers.gap = true;
                page.headers.gap_min = Some(ulid(first.u));
            }
            (Kind::Hostile, ..) => self.lie(peer, after, lie, &mut page),
            _ => {}
        }
        Some(page)
    }

    /// What is said that is not so.
    fn lie(&mut self, peer: usize, after: After, lie: u8, page: &mut Page) {
        let from = match after {
            After::At(u) if u < self.now + DAY => u,
            _ => self.now - 3 * DAY,
        };
        let some_hours = U::from(lie >> 3) * HOUR;
        let gap = |min: U| SweepHeaders { gap: true, gap_min: Some(ulid(min)), ..SweepHeaders::default() };
        match lie % 8 {
            // A minimum above ops that come; above all; 25 minutes ahead.
            0 => page.headers = gap((from + some_hours).min(self.now)),
            1 => (page.headers, page.ops) = (gap(self.now + 25 * MIN), Vec::new()),
            2 => (page.headers, page.ops) = (gap(self.now + 20 * HOUR), Vec::new()),
            3 => {
                page.ops.clear();
                page.headers.last_scanned = Some(ulid(self.now - some_hours));
            }
            4 => page.headers.last_scanned = Some(ulid(self.now + 20 * HOUR)),
            // An op ahead; one that cannot be; unsorted.
            5 => self.forge(peer, self.now + 20 * HOUR, page),
            6 => self.forge(peer, self.now + 900 * DAY, page),
            _ => page.ops.reverse(),
        }
    }

    fn forge(&mut self, peer: usize, at: U, page: &mut Page) {
        if self
            .ops
            .iter()
            .any(|op| op.u > self.now + HOUR && usize::from(op.writer) == peer && op.u / DAY == at / DAY)
        {
            return;
        }
        let u = self.new_ulid(at);
        page.ops.push(self.ops.len() as OpId);
        let recs = vec![peer as u16 * 4];
        self.ops.push(Op {
            u,
            writer: peer as u8,
            table: UPLOADS,
            action: Action::Update,
            recs,
            placed: 0xff,
        });
    }

    fn reset(&mut self, node: usize, peer: usize, how: u8) {
        if node == peer {
            return;
        }
        let cell = match how % 4 {
            0 | 1 => Cell::None,
            2 => Cell::Empty,
            _ => Cell::Garbage,
        };
        // An operator stops the node for it: nothing of its own is under way.
        self.nodes[node].sweeps[peer] = None;
        self.set_cell(node, peer, cell);
    }

    /// A newer node prunes; what it is owed it has none of.
    fn own_prune(&mut self, node: usize, age: U) {
        if !self.nodes[node].kind.prunes_itself() {
            return;
        }
        let below = self.clock(node) - age;
        let count = self.nodes[node].log.partition_point(|row| row.u < below);
        let gone: Vec<Row> = self.nodes[node].log.drain(..count).collect();
        for row in gone {
            self.ghost.gone[node].push((row.op, self.now));
            self.ghost.unlogged[node].push(row.op);
        }
    }

    fn crash(&mut self, node: usize, down: U) -> Done {
        let it = &mut self.nodes[node];
        it.sweeps = Default::default();
        it.ward.pulls = Default::default();
        if it.ward.down_until < self.now {
            it.ward.down_from = self.now;
        }
        it.ward.down_until = self.now + down;
        if self.bug == Some(Bug::FloorLostAtCrash) {
            it.ward.floors = Default::default();
        }
        Ok(())
    }

    /// Writes stop, and everybody sweeps until nothing is new.
    fn settle(&mut self) -> Done {
        if self.is_chain() {
            return self.pass(40 * DAY);
        }
        self.page = LAST_PAGES;
        self.pass(2 * HOUR)?;
        let cap = self.now - HOUR;
        for _ in 0..40 {
            let before = self.how_far(cap);
            self.pass(11 * MIN)?;
            for node in 0..self.nodes.len() {
                self.round(node, 7)?;
            }
            self.claims()?;
            if self.how_far(cap) == before {
                return self.agree();
            }
        }
        fail("everybody comes to an end", "40 rounds without writes were not enough".into())
    }

    pub fn uncommitted(&self, node: usize) -> impl Iterator<Item = OpId> {
        self.pending.iter().filter(move |p| p.1 == node).map(|p| p.2)
    }

    /// Logs, and cursors of honest peers; an op ahead of now moves cursors on
    /// for as long as it is.
    fn how_far(&self, cap: U) -> Vec<Far> {
        let honest = |p: &usize| self.nodes[*p].kind != Kind::Hostile;
        let capped = |cell: Cell| if let Cell::At(u) = cell { Cell::At(u.min(cap)) } else { cell };
        let of = |n: &Node| {
            let peers = (0..self.nodes.len()).filter(honest);
            (n.log.len(), peers.map(|p| (capped(n.cells[p]), n.ward.own[p].map(|u| u.min(cap)))).collect())
        };
        self.nodes.iter().map(of).collect()
    }
}
