//! `opsward history`: what was deleted, by run and table.

use super::{Context, args};
use crate::db::{history, migrate};
use crate::show::{Done, Outcome, format};
use serde_json::json;

/// Show what was deleted, when, and what bounded it
#[derive(clap::Args)]
pub(super) struct Args {
    /// How many runs and tables at most, the newest first
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = args::limit)]
    limit: i64,
}

/// The first version of the schema with a history.
const HISTORY_SINCE: i32 = 2;

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let db = context.open_db("history", 1).await?;
    let client = db.client().await?;
    // This command only reads: it does not create the schema.
    let entries = match migrate::version(&client).await? {
        version if version < HISTORY_SINCE => Vec::new(),
        _ => history::latest(&client, args.limit).await?,
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
