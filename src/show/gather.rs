//! Gathers a `Status` from the settings, the supervisor's reports and opsward's tables.

use super::format::age_seconds;
use super::status::*;
use crate::clock::Clock;
use crate::db::short_lock::{self, Behind};
use crate::db::{self, Client, Db, foreign, known, migrate, node, overview, readers, replication, stats};
use crate::settings::Settings;
use crate::values::{Host, OpUlid, TaskReport, is_plausible, unix_ms};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Time for all reads of the database: `opsward status` waits 2 s for the daemon's answer.
const WITHIN: Duration = Duration::from_millis(1_500);

/// What a daemon adds to the database's view.
#[derive(Clone)]
pub struct DaemonView {
    /// When it was started.
    pub started_at: Timestamp,
    /// Where peers reach it.
    pub listen: String,
    /// Where its operator reaches it.
    pub admin_listen: String,
    /// Its tasks now.
    pub tasks: Arc<dyn Fn() -> Vec<TaskReport> + Send + Sync>,
}

impl DaemonView {
    fn at(&self, now: Timestamp) -> DaemonStatus {
        DaemonStatus {
            started_at: self.started_at,
            uptime_seconds: age_seconds(self.started_at, now),
            pid: std::process::id(),
            listen: self.listen.clone(),
            admin_listen: self.admin_listen.clone(),
            tasks: (self.tasks)(),
        }
    }
}

/// The status now. A database that is away is reported in the status; it is no error.
pub async fn gather(
    settings: &Settings,
    db: Result<&Db, &db::Error>,
    daemon: Option<&DaemonView>,
    clock: &Clock,
) -> Status {
    let now = clock.now();
    let mut status = Status {
        read_only: settings.read_only,
        own: settings.node_endpoint.as_ref().map(ToString::to_string),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at: now,
        daemon: daemon.map(|d| d.at(now)),
        database: DatabaseStatus {
            shown: db.map_or_else(|_| settings.db.shown(), |db| db.shown().to_owned()),
            state: "ready".to_owned(),
            min_free_disk_bytes: Some(settings.bounding.min_free_disk),
            ..DatabaseStatus::default()
        },
        ..Status::default()
    };
    let told = |error: &db::Error| (error.kind(), error.to_string());
    let read = match db {
        Ok(db) => read_within(&mut status, settings, db).await.map_err(|e| told(&e)),
        Err(error) => Err(told(error)),
    };
    status.database.up = true;
    if let Err((kind, error)) = read {
        let database = &mut status.database;
        (database.up, database.away) = (kind.is_up(), kind == db::Kind::Away);
        database.error.get_or_insert(error);
        (database.state, database.fix) = (kind.code().to_owned(), kind.fix().to_owned());
    }
    status
}

/// A database that answers slowly is another thing than one that lets nobody in.
async fn read_within(status: &mut Status, settings: &Settings, db: &Db) -> db::Result<()> {
    let until = Instant::now() + WITHIN;
    let client = timeout_at(until, db.client()).await;
    let mut client = client.unwrap_or_else(|_| Err(db::Error::Away("no answer in time".into())))?;
    let read = timeout_at(until, read(status, settings, &mut client)).await;
    read.unwrap_or(Err(db::Error::TooLong("read the state of the database")))
}

async fn read(status: &mut Status, settings: &Settings, client: &mut Client) -> db::Result<()> {
    let ready = stats::ready(client).await;
    let client = &*client;
    match ready.as_ref().err().map(db::Error::kind) {
        Some(db::Kind::Locked) => {
            let who = short_lock::holders(client, (&["public.ops"], Behind::Everybody)).await?;
            status.database.error = Some(format!("nobody can read public.ops: {who}"));
            status.database.server_version = Some(stats::server_version(client).await?);
        }
        // A standby can be read: its error is returned after that.
        None | Some(db::Kind::ReadOnly) => read_log(status, settings, client).await?,
        Some(_) => return ready,
    }
    let version = migrate::version(client).await?;
    status.database.schema_version = Some(version);
    // An older schema lacks some of these tables; `opsward run` migrates it.
    if version >= migrate::LATEST {
        read_own(status, client).await?;
    }
    if version == migrate::LATEST {
        let found = overview::overview(client).await?;
        status.bounding = Some(BoundingStatus::new(found, settings, status.at));
        status.node = of_node(client, settings, status.at).await?;
    }
    if let Some(peers) = &settings.peers {
        set_peers(status, peers);
    }
    ready
}

