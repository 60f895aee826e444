//! What opsward does: its pure code, and a few lines for what is SQL there.

use super::bug::Bug;
use super::model::*;
use super::world::{After, Done, World};
use jiff::civil::date;
use opsward::bound::decide::{self, ChainFact, ClockFact, Decision, Facts, PeerFact, ReaderFact};
use opsward::pull::decide as pulling;
use opsward::pull::sweep::Sweep;
use opsward::serve::decide as serving;
use opsward::settings::Bounding;
use opsward::values::{Action, Host, NodeWrite, OpUlid, Replication, StoredCursors, TableDay};
use std::collections::BTreeMap;
use std::time::Duration;

/// Rows that a batch covers.
pub const BATCH: usize = 6;
pub const WINDOW: U = DAY;
pub const MARGIN: U = HOUR;
pub const READER_HOLD: U = 2 * DAY;

impl World {
    pub fn discover(&mut self, node: usize) {
        let (now, registered) = (self.now, self.registered);
        for peer in (0..self.nodes.len()).filter(|p| *p != node) {
            let active = registered & (1 << peer) != 0;
            let was = self.nodes[node].ward.peers[peer];
            let row = match was {
                None if active => PeerRow { active, first_seen: now, last_seen: now },
                None => continue,
                Some(was) => PeerRow {
                    active,
                    last_seen: if active || was.active { now } else { was.last_seen },
                    ..was
                },
            };
            let counted = was.is_some_and(|was| was.active || was.last_seen + 7 * DAY > now);
            if !counted {
                self.ghost.counts_again(node, peer, &self.nodes[node].ward);
            }
            self.nodes[node].ward.peers[peer] = Some(row);
        }
        self.nodes[node].ward.known = true;
    }

    fn is_down(&self, node: usize) -> bool {
        !self.nodes[node].kind.is_ward() || self.now < self.nodes[node].ward.down_until
    }

    pub fn pull_start(&mut self, node: usize, peer: usize, lie: u8) -> Done {
        let ward = &self.nodes[node].ward;
        let active = ward.peers[peer].is_some_and(|p| p.active);
        if node == peer || self.is_down(node) || !active || ward.pulls[peer].is_some() {
            return Ok(());
        }
        let now = self.clock(node);
        let cell = self.nodes[node].cells[peer];
        let stored = StoredCursors {
            own: ward.own[peer].map(|u| ulid(u).to_string()),
            node_seen: ward.seen[peer].text(),
            node: cell.text(),
            ignored: Vec::new(),
        };
        let start = pulling::start(&stored, now);
        if start.reset {
            self.nodes[node].ward.own[peer] = None;
        }
        let asked = start.cursor.map(|c| c.ms());
        if let (None, Some(u)) = (&stored.own, asked) {
            let ward = &mut self.nodes[node].ward;
            (ward.own[peer], ward.seen[peer]) = (Some(u), cell);
            self.ghost.seeded.push((node, peer, u));
        }
        if asked.is_none() {
            self.ghost.first_contact(node, peer, self.now, &self.nodes[node].ward);
        }
        let Some(mut page) = self.serve(peer, node, asked.map_or(After::Nothing, After::At), lie) else {
            return Ok(());
        };
        if self.has(Bug::LastScannedBelowOps) && page.headers.last_scanned.is_some() {
            // The header as a cursor before anything of the page is.
            page.headers.last_scanned = Some(ulid(now - MIN));
        }
        let mut cursor = start.cursor;
        if self.has(Bug::GapWithoutCursor) && page.headers.gap {
            cursor = cursor.or(OpUlid::parse(opsward::values::EARLIEST_ULID));
        }
        self.nodes[node].ward.offsets[peer] = Some(ClockFact {
            offset_ms: self.nodes[peer].skew - self.nodes[node].skew,
            found_ms: self.clock(node),
        });
        let sweep = Sweep::answered(cursor, page.headers.clone(), now);
        let read = if start.reset { None } else { stored.node };
        if self.has(Bug::CursorWrittenFirst)
            && let Some(last) = page.ops.last()
        {
            self.nodes[node].ward.own[peer] = Some(self.op(*last).u.min(now - MIN)).max(asked);
        }
        let gone = self.ghost.gone[peer].iter().map(|(op, _)| *op);
        let hidden = gone.filter(|op| self.is_hidden(peer, *op)).collect();
        self.nodes[node].ward.pulls[peer] = Some(Pull { began: self.now, read, asked, sweep, page, hidden });
        Ok(())
    }

