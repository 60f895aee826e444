//! A refused op tried again: after an upgrade, or once its cause is gone.

use super::apply::{self, Fitting};
use super::decide::{self, Table};
use crate::clock::Clock;
use crate::db::rejected::{self, Kept};
use crate::db::{self, Client, catalog};
use crate::records::models;
use crate::wire::body::{Element, Envelope, read_envelope};

/// What became of a refused op.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub enum Retried {
    /// It is applied and no longer kept.
    Applied,
    /// It is in the log already and no longer kept.
    Duplicate,
    /// Below a floor, none of its records acts again; it is no longer kept.
    Replay,
    /// It is still refused, and stays: why.
    Refused(String),
}

/// Tries a kept op as if it came now. The peer's cursor is not touched.
///
/// # Errors
/// The database's.
pub async fn retry(client: &mut Client, kept: &Kept, clock: &Clock) -> db::Result<Retried> {
    let element = Element { bytes: kept.bytes.clone(), too_deep: false };
    let op = match read_envelope(&element, clock.now_ms()) {
        Ok(Envelope::Op(op)) => op,
        Ok(Envelope::Skip(_)) => {
            return Ok(Retried::Refused("its table is one that every node skips".into()));
        }
        Ok(Envelope::Refused { reason, .. }) => return Ok(Retried::Refused(reason.to_string())),
        Err(e) => return Ok(Retried::Refused(e.to_string())),
    };
    let relations = catalog::relations(client).await?;
    let model = match decide::table(&op.table, models(), relations.columns(&op.table)) {
        Table::Known(model) => model,
        Table::Hold(why) => return Ok(Retried::Refused(why)),
        Table::Nowhere => {
            return Ok(Retried::Refused(format!("table: there is no table {:?}", op.table)));
        }
    };
    let now = clock.now();
    let fitting = match Fitting::new(op, model, kept.bytes.clone(), now) {
        Ok(fitting) => fitting,
        Err(refused) => {
            return Ok(Retried::Refused(format!("{}: {}", refused.code, refused.detail)));
        }
    };
    let outcome = apply::apply(client, &[fitting], now).await?;
    if let Some(refused) = outcome.refused.first() {
        return Ok(Retried::Refused(format!("{}: {}", refused.code, refused.detail)));
    }
    rejected::drop(client, &[kept.id]).await?;
    Ok(match (outcome.applied, outcome.replays) {
        (1.., _) => Retried::Applied,
        (_, 1..) => Retried::Replay,
        _ => Retried::Duplicate,
    })
}
