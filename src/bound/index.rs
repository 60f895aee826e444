//! The index on the log by table and ULID: nothing of opsward needs it, an
//! operator's own queries may. Switched off, one that is there stays: dropping
//! it is `uninstall`'s, or the operator's.

use crate::db::lease::Lease;
use crate::db::maintain::Ended;
use crate::db::{self, Db, activity, index};
use crate::values::Progress;
use crate::work::{Halt, Pacer, Room, Stop, WaitFor, Waits, Work};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::time::Duration;
use tracing::{info, warn};

/// How often progress is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "detail", rename_all = "snake_case")]
pub enum Ensured {
    /// It was there, under this name.
    There(String),
    /// It was made.
    Made,
    /// A session waited behind it, or builds an index itself: tried again at the next tick.
    Yielded,
    /// Told to stop.
    Stopped,
    /// Not made: why, and what to do.
    Refused(String),
}

/// Makes the index where it is not there.
///
/// # Errors
/// It may not go on, the lease is lost, or the database's.
pub async fn ensure(work: &Work, lease: &mut Lease, pacer: &mut Pacer) -> Result<Ensured, Stop> {
    let found = index::find(&work.db.client().await?).await?;
    if !found.may {
        let why = "this role does not own public.ops: use the node's own role in OPENAUDIO_DB_URL, \
                   or see docs/roles.sql, level bound";
        return Ok(Ensured::Refused(why.into()));
    }
    let free = match pacer.turn(lease).await {
        Ok(free) => free,
        Err(Stop::Halt(Halt::Stopped)) => return Ok(Ensured::Stopped),
        Err(error) => return Err(error),
    };
    let mut waits = Waits::of("index");
    if let Some(who) = activity::builders(&*lease.client()?).await?.first() {
        let what = format!("the index build of {who}");
        waits.tell(work, lease.pid(), (WaitFor::Index, &what), Duration::ZERO).await;
        return Ok(Ensured::Yielded);
    }
    waits.over(work).await;
    for leftover in &found.leftovers {
        match pacer.watch(lease, &index::drop_sql(leftover), &[], Room::Makes).await? {
            Ended::Done => info!(index = leftover, "an invalid index of a failed build is dropped"),
            ended => return ensured(ended, pacer),
        }
    }
    if let Some(name) = found.there {
        return Ok(Ensured::There(name));
    }
    let keep = work.settings.bounding.min_free_disk;
    if let Some(why) = no_room(found.bytes, found.wal_bytes, free, keep) {
        warn!("the index on (table, ulid) is not made: {why}");
        return Ok(Ensured::Refused(why));
    }
    index::own(lease).await?;
    let made = {
        let making = pacer.watch(lease, index::MAKE, &[], Room::Takes);
        tokio::select! {
            made = making => made?,
            never = tell_progress(work) => match never {},
        }
    };
    if made == Ended::Yielded {
        // What it left is invalid: dropped by the next try.
        info!("the index on (table, ulid) is not made yet: another session waited behind it");
    }
    ensured(made, pacer)
}

fn ensured(ended: Ended, pacer: &Pacer) -> Result<Ensured, Stop> {
    match (ended, pacer.halted()) {
        (Ended::Done, _) => Ok(Ensured::Made),
        (Ended::Yielded, _) => Ok(Ensured::Yielded),
        (Ended::Stopped, None | Some(Halt::Stopped)) => Ok(Ensured::Stopped),
        (Ended::Stopped, Some(halt)) => Err(halt.clone().into()),
    }
}

/// Why it does not fit, if it does not. WAL of it may lie beside it.
pub(super) fn no_room(bytes: u64, wal: u64, free: Option<u64>, keep: u64) -> Option<String> {
    match free {
        None => Some(format!(
            "it takes about {bytes} bytes and free disk is unknown: OPENAUDIO_MEDIORUM_PGDATA_PATH names a \
             directory of the database's volume"
        )),
        Some(free) if free < bytes.saturating_add(wal).saturating_add(keep) => Some(format!(
            "it takes about {bytes} bytes and up to {wal} of WAL, {free} are free, and \
             OPENAUDIO_MEDIORUM_MIN_FREE_DISK keeps {keep}"
        )),
        Some(_) => None,
    }
}

/// Tells how far the build is, for as long as it is asked. The build goes on
/// where that can't be read.
async fn tell_progress(work: &Work) -> Infallible {
    async fn read(db: &Db) -> db::Result<Option<(String, u64, u64)>> {
        index::progress(&db.client().await?).await
    }
    let mut said = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match read(&work.db).await {
            Ok(Some((phase, done, total))) => (work.tell)(Progress {
                phase: format!("index: {phase}"),
                done,
                total: Some(total),
                unit: "pages".into(),
                ..Progress::default()
            }),
            Ok(None) => {}
            Err(error) if !std::mem::replace(&mut said, true) => {
                warn!(%error, "how far the index is can't be told");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_must_fit() {
        assert!(no_room(100, 50, None, 10).is_some_and(|w| w.contains("PGDATA_PATH")));
        assert!(no_room(100, 50, Some(159), 10).is_some_and(|w| w.contains("159") && w.contains("50")));
        assert_eq!(no_room(100, 50, Some(160), 10), None);
    }
}
