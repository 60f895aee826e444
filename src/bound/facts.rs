//! Reads what the gate decides from: small tables, no scan of the log.

use super::decide::{self, ChainFact, ClockFact, Decision, Facts, PeerFact, ReaderFact};
use super::forecast;
use super::plan::{Routed, Surroundings};
use crate::db::guard::Found;
use crate::db::{
    self, Client, gate, guard, index, node, order, pace, preflight, privileges, readers, reclaim, stats,
};
use crate::settings::Settings;
use crate::values::{Host, OpUlid, Replication, SweepRoute, unix_ms};
use jiff::Timestamp;

/// All facts of this moment.
pub async fn gather(client: &Client, settings: &Settings, own: &Host, now: Timestamp) -> db::Result<Facts> {
    let rows = gate::peers(client, settings.peers.as_deref(), now).await?;
    let known = settings.peers.is_some() || gate::discovered(client).await?;
    let (current, ignored_rows) = gate::node_cursors(client).await?;
    let samples = gate::samples(client, now).await?;
    let peers = rows.into_iter().map(|row| peer(row, &current, &samples)).collect();
    let readers = readers::lowest_since(client, now - readers::COUNTED).await?;
    let catalog = node::catalog(client).await?;
    let (replication, _) = replication(client, &catalog, settings).await?;
    Ok(Facts {
        replication,
        chain: chain(node::chain(client, &catalog).await?, catalog),
        guarded: settings.bounding.replay_guard && guard::find(client).await? == Found::Right,
        settings: settings.bounding.clone(),
        now_ms: unix_ms(now),
        own: own.clone(),
        peers: known.then_some(peers),
        ignored_rows,
        pulled_every: settings.sweep_interval,
        readers: readers.iter().map(reader).collect(),
        own_ahead: gate::own_ahead(client, own, now).await?,
        census: gate::census(client).await?,
        census_whole: gate::counted_whole(client).await?,
        census_ms: gate::census_at(client).await?.map_or(0, unix_ms),
        overhead: forecast::overhead(&stats::figures(client).await?),
        reclaim: reclaim::unfinished(client).await?,
        disordered: order::look(client).await?.map(|wrong| (wrong.text, wrong.fix)),
        since: gate::blockers(client).await?,
    })
}

/// How ops reach the node, and what told it: the setting, else the catalog now
/// and what was last found.
pub async fn replication(
    client: &Client,
    catalog: &node::Catalog,
    settings: &Settings,
) -> db::Result<(Replication, String)> {
    if let Some(set) = settings.bounding.replication {
        return Ok((set, "OPENAUDIO_MEDIORUM_REPLICATION says so".into()));
    }
    let kept = node::kept(client).await?;
    let (found, why) = decide::recognise(seen(catalog, None, kept.as_ref().map(|k| k.replication)));
    Ok(match kept {
        // It knows more of why than a look at the catalog.
        Some(kept) if kept.replication == found => (found, kept.why),
        _ => (found, why.into()),
    })
}

/// What was seen of the node.
pub fn seen(catalog: &node::Catalog, route: Option<SweepRoute>, kept: Option<Replication>) -> decide::Seen {
    decide::Seen { has_status: catalog.has_status, has_user_id: catalog.has_user_id, route, kept }
}

fn chain(found: node::Chain, catalog: node::Catalog) -> ChainFact {
    ChainFact {
        has_blocks: catalog.has_blocks,
        grant: catalog.grant_blocks,
        cursor: found.cursor,
        tip: found.tip.map(|(chain, height)| (chain, u64::try_from(height).unwrap_or(0))),
        read_until_ms: found.read_until.map(unix_ms),
    }
}

/// What a plan needs besides the facts.
pub async fn surroundings(client: &Client, settings: &Settings, now: Timestamp) -> db::Result<Surroundings> {
    let figures = stats::figures(client).await?;
    let directory = figures.data_directory.as_deref();
    Ok(Surroundings {
        now,
        read_only: settings.read_only,
        free_bytes: stats::free_disk(settings.pgdata_path.as_deref(), &settings.db, directory)
            .map(|(b, _)| b),
        figures,
        paused_at: pace::signs(client).await?.paused_at,
        index: index::find(client).await?,
        lacking: privileges::lacking(client, &[]).await?,
        hindrances: preflight::hindrances(client, false).await?,
        census_at: gate::census_at(client).await?,
        routed: Routed::NotKnown,
        guard: guard::find(client).await?,
    })
}

/// Keeps since when each thing stands in the way of retention and of dormant
/// cleanup, where they are on, and what overrides are in force; what no longer
/// does is forgotten.
pub async fn note(client: &Client, facts: &Facts, now: Timestamp) -> db::Result<()> {
    let on = [decide::retention(facts), decide::dormant(facts)].into_iter().filter(|d| !d.is_off());
    let on: Vec<Decision> = on.collect();
    let notices = decide::gate(facts).notices;
    let mut found = Vec::new();
    if !on.is_empty() {
        found.extend(notices.iter().map(|n| [&*n.code, &n.subject, &n.text, &n.fix]));
    }
    for decision in &on {
        if let Decision::Skip { blockers } = decision {
            found.extend(blockers.iter().map(|b| [&*b.code, &b.subject, &b.text, &b.fix]));
        }
    }
    gate::note_blockers(client, &found, now).await
}

fn peer(row: gate::PeerRow, current: &[(Host, String)], samples: &[(Host, String)]) -> PeerFact {
    let of = |rows: &[(Host, String)]| -> Vec<String> {
        rows.iter().filter(|(host, _)| *host == row.host).map(|(_, ulid)| ulid.clone()).collect()
    };
    let (now, before) = (of(current), of(samples));
    let seen = row.node_seen.as_deref().is_some_and(|text| !text.is_empty());
    PeerFact {
        reset: now.is_empty() && (seen || !before.is_empty()),
        node: [now, before].concat(),
        host: row.host,
        first_seen_ms: unix_ms(row.first_seen),
        removed_ms: row.removed.map(unix_ms),
        own: row.own,
        empty_since_ms: row.empty_since.map(unix_ms),
        clock: row.clock.map(|(offset_ms, at)| ClockFact { offset_ms, found_ms: unix_ms(at) }),
    }
}

fn reader(of: &readers::ReaderStatus) -> ReaderFact {
    ReaderFact { host: Host::normalise(&of.host), lowest: of.lowest.as_deref().and_then(OpUlid::parse) }
}
