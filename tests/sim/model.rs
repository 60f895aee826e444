//! What there is in the model: ops, nodes, the state that opsward keeps beside
//! one, and what a replicated op does to records.

use opsward::bound::decide::ClockFact;
use opsward::pull::sweep::Sweep;
use opsward::values::{Action, Host, OpUlid, SweepHeaders};
use std::sync::LazyLock;

/// A ULID, as its millisecond: every op has one of its own.
pub type U = u64;
/// The number of an op in the world.
pub type OpId = u32;

pub const MIN: U = 60_000;
pub const HOUR: U = 60 * MIN;
pub const DAY: U = 24 * HOUR;
/// When a history begins, a whole second.
pub const START: U = 1_750_000_000_000;
/// Nodes at most.
pub const MOST: usize = 5;

/// One updated, one append-only, one that goes dormant.
pub const TABLES: [&str; 3] = ["uploads", "storage_and_db_sizes", "audio_previews"];
pub const UPLOADS: u8 = 0;
pub const SIZES: u8 = 1;
pub const PREVIEWS: u8 = 2;

pub static HOSTS: LazyLock<Vec<Host>> =
    LazyLock::new(|| (0..MOST).map(|n| Host::normalise(&format!("https://n{n}.example"))).collect());

/// An op's ULID as opsward's code has it.
pub fn ulid(u: U) -> OpUlid {
    OpUlid::from_parts(u, 1)
}

#[derive(Clone, Debug)]
pub struct Op {
    pub u: U,
    pub writer: u8,
    pub table: u8,
    pub action: Action,
    pub recs: Vec<u16>,
    /// Uploads are served by the nodes they name: a bit each.
    pub placed: u8,
}

impl Op {
    pub fn served_by(&self, node: usize) -> bool {
        self.table != UPLOADS || self.placed & (1 << node) != 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Plain,
    /// A newer node that prunes its own log, and signals gaps.
    Newer,
    /// With an opsward beside it.
    Ward {
        guard: bool,
    },
    /// With an opsward, and pruning by itself.
    NewerWard {
        guard: bool,
    },
    Hostile,
    /// Its ops come by the chain, and it prunes its own log.
    Chain,
    /// The same with an opsward, a day ahead of the node's pruner or behind it.
    ChainWard {
        guard: bool,
        ahead: bool,
    },
}

impl Kind {
    pub fn is_ward(self) -> bool {
        matches!(self, Self::Ward { .. } | Self::NewerWard { .. } | Self::ChainWard { .. })
    }
    pub fn has_guard(self) -> bool {
        matches!(
            self,
            Self::Ward { guard: true }
                | Self::NewerWard { guard: true }
                | Self::ChainWard { guard: true, .. }
        )
    }
    pub fn is_chain(self) -> bool {
        matches!(self, Self::Chain | Self::ChainWard { .. })
    }
    pub fn is_ahead(self) -> bool {
        matches!(self, Self::ChainWard { ahead: true, .. })
    }
    pub fn prunes_itself(self) -> bool {
        matches!(self, Self::Newer | Self::NewerWard { .. })
    }
}

/// A row of the node's `cursors`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cell {
    #[default]
    None,
    Empty,
    At(U),
    Garbage,
}

impl Cell {
    pub fn text(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Empty => Some(String::new()),
            Self::At(u) => Some(ulid(u).to_string()),
            Self::Garbage => Some("garbage".into()),
        }
    }
    pub fn filled(self) -> bool {
        matches!(self, Self::At(_) | Self::Garbage)
    }
    /// Its ULID where that is a plausible one.
    pub fn usable(self, now: U) -> Option<U> {
        match self {
            Self::At(u) if plausible(u, now) => Some(u),
            _ => None,
        }
    }
}

pub fn plausible(u: U, now: U) -> bool {
    opsward::values::is_plausible(ulid(u), now)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub u: U,
    pub op: OpId,
    /// Owed to the chain.
    pub owed: bool,
    /// When the chain had it; 0 for never.
    pub confirmed: U,
}

/// A page on its way.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub ops: Vec<OpId>,
    pub headers: SweepHeaders,
}

/// A sweep of the node's own that is under way.
#[derive(Clone, Debug)]
pub struct NodeSweep {
    pub began: U,
    pub from: Cell,
    pub page: Page,
}

/// A pull of opsward's that is under way.
#[derive(Clone, Debug)]
pub struct Pull {
    pub began: U,
    pub read: Option<String>,
    pub asked: Option<U>,
    pub sweep: Sweep,
    pub page: Page,
    /// What the peer had pruned, and could not tell of when it answered.
    pub hidden: Vec<OpId>,
}

#[derive(Clone, Copy, Debug)]
pub struct PeerRow {
    pub active: bool,
    pub first_seen: U,
    pub last_seen: U,
}

