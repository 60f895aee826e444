//! The scheduled form of a reclaim: in the maintenance window, at most once a
//! week, with the guards of the command.

use super::jobs::Bulk;
use crate::db::reclaim as state;
use crate::job::{self, Job, JobEnd, gate_of_reclaim};
use crate::reclaim::plan::Plan;
use crate::reclaim::{self, Request};
use crate::settings::When;
use crate::supervisor::{Next, Outcome};
use crate::values::Finding;
use jiff::SignedDuration;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// At most one a week (contract 6).
const EVERY: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How soon a lease that is held elsewhere is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// The last reason that was logged for not reclaiming; it is logged again only when it changes.
#[derive(Clone, Default)]
pub(super) struct Said(Arc<Mutex<Cow<'static, str>>>);

impl Said {
    fn say(&self, obstacle: &Finding) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *last, obstacle.code.clone()) != obstacle.code {
            warn!(fix = obstacle.fix, "a reclaim is due, and is not done: {}", obstacle.text);
        }
    }
}

/// Reclaims when the condition holds.
pub(super) async fn when(bulk: Bulk, when: When, said: Said, stop: CancellationToken) -> Outcome {
    let work = bulk.work(stop.child_token());
    let mut client = work.db.client().await?;
    let now = work.clock.now();
    let in_window = work.settings.bounding.window.is_none_or(|w| w.contains(now.as_second()));
    let lately = state::last(&client).await?.is_some_and(|at| now.duration_since(at) < EVERY);
    // An interrupted reclaim is left to the operator: `status` offers both ways out.
    if !in_window || lately || state::unfinished(&client).await?.is_some() {
        return Ok(Next::Scheduled);
    }
    let gate = gate_of_reclaim(&work, reclaim::gate::of).await?;
    let request = Request { gate, ..Request::default() };
    let plan = match reclaim::plan(&work, &mut client, &request).await {
        Ok(plan) if is_due(when, &plan) => plan,
        Ok(_) => return Ok(Next::Scheduled),
        Err(error) => {
            warn!("no reclaim: {error}");
            return Ok(Next::Scheduled);
        }
    };
    if let Some(obstacle) = plan.obstacles.first().or(plan.risks.first()) {
        said.say(obstacle);
        return Ok(Next::Scheduled);
    }
    let Some(mut turn) = bulk.turn().await? else {
        return Ok(Next::After(AGAIN));
    };
    info!(mode = plan.mode.word(), policy = plan.policy.word(), "a reclaim is due");
    drop(client);
    match job::begin(&Job::Reclaim(request), &work, turn.lease()?).await? {
        JobEnd::Report(report) => info!(%report, "the reclaim ended"),
        JobEnd::Trouble(trouble) => warn!(fix = trouble.fix, "the reclaim ended: {}", trouble.text),
    }
    Ok(Next::Scheduled)
}

fn is_due(when: When, plan: &Plan) -> bool {
    let now = plan.space.table + plan.space.indexes;
    match when {
        When::Bloat(share) => plan.space.gain() as f64 > share * now as f64,
        When::Free(bytes) => plan.space.free.is_some_and(|free| free < bytes),
    }
}
