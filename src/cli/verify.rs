//! `opsward verify`: whether another validator holds the same records.

use super::Context;
use super::digest::Scope;
use super::progress::Meter;
use crate::db::Db;
use crate::reclaim::digest::Error;
use crate::reclaim::file::{Bad, DigestFile};
use crate::reclaim::verify::{Found, Reference, Report, Verify};
use crate::settings;
use crate::show::{self, Done, ExitCode, Failure, Outcome, format};
use serde_json::json;
use std::fs::File;
use std::io;
use std::time::Duration;

/// Prove that another validator holds the same records, or list those that differ
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    scope: Scope,
    #[arg(long, value_name = "FILE|URL", required = true, help = format!("{REFERENCE}; may be given again"))]
    against: Vec<String>,
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = settings::duration, help = SETTLE)]
    settle: Duration,
}

/// What the flag says that names the other validator.
pub(super) const REFERENCE: &str =
    "What `opsward digest` wrote on the other validator (- for stdin), or its database, postgres://…";
/// What `--settle` says.
pub(super) const SETTLE: &str = "How long records that differ are read again, as both sides live on";

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let scope = args.scope.models()?;
    let db = context.open_db("verify", 2).await?;
    let one = async |reference: Result<Reference, Failure>| -> Result<Report, Failure> {
        let reference = reference?;
        let verify = Verify {
            db: &db,
            own: context.settings.node_endpoint.as_ref(),
            scope: scope.clone(),
            settle: args.settle,
            max_age: None,
            clock: context.clock.clone(),
        };
        let meter = Meter::new(context.output);
        let report = verify.run(&reference, &|what, rows, place| meter.rows(what, rows, place)).await;
        meter.end();
        Ok(report?)
    };
    // What cannot be used is known before hours go into another one.
    let mut references = Vec::new();
    for named in &args.against {
        references.push((named, reference(named, "against", "verify").await));
    }
    if references.len() > 1 {
        let mut results = Vec::new();
        for (named, reference) in references {
            results.push((named.as_str(), one(reference).await));
        }
        return Ok(several(&results));
    }
    let Some((_, only)) = references.pop() else { return Err(Failure::usage("--against is missing", "")) };
    let report = one(only).await?;
    let exit = if report.matches { ExitCode::Done } else { ExitCode::Failed };
    Ok(Done::new(report_json(&report), report_text(&report)).exit(exit))
}

/// Which of several validators match, what differs in the others, and which cannot be used.
fn several(results: &[(&str, Result<Report, Failure>)]) -> Done {
    let matches = results.iter().all(|(_, result)| result.as_ref().is_ok_and(|report| report.matches));
    let json = results.iter().map(|(_, result)| result.as_ref().map_or_else(failed_json, report_json));
    let json: Vec<_> = json.collect();
    let mut lines = String::new();
    // No name of a reference that cannot be used is told where it is a URL: it may hold a password.
    let shown = |named: &str| if named.contains("://") { "a database".to_owned() } else { named.to_owned() };
    for (named, result) in results {
        let line = match result {
            Ok(report) => format!("{}: {}", name(report), in_short(report)),
            Err(failure) => format!("{}: {}; {}", shown(named), failure.text, failure.way_out()),
        };
        lines.push_str(&line);
        lines.push('\n');
    }
    let reports = results.iter().filter_map(|(_, result)| result.as_ref().ok());
    for report in reports.filter(|report| !report.matches) {
        lines.push_str(&format!("\n{}\n", report_text(report)));
    }
    let failed = results.iter().find_map(|(_, result)| result.as_ref().err());
    let exit = match failed {
        Some(failure) => failure.exit,
        None if matches => ExitCode::Done,
        None => ExitCode::Failed,
    };
    Done::new(json!({ "match": matches, "references": json }), lines).exit(exit)
}

fn name(report: &Report) -> String {
    report.reference.own.clone().unwrap_or_else(|| "the reference".to_owned())
}

/// Whether it matches, or in which tables it does not.
fn in_short(report: &Report) -> String {
    if report.matches {
        return "match".to_owned();
    }
    let differs = report.tables.iter().filter(|f| {
        f.missing_here.records + f.missing_there.records + f.differing.records + f.ranges_not_looked_into > 0
    });
    format!("differs in {}", differs.map(|f| f.table.as_str()).collect::<Vec<_>>().join(", "))
}

/// A reference that could not be compared with, for programs.
fn failed_json(failure: &Failure) -> serde_json::Value {
    json!({ "match": false, "error": { "code": failure.code, "text": failure.text, "fix": failure.way_out() } })
}

