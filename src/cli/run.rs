//! `opsward run`: the daemon.

use super::{Command, Context, Output, Run};
use crate::daemon::{self, End, StartError};
use crate::show::{Done, ExitCode, Failure, Outcome};
use clap::ArgMatches;

pub(super) const COMMAND: Command = Command {
    name: "run",
    args: |command| command.about("Run the daemon: serve, pull, watch"),
    output: Output::Own,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

async fn run(context: &Context, _: &ArgMatches) -> Outcome {
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
