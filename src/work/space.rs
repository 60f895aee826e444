//! Free space on every volume that bulk work writes to. Before each batch, the space that the
//! batch may need is compared with what is free.

use crate::db::pace::Signs;
use crate::db::stats::Volumes;
use std::time::Duration;

/// A CHECKPOINT is asked for when WAL since the last one passes this part of
/// the free space (contract 5: a quarter; without, a full volume fills up).
const WAL_PART: u64 = 4;
/// WAL below this is not worth a checkpoint: one segment of it.
const LEAST_WAL: u64 = 16 << 20;
/// This much stays free whatever is set: the server creates WAL in segments of 16 MiB and
/// crashes when it cannot (seen on a full volume).
pub const WAL_SEGMENT: u64 = 16 << 20;
/// Before work stops for lack of disk, even this little WAL is worth a checkpoint.
pub(super) const LAST_WAL: u64 = 1 << 20;
/// How often the signs are read: batches may be shorter.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// With less free than this every batch looks: right after a checkpoint each
/// page that is touched goes to WAL whole, and in a quarter of a second that is
/// enough to fill a small volume.
pub(super) const AMPLE: u64 = 1 << 30;

/// What a long statement does to the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It takes room: too little disk ends it.
    Takes,
    /// It makes room, or takes hardly any.
    Makes,
}

/// Bytes that must be free, and what asks for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Floor {
    pub(super) bytes: u64,
    pub(super) whose: &'static str,
}

/// Below it the server itself is in danger.
pub(super) const LOWEST: Floor = Floor { bytes: WAL_SEGMENT, whose: "the server's WAL" };

impl Floor {
    pub(super) fn new(bytes: u64, whose: &'static str) -> Self {
        if bytes < LOWEST.bytes { LOWEST } else { Self { bytes, whose } }
    }
}

/// A volume that has less than it must.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lack {
    /// What it is, for people.
    pub(super) volume: String,
    /// Bytes free.
    pub(super) free: u64,
}

/// How much WAL the last batches wrote: an estimate for the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pulse {
    lsn: Option<u64>,
    worst: u64,
}

impl Pulse {
    /// Learns from where WAL is now. Pages go to WAL whole after a checkpoint: the worst of the
    /// last batches counts, not the last.
    pub(super) fn learn(&mut self, lsn: u64) {
        let wrote = self.lsn.replace(lsn).map_or(0, |before| lsn.saturating_sub(before));
        self.worst = wrote.max(self.worst - self.worst / 4);
    }

    /// Forgets the position of WAL: what was written since the last batch was not a batch's.
    pub(super) fn forget(&mut self) {
        self.lsn = None;
    }

    /// Bytes of the segments of WAL that a batch begins.
    fn begins(self) -> u64 {
        let left = WAL_SEGMENT - self.lsn.unwrap_or(0) % WAL_SEGMENT;
        self.worst.saturating_sub(left).div_ceil(WAL_SEGMENT) * WAL_SEGMENT
    }

    /// Bytes that must be free before a batch. A floor of the size of a segment is kept for just
    /// that: the first segment that the batch begins. Counted twice, a nearly full disk could
    /// never be given back.
    fn needs(self, floor: Floor) -> u64 {
        let kept_for_wal = if floor.bytes <= 2 * WAL_SEGMENT { WAL_SEGMENT } else { 0 };
        floor.bytes.saturating_add(self.worst + self.begins().saturating_sub(kept_for_wal))
    }
}

/// The volume that has too little for one more batch above the floor.
pub(super) fn lack(volumes: &Volumes, floor: Floor, pulse: Pulse) -> Option<Lack> {
    let least = volumes.known.iter().min_by_key(|volume| volume.free)?;
    let is_little = least.free < pulse.needs(floor);
    is_little.then(|| Lack { volume: least.what.clone(), free: least.free })
}

/// Whether WAL since the last checkpoint is much for its volume.
pub(super) fn is_much_wal(signs: &Signs, volumes: &Volumes) -> bool {
    volumes.wal().is_some_and(|free| signs.wal_bytes > (free / WAL_PART).max(LEAST_WAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::stats::Volume;

    const MIB: u64 = 1 << 20;

    fn volumes(free: &[u64]) -> Volumes {
        let volume = |(n, free): (usize, &u64)| Volume {
            what: format!("volume {n}"),
            free: free * MIB,
            is_data: n != 1,
            is_wal: n == 1,
        };
        Volumes { known: free.iter().enumerate().map(volume).collect(), unknown: Vec::new() }
    }

    #[test]
    fn each_volume_is_held_to_the_floor() {
        let floor = Floor::new(100 * MIB, "a test");
        assert_eq!(lack(&volumes(&[101, 101, 101]), floor, Pulse::default()), None);
        for which in 0..3 {
            let mut free = [101; 3];
            free[which] = 99;
            let found = lack(&volumes(&free), floor, Pulse::default()).unwrap();
            assert_eq!((found.volume, found.free), (format!("volume {which}"), 99 * MIB));
        }
        assert_eq!(lack(&volumes(&[]), floor, Pulse::default()), None, "nobody knows");
    }

    #[test]
    fn what_a_batch_may_write_is_counted_before_it() {
        let floor = Floor::new(100 * MIB, "a test");
        let mut pulse = Pulse::default();
        pulse.learn(0);
        pulse.learn(4 * MIB);
        assert!(lack(&volumes(&[104]), floor, pulse).is_none());
        assert!(lack(&volumes(&[103]), floor, pulse).is_some());
        // The next batch may begin a new segment of WAL.
        pulse.learn(14 * MIB);
        assert_eq!(pulse.needs(floor), (100 + 10 + 16) * MIB);
        assert_eq!(pulse.needs(LOWEST), (16 + 10) * MIB, "the floor is for that segment");
        // A small batch lowers the estimate only slowly.
        pulse.learn(14 * MIB);
        assert!(pulse.needs(floor) > 107 * MIB);
    }

    #[test]
    fn wal_is_measured_against_its_own_volume() {
        let signs = |wal_bytes| Signs { wal_bytes, ..Signs::default() };
        assert!(!is_much_wal(&signs(17 * MIB), &volumes(&[40, 400])));
        assert!(is_much_wal(&signs(101 * MIB), &volumes(&[4_000, 400])));
        assert!(is_much_wal(&signs(101 * MIB), &volumes(&[400])), "on the database's");
    }
}
