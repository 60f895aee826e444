//! `opsward run`: the daemon.

use super::{Context, Exit};
use crate::daemon::{self, End, StartError};
use tracing::error;

/// Runs the daemon to its end.
pub async fn run(context: Context) -> Exit {
    for w in &context.warnings {
        tracing::warn!(code = w.code, fix = w.fix, "{}", w.text);
    }
    match daemon::run(context.settings).await {
        Ok(End::Stopped) => Exit::Done,
        Ok(End::CutOff) => Exit::Failed,
        Ok(End::Orphaned) => Exit::Away,
        Err(e) => {
            error!("cannot start: {e}");
            match e {
                StartError::Db(e) => Exit::of(&e),
                StartError::Settings(_) => Exit::Settings,
                StartError::Listen(_) | StartError::Machine(_) => Exit::Failed,
            }
        }
    }
}
