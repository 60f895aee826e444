//! Keeps the database marked as served by a daemon, and its schema there.

use crate::db::presence::Presence;
use crate::db::{Db, migrate};
use crate::supervisor::{Next, Outcome};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the mark's session is asked for a sign of life.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Holds the mark until `stop`; ends with an error when its session is lost.
/// A database that was put back from a dump meanwhile gets its schema again.
pub(super) async fn hold(db: Db, stop: CancellationToken) -> Outcome {
    migrate::migrate(&mut db.client().await?).await?;
    let presence = Presence::take(&db).await?;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Next::Done),
            () = tokio::time::sleep(CHECK_EVERY) => presence.check().await?,
        }
    }
}
