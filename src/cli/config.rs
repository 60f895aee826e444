//! `opsward config check` and `config show`: what the settings are, where each
//! came from, and what is wrong with them.

use super::Early;
use crate::settings::{Loaded, Problems};
use crate::show::{self, Done, ExitCode, Failure, Outcome};
use crate::values::Finding;
use serde_json::json;
use std::collections::BTreeMap;

/// Check or show the settings
#[derive(clap::Subcommand)]
#[command(arg_required_else_help = true)]
pub(super) enum Action {
    /// Say whether the settings can be used
    Check,
    /// Show every setting and where it came from
    Show,
}

pub(super) fn run(early: &Early, action: &Action) -> Outcome {
    match (action, &early.loaded) {
        (Action::Check, loaded) => Ok(check(loaded)),
        (Action::Show, Ok(loaded)) => Ok(show(loaded)),
        (Action::Show, Err(problems)) => Err(Failure::from(problems.clone())),
    }
}

fn check(loaded: &Result<Loaded, Problems>) -> Done {
    let usable = loaded.clone().and_then(|loaded| {
        // `run` would have this problem with the settings: it needs this validator's URL.
        match loaded.settings.node_endpoint {
            Some(_) => Ok(loaded),
            None => Err(Problems::unset(
                "node_endpoint",
                "it is not set, and `run` has to know this validator's own URL",
            )),
        }
    });
    match usable {
        Ok(loaded) => {
            let missing = loaded.settings.pgdata_path.as_ref().filter(|path| !path.is_dir());
            let missing = missing.map(|path| {
                Finding::new(
                    "no_pgdata_path",
                    format!("OPENAUDIO_MEDIORUM_PGDATA_PATH={} is no directory here", path.display()),
                    "mount a directory of the database's volume there: without it nobody knows how much disk is free",
                )
            });
            let text = format!("the settings can be used; {}", read_from(&loaded));
            Done::new(json!({ "ok": true, "file": loaded.file, "problems": [] }), text).warn(missing)
        }
        Err(found) => Done::new(json!({ "ok": false, "problems": found.problems }), found.to_string())
            .exit(ExitCode::Settings),
    }
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
