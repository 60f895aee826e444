//! Refused ops tried again: after an upgrade, or once their cause is gone.
//!
//! A retried op comes late. It obeys the rule for late arrivals: on a record of
//! which something newer is in the log or in a trace, it does not act.

use super::apply::{self, Fitting, Unapplied};
use super::late::Newer;
use crate::clock::Clock;
use crate::db::rejected::{self, Kept};
use crate::db::{self, Client, catalog, newer};
use crate::values::Op;
use crate::wire::body::{Element, Envelope, read_envelope};

/// How often an op is tried while newer ops keep arriving.
const TRIES: usize = 5;

/// What became of a refused op.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub enum Retried {
    /// It is applied and no longer kept.
    Applied,
    /// Some of its records have newer state; the others are applied, and it is no longer kept.
    AppliedInPart(String),
    /// It is in the log already and no longer kept.
    Duplicate,
    /// Newer state of all its records is there: nothing was applied; it is no longer kept.
    Replay,
    /// It is still refused, and stays: why.
    Refused(String),
}

/// Tries kept ops as if they came now, the oldest first. No peer's cursor is
/// touched. The results are in the order of `kept`.
pub async fn retry(client: &mut Client, kept: &[Kept], clock: &Clock) -> db::Result<Vec<Retried>> {
    let mut results = Vec::with_capacity(kept.len());
    let mut fitting = Vec::new();
    for (place, op) in kept.iter().enumerate() {
        match fit(client, op, clock).await? {
            Ok(op) => {
                fitting.push((place, op));
                results.push(Retried::Duplicate);
            }
            Err(why) => results.push(Retried::Refused(why)),
        }
    }
    fitting.sort_by_key(|(_, fitting)| fitting.op.ulid);
    let ops: Vec<&Op> = fitting.iter().map(|(_, fitting)| &fitting.op).collect();
    let (mut newer, keys) = Newer::read(client, &ops).await?;
    for ((place, fitting), keys) in fitting.into_iter().zip(keys) {
        let retried = act(client, fitting, (&mut newer, &keys), clock).await?;
        if !matches!(retried, Retried::Refused(_)) {
            rejected::drop(client, &[kept[place].id]).await?;
        }
        results[place] = retried;
    }
    Ok(results)
}

/// The kept op as one that fits its table, or why it is still refused.
async fn fit(client: &Client, kept: &Kept, clock: &Clock) -> db::Result<Result<Fitting, String>> {
    let element = Element { bytes: kept.bytes.clone(), too_deep: false };
    let op = match read_envelope(&element, clock.now_ms()) {
        Ok(Envelope::Op(op)) => op,
        Ok(Envelope::Skip(_)) => return Ok(Err("its table is one that every node skips".into())),
        Ok(Envelope::Refused { reason, .. }) => return Ok(Err(reason.to_string())),
        Err(e) => return Ok(Err(e.to_string())),
    };
    let relations = catalog::relations(client).await?;
    let fitting = match Fitting::to(&relations, op, clock.now()) {
        Ok(fitting) => fitting,
        Err(Unapplied::Held(hold)) => return Ok(Err(hold.reason)),
        Err(Unapplied::Refused(refused)) => return Ok(Err(format!("{}: {}", refused.code, refused.detail))),
    };
    // One that jsonb can't hold must not keep the others from being looked at.
    match newer::keys(client, &[&fitting.op]).await {
        Err(error) if error.kind() == db::Kind::BadData => Ok(Err(error.to_string())),
        known => known.map(|_| Ok(fitting)),
    }
}

/// Applies one op; newer ops that arrive meanwhile are looked at again.
async fn act(
    client: &mut Client,
    mut fitting: Fitting,
    (newer, keys): (&mut Newer, &[Option<String>]),
    clock: &Clock,
) -> db::Result<Retried> {
    for tries in 1.. {
        let late = newer.late(&fitting.op, keys);
        let (superseded, all) = (late.superseded.len(), keys.len());
        fitting.late = Some(late);
        let outcome = match apply::apply(client, std::slice::from_ref(&fitting), clock.now()).await {
            Err(db::Error::Overtaken(_)) if tries < TRIES => {
                newer.read_on(client).await?;
                continue;
            }
            outcome => outcome?,
        };
        if let Some(refused) = outcome.refused.first() {
            return Ok(Retried::Refused(format!("{}: {}", refused.code, refused.detail)));
        }
        return Ok(match (outcome.applied, outcome.replays) {
            (1.., _) if superseded > 0 => {
                Retried::AppliedInPart(format!("{superseded} of {all} records have newer state"))
            }
            (1.., _) => Retried::Applied,
            (_, 1..) => Retried::Replay,
            _ => Retried::Duplicate,
        });
    }
    Err(db::Error::Overtaken("apply a late op"))
}

/// Applies what the replay guard kept from the node since it acts in part only;
/// says how many ops acted.
pub async fn apply_partial(client: &mut Client, clock: &Clock) -> db::Result<u64> {
    let (mut above, mut applied) = (0, 0);
    while let Some(kept) = rejected::next_of(client, rejected::PARTIAL, above).await? {
        above = kept.id;
        let outcomes = retry(client, std::slice::from_ref(&kept), clock).await?;
        applied += u64::from(outcomes.contains(&Retried::Applied));
    }
    Ok(applied)
}
