//! What must hold, whatever happens. The ghost knows what no node knows; it
//! judges, and takes part in nothing.

use super::glue::{MARGIN, READER_HOLD, WINDOW};
use super::model::*;
use super::world::{Done, World};
use opsward::pull::sweep::SweepEnd;
use opsward::values::Blocker;
use opsward::values::NodeWrite;

/// A claim that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub claim: &'static str,
    pub what: String,
}

pub fn fail(claim: &'static str, what: String) -> Done {
    Err(Violation { claim, what })
}

/// How late an op is committed after its ULID was made, at most.
const LATE: U = MIN;

pub const FIRST_TIME: &str = "what a peer may deliver for the first time is not taken for known";
pub const AGAIN: &str = "what is known is not applied again";
pub const SILENT: &str = "no gap is silent";
pub const UNTRUE_GAP: &str = "a gap is counted only with a cursor, and where nothing came from it";
pub const CURSOR: &str = "no cursor passes what was not read";
pub const NODE_ROW: &str = "the node's row is neither lowered nor set against an operator";
pub const OWED: &str = "rows owed to the chain stay";
pub const YOUNG: &str = "floors stay 2 h behind";
pub const GATE: &str = "nothing above the gate is deleted";
pub const FOREIGN: &str = "floors follow only what somebody else pruned";
pub const WATERMARK: &str = "nothing lies below a watermark that was raised";
pub const HELD: &str = "only peers hold the log";
pub const LOST: &str = "no op is lost without a reason";
pub const AGREE: &str = "who applied the same ops in their order holds the same";

/// What went wrong with plain nodes alone, and how often.
#[derive(Clone, Copy, Default, Debug)]
pub struct Breakages {
    /// Ops that came to a peer after a reader had read past them.
    pub late: u32,
    /// Ops that failed, and were stepped over.
    pub stepped_over: u32,
    /// Ops that a peer had pruned before they were read.
    pub pruned: u32,
    /// Ops applied again over newer state.
    pub again: u32,
    /// Ops applied after newer ones of the same record.
    pub disorder: u32,
    /// Records that went back as a block was executed again.
    pub back: u32,
}

#[derive(Default)]
pub struct Ghost {
    applied: Vec<Vec<bool>>,
    /// What a node's log ever held.
    pub ever: Vec<Vec<OpId>>,
    /// What it holds no longer, and since when.
    pub gone: Vec<Vec<(OpId, U)>>,
    /// Of that, what the node pruned itself: no traces.
    pub unlogged: Vec<Vec<OpId>>,
    /// (reader, node, op): it came to the node after the reader had read past.
    pub late: Vec<(usize, usize, OpId)>,
    /// (reader, node, from, to, table): gaps that were counted.
    gaps: Vec<(usize, usize, U, U, Option<usize>)>,
    /// (reader, node, op): a gap that the node could not tell of.
    hidden: Vec<(usize, usize, OpId)>,
    /// (node, op): taken for known at the first time.
    pub dismissed: Vec<(usize, OpId)>,
    /// (node, peer, op): the node stepped over it.
    pub lost: Vec<(usize, usize, OpId)>,
    /// (node, peer, cursor): opsward began where the node was.
    pub seeded: Vec<(usize, usize, U)>,
    /// The floors when a peer was last read from its beginning, or not counted.
    floors_then: Vec<[[U; 3]; MOST]>,
    contact: Vec<[U; MOST]>,
    /// What each of the node's rows held, and since when.
    history: Vec<[Vec<(U, Cell)>; MOST]>,
    /// Who read, after what, when.
    pub readers: Vec<Vec<(usize, Option<U>, U)>>,
    /// The highest op applied to a record, and whether one came after a higher.
    pub order: Vec<Vec<(U, bool)>>,
    pub breakages: Breakages,
    /// (node, op): it came below the cut, and above the floor.
    pub between: Vec<(usize, OpId)>,
}

impl Ghost {
    pub fn new(count: usize) -> Self {
        Self {
            applied: vec![Vec::new(); count],
            ever: vec![Vec::new(); count],
            gone: vec![Vec::new(); count],
            unlogged: vec![Vec::new(); count],
            floors_then: vec![Default::default(); count],
            contact: vec![Default::default(); count],
            history: vec![Default::default(); count],
            readers: vec![Vec::new(); count],
            order: vec![Vec::new(); count],
            ..Self::default()
        }
    }

