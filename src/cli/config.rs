//! `opsward config check` and `config show`: what the settings are, where each
//! came from, and what is wrong with them.

use super::{Command, Early, Output, Run};
use crate::settings::{Loaded, Origin, Problem, Problems, entry};
use crate::show::{self, Done, ExitCode, Failure, Outcome};
use clap::ArgMatches;
use serde_json::json;
use std::collections::BTreeMap;

pub(super) const COMMAND: Command = Command {
    name: "config",
    args: |command| {
        command
            .about("Check or show the settings")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(clap::Command::new("check").about("Say whether the settings can be used"))
            .subcommand(clap::Command::new("show").about("Show every setting and where it came from"))
    },
    output: Output::Envelope,
    run: Run::Early(run),
};

fn run(early: &Early, args: &ArgMatches) -> Outcome {
    match (args.subcommand_name(), &early.loaded) {
        (Some("check"), loaded) => Ok(check(loaded)),
        (_, Ok(loaded)) => Ok(show(loaded)),
        (_, Err(problems)) => Err(Failure::from(problems.clone())),
    }
}

fn check(loaded: &Result<Loaded, Problems>) -> Done {
    let loaded = match loaded {
        Ok(loaded) => for_run(loaded).map_or(Ok(loaded), Err),
        Err(found) => Err(found.clone()),
    };
    match loaded {
        Ok(loaded) => Done::new(
            json!({ "ok": true, "file": loaded.file, "problems": [] }),
            format!("the settings can be used; {}", read_from(loaded)),
        ),
        Err(found) => Done::new(json!({ "ok": false, "problems": found.problems }), found.to_string())
            .exit(ExitCode::Settings),
    }
}

/// The problem that `run` would have with these settings: it needs this validator's URL.
fn for_run(loaded: &Loaded) -> Option<Problems> {
    let entry = entry("node_endpoint").filter(|_| loaded.settings.node_endpoint.is_none())?;
    let why = "it is not set, and `run` has to know this validator's own URL".to_owned();
    let problem = Problem { value: None, ..Problem::of(entry, (&Origin::Default, ""), why) };
    Some(Problems { problems: vec![problem], warnings: Vec::new() })
}

fn show(loaded: &Loaded) -> Done {
    let rows = loaded.origins.iter().map(|shown| {
        let value = shown.value.as_deref().unwrap_or("(not set)");
        vec![shown.key.to_owned(), value.to_owned(), shown.origin.to_string()]
    });
    let tables: BTreeMap<&str, String> = {
        let tables = loaded.settings.bounding.tables.iter();
        tables.map(|(table, keep)| (table.as_str(), keep.to_string())).collect()
    };
    let from = loaded.file.as_ref().map_or(String::new(), |file| format!("file {}", file.display()));
    let of_tables =
        tables.iter().map(|(table, keep)| vec![format!("tables.{table}.keep"), keep.clone(), from.clone()]);
    let table = show::format::lines(&["setting", "value", "from"], rows.chain(of_tables));
    Done::new(
        json!({ "file": loaded.file, "settings": loaded.origins, "tables": tables }),
        format!("{table}\n{}", read_from(loaded)),
    )
}

fn read_from(loaded: &Loaded) -> String {
    match &loaded.file {
        Some(path) => format!("settings file {}", path.display()),
        None => "no settings file".to_owned(),
    }
}
