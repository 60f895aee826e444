//! The metrics of a plan.

use super::{HALTS, Plan, State, TaskPlan};
use crate::metrics::Metrics;
use crate::values::signed;
use std::collections::BTreeSet;

/// Sets the metrics of the decision and of readers' gaps.
pub fn measure(plan: &Plan, metrics: &Metrics) {
    metrics.retention_decision.reset();
    let retention = plan.task("retention");
    let lowest = retention.and_then(TaskPlan::lowest);
    let blockers = retention.map_or(&[][..], |task| &task.blockers);
    let mut codes: BTreeSet<&str> = blockers.iter().map(|b| &*b.code).collect();
    if retention.is_some_and(|task| task.state != State::Off) {
        codes.extend(plan.notices.iter().map(|n| &*n.code).filter(|code| HALTS.contains(code)));
    }
    for code in &codes {
        metrics.retention_decision.with_label_values(&["", code]).set(1);
    }
    let acts = lowest.filter(|_| codes.is_empty());
    if let Some((_, by)) = acts {
        metrics.retention_decision.with_label_values(&[by.word(), ""]).set(1);
    }
    let seconds = acts.map_or(0, |(cut, _)| cut.below.ms() / 1_000);
    metrics.retention_cut.set(signed(seconds));
    metrics.reader_gap.reset();
    for reader in &plan.forecast.readers {
        metrics.reader_gap.with_label_values(&[reader.host.as_str()]).set(signed(reader.seconds));
    }
}
