//! `opsward rejected list|retry|drop`: ops that were refused on the way in.

use super::confirm::confirm;
use super::{Context, args};
use crate::db::{
    Client, migrate,
    rejected::{self, Kept, Name},
};
use crate::pull::retry::{Retried, retry};
use crate::show::{self, Done, ExitCode, Failure, Outcome};
use crate::values::Host;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A line of the list cuts the reason to so many characters; `--output json` does not.
const WHY: usize = 90;
/// Bytes of ops that are tried together; they are held some three times over.
const AT_ONCE: u64 = 8 << 20;

/// List, retry or drop the ops that were refused
#[derive(clap::Subcommand)]
#[command(arg_required_else_help = true)]
pub(super) enum Action {
    /// Show refused ops, the oldest first
    List(List),
    /// Try refused ops as if they came now; those that apply are no longer kept
    Retry(Which),
    /// Forget refused ops for good
    Drop {
        #[command(flatten)]
        which: Which,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::Args)]
pub(super) struct List {
    /// Only those that this peer sent first
    #[arg(long, value_name = "URL", value_parser = args::peer)]
    peer: Option<Host>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = args::limit)]
    limit: i64,
    /// Print each op whole, as it was received, a line each
    #[arg(long)]
    whole: bool,
}

/// Selects ops by id, by peer, or all; one of the three is required.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// Ids as `rejected list` shows them
    #[arg(value_name = "ID", num_args = 0.., value_parser = args::id)]
    id: Vec<i64>,
    /// Only those that this peer sent first
    #[arg(long, value_name = "URL", value_parser = args::peer)]
    peer: Option<Host>,
    /// All of them
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(context: &Context, action: Action) -> Outcome {
    let db = context.open_db("rejected", 2).await?;
    let mut client = db.client().await?;
    match action {
        Action::List(of) => {
            // It only reads: it does not create the schema.
            let ops = match migrate::version(&client).await? {
                0 => Vec::new(),
                _ => rejected::list(&client, of.peer.as_ref(), 0, of.limit).await?,
            };
            Ok(listed(&ops, of.whole))
        }
        Action::Retry(which) => {
            migrate::migrate(&mut client).await?;
            retry_all(context, &mut client, &which).await
        }
        Action::Drop { which, yes } => {
            migrate::migrate(&mut client).await?;
            let ids: Vec<i64> = which.names(&client).await?.iter().map(|op| op.id).collect();
            let many = |n: u64| show::format::many(n, "refused op");
            confirm(context, yes, &format!("This forgets {} for good.", many(ids.len() as u64)))?;
            let dropped = rejected::drop(&client, &ids).await?;
            let text = format!("forgotten: {}", many(dropped));
            Ok(Done::new(json!({ "dropped": dropped }), text).changed(dropped > 0))
        }
    }
}

fn listed(ops: &[Kept], is_whole: bool) -> Done {
    let text = match (ops.is_empty(), is_whole) {
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

impl Which {
    /// The selected ops, the oldest first; an unknown id is an error.
    async fn names(&self, client: &Client) -> Result<Vec<Name>, Failure> {
        let ids = (!self.id.is_empty()).then_some(&self.id[..]);
        let names = rejected::names(client, ids, self.peer.as_ref()).await?;
        match self.id.iter().find(|id| names.iter().all(|name| name.id != **id)) {
            Some(id) => {
                Err(Failure::new(ExitCode::Failed, "no_such_op", format!("no refused op has the id {id}"))
                    .fix("see `opsward rejected list`"))
            }
            None => Ok(names),
        }
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

async fn retry_all(context: &Context, client: &mut Client, which: &Which) -> Outcome {
    if context.settings.read_only {
        return Err(Failure::read_only("retrying writes ops and records, so nothing was tried", "retry"));
    }
    let names = which.names(client).await?;
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
            results
                .iter()
                .map(|(op, r)| vec![op.id.to_string(), op.ulid.clone(), op.table.clone(), outcome_text(r)]),
        ),
    };
    let json: Vec<Value> = results.iter().map(|(op, r)| json!({ "id": op.id, "retried": r })).collect();
    Ok(Done::new(json!({ "ops": json }), text).changed(settled).exit(if refused {
        ExitCode::Failed
    } else {
        ExitCode::Done
    }))
}

fn outcome_text(result: &Retried) -> String {
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
