//! What surrounds every command: the settings as flags, `--config`, `--output`, and writing
//! the result.

use super::{Command, Early, OWN_OUTPUT, help};
use crate::settings::{self, DEFAULT_FILE, Entry, Shape, Source, TABLE};
use crate::show::{self, ExitCode, Failure, Frame, Outcome, OutputMode};
use crate::values::Finding;
use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Subcommand, value_parser};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

const CONFIG: &str = "config";
const OUTPUT: &str = "output";
const SEE_SETTINGS: &str = "Every setting is a flag, too: see `opsward help settings`.";

/// The whole command line.
pub fn command() -> clap::Command {
    let command = clap::Command::new("opsward")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .after_help(SEE_SETTINGS)
        .arg(
            Arg::new(CONFIG)
                .long(CONFIG)
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .global(true)
                .help(format!("Settings file [default {DEFAULT_FILE}, where it exists]")),
        )
        .args(TABLE.iter().map(flag));
    Command::augment_subcommands(command).mut_subcommands(|sub| {
        let name = sub.get_name().to_owned();
        let after = match help::examples(&name) {
            "" => SEE_SETTINGS.to_owned(),
            examples => format!("Examples:\n{examples}\n\n{SEE_SETTINGS}"),
        };
        let is_own = OWN_OUTPUT.contains(&name.as_str());
        sub.after_help(after).args((!is_own).then(output_flag))
    })
}

/// The settings, as the flags that every command takes.
pub(super) fn settings_help() -> String {
    let flags =
        TABLE.iter().map(|entry| flag(entry).hide_short_help(false).hide_long_help(false).global(false));
    let about = "Settings: a flag goes before the environment, the environment before the settings file.";
    let mut command = clap::Command::new("opsward")
        .about(about)
        .disable_help_flag(true)
        .help_template("{about}\n\n{options}")
        .args(flags);
    command.render_long_help().to_string()
}

/// `--help settings` behind any command is `help settings`.
pub(super) fn as_help(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let args: Vec<OsString> = args.into_iter().collect();
    let asks = |pair: &[OsString]| (pair[0] == "--help" || pair[0] == "-h") && pair[1] == help::SETTINGS;
    match args.windows(2).any(asks) {
        true => vec![args[0].clone(), "help".into(), help::SETTINGS.into()],
        false => args,
    }
}

/// A setting's flag.
fn flag(entry: &Entry) -> Arg {
    let arg = Arg::new(entry.key)
        .long(entry.flag())
        .global(true)
        .action(ArgAction::Set)
        .allow_hyphen_values(true)
        .help_heading("Settings")
        .hide_short_help(true)
        .hide_long_help(true)
        .help(settings::generate::help(entry));
    match entry.shape {
        Shape::Text(name) | Shape::Secret(name, _) => arg.value_name(name),
        Shape::Switch => {
            arg.value_name("BOOL").num_args(0..=1).require_equals(true).default_missing_value("true")
        }
    }
}

fn output_flag() -> Arg {
    Arg::new(OUTPUT)
        .long(OUTPUT)
        .value_name("FORMAT")
        .value_parser(PossibleValuesParser::new(["text", "json"]))
        .default_value("text")
        .global(true)
        .help("How the result is written")
}

/// The innermost subcommand's arguments; clap puts the global ones there.
fn innermost(mut args: &ArgMatches) -> &ArgMatches {
    while let Some((_, inner)) = args.subcommand() {
        args = inner;
    }
    args
}

/// The command's words: `config show`.
pub(super) fn words(mut args: &ArgMatches) -> String {
    let mut words = Vec::new();
    while let Some((name, inner)) = args.subcommand() {
        words.push(name);
        args = inner;
    }
    words.join(" ")
}

/// How the result is to be written.
pub(super) fn output(args: &ArgMatches) -> OutputMode {
    match innermost(args).try_get_one::<String>(OUTPUT) {
        Ok(Some(format)) if format == "json" => OutputMode::Json,
        _ => OutputMode::Text,
    }
}

/// Adds the flags of the command line to the source of settings.
pub(super) fn with_flags(mut source: Source, args: &ArgMatches) -> Source {
    let args = innermost(args);
    source.config = args.get_one::<PathBuf>(CONFIG).cloned();
    for entry in TABLE.iter() {
        if args.value_source(entry.key) == Some(ValueSource::CommandLine)
            && let Some(text) = args.get_one::<String>(entry.key)
        {
            source.flags.insert(entry.key, text.clone());
        }
    }
    source
}