/// Sizes wait for whoever has the log locked.
async fn read_log(status: &mut Status, settings: &Settings, client: &Client) -> db::Result<()> {
    let figures = stats::figures(client).await?;
    let database = &mut status.database;
    let free =
        stats::free_disk(settings.pgdata_path.as_deref(), &settings.db, figures.data_directory.as_deref());
    database.server_version = Some(figures.server_version);
    database.ops_bytes = Some(figures.ops_bytes);
    database.index_bytes = Some(figures.index_bytes);
    database.dead_rows = Some(figures.dead_rows);
    database.free_disk_bytes = free.as_ref().map(|(bytes, _)| *bytes);
    database.free_disk_path = free.map(|(_, path)| path.display().to_string());
    database.relations = stats::largest(client).await?;
    Ok(())
}

async fn read_own(status: &mut Status, client: &Client) -> db::Result<()> {
    let now = status.at;
    status.database.foreign_floor = foreign::floor(client).await?.map(|u| u.to_string());
    status.database.log_replaced = known::forgotten(client).await?;
    if let Some((source, via, refreshed_at)) = replication::known_set(client).await? {
        status.peers.source = Some(source);
        status.peers.via = Some(via).filter(|v| !v.is_empty());
        status.peers.refreshed_at = Some(refreshed_at);
    }
    status.peers.list = replication::peers(client, now).await?;
    for peer in &mut status.peers.list {
        peer.lag_seconds = peer_lag_seconds(peer, now);
    }
    status.readers = readers::lowest_since(client, now - readers::COUNTED).await?;
    for reader in &mut status.readers {
        reader.lag_seconds = lag_seconds(reader.lowest.as_deref(), now);
    }
    status.rejected = replication::rejected(client).await?;
    Ok(())
}

/// Adds the peers that the settings name, even if no daemon ever stored them.
fn set_peers(status: &mut Status, set: &[Host]) {
    let (peers, now) = (&mut status.peers, status.at);
    peers.source = Some("static".to_owned());
    peers.refreshed_at = peers.refreshed_at.or(Some(now));
    for host in set {
        if !peers.list.iter().any(|known| known.host == host.as_str() && known.active) {
            let host = host.to_string();
            peers.list.push(PeerStatus { host, active: true, last_seen: now, ..PeerStatus::default() });
        }
    }
}

/// How ops reach the node: the setting, or what was last found.
async fn of_node(client: &Client, settings: &Settings, now: Timestamp) -> db::Result<Option<NodeStatus>> {
    let Some(kept) = node::kept(client).await? else { return Ok(None) };
    let catalog = node::catalog(client).await?;
    let chain = node::chain(client, &catalog).await?;
    let set = settings.bounding.replication;
    let replication = set.unwrap_or(kept.replication);
    let keeps = settings.bounding.node_keeps(replication);
    Ok(Some(NodeStatus {
        replication,
        prunes_below: keeps.and_then(|keeps| now.checked_sub(keeps).ok()),
        why: set.map_or(kept.why, |_| "OPENAUDIO_MEDIORUM_REPLICATION says so".into()),
        since: kept.since,
        read_height: chain.cursor,
        read_until: chain.read_until,
        is_unlogged: catalog.is_unlogged,
    }))
}

/// Seconds that a peer's cursor is behind. 0 if a recent sweep found nothing above the cursor:
/// the cursor of a quiet peer stays where it is.
pub fn peer_lag_seconds(peer: &PeerStatus, now: Timestamp) -> Option<u64> {
    /// Two intervals between sweeps, and some slack.
    const LATELY_S: u64 = 25 * 60;
    let lag = lag_seconds(peer.cursor.as_deref(), now)?;
    Some(match peer.read_to_end_at.map(|at| super::format::age_seconds(at, now)) {
        Some(age) if age <= LATELY_S => 0,
        Some(age) => lag.min(age),
        None => lag,
    })
}

/// Seconds that a cursor is behind; `None` for an implausible one.
pub fn lag_seconds(cursor: Option<&str>, now: Timestamp) -> Option<u64> {
    let now_ms = unix_ms(now);
    let ulid = OpUlid::parse(cursor?).filter(|u| is_plausible(*u, now_ms))?;
    Some(now_ms.saturating_sub(ulid.ms()) / 1_000)
}