/// Opens the reference that the flag names.
///
/// # Errors
/// The file cannot be read, the database cannot be reached, or the digest cannot be used.
pub(super) async fn reference(named: &str, flag: &str, command: &str) -> Result<Reference, Failure> {
    if named.starts_with("postgres://") || named.starts_with("postgresql://") {
        // No error repeats the URL: it may hold a password.
        let parsed = settings::db_target(named)
            .map_err(|why| Failure::usage(format!("the URL of --{flag} cannot be used: {why}"), ""))?;
        let db = Db::open(&parsed, &format!("opsward {command}"), 2).await;
        return Ok(Reference::Url(db.map_err(Error::Reference)?));
    }
    if named.contains("://") {
        let why = format!("--{flag} takes a file or the URL of a database, postgres://…");
        let fix =
            "no validator serves its records: run `opsward digest > FILE` on it, and bring the file here";
        return Err(Failure::usage(why, fix));
    }
    let file = match named {
        "-" => spooled(),
        path => File::open(path),
    };
    let file = file.map_err(|e| {
        let (text, fix) = match named {
            "-" => (
                format!("standard input cannot be kept in {}: {e}", std::env::temp_dir().display()),
                "name the file itself (in a container: mounted there), or set TMPDIR to a directory with room for it",
            ),
            path => (
                format!("the reference file {path} cannot be read: {e}"),
                "it is what `opsward digest > FILE` wrote on the other validator",
            ),
        };
        Failure::refused(text, fix)
    })?;
    let digest = DigestFile::open(file).map_err(|bad: Bad| Error::from(bad))?;
    Ok(Reference::File(Box::new(digest)))
}

/// Copies standard input into a temporary file, so that it can be read more than once.
fn spooled() -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut io::stdin().lock(), &mut file)?;
    Ok(file)
}

/// The comparison for programs.
pub(super) fn report_json(report: &Report) -> serde_json::Value {
    let theirs = &report.reference;
    let mut result = json!(report);
    result["reference"] =
        json!({ "self": theirs.own, "taken_at": theirs.taken_at, "opsward": theirs.opsward });
    result
}

/// The comparison for people.
pub(super) fn report_text(report: &Report) -> String {
    let theirs = &report.reference;
    let whose = theirs.own.as_deref().unwrap_or("the reference");
    let mut text = match report.matches {
        true => format!("match: the records here are those of {whose}, as of {}\n\n", theirs.taken_at),
        false => format!("differs: the records here are not those of {whose}, as of {}\n\n", theirs.taken_at),
    };
    let row = |found: &Found| {
        let figures = [
            found.rows_here,
            found.rows_there,
            found.missing_here.records,
            found.missing_there.records,
            found.differing.records,
            found.settled,
            found.changed_here_since,
        ];
        std::iter::once(found.table.clone()).chain(figures.map(format::count)).collect()
    };
    let header = ["table", "here", "there", "only there", "only here", "differ", "settled", "changed since"];
    text.push_str(&show::format::lines(&header, report.tables.iter().map(row)));
    for line in differences(report) {
        text.push('\n');
        text.push_str(&line);
    }
    if !report.left_out.is_empty() {
        text.push_str(&format!("\nleft out: {}", report.left_out.join(", ")));
    }
    if report.tables.iter().any(|found| found.missing_here.records > 0) {
        text.push_str(
            "\nRecords that are only there may not have been read here yet: peers are read every 10 \
             minutes; `opsward sweep` reads them now, --settle 15m waits for it",
        );
    }
    text
}

/// A line for each record that differs, as far as they are listed.
pub(super) fn differences(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for found in &report.tables {
        let table = &found.table;
        for (what, listed) in [
            ("only there", &found.missing_here),
            ("only here", &found.missing_there),
            ("differ", &found.differing),
        ] {
            lines.extend(listed.first.iter().map(|key| format!("{table} {what}: {}", key.join(", "))));
            let more = listed.records - listed.first.len() as u64;
            if more > 0 {
                lines.push(format!("{table} {what}: {} more", format::count(more)));
            }
        }
        if found.ranges_not_looked_into > 0 {
            lines.push(format!(
                "{table}: {} ranges of keys that differ were too many to be looked into",
                format::count(found.ranges_not_looked_into)
            ));
        }
    }
    if !report.read_less_of.is_empty() {
        lines.push(format!(
            "this validator has read less of {} than the reference: what changed here since is told apart \
             once it has caught up",
            report.read_less_of.join(", ")
        ));
    }
    lines
}
