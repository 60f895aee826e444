//! `opsward digest`: writes what another validator's `verify` compares with.

use super::Context;
use super::progress::Meter;
use crate::reclaim::digest::{Error, header, scope, write};
use crate::records::Model;
use crate::show::{Done, ExitCode, Failure, Outcome, OutputMode, format};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;

/// Write what another validator compares its records with: opsward digest > FILE
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    scope: Scope,
    /// Write it into this file; --output json then tells what it holds
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Compress it: some 40 bytes a record
    #[arg(long)]
    gzip: bool,
}

/// Which record tables are compared.
#[derive(clap::Args)]
pub(super) struct Scope {
    /// Only these record tables
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    tables: Vec<String>,
    /// Not this record table, such as storage_and_db_sizes
    #[arg(long, value_name = "TABLE", value_delimiter = ',')]
    leave_out: Vec<String>,
}

impl Scope {
    pub(super) fn models(&self) -> Result<Vec<&'static Model>, Failure> {
        scope(&self.tables, &self.leave_out)
            .map_err(|why| Failure::usage(format!("{why}: see --tables and --leave-out"), ""))
    }
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let own = context.self_host()?;
    let mut scope = args.scope.models()?;
    let file = args.out.as_deref();
    if file.is_none() && context.output == OutputMode::Json {
        let why = "the envelope goes to stdout, and so would the digest";
        return Err(Failure::usage(why, "name a file for it: --out FILE"));
    }
    if file.is_none() && std::io::stdout().is_terminal() {
        let fix = "send it into a file: opsward digest > FILE, or --out FILE";
        return Err(Failure::usage("a digest has a line for every record", fix));
    }
    let db = context.open_db("digest", 2).await?;
    let header = header(&db, Some(own), &mut scope, context.clock.now()).await?;
    let out: Box<dyn Write> = match file {
        Some(path) => Box::new(File::create(path).map_err(Error::Output)?),
        None => Box::new(std::io::stdout().lock()),
    };
    let out = BufWriter::with_capacity(1 << 16, out);
    let meter = Meter::new(context.output);
    let tell = |table: &str, rows: u64, place: &'static str| meter.rows(table, rows, place);
    let written = match args.gzip {
        true => write(&db, &header, GzEncoder::new(out, Compression::fast()), &tell)
            .await
            .and_then(|(zip, tables)| zip.finish()?.flush().map(|()| tables).map_err(Error::from)),
        false => write(&db, &header, out, &tell).await.map(|(_, tables)| tables),
    };
    meter.end();
    let tables = written?;
    Ok(match file {
        Some(path) => {
            let rows = format::many(tables.values().sum(), "record");
            let text =
                format!("{}: {rows} of {}", path.display(), format::many(tables.len() as u64, "table"));
            let result = json!({ "out": path, "tables": tables, "left_out": header.left_out, "taken_at": header.taken_at });
            Done::new(result, text)
        }
        None => Done::silent(),
    })
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
