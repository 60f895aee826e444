//! Keeps an eye on the gate: what the node's cursors are, since when what
//! stands in the way, what would be decided now. Writes own state only.

use crate::bound::{facts, foreign, guard, plan};
use crate::db::guard::Found;
use crate::db::{census, floors, gate, overview};
use crate::show::admin::Decided;
use crate::supervisor::{Next, Outcome};
use crate::values::signed;
use crate::work::Work;
use std::sync::Arc;

/// Looks once, and sets the metrics of what it found.
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
    let owed_for = plan.node_prunes.as_ref().and_then(|node| node.owed_seconds);
    metrics.owed_deleted.set(owed_for.map_or(0, |seconds| now.as_second() + signed(seconds)));
    let is_paused = plan.notices.iter().any(|n| matches!(&*n.code, "paused" | "outside_window"));
    metrics.bulk_paused.set(i64::from(is_paused));
    if let Ok(mut decided) = decided.lock() {
        *decided = Some(Arc::new(plan));
    }
    let owed = facts.census.iter().filter(|of| of.owed > 0);
    metrics.owed_ops.set(signed(owed.clone().map(|of| of.owed).sum::<u64>()));
    metrics.owed_oldest.set(signed(owed.map(|of| census::day_ms(of.day) / 1_000).min().unwrap_or(0)));
    metrics.guard_wanted.set(i64::from(work.settings.bounding.replay_guard));
    let known = overview::overview(&client).await?;
    metrics.traces.set(signed(known.traces));
    metrics.reclaim_last_step.reset();
    if let Some(at) = known.reclaim {
        let labels = [at.mode.as_str(), at.phase.as_str(), if at.held { "true" } else { "false" }];
        metrics.reclaim_last_step.with_label_values(&labels).set(at.since.as_second());
    }
    for (table, floor) in floors::all(&client).await? {
        metrics.floor.with_label_values(&[&table]).set(signed(floor.ms() / 1_000));
    }
    Ok(Next::Scheduled)
}