/// What opsward keeps in its schema, and what is only under way.
#[derive(Clone, Debug, Default)]
pub struct Ward {
    pub peers: [Option<PeerRow>; MOST],
    pub known: bool,
    pub own: [Option<U>; MOST],
    pub seen: [Cell; MOST],
    pub samples: Vec<(U, [Cell; MOST])>,
    pub offsets: [Option<ClockFact>; MOST],
    pub floors: [Option<U>; 3],
    pub foreign: [Option<U>; 3],
    /// By record, 0 for none.
    pub traces: Vec<U>,
    pub watermark: U,
    /// Who asked, in which hour, the lowest it asked with, when last.
    pub readers: Vec<(u8, U, Option<U>, U)>,
    pub look: Option<Look>,
    /// By table: rows and the newest.
    pub census: Option<[(u32, U); 3]>,
    pub counted_at: U,
    /// Not persisted.
    pub pulls: [Option<Pull>; MOST],
    /// Nobody looked from then until then.
    pub down_from: U,
    pub down_until: U,
    /// When it last deleted to the end of its work.
    pub ticked_at: U,
}

/// What the first node's database was asked to do, to be done to a real one.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "played in tests/it/sim.rs")]
pub enum Taped {
    /// A write of its own.
    Wrote { op: OpId, owed: bool },
    /// An op that the node applies.
    Swept { op: OpId },
    /// Ops that opsward applies.
    Pulled { ops: Vec<OpId> },
    /// A batch of a deletion, from a ULID on.
    Batch { from: U, cuts: [Option<U>; 3] },
    /// The chain has what it was owed.
    Confirmed,
    /// The chain has an op, since then.
    InBlock { op: OpId, at: U },
    /// The node's own pruner deleted below this.
    NodePruned { below: U },
    /// That was seen, and floors follow.
    SeenPruned { floor: U },
}

/// What a look for somebody else's pruning saw.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub witness: Option<(U, u8)>,
    pub newest: U,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    /// Its clock less the true one, in milliseconds.
    pub skew: i64,
    pub log: Vec<Row>,
    /// By record the op that made it what it is, from 1; 0 for none.
    pub records: Vec<u32>,
    pub cells: [Cell; MOST],
    pub sweeps: [Option<NodeSweep>; MOST],
    pub swept_at: [U; MOST],
    pub ward: Ward,
    /// Ops of the chain that it has executed, and until when it has read blocks.
    pub height: usize,
    pub read_at: U,
    pub stuck_until: U,
}

impl Node {
    pub fn new(kind: Kind, skew: i64) -> Self {
        Self {
            kind,
            skew,
            log: Vec::new(),
            records: Vec::new(),
            cells: Default::default(),
            sweeps: Default::default(),
            swept_at: [0; MOST],
            ward: Ward::default(),
            height: 0,
            read_at: START,
            stuck_until: 0,
        }
    }

    pub fn place(&self, u: U) -> Result<usize, usize> {
        self.log.binary_search_by_key(&u, |row| row.u)
    }

    pub fn has(&self, u: U) -> bool {
        self.place(u).is_ok()
    }

    pub fn record(&self, rec: u16) -> u32 {
        self.records.get(usize::from(rec)).copied().unwrap_or(0)
    }

    pub fn set(&mut self, rec: u16, value: u32) {
        let rec = usize::from(rec);
        if self.records.len() <= rec {
            self.records.resize(rec + 1, 0);
        }
        self.records[rec] = value;
    }

    /// What an op does to one of its records.
    pub fn act(&mut self, action: Action, rec: u16, op: OpId) {
        match action {
            Action::Create if self.record(rec) != 0 => {}
            Action::Create | Action::Update => self.set(rec, op + 1),
            Action::Delete => self.set(rec, 0),
        }
    }
}

impl Ward {
    pub fn trace(&self, rec: u16) -> U {
        self.traces.get(usize::from(rec)).copied().unwrap_or(0)
    }

    pub fn leave_trace(&mut self, rec: u16, u: U) {
        let rec = usize::from(rec);
        if self.traces.len() <= rec {
            self.traces.resize(rec + 1, 0);
        }
        self.traces[rec] = self.traces[rec].max(u);
    }

    /// The rule for an op that is not in the log, as `opsward.acting` has it:
    /// the places of the records that act, `None` for all of them.
    pub fn acting(&self, op: &Op, there: impl Fn(u16) -> bool, append_only: bool) -> Option<Vec<usize>> {
        let table = usize::from(op.table);
        let (ours, theirs) = (self.floors[table], self.foreign[table]);
        if Some(op.u) >= ours.max(theirs) {
            return None;
        }
        if op.table == SIZES && append_only && Some(op.u) < ours {
            return Some(Vec::new());
        }
        let acts = |rec: u16| {
            let settled = Some(op.u) < theirs && (op.action == Action::Delete || there(rec));
            self.trace(rec) < op.u && !settled
        };
        Some((0..op.recs.len()).filter(|n| acts(op.recs[*n])).collect())
    }
}
