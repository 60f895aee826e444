//! `opsward census`: brings the census up to date and shows it.

use super::{Context, lease};
use crate::bound::census::{Scope, Total, totals};
use crate::db::census::{Entry, Implausible, day_of, implausible, load};
use crate::job::Job;
use crate::show::format::{bytes, count, lines};
use crate::show::{Done, Outcome};
use crate::values::OpUlid;
use serde_json::json;

/// Count the log by table and day: days that may have changed, or all of it
#[derive(clap::Args)]
pub(super) struct Args {
    /// Count all of the log again
    #[arg(long)]
    full: bool,
    /// Show every day, not only sums
    #[arg(long)]
    days: bool,
    #[command(flatten)]
    lease: lease::Flags,
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let scope = if args.full { Scope::Full } else { Scope::Now };
    let job = Job::Census { scope, percent: args.lease.pace };
    let Some(_) = lease::have_done::<serde_json::Value>(context, args.lease.wait, job).await? else {
        return Ok(lease::detached());
    };
    let db = context.open_db("census", 1).await?;
    let client = db.client().await?;
    let warning = lease::disk_warning(context).await?;
    Ok(done(&load(&client).await?, &implausible(&client).await?, args.days).warn(warning))
}

fn done(entries: &[Entry], implausible: &[Implausible], days: bool) -> Done {
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
        result["days"] = json!(entries);
    }
    Done::new(result, text).changed(true)
}

fn sum(totals: &[Total], of: fn(&Total) -> u64) -> u64 {
    totals.iter().map(of).sum()
}

fn name(table: &str) -> String {
    if table.is_empty() { "(none)".into() } else { table.into() }
}
