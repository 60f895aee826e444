//! `opsward plan`: what each task would delete now, bound by what, why not
//! more. Deletes nothing.

use super::{Command, Context, Output, Run};
use crate::bound::{facts, plan};
use crate::db::{Client, migrate};
use crate::show::{Done, Outcome, plan_text};
use clap::ArgMatches;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "plan",
    args: |command| command.about("Show what each task would delete now, and what stands in the way"),
    output: Output::Envelope,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

async fn run(context: &Context, _: &ArgMatches) -> Outcome {
    let own = context.self_host()?;
    let db = context.open_db("plan", 2).await?;
    let mut client = db.client().await?;
    migrate::migrate(&mut client).await?;
    bring_up_to_date(context, &client).await?;
    let now = context.clock.now();
    let facts = facts::gather(&client, &context.settings, own, now).await?;
    let around = facts::surroundings(&client, &context.settings, now).await?;
    let plan = plan::plan(&facts, &around);
    let result = serde_json::to_value(&plan).map_err(anyhow::Error::from)?;
    Ok(Done::new(result, plan_text::text(&plan)))
}

/// A first answer where the log was never looked at; the daemon's census, or
/// `opsward census`, counts it.
async fn bring_up_to_date(_: &Context, _: &Client) -> Result<(), crate::show::Failure> {
    Ok(())
}
