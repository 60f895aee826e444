//! `opsward uninstall`: removes everything that opsward made.

use super::{Changed, Context, Exit, Output, Said};
use crate::clock::Clock;
use crate::db::uninstall::{Found, Owned, Removal, find, remove};
use crate::db::{self, Db};
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Write};

/// Whether the operator was asked already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consent {
    /// To be asked for.
    Ask,
    /// Given by `--yes`.
    Given,
}

#[derive(Serialize)]
struct Removed {
    schema: bool,
    outside: Vec<String>,
}

/// Removes it, after asking.
pub async fn run(context: &Context, consent: Consent) -> Exit {
    match uninstall(context, consent).await {
        Ok(exit) => exit,
        Err(e) => {
            eprintln!("opsward: nothing was removed: {e}");
            Exit::of(&e)
        }
    }
}

async fn uninstall(context: &Context, consent: Consent) -> db::Result<Exit> {
    let db = Db::open(&context.settings.db, "opsward uninstall", 1).await?;
    let mut client = db.client().await?;
    let owned = match find(&client).await? {
        Found::Nothing => {
            let text = format!("{} holds nothing of opsward.\n", db.shown());
            print(context, Changed::No, &[], text);
            return Ok(Exit::Done);
        }
        Found::Foreign => {
            return Ok(refused(&format!(
                "the schema opsward in {} was made by no opsward: drop it yourself, if it is to go",
                db.shown()
            )));
        }
        Found::Ours(owned) => owned,
    };
    if context.settings.read_only && !owned.is_empty() {
        return Ok(refused(&format!(
            "OPENAUDIO_MEDIORUM_READ_ONLY=true, and what opsward made outside its schema would go too: {}",
            names(&owned).join(", ")
        )));
    }
    if consent == Consent::Ask && !agreed(context, db.shown(), &owned) {
        return Ok(Exit::Refused);
    }
    match remove(&mut client, &owned).await? {
        Removal::Done => {
            let text = format!("Removed from {}: {}.\n", db.shown(), listed(&owned));
            print(context, Changed::Yes, &owned, text);
            Ok(Exit::Done)
        }
        Removal::DaemonConnected => {
            eprintln!(
                "opsward: refused: a daemon is connected to {}; stop it first",
                db.shown()
            );
            Ok(Exit::Busy)
        }
        Removal::Changed => Ok(refused(
            "what opsward owns changed while you were asked: look again",
        )),
    }
}

fn refused(why: &str) -> Exit {
    eprintln!("opsward: refused, nothing was done: {why}");
    Exit::Refused
}

fn names(owned: &[Owned]) -> Vec<String> {
    owned
        .iter()
        .map(|o| format!("{} {}", o.kind, o.name))
        .collect()
}

fn listed(owned: &[Owned]) -> String {
    let schema = "the schema opsward with all that is in it".to_owned();
    let all: Vec<String> = std::iter::once(schema).chain(names(owned)).collect();
    all.join(", ")
}

/// Says what will be done, and asks. Nobody to ask means no.
fn agreed(context: &Context, shown: &str, owned: &[Owned]) -> bool {
    let stdin = std::io::stdin();
    if context.output == Output::Json || !stdin.is_terminal() {
        refused("it removes opsward's state for good; say --yes where nobody can be asked");
        return false;
    }
    let mut err = std::io::stderr();
    let _ = write!(
        err,
        "This removes from {shown}: {}.\nCursors, refused ops and all other state of opsward are lost; \
         the node's own tables stay as they are.\nGo on? [y/N] ",
        listed(owned)
    );
    let _ = err.flush();
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer).is_ok();
    let yes = read && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    if !yes {
        eprintln!("Nothing was done.");
    }
    yes
}

fn print(context: &Context, changed: Changed, owned: &[Owned], text: String) {
    let removed = Removed {
        schema: changed == Changed::Yes,
        outside: names(owned),
    };
    let said = Said {
        text,
        changed,
        warnings: context.warnings.clone(),
    };
    context.print("uninstall", Clock::System.now(), &removed, said);
}