    pub fn has_applied(&self, node: usize, op: OpId) -> bool {
        self.applied[node].get(op as usize).copied().unwrap_or(false)
    }

    pub fn is_dismissed(&self, node: usize, op: OpId) -> bool {
        self.dismissed.contains(&(node, op))
    }

    fn is_late(&self, node: usize, peer: usize, op: OpId) -> bool {
        self.late.contains(&(node, peer, op))
    }

    pub fn note_applied(&mut self, node: usize, op: OpId, of: &Op, whole: bool) {
        let again = self.has_applied(node, op);
        let applied = &mut self.applied[node];
        if applied.len() <= op as usize {
            applied.resize(op as usize + 1, false);
        }
        applied[op as usize] = true;
        for rec in of.recs.iter().map(|rec| usize::from(*rec)) {
            let order = &mut self.order[node];
            if order.len() <= rec {
                order.resize(rec + 1, (0, false));
            }
            let (highest, disorder) = &mut order[rec];
            *disorder |= of.u < *highest || again || !whole;
            self.breakages.again += u32::from(again && of.u < *highest);
            self.breakages.disorder += u32::from(!again && of.u < *highest);
            *highest = of.u.max(*highest);
        }
    }

    fn in_order(&self, node: usize, rec: u16) -> bool {
        self.order[node].get(usize::from(rec)).is_none_or(|(_, disorder)| !disorder)
    }

    fn floors_are(&mut self, node: usize, peer: usize, ward: &Ward) {
        for (then, now) in self.floors_then[node][peer].iter_mut().zip(ward.floors) {
            *then = (*then).max(now.unwrap_or(0));
        }
    }

    /// A peer is about to be read from its beginning.
    pub fn first_contact(&mut self, node: usize, peer: usize, now: U, ward: &Ward) {
        self.contact[node][peer] = now;
        self.floors_are(node, peer, ward);
    }

    /// A peer that did not count does again.
    pub fn counts_again(&mut self, node: usize, peer: usize, ward: &Ward) {
        self.floors_are(node, peer, ward);
    }

    pub fn cell_set(&mut self, node: usize, peer: usize, now: U, cell: Cell) {
        let history = &mut self.history[node][peer];
        if history.len() > 12 {
            history.drain(..6);
        }
        history.push((now, cell));
    }

    /// What a row held within the last 30 minutes for 3 minutes at least, where opsward was there
    /// to look: it waits for nothing after a start.
    fn held(&self, node: usize, peer: usize, now: U, ward: &Ward) -> impl Iterator<Item = Cell> {
        let unseen = move |end: U| ward.down_from + 30 * MIN <= now && end <= ward.down_until;
        let of = &self.history[node][peer];
        let ends = of.iter().skip(1).map(|(at, _)| *at).chain([now]);
        let held = of
            .iter()
            .zip(ends)
            .filter(move |((since, _), end)| end + 30 * MIN > now && since + 3 * MIN <= *end)
            .filter(move |(_, end)| !unseen(*end));
        held.map(|((_, cell), _)| *cell)
    }
}

impl World {
    pub fn name(&self, op: OpId) -> String {
        let of = self.op(op);
        format!(
            "op {op} ({} {} {:?} of n{}, {})",
            of.action.word(),
            TABLES[usize::from(of.table)],
            of.recs,
            of.writer,
            self.when(of.u)
        )
    }

    pub fn when(&self, u: U) -> String {
        match u.checked_sub(START) {
            Some(ms) => format!("{:.2} h", ms as f64 / HOUR as f64),
            None => format!("-{:.2} h", (START - u) as f64 / HOUR as f64),
        }
    }