/// Writes the outcome where it belongs and says how the process ends.
pub(super) fn finish(command: &str, is_own: bool, early: &Early, outcome: Outcome) -> ExitCode {
    let exit = match &outcome {
        Ok(done) => done.exit,
        Err(failure) => failure.exit,
    };
    let warnings: &[Finding] = match &early.loaded {
        // These were logged before the command ran.
        Ok(_) if is_own => &[],
        Ok(loaded) => &loaded.warnings,
        Err(_) if is_own && outcome.is_ok() => &[],
        Err(found) => &found.warnings,
    };
    let text = match early.output {
        OutputMode::Json => {
            let loaded = early.loaded.as_ref().ok();
            let frame = Frame {
                command,
                at: early.clock.now(),
                own: loaded.and_then(|loaded| loaded.settings.node_endpoint.as_ref()),
                warnings,
            };
            show::json(frame, &outcome)
        }
        OutputMode::Text => {
            let own = outcome.as_ref().map_or(&[][..], |done| &done.warnings);
            for warning in warnings.iter().chain(own) {
                say(&format!("warning: {warning}"));
            }
            match outcome {
                Ok(done) => done.text,
                Err(failure) => {
                    say(&failure_text(&failure));
                    String::new()
                }
            }
        }
    };
    match show::write_lines(io::stdout().lock(), &text) {
        Ok(()) => exit,
        Err(error) => {
            say(&format!("opsward: the result cannot be written: {error}"));
            ExitCode::Failed
        }
    }
}

/// A failure for people.
fn failure_text(failure: &Failure) -> String {
    let Failure { text, fix, .. } = failure;
    if fix.is_empty() { format!("opsward: {text}") } else { format!("opsward: {text}; {fix}") }
}

/// Writes to stderr; a closed stderr is ignored.
fn say(text: &str) {
    let _ = show::write_lines(io::stderr().lock(), text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(line: &[&str]) -> Source {
        let mut source = Source::process();
        source.env.clear();
        with_flags(source, &command().try_get_matches_from(line).unwrap())
    }

    #[test]
    fn the_command_line_holds_together() {
        command().debug_assert();
    }

    #[test]
    fn settings_flags_may_stand_anywhere() {
        let source = source(&[
            "opsward",
            "--read-only",
            "--listen=1.1.1.1:1",
            "config",
            "--sweep-peers=false",
            "show",
            "--log-level",
            "debug",
            "--listen=2.2.2.2:2",
            "--config=/x",
        ]);
        let flags: Vec<(&str, &str)> = source.flags.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(
            flags,
            [
                ("listen", "2.2.2.2:2"),
                ("log_level", "debug"),
                ("read_only", "true"),
                ("sweep_peers", "false")
            ]
        );
        assert_eq!(source.config, Some("/x".into()));
    }

    #[test]
    fn help_is_short_and_the_settings_are_behind_it() {
        let of = |line: &[&str]| {
            let line = as_help(line.iter().map(OsString::from));
            command().try_get_matches_from(line).unwrap_err().to_string()
        };
        let help = of(&["opsward", "reclaim", "--help"]);
        assert!(help.contains("--plan") && help.contains("Examples:"), "{help}");
        assert!(!help.contains("--db-url") && help.contains("opsward help settings"), "{help}");
        let line = as_help(["opsward", "reclaim", "--help", "settings"].map(OsString::from));
        assert_eq!(line, ["opsward", "help", "settings"]);
        assert!(settings_help().contains("--db-url"));
        for sub in command().get_subcommands() {
            assert!(!help::examples(sub.get_name()).is_empty(), "{}", sub.get_name());
        }
    }

    #[test]
    fn words_and_output() {
        let matches = command().try_get_matches_from(["opsward", "config", "--output=json", "show"]).unwrap();
        assert_eq!(words(&matches), "config show");
        assert_eq!(output(&matches), OutputMode::Json);
    }

    #[test]
    fn what_is_no_command_line() {
        for line in [
            &["opsward"][..],
            &["opsward", "conifg"],
            &["opsward", "config"],
            &["opsward", "version", "--output", "xml"],
            &["opsward", "completions", "bash", "--output", "json"],
            &["opsward", "config", "show", "--no-such"],
        ] {
            assert!(command().try_get_matches_from(line).is_err(), "{line:?}");
        }
    }
}
