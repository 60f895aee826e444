//! Contract 9: the command line. Each command is one file: its arguments and its `run`. What
//! all commands share happens around them: settings, logging, the JSON envelope, the exit code.

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
use crate::show::{ExitCode, Failure, Outcome};
use clap::FromArgMatches;
use futures_util::future::LocalBoxFuture;
use pace::Pause;
use std::ffi::OsString;

#[derive(clap::Subcommand)]
enum Command {
    /// Run the daemon: serve, pull, watch
    Run,
    Sweep(sweep::Args),
    /// Show what each task would delete now, and what stands in the way
    Plan,
    /// Show what there is, how far it is, and what needs you
    Status,
    /// Look at everything that the daemon needs, say what is wrong
    Doctor,
    Prune(prune::Args),
    Reclaim(reclaim::Args),
    Census(census::Args),
    History(history::Args),
    /// Stop bulk work at its next batch, until `resume`
    Pause,
    /// Let bulk work go on
    Resume,
    Pace(pace::Args),
    /// List, retry or drop the ops that were refused
    #[command(subcommand)]
    Rejected(rejected::Action),
    Digest(digest::Args),
    Verify(verify::Args),
    Reset(reset::Args),
    /// Check or show the settings
    #[command(subcommand)]
    Config(config::Action),
    Healthcheck(healthcheck::Args),
    Uninstall(uninstall::Args),
    /// Print the version, and that of the schema it knows
    Version,
    Completions(completions::Args),
    Help(help::Args),
}

/// Commands that write their own output: they have no `--output`, and warnings are logged.
const OWN_OUTPUT: [&str; 4] = ["run", "healthcheck", "completions", "help"];

/// Runs the command line of this process and says how to end it.
pub async fn main(args: impl IntoIterator<Item = OsString>, source: Source) -> ExitCode {
    let matches = frame::command().try_get_matches_from(frame::as_help(args));
    let parsed = matches.and_then(|matches| Ok((Command::from_arg_matches(&matches)?, matches)));
    let (command, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // A closed stdout is no failure of `--help`.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
        }
    };
    let words = frame::words(&matches);
    let early = Early {
        loaded: settings::load(&frame::with_flags(source, &matches)),
        clock: Clock::System,
        output: frame::output(&matches),
    };
    let is_own = OWN_OUTPUT.contains(&words.as_str());
    let outcome = match command {
        // These run even when the settings cannot be used.
        Command::Config(action) => config::run(&early, &action),
        Command::Version => version::run(),
        Command::Completions(args) => completions::run(&args),
        Command::Help(args) => help::run(&args),
        command => settled(command, &early, is_own).await,
    };
    frame::finish(&words, is_own, &early, outcome)
}

/// Runs a command that needs settings, with logging.
async fn settled(command: Command, early: &Early, is_own: bool) -> Outcome {
    let loaded = early.loaded.clone().map_err(Failure::from)?;
    crate::logging::init(&loaded.settings);
    if is_own {
        for warning in &loaded.warnings {
            tracing::warn!(code = %warning.code, fix = warning.fix, "{}", warning.text);
        }
    }
    let context = &Context::new(loaded, early);
    // On the heap: the largest of them is too large for a stack.
    let work: LocalBoxFuture<'_, Outcome> = match command {
        Command::Run => Box::pin(run::run(context)),
        Command::Sweep(args) => Box::pin(sweep::run(context, args)),
        Command::Plan => Box::pin(plan::run(context)),
        Command::Status => Box::pin(status::run(context)),
        Command::Doctor => Box::pin(doctor::run(context)),
        Command::Prune(args) => Box::pin(prune::run(context, args)),
        Command::Reclaim(args) => Box::pin(reclaim::run(context, args)),
        Command::Census(args) => Box::pin(census::run(context, args)),
        Command::History(args) => Box::pin(history::run(context, args)),
        Command::Pause => Box::pin(pace::pause(context, Pause::Yes)),
        Command::Resume => Box::pin(pace::pause(context, Pause::No)),
        Command::Pace(args) => Box::pin(pace::set(context, args)),
        Command::Rejected(action) => Box::pin(rejected::run(context, action)),
        Command::Digest(args) => Box::pin(digest::run(context, args)),
        Command::Verify(args) => Box::pin(verify::run(context, args)),
        Command::Reset(args) => Box::pin(reset::run(context, args)),
        Command::Healthcheck(args) => Box::pin(healthcheck::run(context, args)),
        Command::Uninstall(args) => Box::pin(uninstall::run(context, args)),
        Command::Config(_) | Command::Version | Command::Completions(_) | Command::Help(_) => {
            Box::pin(std::future::ready(Err(Failure::usage("it needs no settings", ""))))
        }
    };
    work.await
}
