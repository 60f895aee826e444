//! `opsward completions SHELL`: the script that completes its command line.

use super::{Command, Early, Output, Run, frame};
use crate::show::{Done, ExitCode, Failure, Outcome};
use clap::{Arg, ArgMatches, value_parser};
use clap_complete::Shell;
use serde_json::Value;

pub(super) const COMMAND: Command = Command {
    name: "completions",
    args: |command| {
        command.about("Print the completion script of a shell").arg(
            Arg::new(SHELL)
                .value_name("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("The shell"),
        )
    },
    output: Output::Own,
    run: Run::Early(run),
};

const SHELL: &str = "shell";

fn run(_: &Early, args: &ArgMatches) -> Outcome {
    let Some(shell) = args.get_one::<Shell>(SHELL) else {
        return Err(Failure::new(ExitCode::Usage, "usage", "name a shell"));
    };
    // Written to memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut frame::command(), "opsward", &mut script);
    Ok(Done::new(Value::Null, String::from_utf8_lossy(&script)))
}