    /// Whether the next page should follow at once.
    pub fn pull_end(
        &mut self,
        node: usize,
        peer: usize,
        killed: Option<usize>,
    ) -> Result<bool, super::claims::Violation> {
        let Some(mut pull) = self.nodes[node].ward.pulls[peer].take() else { return Ok(false) };
        let now = self.clock(node);
        self.from_peer = peer;
        for (n, op) in pull.page.ops.iter().enumerate() {
            if killed == Some(n) {
                self.nodes[node].ward.pulls = Default::default();
                self.unread(node, peer, &pull, n)?;
                return Ok(false);
            }
            let u = self.op(*op).u;
            if !plausible(u, now) {
                continue;
            }
            if !self.has(Bug::GapDespiteOpsBelow) {
                pull.sweep.received(ulid(u));
            }
            self.ward_applies(node, *op)?;
            pull.sweep.settled(ulid(u));
        }
        if killed.is_some() {
            return Ok(false);
        }
        let ended = pull.sweep.clone().ended();
        let mut to = ended.cursor;
        if self.has(Bug::OwnCursorUncapped) {
            let last = pull.page.ops.iter().map(|op| self.op(*op).u).filter(|u| plausible(*u, now)).max();
            to = to.max(last.map(ulid));
        }
        let Some(to) = to else { return Ok(false) };
        let found = self.nodes[node].cells[peer];
        let write = pulling::node_write(pull.read.as_deref(), found.text().as_deref(), to, now);
        let write = match write {
            NodeWrite::Reset if self.has(Bug::ResetOverwritten) => NodeWrite::Set,
            NodeWrite::Leave if self.has(Bug::NodeRowLowered) => NodeWrite::Set,
            write => write,
        };
        self.cursor_written((node, peer), &pull, (&ended, to.ms()), write)?;
        match write {
            NodeWrite::Reset => {
                self.nodes[node].ward.own[peer] = None;
                return Ok(false);
            }
            NodeWrite::Set => self.set_cell(node, peer, Cell::At(to.ms())),
            NodeWrite::Leave => {}
        }
        let seen = self.nodes[node].cells[peer];
        let ward = &mut self.nodes[node].ward;
        (ward.own[peer], ward.seen[peer]) = (Some(to.ms()), seen);
        Ok(ended.more)
    }

    /// One op, as opsward applies it.
    fn ward_applies(&mut self, node: usize, op: OpId) -> Done {
        let of = self.ops[op as usize].clone();
        match self.tape.last_mut() {
            Some(Taped::Pulled { ops }) if node == 0 => ops.push(op),
            _ => self.record(node, Taped::Pulled { ops: vec![op] }),
        }
        let it = &self.nodes[node];
        if it.has(of.u) {
            return Ok(());
        }
        let acting = it.ward.acting(&of, |rec| it.record(rec) != 0, !self.has(Bug::NoAppendOnlyRule));
        let (mut action, mut places) = (of.action, (0..of.recs.len()).collect::<Vec<_>>());
        if let Some(acting) = acting {
            if acting.is_empty() && !self.has(Bug::ReplayBecomesRow) {
                return self.dismissed(node, op);
            }
            if Some(of.u) < it.ward.foreign[usize::from(of.table)] {
                action = Action::Create;
            }
            places = acting;
        }
        self.acts_again(node, op, "by opsward")?;
        self.put(node, op, (action, &places), false);
        let ward = &mut self.nodes[node].ward;
        ward.watermark = ward.watermark.min(of.u);
        Ok(())
    }

