//! `opsward census`: brings the census up to date and shows it.

use super::{Command, Context, Output, Run};
use crate::bound::census::{self, Finished, Scope, Total, totals};
use crate::db::census::{Entry, Implausible, day_of, implausible, load};
use crate::db::lease::Lease;
use crate::db::migrate;
use crate::metrics::Metrics;
use crate::show::format::{bytes, count, lines, span};
use crate::show::{Changed, Done, ExitCode, Failure, Outcome};
use crate::values::{OpUlid, Progress};
use crate::work::{Halt, Pacer, Patience, Stop, Work};
use clap::{Arg, ArgAction, ArgMatches};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, stderr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long one run goes on: they follow each other until all is counted.
const RUN: Duration = Duration::from_secs(60);
/// How often it is looked whether the lease is free, and how often a line says
/// how far it is where there is no terminal.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "census",
    args: |command| {
        command
            .about("Count the log by table and day: days that may have changed, or all of it")
            .arg(flag("full", "Count all of the log again"))
            .arg(flag("days", "Show every day, not only sums"))
            .arg(flag("wait", "Wait while another opsward works"))
            .arg(
                Arg::new("pace")
                    .long("pace")
                    .value_name("PACE")
                    .value_parser(pace)
                    .help("gentle, full or a share of time such as 50%, instead of `opsward pace`"),
            )
    },
    output: Output::Envelope,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn pace(text: &str) -> Result<u8, &'static str> {
    let percent = |text: &str| text.strip_suffix('%')?.parse().ok().filter(|n| (1..=100).contains(n));
    match text {
        "gentle" => Ok(crate::db::pace::GENTLE),
        "full" => Ok(100),
        text => percent(text).ok_or("a pace is gentle, full, or a share of time from 1% to 100%"),
    }
}

async fn run(context: &Context, args: &ArgMatches) -> Outcome {
    let db = context.open_db("census", 4).await?;
    migrate::migrate(&mut db.client().await?).await?;
    let stop = CancellationToken::new();
    let work = Work {
        db: db.clone(),
        settings: Arc::new(context.settings.clone()),
        own: context.self_host()?.clone(),
        clock: context.clock.clone(),
        metrics: Metrics::new().map_err(anyhow::Error::from)?,
        stop: stop.clone(),
        tell: teller(),
    };
    let counted = count_all(&work, args);
    tokio::pin!(counted);
    tokio::select! {
        counted = &mut counted => counted?,
        _ = tokio::signal::ctrl_c() => {
            stop.cancel();
            counted.await?;
        }
    }
    let client = db.client().await?;
    Ok(done(&load(&client).await?, &implausible(&client).await?, args))
}

async fn count_all(work: &Work, args: &ArgMatches) -> Result<(), Failure> {
    let mut lease = take(work, args).await?;
    let mut pacer = Pacer::new(work, args.get_one::<u8>("pace").copied(), Patience::Wait);
    let scope = if args.get_flag("full") { Scope::Full } else { Scope::Now };
    loop {
        let report = census::run_once(work, &mut lease, &mut pacer, scope, RUN).await.map_err(failure)?;
        if report.finished == Finished::All {
            return Ok(());
        }
    }
}

async fn take(work: &Work, args: &ArgMatches) -> Result<Lease, Failure> {
    loop {
        match Lease::take(&work.db).await? {
            Ok(lease) => return Ok(lease),
            Err(_) if args.get_flag("wait") && !work.stop.is_cancelled() => sleep(LOOK_EVERY).await,
            Err(holder) => {
                let holder = holder.map_or_else(|| "another session".to_owned(), |h| h.to_string());
                let text = format!("the lease is held by {holder}");
                return Err(Failure::new(ExitCode::Held, "held", text).fix("wait for it with --wait"));
            }
        }
    }
}

fn failure(stop: Stop) -> Failure {
    match stop {
        Stop::Db(error) => error.into(),
        Stop::Halt(Halt::Stopped) => Failure::new(
            ExitCode::Failed,
            "stopped",
            "stopped; what was counted stays, and `opsward census` goes on from there",
        ),
        Stop::Halt(halt) => Failure::new(ExitCode::Refused, "halted", halt.to_string()),
    }
}

/// A bar on a terminal, else a line now and then; both on stderr.
fn teller() -> Arc<dyn Fn(Progress) + Send + Sync> {
    if stderr().is_terminal() {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        return Arc::new(move |p: Progress| {
            if let Some(total) = p.total {
                bar.set_length(total);
            }
            bar.set_message(p.phase);
            bar.set_position(p.done);
        });
    }
    let last = Mutex::new(Instant::now());
    Arc::new(move |p: Progress| {
        let Ok(mut last) = last.lock() else { return };
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let of = p.total.map_or_else(String::new, |t| format!(" of about {}", bytes(t)));
            let eta = p.eta_seconds.map_or_else(String::new, |s| format!(", about {} left", span(s)));
            tracing::info!("{}: {}{of}{eta}", p.phase, bytes(p.done));
        }
    })
}

fn done(entries: &[Entry], implausible: &[Implausible], args: &ArgMatches) -> Done {
    let days = args.get_flag("days");
    let totals = totals(entries, implausible);
    let mut text = match totals.is_empty() {
        true => "the log is empty".to_owned(),
        false => lines(
            &["table", "rows", "bytes", "oldest", "newest", "owed", "implausible"],
            totals.iter().map(|t| {
                let mark = if t.estimated { "~" } else { "" };
                let day = |u: Option<OpUlid>| u.map_or_else(|| "-".into(), |u| day_of(u.ms()).to_string());
                let figures = [format!("{mark}{}", count(t.rows)), format!("{mark}{}", bytes(t.bytes))];
                let rest = [day(t.oldest), day(t.newest), count(t.owed), count(t.implausible)];
                [vec![name(&t.table)], figures.to_vec(), rest.to_vec()].concat()
            }),
        ),
    };
    if days && !entries.is_empty() {
        text.push_str("\n\n");
        text.push_str(&lines(
            &["table", "day", "rows", "bytes", "owed"],
            entries.iter().map(|e| {
                let mark = if e.estimated { "~" } else { "" };
                let (rows, size) = (format!("{mark}{}", count(e.rows)), format!("{mark}{}", bytes(e.bytes)));
                vec![name(&e.table), e.day.to_string(), rows, size, count(e.owed)]
            }),
        ));
    }
    let mut result =
        json!({ "tables": totals, "rows": sum(&totals, |t| t.rows), "bytes": sum(&totals, |t| t.bytes) });
    if days {
        result["days"] = entries.iter().map(day_json).collect();
    }
    Done::new(result, text).changed(Changed::Yes)
}

fn sum(totals: &[Total], of: fn(&Total) -> u64) -> u64 {
    totals.iter().map(of).sum()
}

fn name(table: &str) -> String {
    if table.is_empty() { "(none)".into() } else { table.into() }
}

fn day_json(e: &Entry) -> Value {
    json!({
        "table": e.table, "day": e.day, "rows": e.rows, "bytes": e.bytes,
        "oldest": e.oldest, "newest": e.newest, "owed": e.owed,
        "estimated": e.estimated, "counted_at": e.counted_at,
    })
}
