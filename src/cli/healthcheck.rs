//! `opsward healthcheck`: for a container's HEALTHCHECK. Quick and quiet.

use super::Context;
use crate::show::{Done, ExitCode, Failure, Outcome, ask};

/// Exit 0 when the daemon lives: for a container's HEALTHCHECK
#[derive(clap::Args)]
pub(super) struct Args {
    /// Only when its database answers too
    #[arg(long)]
    ready: bool,
}

/// Asks the daemon; says nothing where all is well.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let path = match args.ready {
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
