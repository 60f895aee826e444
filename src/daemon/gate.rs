//! Keeps an eye on the gate: what the node's cursors are, since when what
//! stands in the way, what would be decided now. Writes own state only.

use crate::bound::{facts, foreign, guard, plan};
use crate::db::guard::Found;
use crate::db::{floors, gate, overview};
use crate::show::admin::Decided;
use crate::supervisor::{Next, Outcome};
use crate::work::Work;
use std::sync::Arc;

/// One look.
pub(super) async fn watch(work: Work, decided: Decided) -> Outcome {
    foreign::observe(&work).await?;
    guard::count(&work).await?;
    let client = work.db.client().await?;
    let now = work.clock.now();
    gate::sample_cursors(&client, now).await?;
    let facts = facts::gather(&client, &work.settings, &work.own, now).await?;
    facts::note(&client, &facts, now).await?;
    let around = facts::surroundings(&client, &work.settings, now).await?;
    let metrics = &work.metrics;
    metrics.guard_in_place.set(i64::from(around.guard == Found::Right));
    let plan = plan::plan(&facts, &around);
    plan::measure(&plan, metrics);
    if let Ok(mut decided) = decided.lock() {
        *decided = Some(Arc::new(plan));
    }
    metrics.guard_wanted.set(i64::from(work.settings.bounding.replay_guard));
    let known = overview::overview(&client).await?;
    metrics.traces.set(known.traces);
    metrics.reclaim_last_step.reset();
    if let Some(at) = known.reclaim {
        let labels = [at.mode.as_str(), at.phase.as_str(), if at.held { "true" } else { "false" }];
        metrics.reclaim_last_step.with_label_values(&labels).set(at.since.as_second());
    }
    for (table, floor) in floors::all(&client).await? {
        let seconds = i64::try_from(floor.ms() / 1_000).unwrap_or(i64::MAX);
        metrics.floor.with_label_values(&[&table]).set(seconds);
    }
    Ok(Next::Scheduled)
}
