//! `opsward rejected list|retry|drop`: ops that were refused on the way in.

use super::args::{flag, limit, peer};
use super::confirm::{self, confirm};
use super::{Command, Context, Output, Run};
use crate::db::rejected::{self, Kept, Name};
use crate::db::{Client, migrate};
use crate::pull::retry::{Retried, retry};
use crate::show::{self, Done, ExitCode, Failure, Outcome};
use crate::values::Host;
use clap::{Arg, ArgMatches, value_parser};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A line of the list cuts the reason to so many characters; `--output json` does not.
const WHY: usize = 90;
/// Bytes of ops that are tried together; they are held some three times over.
const AT_ONCE: u64 = 8 << 20;

pub(super) const COMMAND: Command = Command {
    name: "rejected",
    args: |command| {
        command
            .about("List, retry or drop the ops that were refused")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(
                clap::Command::new("list")
                    .about("Show refused ops, the oldest first")
                    .arg(peer(OF_PEER))
                    .arg(limit("100", "How many at most"))
                    .arg(flag("whole", "Print each op whole, as it was received, a line each")),
            )
            .subcommand(which(
                clap::Command::new("retry")
                    .about("Try refused ops as if they came now; those that apply are no longer kept"),
            ))
            .subcommand(
                which(clap::Command::new("drop").about("Forget refused ops for good")).arg(confirm::flag()),
            )
    },
    output: Output::Envelope,
    run: Run::Settled(|context, args| Box::pin(run(context, args))),
};

const OF_PEER: &str = "Only those that this peer sent first";

/// Selects ops by id, by peer, or all; one of the three is required.
fn which(command: clap::Command) -> clap::Command {
    command
        .arg(
            Arg::new("id")
                .value_name("ID")
                .num_args(0..)
                .value_parser(value_parser!(i64))
                .help("Ids as `rejected list` shows them"),
        )
        .arg(peer(OF_PEER))
        .arg(flag("all", "All of them"))
        .group(clap::ArgGroup::new("which").args(["id", "peer", "all"]).required(true))
}

async fn run(context: &Context, args: &ArgMatches) -> Outcome {
    let db = context.open_db("rejected", 2).await?;
    let mut client = db.client().await?;
    match args.subcommand() {
        // `list` only reads: it does not create the schema.
        Some(("list", args)) if migrate::version(&client).await? == 0 => return Ok(listed(&[], args)),
        Some(("list", args)) => return list(&client, args).await,
        _ => migrate::migrate(&mut client).await?,
    }
    match args.subcommand() {
        Some(("retry", args)) => retry_all(context, &mut client, args).await,
        Some(("drop", args)) => drop_all(context, &client, args).await,
        _ => Err(Failure::usage("say list, retry or drop", "")),
    }
}

async fn list(client: &Client, args: &ArgMatches) -> Outcome {
    let limit = args.get_one::<i64>("limit").copied().unwrap_or(100);
    let ops = rejected::list(client, args.get_one::<Host>("peer"), 0, limit).await?;
    Ok(listed(&ops, args))
}

fn listed(ops: &[Kept], args: &ArgMatches) -> Done {
    let text = match (ops.is_empty(), args.get_flag("whole")) {
        (true, _) => "no op was refused".to_owned(),
        (false, true) => ops.iter().map(whole).collect::<Vec<_>>().join("\n"),
        (false, false) => show::format::lines(
            &["id", "ulid", "table", "why", "times", "last", "peer"],
            ops.iter().map(line),
        ),
    };
    let result: Vec<Value> = ops.iter().map(as_json).collect();
    Done::new(json!({ "ops": result }), text)
}

fn whole(op: &Kept) -> String {
    String::from_utf8_lossy(&op.bytes).into_owned()
}

fn line(op: &Kept) -> Vec<String> {
    let mut why = format!("{}: {}", op.code, op.detail);
    if let Some((end, _)) = why.char_indices().nth(WHY) {
        why.truncate(end);
        why.push('…');
    }
    let last = op.last_seen.strftime("%Y-%m-%d %H:%M").to_string();
    vec![
        op.id.to_string(),
        show::format::dated(&op.ulid),
        op.table.clone(),
        why,
        op.times.to_string(),
        last,
        op.peer.clone(),
    ]
}