    pub fn ward_serves(&mut self, peer: usize, by: usize, after: After) -> Option<Page> {
        if self.is_down(peer) {
            return None;
        }
        let after = match after {
            After::Nothing => None,
            After::At(u) => Some(u),
            After::Garbage => return None,
        };
        let now = self.clock(peer);
        let ward = &mut self.nodes[peer].ward;
        if ward.peers[by].is_some_and(|p| p.active) {
            let hour = now / HOUR;
            match ward.readers.iter_mut().find(|r| (usize::from(r.0), r.1) == (by, hour)) {
                Some(row) => {
                    row.2 = row.2.into_iter().chain(after).min();
                    row.3 = now;
                }
                None => ward.readers.push((by as u8, hour, after, now)),
            }
        }
        if ward.peers[by].is_some_and(|p| p.active) {
            self.ghost.readers[peer].push((by, after, self.now));
        }
        let it = &self.nodes[peer];
        let mut page = Page::default();
        let begin = it.log.partition_point(|row| after.is_some_and(|a| row.u <= a));
        let mut scanned = 0;
        for row in &it.log[begin..] {
            if scanned > 0 && scanned % self.page == 0 && !page.ops.is_empty() {
                page.headers.limited = true;
                break;
            }
            scanned += 1;
            page.headers.last_scanned = Some(ulid(row.u));
            if self.ops[row.op as usize].served_by(peer) {
                page.ops.push(row.op);
            }
        }
        if let Some(after) = after {
            let is_there = |row: &&Row| plausible(row.u, now);
            let minimum =
                it.log.iter().filter(is_there).find(|row| row.u >= it.ward.watermark).map(|r| ulid(r.u));
            let first = it.log[begin..][..scanned].iter().find(is_there).map(|row| ulid(row.u));
            let gap = serving::gap(Some(ulid(after)), serving::minimum(minimum, first));
            (page.headers.gap, page.headers.gap_min) = (gap.is_some(), gap);
            let floors = (0..3).filter_map(|t| Some((t, it.ward.floors[t].max(it.ward.foreign[t])?)));
            let above = floors.filter(|(_, f)| *f > after && !self.has(Bug::TableFloorsNotServed));
            page.headers.table_floors =
                above.map(|(t, f)| (TABLES[t].to_owned(), OpUlid::first_of_ms(f))).collect();
        }
        Some(page)
    }

    pub fn census(&mut self, node: usize) {
        let now = self.clock(node);
        let mut tables = [(0, 0); 3];
        for row in self.nodes[node].log.iter().filter(|row| plausible(row.u, now)) {
            let of = &mut tables[usize::from(self.ops[row.op as usize].table)];
            *of = (of.0 + 1, of.1.max(row.u));
        }
        (self.nodes[node].ward.census, self.nodes[node].ward.counted_at) = (Some(tables), now);
    }

    pub fn facts(&self, node: usize) -> Facts {
        let now = self.clock(node);
        let it = &self.nodes[node];
        let ward = &it.ward;
        let looks = ward
            .samples
            .iter()
            .map(|(at, _)| at + 30 * MIN)
            .filter(|at| *at <= self.now && at + 30 * MIN >= self.now);
        let since = looks.max().unwrap_or(self.now).saturating_sub(30 * MIN).min(self.now - 30 * MIN);
        let samples: Vec<&[Cell; MOST]> =
            ward.samples.iter().filter(|(at, _)| *at >= since).map(|s| &s.1).collect();
        let counts = |p: &PeerRow| {
            p.active || (p.last_seen + 7 * DAY > self.now && !self.has(Bug::DepartedPeerDropped))
        };
        let mut peers = Vec::new();
        for (p, row) in ward.peers.iter().enumerate().filter_map(|(p, row)| Some((p, row.filter(counts)?))) {
            let sampled = samples
                .iter()
                .map(|cells| cells[p])
                .filter(|c| *c != Cell::None && !self.has(Bug::NoSamples));
            let before: Vec<String> = sampled.filter_map(Cell::text).collect();
            let cell = it.cells[p];
            peers.push(PeerFact {
                host: HOSTS[p].clone(),
                first_seen_ms: row.first_seen,
                removed_ms: (!row.active).then_some(row.last_seen),
                own: ward.own[p].map(|u| ulid(u).to_string()),
                reset: cell == Cell::None && (ward.seen[p].filled() || !before.is_empty()),
                node: cell.text().into_iter().chain(before).collect(),
                empty_since_ms: None,
                clock: ward.offsets[p].filter(|_| row.active),
            });
        }
        if self.has(Bug::NonPeerCounted) {
            peers.push(PeerFact {
                host: Host::normalise("core_mediorum_blocks"),
                first_seen_ms: START,
                removed_ms: None,
                own: None,
                node: vec!["1234567".into()],
                reset: false,
                empty_since_ms: None,
                clock: None,
            });
        }
        let mut readers: BTreeMap<u8, Option<U>> = BTreeMap::new();
        for (host, _, lowest, _) in ward.readers.iter().filter(|r| r.3 + DAY >= now) {
            let of = readers.entry(*host).or_default();
            *of = of.iter().chain(lowest).min().copied();
        }
        let reader = |(host, lowest): (u8, Option<U>)| ReaderFact {
            host: HOSTS[usize::from(host)].clone(),
            lowest: lowest.map(ulid),
        };
        let day = |(table, (rows, newest)): (usize, &(u32, U))| TableDay {
            table: TABLES[table].into(),
            day: date(2026, 9, 21),
            rows: u64::from(*rows),
            bytes: 0,
            owed: 0,
            oldest: None,
            newest: (*newest > 0).then(|| ulid(*newest)),
            estimated: false,
        };
        let margin = if self.has(Bug::GateWithoutMargin) { 0 } else { MARGIN };
        let mut facts = Facts {
            settings: Bounding {
                retention_days: 1,
                cursor_margin: Duration::from_millis(margin),
                reader_hold: Duration::from_millis(READER_HOLD),
                dormant_cleanup: true,
                dormant_threshold: Duration::from_millis(DAY),
                ..Bounding::default()
            },
            now_ms: now,
            own: HOSTS[node].clone(),
            replication: Replication::Peers,
            chain: ChainFact::default(),
            guarded: false,
            peers: ward.known.then_some(peers),
            ignored_rows: Vec::new(),
            pulled_every: Duration::from_secs(600),
            readers: if self.has(Bug::ReaderIgnored) {
                Vec::new()
            } else {
                readers.into_iter().map(reader).collect()
            },
            own_ahead: None,
            census: ward.census.iter().flat_map(|c| c.iter().enumerate().map(day)).collect(),
            census_whole: ward.census.is_some(),
            census_ms: ward.counted_at,
            overhead: 1.0,
            reclaim: None,
            disordered: None,
            since: BTreeMap::new(),
        };
        if it.kind.is_chain() {
            self.chain_facts(node, &mut facts);
        }
        facts
    }

