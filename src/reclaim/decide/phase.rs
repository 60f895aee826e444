//! The phases of a reclaim, in either mode: their order, and how long each takes.

use super::{Mode, Survivors};
use crate::values::words;

words! {
    /// Where a reclaim is. The order of each mode is [`Phase::next`]'s.
    pub enum Phase {
        /// Swap: the new table is made, empty.
        Prepare = "prepare",
        /// Swap: from here on every write to the log is noted.
        Capture = "capture",
        /// Swap: compaction judges the log.
        Judge = "judge",
        /// Swap: survivors are copied.
        Copy = "copy",
        /// Swap: what was written meanwhile is copied again.
        Replay = "replay",
        /// Swap: the planner is told of the new table.
        Analyze = "analyze",
        /// Swap: both tables are compared.
        Verify = "verify",
        /// Swap: the new table takes the place of the old one.
        Swap = "swap",
        /// Swap: the old table is dropped.
        Drop = "drop",
        /// In place: what lies below the cuts is deleted.
        Delete = "delete",
        /// In place: compaction judges the log, and what nobody needs is deleted.
        Compact = "compact",
        /// In place: the space of deleted rows becomes free inside the table.
        Vacuum = "vacuum",
        /// In place: what is stored out of line moves to the front of its table.
        Rewrite = "rewrite",
        /// In place: rows of the last pages move to the front.
        Move = "move",
        /// In place: the empty end is cut off.
        Truncate = "truncate",
        /// In place: the index is written anew.
        Reindex = "reindex",
        /// All is done.
        Done = "done",
    }
}

impl Phase {
    /// The first phase of a mode.
    pub fn first(mode: Mode) -> Self {
        match mode {
            Mode::Swap => Self::Prepare,
            Mode::InPlace => Self::Delete,
        }
    }

    /// The phase that follows.
    pub fn next(self, survivors: &Survivors) -> Self {
        match self {
            Self::Prepare => Self::Capture,
            Self::Capture if survivors.compact.is_empty() => Self::Copy,
            Self::Capture => Self::Judge,
            Self::Judge => Self::Copy,
            Self::Copy => Self::Replay,
            Self::Replay => Self::Analyze,
            Self::Analyze => Self::Verify,
            Self::Verify => Self::Swap,
            Self::Swap => Self::Drop,
            Self::Delete if !survivors.compact.is_empty() => Self::Compact,
            Self::Delete | Self::Compact => Self::Vacuum,
            Self::Vacuum => Self::Rewrite,
            Self::Rewrite => Self::Move,
            Self::Move => Self::Truncate,
            Self::Truncate => Self::Reindex,
            Self::Drop | Self::Reindex | Self::Done => Self::Done,
        }
    }

    /// Whether it goes on although little disk is free: it gives disk back, leads
    /// straight to what does, or looks itself for what it needs.
    pub fn frees(self) -> bool {
        self.is_copied() || matches!(self, Self::Vacuum | Self::Truncate | Self::Reindex)
    }

    /// Swap: whether the copy is whole, so that the swap is all that is left to do.
    pub fn is_copied(self) -> bool {
        matches!(self, Self::Replay | Self::Analyze | Self::Verify | Self::Swap | Self::Drop)
    }

    /// Whether ops are still to be lost: the gate has to agree.
    pub fn is_open(self) -> bool {
        self.follows() || matches!(self, Self::Prepare | Self::Capture | Self::Delete | Self::Compact)
    }

    /// Whether the new table stands beside the log and follows it.
    pub fn follows(self) -> bool {
        matches!(self, Self::Judge | Self::Copy | Self::Replay | Self::Analyze | Self::Verify | Self::Swap)
    }

    /// Its part of a reclaim's time, by seconds of one of 20 million ops, three quarters of which
    /// went; compaction takes about as long as what it is done for.
    fn weight(self) -> f64 {
        match self {
            Self::Copy => 68.0,
            Self::Verify => 22.0,
            Self::Analyze => 5.5,
            Self::Drop => 4.0,
            Self::Judge | Self::Compact => 100.0,
            Self::Delete => 75.0,
            Self::Vacuum => 38.0,
            Self::Rewrite => 10.0,
            Self::Move => 71.0,
            Self::Truncate => 67.0,
            Self::Reindex => 8.0,
            Self::Prepare | Self::Capture | Self::Replay | Self::Swap => 0.5,
            Self::Done => 0.0,
        }
    }

    /// What is left to do from a phase on, `share` of which is done; in [`Phase::weight`]'s unit.
    pub fn left(self, share: f64, survivors: &Survivors) -> f64 {
        let (mut left, mut phase) = (self.weight() * (1.0 - share.clamp(0.0, 1.0)), self);
        while phase != Self::Done {
            phase = phase.next(survivors);
            left += phase.weight();
        }
        left
    }

    /// What it counts; `None` where there is nothing to count.
    pub fn unit(self) -> Option<&'static str> {
        match self {
            Self::Judge | Self::Copy | Self::Verify | Self::Delete | Self::Compact | Self::Rewrite => {
                Some("rows")
            }
            Self::Move => Some("pages"),
            _ => None,
        }
    }
}