    /// An op was taken for known.
    pub fn dismissed(&mut self, node: usize, op: OpId) -> Done {
        let of = self.op(op);
        let table = usize::from(of.table);
        let ghost = &self.ghost;
        let peer = self.from_peer;
        let foreign = !ghost.unlogged[node].is_empty() && self.nodes[node].ward.foreign[table] > Some(of.u);
        let licensed = ghost.has_applied(node, op)
            || of.u < ghost.floors_then[node][peer][table]
            || foreign
            || ghost.is_late(node, peer, op)
            || self.nodes[peer].kind == Kind::Hostile
            || !self.nodes[node].ward.peers[peer].is_some_and(|row| self.counts(&row));
        if !licensed {
            return fail(
                FIRST_TIME,
                format!("n{node} took {} from n{peer} for a replay, and never had it", self.name(op)),
            );
        }
        if !ghost.has_applied(node, op) && !ghost.is_dismissed(node, op) {
            self.ghost.dismissed.push((node, op));
        }
        Ok(())
    }

    /// An op that is not in the log is about to act.
    pub fn acts_again(&self, node: usize, op: OpId, how: &str) -> Done {
        if self.ghost.has_applied(node, op) && !self.ghost.unlogged[node].contains(&op) {
            return fail(AGAIN, format!("n{node} applied {} again, {how}", self.name(op)));
        }
        Ok(())
    }

    /// Nothing of a page that was not applied lies at or below the stored cursor.
    pub fn unread(&self, node: usize, peer: usize, pull: &Pull, from: usize) -> Done {
        let own = self.nodes[node].ward.own[peer];
        for op in &pull.page.ops[from..] {
            if own != pull.asked && own >= Some(self.op(*op).u) && !self.ghost.has_applied(node, *op) {
                return fail(
                    CURSOR,
                    format!(
                        "n{node}'s own cursor for n{peer} lies at or above {}, not applied yet",
                        self.name(*op)
                    ),
                );
            }
        }
        Ok(())
    }

    pub fn cursor_written(
        &mut self,
        (node, peer): (usize, usize),
        pull: &Pull,
        (ended, to): (&SweepEnd, U),
        write: NodeWrite,
    ) -> Done {
        let now = self.clock(node);
        let found = self.nodes[node].cells[peer];
        let filled = pull.read.as_ref().is_some_and(|t| !t.is_empty());
        if (filled && !found.filled()) != (write == NodeWrite::Reset) {
            return fail(
                NODE_ROW,
                format!("n{node}: the row of n{peer} was removed by an operator, and is {write:?}"),
            );
        }
        if write == NodeWrite::Reset {
            return Ok(());
        }
        if write == NodeWrite::Set && found.usable(now) > Some(to) {
            return fail(
                NODE_ROW,
                format!("n{node}: the row of n{peer} goes back to {} from {found:?}", self.when(to)),
            );
        }
        if to + MIN > now && Some(to) != pull.asked {
            return fail(
                CURSOR,
                format!(
                    "n{node}'s cursor for n{peer} at {} is within a minute of {}",
                    self.when(to),
                    self.when(now)
                ),
            );
        }
        self.gaps_are_true((node, peer), pull, ended)?;
        if self.nodes[peer].kind == Kind::Hostile {
            return Ok(());
        }
        let behind = |u: U| Some(u) > pull.asked && u <= to;
        for row in self.nodes[peer].log.iter().filter(|row| behind(row.u) && plausible(row.u, now)) {
            let read = self.ghost.has_applied(node, row.op) || self.ghost.is_dismissed(node, row.op);
            if !read && self.op(row.op).served_by(peer) && !self.ghost.is_late(node, peer, row.op) {
                return fail(CURSOR, format!("n{node}'s cursor for n{peer} passes {}", self.name(row.op)));
            }
        }
        if pull.asked.is_none() {
            return Ok(());
        }
        let mut hidden = Vec::new();
        for (op, at) in &self.ghost.gone[peer] {
            let u = self.op(*op).u;
            let unread = behind(u)
                && *at <= pull.began
                && !self.nodes[peer].has(u)
                && self.op(*op).served_by(peer)
                && !self.ghost.has_applied(node, *op)
                && !self.ghost.is_dismissed(node, *op);
            if !unread || self.is_in_gap(node, peer, *op) {
                continue;
            }
            // Told of, and counted when the cursor is past all of it.
            if self.announced(pull, *op).is_some_and(|floor| floor > to) {
                hidden.push((node, peer, *op));
                continue;
            }
            if pull.hidden.contains(op) {
                hidden.push((node, peer, *op));
                continue;
            }
            return fail(
                SILENT,
                format!(
                    "n{node} read n{peer} from {} to {}: {} is gone there, and no gap was counted",
                    self.when(pull.asked.unwrap_or(0)),
                    self.when(to),
                    self.name(*op)
                ),
            );
        }
        self.ghost.hidden.extend(hidden);
        Ok(())
    }

