//! `opsward status`: the daemon's own view, or the database's.

use super::{Command, Context, Output, Run};
use crate::db::Db;
use crate::show::gather::gather;
use crate::show::status::Status;
use crate::show::{Done, ExitCode, Outcome, Warning, advice, ask, status_text};
use clap::ArgMatches;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "status",
    args: |command| command.about("Show what there is, how far it is, and what needs you"),
    output: Output::Envelope,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

/// It fails only when neither daemon nor database tells anything.
async fn run(context: &Context, _: &ArgMatches) -> Outcome {
    let (status, warnings) = find(context).await;
    let exit = match (&status.daemon, &status.database) {
        (Some(_), _) => ExitCode::Done,
        (None, database) if database.up => ExitCode::Done,
        (None, database) if database.away => ExitCode::Away,
        (None, _) => ExitCode::Failed,
    };
    let text = status_text::text(&status, &warnings);
    let result = serde_json::to_value(&status).map_err(anyhow::Error::from)?;
    // The text has its warnings in it.
    let done = Done::new(result, text).exit(exit);
    Ok(match context.output {
        crate::show::OutputMode::Json => done.warn(warnings),
        crate::show::OutputMode::Text => done,
    })
}

async fn find(context: &Context) -> (Status, Vec<Warning>) {
    let settings = &context.settings;
    if let Ok(answer) = ask::status(settings.admin_listen).await {
        return (answer.result, answer.warnings);
    }
    let db = Db::open(&settings.db, "opsward status", 1).await;
    let status = gather(settings, db.as_ref(), None, &context.clock).await;
    let warnings = advice::warnings(&status);
    (status, warnings)
}
