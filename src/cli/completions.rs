//! `opsward completions SHELL`: the script that completes its command line.

use super::frame;
use crate::show::{Done, Outcome};
use clap_complete::Shell;
use serde_json::Value;

/// Print the completion script of a shell
#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Outcome {
    // Written to memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut frame::command(), "opsward", &mut script);
    Ok(Done::new(Value::Null, String::from_utf8_lossy(&script)))
}
