//! Keeps an eye on the gate: what the node's cursors are, since when what
//! stands in the way, what would be decided now. Writes own state only.

use crate::bound::{facts, plan};
use crate::clock::Clock;
use crate::db::{Db, gate};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::supervisor::{Next, Outcome};
use crate::values::Host;
use std::sync::Arc;

/// One look.
pub(super) struct Watch {
    pub(super) settings: Arc<Settings>,
    pub(super) own: Host,
    pub(super) db: Db,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

impl Watch {
    pub(super) async fn run_once(&self) -> Outcome {
        let client = self.db.client().await?;
        let now = self.clock.now();
        gate::sample_cursors(&client, now).await?;
        let facts = facts::gather(&client, &self.settings, &self.own, now).await?;
        facts::note(&client, &facts, now).await?;
        let around = facts::surroundings(&client, &self.settings, now).await?;
        plan::measure(&plan::plan(&facts, &around), &self.metrics);
        Ok(Next::Scheduled)
    }
}