fn as_json(op: &Kept) -> Value {
    json!({
        "id": op.id, "peer": op.peer, "ulid": op.ulid, "table": op.table, "code": op.code,
        "detail": op.detail, "times": op.times, "first_seen": op.first_seen, "last_seen": op.last_seen,
        "op": whole(op),
    })
}

/// The selected ops, the oldest first; an unknown id is an error.
async fn named(client: &Client, args: &ArgMatches) -> Result<Vec<Name>, Failure> {
    let ids: Option<Vec<i64>> = args.get_many("id").map(|ids| ids.copied().collect());
    let names = rejected::names(client, ids.as_deref(), args.get_one::<Host>("peer")).await?;
    match ids.iter().flatten().find(|id| names.iter().all(|name| name.id != **id)) {
        Some(id) => {
            Err(Failure::new(ExitCode::Failed, "no_such_op", format!("no refused op has the id {id}"))
                .fix("see `opsward rejected list`"))
        }
        None => Ok(names),
    }
}

/// As many of the first as take little memory together; one at least.
fn first_of(names: &[Name]) -> usize {
    let mut bytes = 0;
    let fit = names.iter().take_while(|name| {
        bytes += name.bytes;
        bytes <= AT_ONCE
    });
    fit.count().clamp(1, names.len())
}

async fn retry_all(context: &Context, client: &mut Client, args: &ArgMatches) -> Outcome {
    if context.settings.read_only {
        return Err(Failure::read_only("retrying writes ops and records, so nothing was tried", "retry"));
    }
    let names = named(client, args).await?;
    let mut retried = Vec::with_capacity(names.len());
    while retried.len() < names.len() {
        let next = &names[retried.len()..];
        let next = &next[..first_of(next)];
        let ids: Vec<i64> = next.iter().map(|name| name.id).collect();
        let ops = rejected::whole(client, &ids).await?;
        let ended = retry(client, &ops, &context.clock).await?;
        let ended: BTreeMap<i64, Retried> = ops.iter().map(|op| op.id).zip(ended).collect();
        // One that somebody dropped meanwhile is refused no more.
        let of = |id: &i64| ended.get(id).cloned().unwrap_or(Retried::Duplicate);
        retried.extend(ids.iter().map(of));
    }
    let results: Vec<(&Name, Retried)> = names.iter().zip(retried).collect();
    let settled = results.iter().any(|(_, r)| !matches!(r, Retried::Refused(_)));
    let refused = results.iter().any(|(_, r)| matches!(r, Retried::Refused(_)));
    let text = match results.is_empty() {
        true => "no op is kept".to_owned(),
        false => show::format::lines(
            &["id", "ulid", "table", "outcome"],
            results.iter().map(|(op, r)| vec![op.id.to_string(), op.ulid.clone(), op.table.clone(), told(r)]),
        ),
    };
    let json: Vec<Value> = results.iter().map(|(op, r)| json!({ "id": op.id, "retried": r })).collect();
    Ok(Done::new(json!({ "ops": json }), text).changed(settled).exit(if refused {
        ExitCode::Failed
    } else {
        ExitCode::Done
    }))
}

fn told(result: &Retried) -> String {
    match result {
        Retried::Applied => "applied".into(),
        Retried::Duplicate => "in the log already".into(),
        Retried::AppliedInPart(why) => format!("applied in part: {why}"),
        Retried::Replay => {
            "not applied: newer state of its records is in the log or was deleted from it".into()
        }
        Retried::Refused(why) => format!("still refused: {why}"),
    }
}

async fn drop_all(context: &Context, client: &Client, args: &ArgMatches) -> Outcome {
    let ids: Vec<i64> = named(client, args).await?.iter().map(|op| op.id).collect();
    let question = format!("This forgets {} for good.", show::format::many(ids.len() as u64, "refused op"));
    confirm(context, args, &question)?;
    let dropped = rejected::drop(client, &ids).await?;
    Ok(Done::new(
        json!({ "dropped": dropped }),
        format!("forgotten: {}", show::format::many(dropped, "refused op")),
    )
    .changed(dropped > 0))
}
