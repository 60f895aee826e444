//! `opsward config check` and `config show`: what the settings are, where each
//! came from, and what is wrong with them.

use super::{Command, Early, Output, Run};
use crate::settings::{Loaded, Problems};
use crate::show::{self, Done, ExitCode, Failure, Outcome};
use clap::ArgMatches;
use serde_json::json;

/// The command.
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
    match loaded {
        Ok(loaded) => Done::new(
            json!({ "ok": true, "file": loaded.file, "problems": [] }),
            format!("the settings can be used; {}", read_from(loaded)),
        ),
        Err(found) => Done::new(json!({ "ok": false, "problems": found.problems }), found.to_string())
            .exit(ExitCode::Settings),
    }
}

fn show(loaded: &Loaded) -> Done {
    let rows = loaded.origins.iter().map(|shown| {
        let value = shown.value.as_deref().unwrap_or("(not set)");
        vec![shown.key.to_owned(), value.to_owned(), shown.origin.to_string()]
    });
    let table = show::format::lines(&["setting", "value", "from"], rows);
    Done::new(
        json!({ "file": loaded.file, "settings": loaded.origins }),
        format!("{table}\n{}", read_from(loaded)),
    )
}

fn read_from(loaded: &Loaded) -> String {
    match &loaded.file {
        Some(path) => format!("settings file {}", path.display()),
        None => "no settings file".to_owned(),
    }
}
