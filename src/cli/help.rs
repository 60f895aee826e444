//! `opsward help`: shows the help of opsward, of one command, or of the settings. Every
//! command takes every setting as a flag, so the help of a command leaves them out.

use super::frame;
use crate::show::{Done, Failure, Outcome};

/// `opsward help settings`.
pub(super) const SETTINGS: &str = "settings";

/// Show the help of a command, or of the settings
#[derive(clap::Args)]
pub(super) struct Args {
    /// A command, or `settings`
    #[arg(value_name = "COMMAND", num_args = 0..)]
    of: Vec<String>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut command = frame::command();
    command.build();
    for word in &args.of {
        if word == SETTINGS {
            return Ok(Done::new(serde_json::Value::Null, frame::settings_help()));
        }
        command = command
            .find_subcommand(word)
            .cloned()
            .ok_or_else(|| Failure::usage(format!("there is no command {word:?}"), "see `opsward --help`"))?;
    }
    Ok(Done::new(serde_json::Value::Null, command.render_long_help().to_string()))
}

/// Examples of a command, shown below its help.
pub(super) fn examples(command: &str) -> &'static str {
    match command {
        "run" => "  opsward run --node-endpoint https://node.example",
        "sweep" => "  opsward sweep\n  opsward sweep --peer https://peer.example",
        "plan" => "  opsward plan\n  opsward plan --output json",
        "status" => "  opsward status\n  opsward status --output json",
        "doctor" => "  opsward doctor",
        "prune" => "  opsward prune\n  opsward prune --task retention --strict",
        "reclaim" => "  opsward reclaim --plan\n  opsward reclaim\n  opsward reclaim --resume",
        "census" => "  opsward census\n  opsward census --full",
        "history" => "  opsward history --limit 10",
        "pause" => "  opsward pause",
        "resume" => "  opsward resume",
        "pace" => "  opsward pace full\n  opsward pace 50%",
        "rejected" => {
            "  opsward rejected list\n  opsward rejected retry 7\n  opsward rejected drop --all --yes"
        }
        "digest" => "  opsward digest --gzip > digest.gz",
        "verify" => "  opsward verify --against digest.gz",
        "reset" => "  opsward reset --reference digest.gz",
        "config" => "  opsward config check\n  opsward config show --output json",
        "healthcheck" => "  opsward healthcheck",
        "uninstall" => "  opsward uninstall\n  docker compose run --rm opsward uninstall",
        "version" => "  opsward version --output json",
        "completions" => "  opsward completions bash > /etc/bash_completion.d/opsward",
        "help" => "  opsward help settings\n  opsward help reclaim",
        _ => "",
    }
}