    fn gaps_are_true(&mut self, (node, peer): (usize, usize), pull: &Pull, ended: &SweepEnd) -> Done {
        let now = self.clock(node);
        if let Some((from, min)) = ended.gap.map(|(from, min)| (from.ms(), min.ms())) {
            if pull.asked != Some(from) {
                return fail(
                    UNTRUE_GAP,
                    format!(
                        "n{node} counted a gap at n{peer} from {}, and had asked with {:?}",
                        self.when(from),
                        pull.asked
                    ),
                );
            }
            let came =
                pull.page.ops.iter().find(|op| self.op(**op).u < min && plausible(self.op(**op).u, now));
            if let Some(op) = came {
                return fail(
                    UNTRUE_GAP,
                    format!(
                        "n{node} counted a gap at n{peer} up to {}, and was sent {}",
                        self.when(min),
                        self.name(*op)
                    ),
                );
            }
            self.ghost.gaps.push((node, peer, from, min, None));
        }
        for (name, floor) in &ended.table_gaps {
            let table = TABLES.iter().position(|t| t == name);
            self.ghost.gaps.push((node, peer, 0, floor.ms(), table));
        }
        Ok(())
    }

    /// The floor of an op's table that came with a page, where it lies above.
    fn announced(&self, pull: &Pull, op: OpId) -> Option<U> {
        let of = self.op(op);
        let floors = pull.page.headers.table_floors.iter();
        let mut of_table = floors.filter(|(table, _)| table == TABLES[usize::from(of.table)]);
        of_table.next().map(|(_, floor)| floor.ms()).filter(|floor| *floor > of.u)
    }

    fn is_in_gap(&self, node: usize, peer: usize, op: OpId) -> bool {
        let of = self.op(op);
        self.ghost.gaps.iter().any(|(n, p, from, to, table)| {
            (*n, *p) == (node, peer)
                && (*from..*to).contains(&of.u)
                && table.is_none_or(|t| t == usize::from(of.table))
        })
    }

    /// What a node pruned itself is told of by its log's minimum alone, until
    /// an opsward beside it has seen it: a row that came in below hides it.
    pub fn is_hidden(&self, peer: usize, op: OpId) -> bool {
        let (of, it) = (self.op(op), &self.nodes[peer]);
        self.ghost.unlogged[peer].contains(&op)
            && it.log.first().is_some_and(|row| row.u < of.u)
            && it.ward.foreign[usize::from(of.table)] <= Some(of.u)
    }

    /// Something stands in the way of a task.
    pub fn skipped(&self, node: usize, _dormant: bool, blockers: &[Blocker]) -> Done {
        for blocker in blockers.iter().filter(|b| b.code == "peer_without_cursor") {
            let peer = HOSTS.iter().position(|host| host.as_str() == blocker.subject);
            if !peer.is_some_and(|p| {
                p != node && self.nodes[node].ward.peers[p].is_some_and(|row| self.counts(&row))
            }) {
                return fail(
                    HELD,
                    format!(
                        "n{node} deletes nothing because of {}, which is no peer that counts",
                        blocker.subject
                    ),
                );
            }
        }
        Ok(())
    }

    fn counts(&self, row: &PeerRow) -> bool {
        row.active || row.last_seen + 7 * DAY > self.now
    }

