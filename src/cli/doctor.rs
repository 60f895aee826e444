//! `opsward doctor`: looks at everything that the daemon needs.

use super::{Context, outside, status};
use crate::bound::{self, facts};
use crate::clock::Clock;
use crate::db::guard::{self, Found};
use crate::db::privileges::{Lacking, Need};
use crate::db::{self, Client, Db, catalog, lease, migrate, node, order, privileges, stats, uninstall};
use crate::pull::{client, discover};
use crate::records;
use crate::settings::Settings;
use crate::show::doctor::{self, Check};
use crate::show::gather::gather;
use crate::show::status::Status;
use crate::show::{Done, ExitCode, Outcome, ask};
use crate::values::{Finding, Host, PeerSet, Replication};
use serde_json::json;

/// Fails when a check does.
pub(super) async fn run(context: &Context) -> Outcome {
    let settings = &context.settings;
    let clock = context.clock.clone();
    let db = Db::open(&settings.db, "opsward doctor", 2).await;
    let mut status = gather(settings, db.as_ref(), None, &clock).await;
    let mut stranger = None;
    if let Ok(answer) = ask::status(settings.admin_listen).await {
        match status::other(&answer.result, settings) {
            None => status.daemon = answer.result.daemon,
            whose => stranger = whose,
        }
    }
    let mut checks = doctor::settings(&context.warnings);
    checks.extend(doctor::mode(settings, &context.origins));
    let (mut remembered, mut by) = (None, None);
    match &db {
        Ok(db) => match in_database(db, &status, context).await {
            Ok((found, peers, replication)) => {
                checks.extend(found);
                (remembered, by) = (peers, replication);
            }
            Err(e) => checks.push(doctor::no_database(&status.database.shown, &e)),
        },
        Err(e) => checks.push(doctor::no_database(&status.database.shown, e)),
    }
    checks.extend(outside(settings, remembered, by, &clock).await);
    checks.extend(doctor::replication(&status));
    if let Some(whose) = stranger {
        checks.retain(|check| check.name != "daemon");
        let Finding { text, fix, .. } = status::of_another(settings, &whose);
        checks.push(Check::warn("daemon", text, fix));
    }

    let exit = match doctor::has_failure(&checks) {
        true => ExitCode::Failed,
        false => ExitCode::Done,
    };
    Ok(Done::new(json!({ "checks": checks }), doctor::text(&checks)).exit(exit))
}

async fn in_database(
    db: &Db,
    status: &Status,
    context: &Context,
) -> db::Result<(Vec<Check>, Option<PeerSet>, Option<Replication>)> {
    let (client, now, settings) = (db.client().await?, context.clock.now(), &context.settings);
    let tables: Vec<&str> = records::models().iter().map(|m| m.table.as_str()).collect();
    let fitness = stats::fitness(&client, &tables).await?;
    let lacking = privileges::lacking(&client, &fitness.missing).await?;
    let mut lacking: Vec<_> = lacking.into_iter().filter(|l| l.need.is_wanted(settings)).collect();
    // Privileges for reading are needed even when pulling is off.
    let reads = |lift: &&String| lift.contains("SELECT") || lift.contains("ON DATABASE");
    if !Need::Pull.is_wanted(settings) {
        let lifts: Vec<_> = fitness.missing.iter().filter(reads).cloned().collect();
        lacking.extend((!lifts.is_empty()).then(|| Lacking { need: Need::Pull, lift: lifts.join("; ") }));
    }
    let mut checks = doctor::database(status, &fitness, now);
    checks.extend(doctor::privileges(&fitness.role, &lacking));
    checks.extend(order::look(&client).await?.map(|wrong| Check::fail("order", wrong.text, wrong.fix)));
    checks.push(doctor::models(&drift(&client).await?));
    let has_schema = status.database.schema_version.unwrap_or(0) > 0;
    checks.push(doctor::leftovers(leftovers(&client, has_schema).await?));
    let (of_node, by) = of_node(&client, status, context).await?;
    checks.extend(of_node);
    let remembered = if has_schema { db::peers::remembered(&client).await? } else { None };
    Ok((checks, remembered, by))
}

