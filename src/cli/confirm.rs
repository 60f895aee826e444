//! Asks for confirmation before something that cannot be undone.

use super::Context;
use crate::show::format::printable;
use crate::show::{ExitCode, Failure, OutputMode};
use clap::{Arg, ArgMatches};
use std::io::{BufRead, IsTerminal, Write};

/// `--yes`: answers yes to the question.
pub(super) fn flag() -> Arg {
    super::args::flag("yes", "Do not ask")
}

/// Says what will be done and asks, unless `--yes` was given. Without a terminal the answer
/// is no.
///
/// # Errors
/// It was not confirmed: nothing was done, exit 3.
pub(super) fn confirm(context: &Context, args: &ArgMatches, what: &str) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    let refused = |text: String| Err(Failure::new(ExitCode::Refused, "not_confirmed", text));
    if args.get_flag("yes") {
        return Ok(());
    }
    if context.output == OutputMode::Json || !stdin.is_terminal() {
        return refused(format!("nothing was done: {}", what.trim_end_matches('.')))
            .map_err(|f: Failure| f.fix("say --yes where nobody can be asked"));
    }
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{}\nGo on? [y/N] ", printable(what));
    let _ = stderr.flush();
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line).is_ok();
    match read && ["y", "yes"].contains(&line.trim().to_lowercase().as_str()) {
        true => Ok(()),
        false => {
            refused("nothing was done".to_owned()).map_err(|failure| failure.fix("answer y, or say --yes"))
        }
    }
}