    pub fn prune(&mut self, node: usize, dormant: bool, (batches, locked): (u8, Option<u8>)) -> Done {
        if self.is_down(node) {
            return Ok(());
        }
        let facts = self.facts(node);
        let decision = if dormant { decide::dormant(&facts) } else { decide::retention(&facts) };
        let now = self.clock(node);
        let mut cuts = [None; 3];
        match decision {
            Decision::Skip { blockers } => return self.skipped(node, dormant, &blockers),
            Decision::Prune { cuts: found } => {
                for bounded in found {
                    let table = TABLES.iter().position(|t| *t == bounded.cut.table);
                    let mut below = bounded.cut.below.ms();
                    if self.has(Bug::FloorAboveTwoHours) || (dormant && self.has(Bug::DormantWithoutCutoff)) {
                        below = now;
                    }
                    if let Some(table) = table {
                        cuts[table] = Some(below);
                    }
                }
            }
        }
        if dormant && !self.has(Bug::DormantWithoutCutoff) {
            let silent = now - DAY;
            for row in self.nodes[node].log.iter().filter(|r| r.u >= silent && plausible(r.u, now)) {
                cuts[usize::from(self.ops[row.op as usize].table)] = None;
            }
        }
        // A batch covers nothing above the cuts, and so the watermark stays below them.
        let until = cuts.iter().flatten().max().copied();
        let mut from = 0;
        for _ in 0..batches {
            let covered = |row: &&Row| row.u >= from && Some(row.u) < until;
            let page: Vec<Row> = self.nodes[node].log.iter().filter(covered).take(BATCH).copied().collect();
            let Some(last) = page.last() else { break };
            self.record(node, Taped::Batch { from, cuts });
            self.batch(node, &page, &cuts, locked)?;
            if self.has(Bug::FloorAboveTwoHours) {
                break;
            }
            from = last.u + 1;
        }
        if batches == u8::MAX {
            self.nodes[node].ward.ticked_at = self.now;
        }
        Ok(())
    }

