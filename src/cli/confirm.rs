//! Asks for confirmation before something that cannot be undone.

use super::Context;
use crate::show::format::printable;
use crate::show::{ExitCode, Failure, OutputMode};
use std::io::{BufRead, IsTerminal, Write};

/// Says what will be done and asks, unless `--yes` answered already. Without a terminal the
/// answer is no.
///
/// # Errors
/// It was not confirmed: nothing was done, exit 3.
pub(super) fn confirm(context: &Context, yes: bool, what: &str) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if yes {
        return Ok(());
    }
    let refused = |text: String, fix| Err(Failure::new(ExitCode::Refused, "not_confirmed", text).fix(fix));
    const SAY_YES: &str = "say --yes where nobody can be asked";
    if context.output == OutputMode::Json {
        return refused(format!("nothing was done: {}", what.trim_end_matches('.')), SAY_YES);
    }
    if !stdin.is_terminal() {
        let _ = writeln!(std::io::stdout(), "{}", printable(what));
        return refused("nothing was done: it was not confirmed".to_owned(), SAY_YES);
    }
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{}\nGo on? [y/N] ", printable(what));
    let _ = stderr.flush();
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line).is_ok();
    match read && ["y", "yes"].contains(&line.trim().to_lowercase().as_str()) {
        true => Ok(()),
        false => refused("nothing was done".to_owned(), "answer y, or say --yes"),
    }
}
