//! `opsward status`: the daemon's own view, or the database's.

use super::{Changed, Context, Exit, Said};
use crate::clock::Clock;
use crate::db::Db;
use crate::show::gather::gather;
use crate::show::status::Status;
use crate::show::{Warning, advice, ask, status_text};

/// Prints the status. It fails only when daemon and database are both away.
pub async fn run(context: &Context) -> Exit {
    let (status, mut warnings) = find(context).await;
    warnings.extend(context.warnings.iter().cloned());
    let exit = if status.database.up || status.daemon.is_some() {
        Exit::Done
    } else {
        Exit::Away
    };
    let said = Said {
        text: status_text::text(&status, &warnings),
        changed: Changed::No,
        warnings,
    };
    context.print("status", status.at, &status, said);
    exit
}

async fn find(context: &Context) -> (Status, Vec<Warning>) {
    let settings = &context.settings;
    if let Ok(answer) = ask::status(settings.admin_listen).await {
        return (answer.result, answer.warnings);
    }
    let db = Db::open(&settings.db, "opsward status", 1).await;
    let status = gather(settings, db.as_ref(), None, &Clock::System).await;
    let warnings = advice::warnings(&status);
    (status, warnings)
}