/// How ops reach the node, where opsward's schema tells, and what the node itself deletes.
async fn of_node(
    client: &Client,
    status: &Status,
    context: &Context,
) -> db::Result<(Vec<Check>, Option<Replication>)> {
    let settings = &context.settings;
    let catalog = node::catalog(client).await?;
    let left = node::left_settings(client).await?;
    if status.database.schema_version.unwrap_or(0) < migrate::LATEST {
        return Ok((doctor::node(None, &catalog, &left, settings), None));
    }
    let (by, why) = facts::replication(client, &catalog, settings).await?;
    let mut checks = doctor::node(Some((by, &why)), &catalog, &left, settings);
    if let Some(own) = &settings.node_endpoint {
        let facts = facts::gather(client, settings, own, context.clock.now()).await?;
        checks.extend(doctor::pruner(bound::node::notices(&facts, &stats::figures(client).await?)));
    }
    Ok((checks, Some(by)))
}

/// What interrupted work has left behind: a sentence and a fix each.
async fn leftovers(client: &Client, has_schema: bool) -> db::Result<Vec<(String, String)>> {
    let mut found = privileges::leftovers(client).await?;
    if guard::find(client).await? == Found::Other {
        let text = "the replay guard on public.ops is disabled, or not as this opsward makes it";
        found.push((text.to_owned(), "`opsward run` puts it right, or takes it away".to_owned()));
    }
    if let uninstall::Found::Brought(owned) = uninstall::find(client).await? {
        let names: Vec<&str> = owned.iter().map(|o| o.name.as_str()).collect();
        let text = format!("a dump brought triggers of opsward's to public.ops: {}", names.join(", "));
        found.push((text, "`opsward uninstall` removes them".to_owned()));
    }
    // A holder of the lease may be working on these jobs.
    if has_schema && lease::holder(client).await?.is_none() {
        for job in privileges::orphaned_jobs(client).await? {
            let fix = "run its command again: it goes on; the next `opsward run` forgets this one";
            found.push((format!("the job {job} was begun and never ended"), fix.to_owned()));
        }
    }
    Ok(found)
}

/// Tables and columns of the node that no model knows.
async fn drift(client: &Client) -> db::Result<Vec<String>> {
    let relations = catalog::relations(client).await?;
    let mut found = Vec::new();
    for model in records::models().iter() {
        let Some(columns) = relations.columns(&model.table) else {
            found.push(format!("there is no table {}", model.table));
            continue;
        };
        if let Err(why) = model.fitting(columns) {
            found.push(why);
        }
    }
    Ok(found)
}

async fn outside(
    settings: &Settings,
    remembered: Option<PeerSet>,
    by: Option<Replication>,
    clock: &Clock,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let looked_up = discover::look_up(settings, settings.node_endpoint.as_ref()).await;
    // Where ops come by the chain alone peers are of no use.
    let by_chain = by.is_some_and(|by| !by.has_peers());
    if !by_chain {
        let found = looked_up.as_ref().map(|found| (found.peers.peers.len(), found.via.as_str()));
        checks.push(doctor::discovery(found.map_err(String::as_str), remembered.is_some()));
    }
    let http = match client::of_settings(settings) {
        Ok(http) => http,
        Err(why) => {
            let fix = "see the system's certificates (ca-certificates)";
            checks.push(Check::fail("tls", why, fix));
            return checks;
        }
    };
    match &settings.node_endpoint {
        // Where ops come by the chain alone, nobody reads from it.
        Some(_) if by_chain => {}
        Some(own) => {
            let url = format!("{own}/internal/crud/sweep");
            let answered = outside::version(&http, own, clock, outside::WITHIN).await;
            checks.push(doctor::public_url(
                &url,
                answered.as_ref().map(Option::as_deref).map_err(String::as_str),
            ));
        }
        None => checks.push(Check::fail(
            "self",
            "OPENAUDIO_NODE_ENDPOINT is not set",
            "set it to this validator's own URL: `run` needs it",
        )),
    }
    let set = looked_up.map(|found| found.peers).ok().or(remembered);
    let hosts: Vec<Host> = set.into_iter().flat_map(|s| s.peers).map(|p| p.host).collect();
    checks.extend(outside::clock(&http, &hosts, clock).await);
    checks
}
