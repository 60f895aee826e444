//! `opsward plan`: shows what each task would delete now, and what keeps it from deleting
//! more. Deletes nothing.

use super::{Context, lease, outside};
use crate::bound::census::{self, Scope};
use crate::bound::facts;
use crate::bound::plan::{self, Routed};
use crate::db::{Db, Lease, gate, migrate};
use crate::pull::client;
use crate::show::{Done, Failure, Outcome, plan_text};
use crate::values::Host;
use crate::work::{Pacer, Stop};
use serde_json::json;
use std::time::Duration;

/// Time for a first look at the log, which begins with a sample.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Timeout for this validator's public URL.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// Pooled connections: the lease's, two beside a copy, the pace's, the plan's own.
pub(super) const POOL: usize = 5;

pub(super) async fn run(context: &Context) -> Outcome {
    let own = context.self_host()?;
    let db = context.open_db("plan", POOL).await?;
    let mut client = db.client().await?;
    migrate::migrate(&mut client).await?;
    first_look(context, &db).await?;
    let now = context.clock.now();
    let facts = facts::gather(&client, &context.settings, own, now).await?;
    let mut around = facts::surroundings(&client, &context.settings, now).await?;
    around.routed = routed(context, own).await;
    let plan = plan::plan(&facts, &around);
    let result = json!(plan);
    Ok(Done::new(result, plan_text::text(&plan)))
}

/// Asks the public URL whether peers' sweeps reach opsward.
async fn routed(context: &Context, own: &Host) -> Routed {
    let Ok(http) = client::of_settings(&context.settings) else {
        return Routed::NotKnown;
    };
    match outside::version(&http, own, &context.clock, ASK_WITHIN).await {
        Ok(Some(_)) => Routed::Routed,
        Ok(None) => Routed::NotRouted,
        Err(_) => Routed::NotKnown,
    }
}

/// Samples the log when it was never counted and nobody holds the lease. The daemon's census,
/// or `opsward census`, counts all of it.
pub(super) async fn first_look(context: &Context, db: &Db) -> Result<(), Failure> {
    if gate::census_at(&db.client().await?).await?.is_some() {
        return Ok(());
    }
    let Ok(mut lease) = Lease::take(db).await? else {
        return Ok(());
    };
    let work = lease::work(context, context.self_host()?.clone(), db.clone())?;
    let mut pacer = Pacer::new(&work, None);
    match census::run_once(&work, &mut lease, &mut pacer, Scope::Due, FIRST_LOOK).await {
        // Paused, or outside the window: go on with what is known.
        Ok(_) | Err(Stop::Halt(_)) => Ok(()),
        Err(Stop::Db(error)) => Err(error.into()),
    }
}
