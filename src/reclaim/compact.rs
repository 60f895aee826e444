//! Compaction's choice: which ops of the log no reader needs. Pure.
//!
//! The log is walked from its newest op to its oldest. An update or a delete
//! *covers* the records that it names, if apply accepts it: what it leaves does
//! not depend on what was there. An op is dropped only when each of its records
//! is covered by a later op that is forwarded wherever it is forwarded itself.
//!
//! Why nothing is lost, whatever a reader holds when it begins: of the covers
//! of a record that it will be sent, the last has none after it and is kept,
//! and so is every op of that record after it. Of a record without a cover
//! ahead every op is kept. So any part of the dropped ops may be deleted, and a
//! walk may begin or stop anywhere.

mod covers;
pub(super) mod walk;

use crate::records::{self, Model, Row, models};
use crate::values::{Action, Host, OpUlid, is_plausible, unix_ms};
use covers::Covers;
use jiff::Timestamp;
use memchr::memmem::Finder;
use sha2::{Digest, Sha256};

/// The table whose ops a node forwards only where their text names it.
const GOSSIPED: &str = "uploads";
/// The table whose ops every node skips.
const SKIPPED: &str = "blobs";

/// Ops of longer text are kept and cover nothing: read into memory, records of
/// nothing but their key take up to 80 times their text. An op has some 1 kB.
pub const LONGEST: usize = 256 * 1024;

/// What a compaction goes by; the same in each of its passes.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes that remembered keys may take, 18.3 a key. The records of one op
    /// come on top while it is judged: 21 MiB at worst.
    pub memory_bytes: usize,
    /// Self, as the gossip rule looks for it.
    pub self_host: Host,
    /// Ops from here on are kept. They cover older ones all the same.
    pub below: OpUlid,
    /// Now: ULIDs too far ahead of it are implausible.
    pub now: Timestamp,
}

/// Which share of the keys a walk over the log judges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pass {
    /// From 0, below `of`.
    pub number: u32,
    /// Passes in all, from [`passes`].
    pub of: u32,
}

/// Whether the chain still waits for an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chain {
    /// It has not got the op, or brought it too lately.
    Owed,
    /// Anything else, or no such column.
    Settled,
}

/// One row of the log; NULL is '' but for `data`.
#[derive(Clone, Copy, Debug)]
pub struct LogOp<'a> {
    /// Its key, as it is there.
    pub ulid: &'a str,
    /// What it does, as it is there.
    pub action: &'a str,
    /// The table of its records.
    pub table: &'a str,
    /// The text of its jsonb as the server prints it: the gossip rule reads it.
    pub data: Option<&'a str>,
    /// Whether it may be deleted at all.
    pub chain: Chain,
}

/// What becomes of an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It survives.
    Keep,
    /// No reader needs it.
    Drop,
    /// Another pass judges it.
    Elsewhere,
}

/// Who is sent an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// Readers that know no gossip rule.
    Few,
    /// All readers.
    All,
}

/// How many passes a log takes in which `keys` records have an update or a
/// delete, with a margin of a tenth for an estimate that was low.
pub fn passes(memory_bytes: usize, keys: u64) -> u32 {
    let needed = keys.saturating_add(keys / 10);
    u32::try_from(needed.div_ceil(Covers::room(memory_bytes) as u64)).unwrap_or(u32::MAX).max(1)
}

/// One walk over the log. Over all passes each op is judged `Keep` or `Drop`
/// exactly once. A part of the log that could not be dealt with is taken back;
/// what was remembered of the parts before it can be stored and recalled.
///
/// A record is known by the first 127 bits of the SHA-256 of its table and
/// key. An op would be lost if two keys shared them: for 20 million records
/// that has a probability of 1.2e-24, and nobody can make two that do.
pub struct Compactor {
    below: OpUlid,
    now: Timestamp,
    self_host: Finder<'static>,
    pass: Pass,
    covers: Covers,
    last: Option<OpUlid>,
    /// `last` when the part began.
    kept: Option<OpUlid>,
}

impl Compactor {
    /// Begins a pass.
    pub fn new(bounds: &Bounds, pass: Pass) -> Self {
        Self {
            below: bounds.below,
            now: bounds.now,
            self_host: Finder::new(bounds.self_host.as_str()).into_owned(),
            pass,
            covers: Covers::new(bounds.memory_bytes),
            last: None,
            kept: None,
        }
    }

    /// What was learned since the part began, 16 bytes a record.
    pub fn learned(&self) -> Vec<u8> {
        self.covers.fresh().flat_map(u128::to_be_bytes).collect()
    }

