//! Contract 9: the command line. Each command is one file with one `COMMAND`, listed in
//! `COMMANDS`. What all commands share happens around them: settings, logging, the JSON
//! envelope, the exit code.

mod args;
mod census;
mod completions;
mod config;
mod confirm;
mod context;
mod digest;
mod doctor;
mod frame;
mod healthcheck;
mod help;
mod history;
mod lease;
mod outside;
mod pace;
mod plan;
mod progress;
mod prune;
mod reclaim;
mod rejected;
mod reset;
mod run;
mod status;
mod sweep;
mod uninstall;
mod verify;
mod version;

pub use context::{Context, Early};
pub use frame::command;

use crate::clock::Clock;
use crate::settings::{self, Source};
use crate::show::{ExitCode, Failure, Outcome, OutputMode};
use clap::ArgMatches;
use futures_util::future::LocalBoxFuture;
use std::ffi::OsString;

pub struct Command {
    /// Its name on the command line.
    pub name: &'static str,
    /// Adds its description and its arguments.
    pub args: fn(clap::Command) -> clap::Command,
    /// Where its result goes.
    pub output: Output,
    /// Its work.
    pub run: Run,
}

/// Where a command's result goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Text, or the envelope with `--output json`.
    Envelope,
    /// The command's own output: there is no `--output`, and warnings are logged.
    Own,
}

/// A command's work.
#[derive(Clone, Copy)]
pub enum Run {
    /// Runs even when the settings cannot be used.
    Early(fn(&Early, &ArgMatches) -> Outcome),
    /// Needs usable settings: `|context, args| Box::pin(run(context, args))`.
    Settled(for<'a> fn(&'a Context, &'a ArgMatches) -> LocalBoxFuture<'a, Outcome>),
}

/// Every command, in the order of the help. A new one is added here.
const COMMANDS: &[&Command] = &[
    &run::COMMAND,
    &sweep::COMMAND,
    &plan::COMMAND,
    &status::COMMAND,
    &doctor::COMMAND,
    &prune::COMMAND,
    &reclaim::COMMAND,
    &census::COMMAND,
    &history::COMMAND,
    &pace::PAUSE,
    &pace::RESUME,
    &pace::PACE,
    &rejected::COMMAND,
    &digest::COMMAND,
    &verify::COMMAND,
    &reset::COMMAND,
    &config::COMMAND,
    &healthcheck::COMMAND,
    &uninstall::COMMAND,
    &version::COMMAND,
    &completions::COMMAND,
    &help::COMMAND,
];

/// Runs the command line of this process and says how to end it.
pub async fn main(args: impl IntoIterator<Item = OsString>, source: Source) -> ExitCode {
    let matches = match frame::command().try_get_matches_from(frame::as_help(args)) {
        Ok(matches) => matches,
        Err(error) => {
            // A closed stdout is no failure of `--help`.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::Usage,
                false => ExitCode::Done,
            };
        }
    };
    // clap requires a command and accepts only those in the list.
    let Some((name, args)) = matches.subcommand() else {
        return ExitCode::Usage;
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return ExitCode::Usage;
    };
    let early = Early {
        loaded: settings::load(&frame::with_flags(source, args)),
        clock: Clock::System,
        output: match command.output {
            Output::Envelope => frame::output(args),
            Output::Own => OutputMode::Text,
        },
    };
    let outcome = match command.run {
        Run::Early(run) => run(&early, args),
        Run::Settled(run) => {
            settled(command, &early, |context| Box::pin(async move { run(&context, args).await })).await
        }
    };
    frame::finish(&frame::words(name, args), command.output, &early, outcome)
}

/// Runs a command that needs settings, with logging.
async fn settled<'a>(
    command: &Command,
    early: &Early,
    run: impl FnOnce(Context) -> LocalBoxFuture<'a, Outcome>,
) -> Outcome {
    let loaded = early.loaded.clone().map_err(Failure::from)?;
    crate::logging::init(&loaded.settings);
    if command.output == Output::Own {
        for warning in &loaded.warnings {
            tracing::warn!(code = %warning.code, fix = warning.fix, "{}", warning.text);
        }
    }
    run(Context::new(loaded, early)).await
}
