//! Figures of the database for the metrics: from the catalog and own state,
//! never from `ops`.

use crate::bound::facts;
use crate::db::{self, migrate, node, pulls, readers, replication, stats};
use crate::show::database_state;
use crate::show::gather::{lag_seconds, peer_lag_seconds};
use crate::supervisor::{Next, Outcome};
use crate::values::signed;
use crate::work::Work;
use prometheus::IntGaugeVec;

/// Reads the figures and sets the gauges.
pub(super) async fn run_once(work: Work) -> Outcome {
    let ready = async { stats::ready(&mut work.db.client().await?).await }.await;
    database_state::tell(&work.metrics, &ready);
    ready?;
    read(&work).await?;
    Ok(Next::Scheduled)
}

async fn read(work: &Work) -> db::Result<()> {
    let client = work.db.client().await?;
    let figures = stats::figures(&client).await?;
    let free = stats::free_disk(
        work.settings.pgdata_path.as_deref(),
        &work.settings.db,
        figures.data_directory.as_deref(),
    );
    let m = &work.metrics;
    m.ops_bytes.set(signed(figures.ops_bytes));
    m.ops_index_bytes.set(signed(figures.index_bytes));
    m.ops_dead_rows.set(signed(figures.dead_rows));
    m.free_disk_floor.set(signed(work.settings.bounding.min_free_disk));
    m.relation_bytes.reset();
    for relation in stats::largest(&client).await? {
        m.relation_bytes.with_label_values(&[&relation.name]).set(signed(relation.bytes));
    }
    m.free_disk.set(free.map_or(-1, |(bytes, _)| signed(bytes)));
    if migrate::version(&client).await? == 0 {
        return Ok(());
    }
    let now = work.clock.now();
    let peers = replication::peers(&client, now).await?;
    m.peers_held.set(pulls::held(&client).await?);
    // By the chain alone cursors stand still, and nothing is behind.
    let catalog = node::catalog(&client).await?;
    let (by, _) = facts::replication(&client, &catalog, &work.settings).await?;
    let cursors = peers.iter().filter(|p| p.active && by.has_peers());
    set_lags(&m.cursor_lag, cursors.map(|p| (p.host.as_str(), peer_lag_seconds(p, now))));
    let readers = readers::lowest_since(&client, now - readers::COUNTED).await?;
    let readers = readers.iter().map(|r| (r.host.as_str(), lag_seconds(r.lowest.as_deref(), now)));
    set_lags(&m.reader_lag, readers);
    Ok(())
}

/// Those whose lag is unknown, and those that are gone, have no series.
fn set_lags<'a>(gauges: &IntGaugeVec, lags: impl Iterator<Item = (&'a str, Option<u64>)>) {
    gauges.reset();
    for (host, lag) in lags {
        if let Some(lag) = lag {
            gauges.with_label_values(&[host]).set(signed(lag));
        }
    }
}
