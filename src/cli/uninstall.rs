//! `opsward uninstall`: removes everything that opsward made.

use super::confirm::confirm;
use super::{Context, lease};
use crate::db::lease::Lease;
use crate::db::maintain::{Ended, watched};
use crate::db::uninstall::{Found, Owned, PAUSE, Removal, TRIES, find, leftovers, remove};
use crate::db::{Db, activity};
use crate::show::{Done, ExitCode, Failure, Outcome};
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Pooled connections: the lease's, a watcher's, one to look.
const POOL: usize = 3;

/// Remove everything that opsward made in the database
#[derive(clap::Args)]
pub(super) struct Args {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let db = context.open_db("uninstall", POOL).await?;
    let (owned, schema) = match find(&db.client().await?).await? {
        Found::Nothing => {
            return Ok(done(false, &[], format!("{} holds nothing of opsward.", db.shown())));
        }
        Found::Foreign => {
            let text = format!("the schema opsward in {} was made by no opsward", db.shown());
            return Err(Failure::refused(text, "drop it yourself, if it is to go"));
        }
        Found::Used(by) => {
            let text =
                format!("with the schema opsward would go what opsward did not make: {}", by.join(", "));
            return Err(Failure::refused(text, "drop it, or move it out of the schema, then uninstall"));
        }
        Found::Ours(owned) => (owned, &["the schema opsward with all that is in it"][..]),
        Found::Brought(owned) => (owned, &[][..]),
    };
    if context.settings.read_only && !owned.is_empty() {
        let names = names(&owned).join(", ");
        let text =
            format!("READ_ONLY is set, and what opsward made outside its schema would go too: {names}");
        return Err(Failure::refused(text, "set OPENAUDIO_MEDIORUM_READ_ONLY=false to remove it"));
    }
    let what = format!(
        "This removes from {}: {}.\nCursors, refused ops and all other state of opsward are lost; \
         the node's own tables stay as they are.",
        db.shown(),
        listed(schema, &owned)
    );
    confirm(context, args.yes, &what)?;
    let mut lease = match Lease::take(&db).await? {
        Ok(lease) => lease,
        Err(Some(holder)) if holder.is_daemon() => return Err(daemon_connected(&db)),
        Err(holder) => {
            let text = format!("{}: nothing was removed", lease::held(holder.as_ref()));
            return Err(Failure::new(ExitCode::Held, "lease_held", text).fix("wait until it ends"));
        }
    };
    drop_leftovers(&mut lease, &db).await?;
    match remove(&mut lease, &owned).await? {
        Removal::Done => {
            let text = format!("Removed from {}: {}.", db.shown(), listed(schema, &owned));
            Ok(done(true, &owned, text))
        }
        Removal::DaemonConnected => Err(daemon_connected(&db)),
        Removal::Blocked(who) => Err(blocked(&format!("it waited in vain for {who}"))),
        Removal::Changed => {
            Err(Failure::refused("what opsward owns changed meanwhile: nothing was removed", "look again"))
        }
    }
}

/// Drops what an interrupted reclaim in place left, each watched and tried again.
async fn drop_leftovers(lease: &mut Lease, db: &Db) -> Result<(), Failure> {
    for drop in leftovers(&*lease.client()?).await? {
        let mut tries = 0;
        loop {
            let builders = activity::builders(&*lease.client()?).await?;
            let is_free = builders.is_empty();
            if is_free && watched(lease, db, &drop, &[], &CancellationToken::new()).await? == Ended::Done {
                break;
            }
            tries += 1;
            if tries == TRIES {
                return Err(blocked(&match is_free {
                    true => format!("other sessions waited behind each {drop}"),
                    false => {
                        format!("another session builds an index on public.ops: {}", builders.join("; "))
                    }
                }));
            }
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

fn daemon_connected(db: &Db) -> Failure {
    let text = format!("a daemon is connected to {}: nothing was removed", db.shown());
    Failure::new(ExitCode::Held, "daemon_connected", text).fix("stop it first")
}

fn blocked(text: &str) -> Failure {
    Failure::new(ExitCode::Failed, "blocked", text).fix("`opsward uninstall` goes on once they are done")
}

fn names(owned: &[Owned]) -> Vec<String> {
    owned.iter().map(|o| format!("{} {}", o.kind, o.name)).collect()
}

fn listed(schema: &[&str], owned: &[Owned]) -> String {
    let schema = schema.iter().map(|s| (*s).to_owned());
    schema.chain(names(owned)).collect::<Vec<_>>().join(", ")
}

fn done(changed: bool, owned: &[Owned], text: String) -> Done {
    let result = json!({ "schema": changed, "outside": names(owned) });
    Done::new(result, text).changed(changed)
}
