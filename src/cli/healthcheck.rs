//! `opsward healthcheck`: for a container's HEALTHCHECK. Quick and quiet.

use super::args::flag;
use super::{Command, Context, Output, Run};
use crate::show::{Done, ExitCode, Failure, Outcome, ask};
use clap::ArgMatches;

pub(super) const COMMAND: Command = Command {
    name: "healthcheck",
    args: |command| {
        command
            .about("Exit 0 when the daemon lives: for a container's HEALTHCHECK")
            .arg(flag("ready", "Only when its database answers too"))
    },
    output: Output::Own,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

/// Asks the daemon; says nothing where all is well.
async fn run(context: &Context, args: &ArgMatches) -> Outcome {
    let path = match args.get_flag("ready") {
        false => "/healthz",
        true => "/readyz",
    };
    let listen = context.settings.admin_listen;
    let why = match ask::get(listen, path).await {
        Ok((200, _)) => return Ok(Done::silent()),
        Ok((code, body)) => format!("{code} {}", String::from_utf8_lossy(&body).trim_end()),
        Err(e) => e.to_string(),
    };
    Err(Failure::new(ExitCode::Failed, "unhealthy", format!("http://{listen}{path}: {why}")))
}