    /// One transaction.
    fn batch(&mut self, node: usize, page: &[Row], cuts: &[Option<U>; 3], locked: Option<u8>) -> Done {
        let now = self.clock(node);
        let table = |row: &Row| usize::from(self.ops[row.op as usize].table);
        let is_locked = |row: &Row| locked.is_some_and(|l| row.op % 20 == u32::from(l));
        let goes = |row: &&Row| {
            Some(row.u) < cuts[table(row)]
                && plausible(row.u, now)
                && (!row.owed || self.has(Bug::OwedDeleted))
                && (Some(row.confirmed) < cuts[table(row)] || self.has(Bug::ByBirthAlone))
                && !is_locked(row)
        };
        let gone: Vec<Row> = page.iter().filter(goes).copied().collect();
        // What stays below the cut is remembered, too: the node's own pruner
        // spares nothing.
        let stays = |row: &&Row| {
            Some(row.u) < cuts[table(row)] && plausible(row.u, now) && !is_locked(row) && !gone.contains(row)
        };
        let stays: Vec<Row> = match self.has(Bug::StaysForgotten) {
            true => Vec::new(),
            false => page.iter().filter(stays).copied().collect(),
        };
        let mut floors = self.nodes[node].ward.floors;
        for row in gone.iter().chain(&stays) {
            let t = table(row);
            // As low as it may be: the millisecond after the highest that went.
            floors[t] = floors[t].max(cuts[t].map(|cut| cut.min(row.u + 1)));
        }
        self.about_to_delete(node, &gone, &floors)?;
        let end = page.last().map_or(0, |row| row.u + 1);
        let left = page.iter().find(|row| !gone.contains(row));
        let mark = match left {
            Some(row) if is_locked(row) && self.has(Bug::WatermarkPassesSkipped) => end,
            Some(row) => row.u,
            None => end,
        };
        self.nodes[node].log.retain(|row| !gone.contains(row));
        let before = self.nodes[node].ward.watermark;
        let begins = page.first().map_or(0, |row| row.u);
        if self.nodes[node].log.first().is_none_or(|row| row.u >= begins)
            || self.has(Bug::WatermarkPassesSkipped)
        {
            let ward = &mut self.nodes[node].ward;
            ward.watermark = ward.watermark.max(mark);
        }
        for row in gone.iter().chain(&stays) {
            let op = self.ops[row.op as usize].clone();
            let traced =
                op.table != SIZES && (!self.has(Bug::TracesOfUpdatesOnly) || op.action != Action::Create);
            let most = if self.has(Bug::TraceOfFirstRecordOnly) { 1 } else { usize::MAX };
            for rec in op.recs.iter().take(most).filter(|_| traced) {
                self.nodes[node].ward.leave_trace(*rec, op.u);
            }
        }
        self.ghost.gone[node].extend(gone.iter().map(|row| (row.op, self.now)));
        self.nodes[node].ward.floors = floors;
        self.watermark_is_right(node, before)
    }

    /// Floors follow what somebody else pruned.
    pub fn observe(&mut self, node: usize) {
        if self.is_down(node) {
            return;
        }
        let now = self.clock(node);
        let it = &mut self.nodes[node];
        let rows: Vec<Row> = it.log.iter().filter(|row| plausible(row.u, now)).copied().collect();
        let ward = &mut it.ward;
        let Some((first, last)) = rows.first().zip(rows.last()) else {
            ward.look = None;
            return;
        };
        if first.u < ward.watermark {
            ward.watermark = first.u;
        }
        let table = |row: &Row| self.ops[row.op as usize].table;
        let deleted = |t: u8| ward.floors[usize::from(t)].max(ward.foreign[usize::from(t)]);
        let witness = rows.iter().find(|row| Some(row.u) >= deleted(table(row)));
        let witness = witness.map(|row| (row.u, table(row)));
        let before = ward.look.replace(Look { witness, newest: last.u });
        let pruned = match before {
            None => self.bug == Some(Bug::FloorFromFirstLook),
            Some(before) => {
                let is_there = |u: U| rows.iter().any(|row| row.u == u);
                let ours = |(u, t): (U, u8)| is_there(u) || ward.floors[usize::from(t)] > Some(u);
                is_there(before.newest)
                    && last.u >= before.newest
                    && before.witness.is_some_and(|w| !ours(w) && first.u > w.0)
            }
        };
        if pruned {
            let floor = first.u.min(now - 2 * HOUR);
            ward.foreign.iter_mut().for_each(|f| *f = (*f).max(Some(floor)));
            self.record(node, Taped::SeenPruned { floor });
        }
    }
}