    /// How far anything may go, from what truly happened; `Err` says who blocks.
    fn allowed(&self, node: usize) -> Result<U, usize> {
        let (now, it) = (self.clock(node), &self.nodes[node]);
        let mut lowest = now - WINDOW;
        for (p, row) in it.ward.peers.iter().enumerate() {
            if !row.is_some_and(|row| self.counts(&row)) {
                continue;
            }
            let cells: Vec<Cell> =
                self.ghost.held(node, p, self.now, &it.ward).chain([it.cells[p]]).collect();
            if cells.contains(&Cell::Empty) || (it.cells[p] == Cell::None && it.ward.seen[p].filled()) {
                return Err(p);
            }
            let under_way = it.sweeps[p].iter().filter(|s| s.began + 3 * MIN <= self.now).map(|s| s.from);
            let cursor =
                cells.into_iter().chain(under_way).filter_map(|c| c.usable(now)).chain(it.ward.own[p]).min();
            lowest = lowest.min(cursor.ok_or(p)?.saturating_sub(MARGIN));
        }
        for (reader, after, at) in &self.ghost.readers[node] {
            let counts = it.ward.peers[*reader].is_some_and(|row| self.counts(&row));
            if let (true, Some(after)) =
                (counts && at + DAY >= self.now, after.filter(|a| plausible(*a, now)))
            {
                lowest = lowest.min(after.max(now - WINDOW - READER_HOLD));
            }
        }
        Ok(lowest)
    }

    /// A batch is about to be committed.
    pub fn about_to_delete(&self, node: usize, gone: &[Row], floors: &[Option<U>; 3]) -> Done {
        let it = &self.nodes[node];
        if gone.is_empty() && *floors == it.ward.floors {
            return Ok(());
        }
        if let Some(row) = gone.iter().find(|row| row.owed) {
            return fail(OWED, format!("n{node} deleted {}", self.name(row.op)));
        }
        if let Some(floor) = floors.iter().flatten().find(|f| **f + 2 * HOUR > self.clock(node)) {
            return fail(
                YOUNG,
                format!("n{node} raised a floor to {} at {}", self.when(*floor), self.when(self.clock(node))),
            );
        }
        if it.kind.is_chain() {
            return self.chain_allows(node, gone);
        }
        for (peer, row) in it.ward.peers.iter().enumerate() {
            if row.is_some_and(|row| self.counts(&row)) {
                self.still_to_come(node, peer, floors)?;
            }
        }
        match self.allowed(node) {
            _ if gone.is_empty() => Ok(()),
            Err(peer) => {
                fail(GATE, format!("n{node} deleted {}, and n{peer} has no cursor", self.name(gone[0].op)))
            }
            Ok(allowed) => match gone.iter().find(|row| row.u >= allowed) {
                Some(row) => {
                    fail(GATE, format!("n{node} deleted {} above {}", self.name(row.op), self.when(allowed)))
                }
                None => Ok(()),
            },
        }
    }

    /// Nothing of a peer that is still to come lies below the floors.
    fn still_to_come(&self, node: usize, peer: usize, floors: &[Option<U>; 3]) -> Done {
        let (now, it) = (self.clock(node), &self.nodes[node]);
        let under_way = it.sweeps[peer]
            .iter()
            .filter(|s| s.began + 3 * MIN <= self.now)
            .filter_map(|s| s.from.usable(now));
        let asked = it.ward.pulls[peer].iter().filter_map(|p| p.asked);
        let Some(low) =
            under_way.chain(asked).chain(it.cells[peer].usable(now)).chain(it.ward.own[peer]).min()
        else {
            return Ok(());
        };
        let there = self.nodes[peer].log.iter().map(|row| row.op).chain(self.uncommitted(peer));
        for op in there {
            let of = self.op(op);
            let t = usize::from(of.table);
            let raised = Some(of.u) >= it.ward.floors[t] && Some(of.u) < floors[t];
            if raised
                && of.u + LATE > low
                && !self.ghost.has_applied(node, op)
                && !self.ghost.is_dismissed(node, op)
            {
                return fail(
                    FIRST_TIME,
                    format!(
                        "n{node} raised a floor over {}, which n{peer} may still deliver (cursor {})",
                        self.name(op),
                        self.when(low)
                    ),
                );
            }
        }
        Ok(())
    }

    pub fn watermark_is_right(&self, node: usize, before: U) -> Done {
        let (now, it) = (self.clock(node), &self.nodes[node]);
        let lost =
            it.log.iter().find(|row| row.u >= before && row.u < it.ward.watermark && plausible(row.u, now));
        match lost {
            Some(row) => fail(
                WATERMARK,
                format!("n{node}: {} lies below {}", self.name(row.op), self.when(it.ward.watermark)),
            ),
            None => Ok(()),
        }
    }

