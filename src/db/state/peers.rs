//! `opsward.peers`: every peer ever known, and the last known set.

use crate::db::{Client, Doing, Isolation, Result, begin, gate};
use crate::values::{Host, Peer, PeerSet, PeerSource};
use jiff::Timestamp;

/// Makes `set` the last known one; peers that are not in it stay, inactive.
/// `via` says how it was found.
pub async fn replace(client: &mut Client, set: &PeerSet, via: &str, now: Timestamp) -> Result<()> {
    let tx = begin(client, Isolation::Write).await?;
    tx.execute(DEACTIVATE, &[&now]).await.doing("keep the peers")?;
    let hosts: Vec<&str> = set.peers.iter().map(|p| p.host.as_str()).collect();
    let wallets: Vec<&str> = set.peers.iter().map(|p| p.wallet.as_str()).collect();
    tx.execute(ACTIVATE, &[&hosts, &wallets, &now]).await.doing("keep the peers")?;
    let source = match set.source {
        PeerSource::Static => "static",
        PeerSource::Discovered | PeerSource::Remembered => "discovered",
    };
    tx.execute(SET, &[&source, &via, &now]).await.doing("keep the peers")?;
    tx.commit().await.doing("keep the peers")
}

/// One that vanished counts on from when that was first seen: it may have been
/// there all the time that we were not.
const DEACTIVATE: &str = "UPDATE opsward.peers SET active = false, last_seen = $1 WHERE active";
const ACTIVATE: &str = "
    INSERT INTO opsward.peers (host, wallet, active, first_seen, last_seen)
    SELECT host, wallet, true, $3, $3 FROM unnest($1::text[], $2::text[]) AS p(host, wallet)
    ON CONFLICT (host) DO UPDATE SET wallet = excluded.wallet, active = true, last_seen = excluded.last_seen";
const SET: &str = "
    INSERT INTO opsward.peer_set (source, via, refreshed_at) VALUES ($1, $2, $3)
    ON CONFLICT (one) DO UPDATE SET source = excluded.source, via = excluded.via,
        refreshed_at = excluded.refreshed_at";

/// The last discovered set, where there ever was one.
pub async fn remembered(client: &Client) -> Result<Option<PeerSet>> {
    if !gate::discovered(client).await? {
        return Ok(None);
    }
    let rows = client.query(ACTIVE, &[]).await.doing("recall the peers")?;
    let peers = rows.iter().map(|r| Peer { host: Host::normalise(r.get(0)), wallet: r.get(1) }).collect();
    Ok(Some(PeerSet::new(PeerSource::Remembered, peers, None)))
}

const ACTIVE: &str = "SELECT host, wallet FROM opsward.peers WHERE active";
