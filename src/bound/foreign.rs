//! Somebody else pruned: floors that follow what was observed. Newer nodes
//! prune the log themselves, and leave no traces.

use crate::db::{
    self,
    foreign::{self, Before, Seen},
    known,
};
use crate::records::models;
use crate::values::OpUlid;
use crate::work::Work;
use tracing::{debug, warn};

/// Floors are never above this long before now (contract 5): 2 h.
const BEHIND_MS: u64 = 2 * 3_600_000;

/// What one look came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing of the log is gone but what we deleted.
    Nothing,
    /// No conclusion: a first look, an empty log, or one that was put back.
    Unknown,
    /// Somebody else pruned below this.
    Pruned(OpUlid),
}

/// Looks once, keeps what was seen, and raises the floors where somebody else
/// pruned. Rows that came in below the watermark lower it.
pub async fn observe(work: &Work) -> db::Result<Found> {
    let mut client = work.db.client().await?;
    known::settle(&client, work.clock.now_ms()).await?;
    let (now, now_ms) = (work.clock.now(), work.clock.now_ms());
    match foreign::lower_watermark(&mut client).await {
        Ok(None) => {}
        Ok(Some(ulid)) => debug!(%ulid, "a row came in below the watermark"),
        Err(e) if e.is_too_long() => debug!("too many dead rows to look below the watermark"),
        Err(e) => return Err(e),
    }
    let (before, seen) = match foreign::look(&mut client, now_ms).await {
        Ok(looked) => looked,
        // Over the dead rows of a large deletion; a vacuum ends that.
        Err(e) if e.is_too_long() || e.kind() == db::Kind::Locked => return Ok(Found::Unknown),
        Err(e) => return Err(e),
    };
    let found = judge(before.as_ref(), &seen, now_ms);
    if let Found::Pruned(floor) = found {
        let tables: Vec<&str> = models().iter().map(|m| m.table.as_str()).collect();
        let known = foreign::floor(&client).await?;
        foreign::raise(&client, &tables, floor, now).await?;
        work.metrics.foreign_prunes.inc();
        if known.is_none() {
            warn!(%floor, "ops below this are gone, and not by opsward: a node that prunes by itself; \
                ops below it that come again put records only where there are none");
        }
    }
    foreign::keep(&mut client, &seen, now).await?;
    Ok(found)
}

/// What a look means, given the one before.
fn judge(before: Option<&Before>, seen: &Seen, now_ms: u64) -> Found {
    let (Some(before), Some(minimum)) = (before, seen.minimum) else {
        return Found::Unknown;
    };
    // Put back or emptied: then the newest row went, too.
    if !before.top_is_there || seen.newest < before.seen.newest {
        return Found::Unknown;
    }
    match &before.seen.witness {
        // A row in the middle that is gone is nobody's pruning.
        Some((witness, _)) if !before.accounted_for && minimum > *witness => {
            Found::Pruned(minimum.min(OpUlid::first_of_ms(now_ms.saturating_sub(BEHIND_MS))))
        }
        _ => Found::Nothing,
    }
}