    /// What is held after every step.
    pub fn claims(&self) -> Done {
        for (node, it) in self.nodes.iter().enumerate().filter(|(_, it)| it.kind.is_ward()) {
            for peer in 0..self.nodes.len() {
                if let Some(pull) = &it.ward.pulls[peer] {
                    self.unread(node, peer, pull, 0)?;
                }
            }
            if it.ward.foreign.iter().any(Option::is_some)
                && !it.kind.is_chain()
                && self.ghost.unlogged[node].is_empty()
            {
                return fail(FOREIGN, format!("n{node}'s floors rose, and nobody pruned"));
            }
        }
        Ok(())
    }

    /// Writes have stopped, and everybody has swept.
    pub fn agree(&mut self) -> Done {
        for node in 0..self.nodes.len() {
            for op in 0..self.ops.len() as OpId {
                if !self.ghost.has_applied(node, op) {
                    self.is_excused(node, op)?;
                }
            }
        }
        self.records_agree()
    }

    /// Why a node lacks an op: every honest peer that could have given it must
    /// have had a reason not to.
    fn is_excused(&mut self, node: usize, op: OpId) -> Done {
        let of = self.ops[op as usize].clone();
        let ward = self.nodes[node].kind.is_ward();
        if self.nodes[node].kind == Kind::Hostile || !plausible(of.u, self.clock(node)) {
            return Ok(());
        }
        if self.ghost.is_dismissed(node, op) {
            return Ok(());
        }
        for peer in (0..self.nodes.len()).filter(|p| *p != node) {
            let honest = self.nodes[peer].kind != Kind::Hostile && self.is_registered(peer);
            if !honest || !of.served_by(peer) || !self.ghost.ever[peer].contains(&op) {
                continue;
            }
            let ghost = &self.ghost;
            let gone = ghost.gone[peer].iter().filter(|g| g.0 == op).map(|g| g.1).min();
            // A page of a stock node that holds nothing for us is never passed;
            // a gap is counted when the cursor passes it.
            let ahead = self.nodes[node].ward.own[peer] < Some(of.u);
            let stuck = ahead && (!self.nodes[peer].kind.is_ward() || !self.nodes[peer].has(of.u));
            let before = gone.is_some_and(|at| at <= ghost.contact[node][peer]);
            let seeded = ghost.seeded.iter().any(|(n, p, u)| (*n, *p) == (node, peer) && *u >= of.u);
            let hidden = ghost.hidden.contains(&(node, peer, op));
            let excused = hidden
                || ghost.is_late(node, peer, op)
                || self.is_in_gap(node, peer, op)
                || before
                || stuck
                || seeded;
            if ward && !excused {
                return fail(LOST, format!("n{node} never got {} from n{peer}", self.name(op)));
            }
            if !ward {
                let b = &mut self.ghost.breakages;
                match self.ghost.lost.contains(&(node, peer, op)) {
                    true => b.stepped_over += 1,
                    false if gone.is_some() => b.pruned += 1,
                    false => b.late += 1,
                }
            }
        }
        Ok(())
    }

    /// Records of a single writer.
    fn records_agree(&self) -> Done {
        for writer in (0..self.nodes.len()).filter(|w| self.nodes[*w].kind != Kind::Hostile) {
            let uploads = (0..4).map(|k| writer as u16 * 4 + k);
            for rec in uploads.chain((0..2).map(|k| 60 + writer as u16 * 2 + k)) {
                let of: Vec<OpId> =
                    (0..self.ops.len() as OpId).filter(|op| self.op(*op).recs.contains(&rec)).collect();
                let whole = |node: usize| {
                    self.ghost.in_order(node, rec) && of.iter().all(|op| self.ghost.has_applied(node, *op))
                };
                if !whole(writer) {
                    continue;
                }
                for node in (0..self.nodes.len()).filter(|node| whole(*node)) {
                    let [here, there] = [node, writer].map(|n| self.nodes[n].record(rec));
                    if here != there {
                        return fail(
                            AGREE,
                            format!(
                                "record {rec} is by op {here} at n{node}, by op {there} at its writer n{writer} (from 1)"
                            ),
                        );
                    }
                }
            }
        }
        Ok(())
    }
}
