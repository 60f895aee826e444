//! `opsward version`: which program this is, and which schema it knows.

use super::{Command, Early, Output, Run};
use crate::db::migrate;
use crate::show::{Done, Outcome};
use clap::ArgMatches;
use serde_json::json;

pub(super) const COMMAND: Command = Command {
    name: "version",
    args: |command| command.about("Print the version, and that of the schema it knows"),
    output: Output::Envelope,
    run: Run::Early(run),
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn run(_: &Early, _: &ArgMatches) -> Outcome {
    let schema = migrate::LATEST;
    let result = json!({ "version": VERSION, "schema_version": schema });
    Ok(Done::new(result, format!("opsward {VERSION}, schema version {schema}")))
}
