//! `opsward history`: what was deleted, by run and table.

use super::args::limit;
use super::{Command, Context, Output, Run};
use crate::db::{history, migrate};
use crate::show::{Done, Outcome, format};
use clap::ArgMatches;
use serde_json::json;

pub(super) const COMMAND: Command = Command {
    name: "history",
    args: |command| {
        command
            .about("Show what was deleted, when, and what bounded it")
            .arg(limit("50", "How many runs and tables at most, the newest first"))
    },
    output: Output::Envelope,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

/// The first version of the schema with a history.
const HISTORY_SINCE: i32 = 2;

async fn run(context: &Context, args: &ArgMatches) -> Outcome {
    let db = context.open_db("history", 1).await?;
    let client = db.client().await?;
    let limit = args.get_one::<i64>("limit").copied().unwrap_or(50);
    // This command only reads: it does not create the schema.
    let entries = match migrate::version(&client).await? {
        version if version < HISTORY_SINCE => Vec::new(),
        _ => history::latest(&client, limit).await?,
    };
    let text = match entries.is_empty() {
        true => "nothing was deleted yet".to_owned(),
        false => format::lines(
            &["when", "task", "table", "rows", "bytes", "below", "bound by", "outcome"],
            entries.iter().map(line),
        ),
    };
    Ok(Done::new(json!({ "entries": entries }), text))
}

fn line(entry: &history::Entry) -> Vec<String> {
    vec![
        format!("{:.0}", entry.began_at),
        entry.task.clone(),
        entry.table.clone(),
        format::count(entry.rows),
        format::bytes(entry.bytes),
        format::dated(&entry.below),
        entry.bound_by.clone(),
        entry.outcome.clone(),
    ]
}
