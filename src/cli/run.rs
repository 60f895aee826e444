//! `opsward run`: the daemon.

use super::Context;
use crate::daemon::{self, End, StartError};
use crate::show::{Done, ExitCode, Failure, Outcome};

pub(super) async fn run(context: &Context) -> Outcome {
    context.self_host()?;
    match daemon::run(context.settings.clone()).await {
        Ok(End::Stopped) => Ok(Done::silent()),
        Ok(End::CutOff) => Ok(Done::silent().exit(ExitCode::Failed)),
        Ok(End::Orphaned) => Ok(Done::silent().exit(ExitCode::Away)),
        Err(StartError::Db(e)) => Err(e.into()),
        Err(e @ StartError::Settings(_)) => Err(Failure::new(ExitCode::Settings, "settings", e.to_string())),
        Err(e) => Err(Failure::new(ExitCode::Failed, "start", e.to_string())),
    }
}