    /// Learns again what [`Compactor::learned`] told of a part before.
    pub fn recall(&mut self, learned: &[u8]) {
        let (covers, _) = learned.as_chunks();
        covers.iter().for_each(|cover| self.covers.recall(u128::from_be_bytes(*cover)));
        self.keep();
    }

    /// The part is dealt with: the next one begins.
    pub fn keep(&mut self) {
        self.covers.keep();
        self.kept = self.last;
    }

    /// The part is judged again.
    pub fn undo(&mut self) {
        self.covers.undo();
        self.last = self.kept;
    }

    /// Judges the next older op.
    pub fn judge(&mut self, op: &LogOp<'_>) -> Verdict {
        let (part, verdict) = self.weigh(op);
        if part == self.pass.number { verdict } else { Verdict::Elsewhere }
    }

    /// How often a cover found no place in memory: older ops of its record
    /// were kept, although they might have been dropped.
    pub fn unremembered(&self) -> u64 {
        self.covers.unremembered()
    }

    /// What becomes of an op, and in which pass. Ops without keys to go by are
    /// judged in the first.
    fn weigh(&mut self, op: &LogOp<'_>) -> (u32, Verdict) {
        let Some(ulid) = self.next_older(op.ulid) else { return (0, Verdict::Keep) };
        let droppable = ulid < self.below && op.chain == Chain::Settled;
        if op.table == SKIPPED {
            return (0, if droppable { Verdict::Drop } else { Verdict::Keep });
        }
        let Some(records) = self.accepted(op) else { return (0, Verdict::Keep) };
        let part = self.part(records.keys[0]);
        let mine: Vec<u128> =
            records.keys.iter().copied().filter(|key| self.part(*key) == self.pass.number).collect();

        // Of an op whose records lie in several parts no pass knows all covers.
        let whole = mine.len() == records.keys.len();
        let reach = self.reach(op);
        let covered = whole && mine.iter().all(|key| self.covers.has(*key, reach));
        if records.covering {
            mine.iter().for_each(|key| self.covers.add(*key, reach));
        }
        let needless = covered && records.action != Action::Delete;
        (part, if droppable && needless { Verdict::Drop } else { Verdict::Keep })
    }

    /// The ULID of an op, if it is plausible and older than all before it: an
    /// op that comes a second time must not find itself covered by itself.
    fn next_older(&mut self, text: &str) -> Option<OpUlid> {
        let now_ms = unix_ms(self.now);
        let ulid = OpUlid::parse(text).filter(|ulid| is_plausible(*ulid, now_ms))?;
        if self.last.is_some_and(|last| ulid >= last) {
            return None;
        }
        self.last = Some(ulid);
        self.last
    }

    /// The records of an op that apply accepts. Those of an append-only model
    /// are never written again: nothing covers them.
    fn accepted(&self, op: &LogOp<'_>) -> Option<Records> {
        let model = models().get(op.table).filter(|model| !model.append_only)?;
        let action = Action::parse(op.action)?;
        let data = op.data.filter(|data| data.len() <= LONGEST)?;
        let rows = records::convert(model, action, data, self.now).ok()?;
        // A node's database may refuse an update that fits its model.
        let covering = match action {
            Action::Create => false,
            Action::Update => !rows.iter().any(Row::may_be_refused),
            Action::Delete => true,
        };
        Some(Records { action, covering, keys: rows.iter().map(|row| hash(model, row)).collect() })
    }

    fn reach(&self, op: &LogOp<'_>) -> Reach {
        let named = || op.data.is_some_and(|data| self.self_host.find(data.as_bytes()).is_some());
        if op.table != GOSSIPED || named() { Reach::All } else { Reach::Few }
    }

    /// The pass that a key belongs to, by the low half of its hash.
    fn part(&self, key: u128) -> u32 {
        let low = u128::from(key as u64);
        ((low * u128::from(self.pass.of)) >> 64) as u32
    }
}

/// What an op does, its records as hashes of their keys; at least one.
struct Records {
    action: Action,
    covering: bool,
    keys: Vec<u128>,
}

/// The same in every run: a record stays in its pass when a compaction is
/// resumed. Texts hold no NUL, so no two keys are spelled alike.
fn hash(model: &Model, row: &Row) -> u128 {
    let mut sha = Sha256::new();
    sha.update(&model.table);
    for text in &row.key {
        sha.update([0]);
        sha.update(text);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&sha.finalize()[..16]);
    u128::from_be_bytes(first)
}

#[cfg(test)]
mod tests;
