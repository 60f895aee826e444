//! The new table is made ready for its readers while the last of it is copied, on a session
//! of its own: little of that is left for the end.

use super::super::decide::{Checkpoint, Phase};
use crate::db::clone::make_ready;
use crate::db::helper::Helper;
use crate::db::{self, Db};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

/// Under way, or done.
pub(super) struct Ready {
    /// Rows that were copied when it began.
    rows: u64,
    /// Whether it came to its end.
    ended: AbortOnDropHandle<bool>,
}

impl Ready {
    /// Whether it is time: most of what will be copied is there, though all of the rest survived.
    pub(super) fn is_due(at: &Checkpoint, copied: u64) -> bool {
        let left = match at.phase {
            Phase::Copy => at.total.map(|total| total.saturating_sub(at.done)),
            _ => Some(0),
        };
        copied > 0 && left.is_some_and(|left| is_most(copied, copied + left))
    }

    #[allow(clippy::disallowed_methods, reason = "it goes on while the lease's session copies")]
    pub(super) fn begin(db: &Db, rows: u64) -> Self {
        let db = db.clone();
        let ended = tokio::spawn(async move {
            let made = async { make_ready(&Helper::open(&db).await?).await }.await;
            made.inspect_err(|error: &db::Error| debug!(%error, "the new table is made ready at the end"))
                .is_ok()
        });
        Self { rows, ended: AbortOnDropHandle::new(ended) }
    }

    pub(super) fn is_under_way(&self) -> bool {
        !self.ended.is_finished()
    }

    /// Whether its statistics tell of most of the rows that were copied in the end.
    pub(super) async fn tells(self, copied: u64) -> bool {
        self.ended.await.unwrap_or(false) && is_most(self.rows, copied)
    }
}

/// Three quarters.
fn is_most(rows: u64, of: u64) -> bool {
    rows.saturating_mul(4) >= of.saturating_mul(3)
}
