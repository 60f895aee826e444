//! `opsward digest`: writes what another validator's `verify` compares with.

use super::progress::{Shown, rows as read};
use super::{Command, Context, Output, Run};
use crate::reclaim::digest::{Error, header, scope, write};
use crate::records::Model;
use crate::show::{Done, ExitCode, Failure, Outcome, OutputMode};
use clap::{Arg, ArgAction, ArgMatches};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{BufWriter, IsTerminal, Write};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "digest",
    args: |command| {
        scope_flags(command)
            .about("Write what another validator compares its records with: opsward digest > FILE")
            .arg(
                Arg::new("gzip")
                    .long("gzip")
                    .action(ArgAction::SetTrue)
                    .help("Compress it: some 40 bytes a record"),
            )
    },
    output: Output::Own,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

async fn run(context: &Context, args: &ArgMatches) -> Outcome {
    let own = context.self_host()?;
    let mut scope = chosen(args)?;
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(Failure::new(ExitCode::Usage, "usage", "a digest has a line for every record")
            .fix("send it into a file: opsward digest > FILE"));
    }
    let db = context.open_db("digest", 2).await?;
    let header = header(&db, Some(own), &mut scope, context.clock.now()).await?;
    let shown = Shown::new(OutputMode::Text);
    let tell = |table: &str, rows: u64, place: &'static str| shown.tell(&read(table, rows, place));
    let out = BufWriter::with_capacity(1 << 16, stdout.lock());
    let written = match args.get_flag("gzip") {
        true => write(&db, &header, GzEncoder::new(out, Compression::fast()), &tell)
            .await
            .and_then(|(zip, _)| Ok(zip.finish()?.flush()?)),
        false => write(&db, &header, out, &tell).await.map(|_| ()),
    };
    shown.end();
    written?;
    Ok(Done::silent())
}

/// `--tables` and `--leave-out`.
pub(super) fn scope_flags(command: clap::Command) -> clap::Command {
    let flag = |name: &'static str| {
        Arg::new(name).long(name).value_name("TABLE").value_delimiter(',').action(ArgAction::Append)
    };
    command
        .arg(flag("tables").help("Only these record tables"))
        .arg(flag("leave-out").help("Not this record table, such as storage_and_db_sizes"))
}

/// The tables that are named, by [`scope_flags`].
pub(super) fn chosen(args: &ArgMatches) -> Result<Vec<&'static Model>, Failure> {
    let named = |flag: &str| -> Vec<String> { args.get_many(flag).unwrap_or_default().cloned().collect() };
    scope(&named("tables"), &named("leave-out"))
        .map_err(|why| Failure::new(ExitCode::Usage, "usage", format!("{why}: see --tables and --leave-out")))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Refused(_) => Self::new(ExitCode::Refused, "refused", text),
            Error::Own(e) => e.into(),
            Error::Reference(e) => Self { text, ..e.into() },
            Error::Output(_) => Self::new(ExitCode::Failed, "output", text),
        }
    }
}
