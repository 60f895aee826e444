//! `opsward status`: the daemon's own view, or the database's.

use super::Context;
use crate::db::{Db, Kind};
use crate::settings::Settings;
use crate::show::gather::gather;
use crate::show::status::Status;
use crate::show::{Done, ExitCode, Outcome, advice, ask, exit, status_text};
use crate::values::Finding;
use serde_json::json;

/// Fails only when neither the daemon nor the database answers.
pub(super) async fn run(context: &Context) -> Outcome {
    let (status, warnings) = find(context).await;
    let ends = match (&status.daemon, &status.database) {
        (Some(_), _) => ExitCode::Done,
        (None, database) => match Kind::of_code(&database.state) {
            None | Some(Kind::ReadOnly) => ExitCode::Done,
            Some(kind) => exit(kind),
        },
    };
    let text = status_text::text(&status, &warnings);
    let result = json!(status);
    // The text includes the warnings.
    let done = Done::new(result, text).exit(ends);
    Ok(match context.output {
        crate::show::OutputMode::Json => done.warn(warnings),
        crate::show::OutputMode::Text => done,
    })
}

async fn find(context: &Context) -> (Status, Vec<Finding>) {
    let settings = &context.settings;
    let mut stranger = None;
    if let Ok(answer) = ask::status(settings.admin_listen).await {
        match other(&answer.result, settings) {
            None => return (answer.result, answer.warnings),
            other => stranger = other,
        }
    }
    let db = Db::open(&settings.db, "opsward status", 1).await;
    let status = gather(settings, db.as_ref(), None, &context.clock).await;
    let mut warnings = advice::warnings(&status);
    if let Some(whose) = stranger {
        warnings.retain(|w| w.code != "daemon_not_asked");
        warnings.push(of_another(settings, &whose));
    }
    (status, warnings)
}

pub(super) fn of_another(settings: &Settings, whose: &str) -> Finding {
    let text = format!("the daemon at {} is {whose}: this is the database's view", settings.admin_listen);
    let fix = "set OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN as this validator's daemon has it";
    Finding::new("daemon_of_another", text, fix)
}

/// Says whose daemon answered, if it is not this validator's.
pub(super) fn other(answer: &Status, settings: &Settings) -> Option<String> {
    let own = settings.node_endpoint.as_ref().map(ToString::to_string);
    if let (Some(own), Some(other)) = (&own, &answer.own) {
        return (own != other).then(|| format!("that of {other}"));
    }
    // Compares port and database name only: a host has many spellings.
    let place = |shown: &str| shown.rsplit_once(':').map(|(_, place)| place.to_owned());
    let (theirs, ours) = (place(&answer.database.shown), place(&settings.db.shown()));
    let is_named = settings.db.dbname.is_some();
    (is_named && theirs != ours).then(|| format!("on another database, {}", answer.database.shown))
}
