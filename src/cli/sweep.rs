//! `opsward sweep`: pulls one page of each peer, prints what happened.

use super::{Context, args};
use crate::bound::facts;
use crate::db::{Db, migrate, node, peers};
use crate::metrics::Metrics;
use crate::pull::{PullFailure, Pulled, Puller, discover};
use crate::settings::Settings;
use crate::show::{self, Done, ExitCode, Failure, Outcome};
use crate::values::{Host, OpUlid, Replication};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Pull one page of each peer now, print what happened, exit
#[derive(clap::Args)]
pub(super) struct Args {
    /// Pull this one instead; may be given again
    #[arg(long, value_name = "URL", value_parser = args::peer)]
    peer: Vec<Host>,
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let settings = &context.settings;
    let own = context.self_host()?.clone();
    if settings.read_only {
        return Err(Failure::read_only("pulling writes ops and records, so nothing was pulled", "pull"));
    }
    let db = context.open_db("sweep", 4).await?;
    let mut client = db.client().await?;
    migrate::migrate(&mut client).await?;
    let (by, why) = facts::replication(&client, &node::catalog(&client).await?, settings).await?;
    drop(client);
    if by == Replication::Chain {
        let text = format!("ops reach this node by the chain alone, so nothing was pulled: {why}");
        return Err(Failure::refused(text, "OPENAUDIO_MEDIORUM_REPLICATION=both pulls all the same"));
    }
    let hosts = match args.peer.is_empty() {
        false => args.peer,
        true => active(settings, &own, &db).await?,
    };
    let metrics = Metrics::new().map_err(anyhow::Error::from)?;
    let puller = Puller::of_settings(settings, db, own, context.clock.clone(), metrics)
        .map_err(|e| Failure::new(ExitCode::Failed, "tls", e))?;
    let stop = CancellationToken::new();
    let mut results = Vec::new();
    for host in hosts {
        let pulled = tokio::select! {
            pulled = puller.run_once(&host, &stop) => pulled,
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(ExitCode::Failed, "stopped", "stopped; what was applied so far stays"));
            }
        };
        results.push((host, pulled));
    }
    Ok(done(&results))
}

/// The active peers as the daemon would have them.
async fn active(settings: &Settings, own: &Host, db: &Db) -> Result<Vec<Host>, Failure> {
    let set = match discover::look_up(settings, Some(own)).await {
        Ok(found) => found.peers,
        Err(why) => peers::remembered(&db.client().await?).await?.ok_or_else(|| {
            let text = format!("the peers could not be looked up: {why}");
            Failure::new(ExitCode::Away, "discovery", text)
                .fix("name one with --peer, or all in OPENAUDIO_MEDIORUM_PEERS")
        })?,
    };
    Ok(set.peers.into_iter().map(|p| p.host).collect())
}

/// What came of a peer.
type OfPeer = (Host, Result<Pulled, PullFailure>);

fn done(results: &[OfPeer]) -> Done {
    let applied: i64 = results.iter().filter_map(|(_, r)| r.as_ref().ok()).map(|p| p.sums.applied).sum();
    let failed = results.iter().filter(|(_, r)| r.is_err()).count();
    let mut text = show::format::lines(
        &["peer", "outcome", "applied", "known", "replays", "refused", "cursor"],
        results.iter().map(|(host, r)| line(host, r)),
    );
    for (host, result) in results {
        text.push_str(&notes(host, result));
    }
    if results.is_empty() {
        text = "there are no peers".into();
    }
    let result: Vec<Value> = results.iter().map(|(host, r)| as_json(host, r)).collect();
    let all_failed = failed > 0 && failed == results.len();
    let exit = match results.first() {
        Some((_, Err(PullFailure::Db(e)))) if all_failed && e.is_away() => ExitCode::Away,
        _ if failed > 0 => ExitCode::Failed,
        _ => ExitCode::Done,
    };
    Done::new(json!({ "peers": result }), text).changed(applied > 0).exit(exit)
}

fn line(host: &Host, result: &Result<Pulled, PullFailure>) -> Vec<String> {
    match result {
        Ok(p) => {
            let outcome = if p.hold.is_some() { "held" } else { "ok" };
            let sums =
                [p.sums.applied, p.sums.duplicates, p.sums.replays, p.sums.rejected].map(|n| n.to_string());
            let cursor = p.to.map_or_else(|| "-".into(), |u| show::format::dated(u.as_str()));
            [vec![host.to_string(), outcome.into()], sums.to_vec(), vec![cursor]].concat()
        }
        Err(_) => {
            let mut cells = vec!["-".to_owned(); 7];
            (cells[0], cells[1]) = (host.to_string(), "failed".into());
            cells
        }
    }
}

fn notes(host: &Host, result: &Result<Pulled, PullFailure>) -> String {
    let mut notes = String::new();
    let mut note = |text: String| notes.push_str(&format!("\n{host}: {text}"));
    match result {
        Err(failure) => note(format!("failed: {failure}")),
        Ok(p) => {
            if let Some((from, to)) = p.sums.gap {
                let [from, to] = [from, to].map(|ulid| show::format::dated(ulid.as_str()));
                note(format!("a retention gap was crossed: ops from {from} to {to} are gone for good"));
            }
            for (table, floor) in &p.table_gaps {
                let floor = show::format::dated(floor.as_str());
                note(format!("ops of {table} below {floor} were pruned there before we read them"));
            }
            if let Some(hold) = &p.hold {
                note(format!("held before {}: {}", show::format::dated(hold.ulid.as_str()), hold.reason));
            }
            if p.sums.rejected > 0 {
                note("refused ops are kept: see `opsward rejected list`".into());
            }
            if p.next.is_some() {
                note("there is more: the daemon would pull the next page at once".into());
            }
        }
    }
    notes
}

fn as_json(host: &Host, result: &Result<Pulled, PullFailure>) -> Value {
    match result {
        Err(failure) => json!({ "peer": host, "outcome": "failed", "detail": failure.to_string() }),
        Ok(p) => json!({
            "peer": host,
            "outcome": if p.hold.is_some() { "held" } else { "ok" },
            "from": p.from, "to": p.to,
            "applied": p.sums.applied, "duplicates": p.sums.duplicates, "replays": p.sums.replays,
            "rejected": p.sums.rejected, "rejected_unkept": p.sums.rejected_unkept,
            "gap": p.sums.gap.map(|(from, to): (OpUlid, OpUlid)| json!({ "from": from, "to": to })),
            "table_gaps": p.table_gaps.iter().map(|(t, f)| json!({ "table": t, "floor": f })).collect::<Vec<_>>(),
            "hold": p.hold.as_ref().map(|h| json!({ "ulid": h.ulid, "table": h.table, "reason": h.reason })),
            "more": p.next.is_some(),
        }),
    }
}
