//! Figures of the database for the metrics: from the catalog and own state,
//! never from `ops`.

use crate::bound::facts;
use crate::clock::Clock;
use crate::db::{self, Db, migrate, node, pulls, readers, replication, stats};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::show::database_state;
use crate::show::gather::{lag_seconds, peer_lag_seconds};
use crate::supervisor::{Next, Outcome};
use crate::values::OpUlid;
use prometheus::IntGaugeVec;
use std::sync::Arc;

/// Reads the figures and sets the gauges.
pub(super) struct Sampler {
    pub(super) settings: Arc<Settings>,
    pub(super) db: Db,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

impl Sampler {
    pub(super) async fn run_once(&self) -> Outcome {
        let ready = async { stats::ready(&mut self.db.client().await?).await }.await;
        database_state::tell(&self.metrics, &ready);
        ready?;
        self.read().await?;
        Ok(Next::Scheduled)
    }

    async fn read(&self) -> db::Result<()> {
        let client = self.db.client().await?;
        let figures = stats::figures(&client).await?;
        let free = stats::free_disk(
            self.settings.pgdata_path.as_deref(),
            &self.settings.db,
            figures.data_directory.as_deref(),
        );
        let m = &self.metrics;
        m.ops_bytes.set(gauge(figures.ops_bytes));
        m.ops_index_bytes.set(gauge(figures.index_bytes));
        m.ops_dead_rows.set(gauge(figures.dead_rows));
        m.free_disk_floor.set(gauge(self.settings.bounding.min_free_disk));
        m.relation_bytes.reset();
        for (relation, bytes) in stats::largest(&client).await? {
            m.relation_bytes.with_label_values(&[&relation]).set(gauge(bytes));
        }
        m.free_disk.set(free.map_or(-1, |(bytes, _)| gauge(bytes)));
        if migrate::version(&client).await? == 0 {
            return Ok(());
        }
        let now = self.clock.now();
        let peers = replication::peers(&client, now).await?;
        m.peers_held.set(pulls::held(&client).await?);
        // By the chain alone cursors stand still, and nothing is behind.
        let catalog = node::catalog(&client).await?;
        let (by, _) = facts::replication(&client, &catalog, &self.settings).await?;
        let cursors = peers.iter().filter(|p| p.active && by.has_peers());
        set_lags(&m.cursor_lag, cursors.map(|p| (p.host.as_str(), peer_lag_seconds(p, now))));
        let readers = readers::lowest_since(&client, now - readers::COUNTED).await?;
        set_lags(
            &m.reader_lag,
            readers
                .iter()
                .map(|r| (r.host.as_str(), lag_seconds(r.lowest.as_ref().map(OpUlid::as_str), now))),
        );
        Ok(())
    }
}

/// Those whose lag is unknown, and those that are gone, have no series.
fn set_lags<'a>(gauges: &IntGaugeVec, lags: impl Iterator<Item = (&'a str, Option<u64>)>) {
    gauges.reset();
    for (host, lag) in lags {
        if let Some(lag) = lag {
            gauges.with_label_values(&[host]).set(gauge(lag));
        }
    }
}

fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
