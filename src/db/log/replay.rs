//! Replay safety (contract 5): which ops that come again still act. The rule
//! itself is the function `opsward.acting`, which the guard asks as well.

use crate::db::{Client, Doing, Result, Transaction, rows};
use crate::values::{Op, OpUlid};
use std::collections::HashMap;

/// Where a table's log was cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    /// By us, with traces: its floor or its horizon, whichever is higher.
    pub own: Option<OpUlid>,
    /// By somebody else, without traces.
    pub foreign: Option<OpUlid>,
}

/// The floors of all tables that have one.
#[derive(Clone, Default, Debug)]
pub struct Floors(HashMap<String, Floor>);

impl Floors {
    /// Whether an op lies below any floor of its table.
    pub fn is_below(&self, op: &Op) -> bool {
        self.0.get(&op.table).is_some_and(|f| Some(op.ulid) < f.own.max(f.foreign))
    }

    /// Whether an op lies below what somebody else pruned.
    pub fn is_below_foreign(&self, op: &Op) -> bool {
        self.0.get(&op.table).is_some_and(|f| Some(op.ulid) < f.foreign)
    }
}

/// The floors now, as this statement of a batch sees them.
pub async fn floors(tx: &Transaction<'_>) -> Result<Floors> {
    let rows = rows::cached(tx, FLOORS, &[], "read the floors").await?;
    let ulid = |text: Option<&str>| text.and_then(OpUlid::parse);
    let floors = rows.iter().map(|r| (r.get(0), Floor { own: ulid(r.get(1)), foreign: ulid(r.get(2)) }));
    Ok(Floors(floors.collect()))
}

const FLOORS: &str = "SELECT table_name, greatest(floor, horizon), foreign_floor FROM opsward.floors";

/// What is known of an op below a floor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    /// It is in the log.
    pub known: bool,
    /// The places of those of its records that act, from 0; `None` for all.
    pub acting: Option<Vec<usize>>,
}

impl Judged {
    /// Whether the record at a place acts.
    pub fn acts(&self, place: usize) -> bool {
        self.acting.as_ref().is_none_or(|acting| acting.contains(&place))
    }
}

/// Judges ops, each on its own, as this statement of a batch sees the traces.
pub async fn judge(tx: &Transaction<'_>, ops: &[&Op]) -> Result<Vec<Judged>> {
    if ops.is_empty() {
        return Ok(Vec::new());
    }
    let column = |f: fn(&Op) -> &str| ops.iter().map(|op| f(op)).collect::<Vec<&str>>();
    let (ulids, tables) = (column(|op| op.ulid.as_str()), column(|op| &op.table));
    let (actions, data) = (column(|op| op.action.word()), column(|op| &op.data));
    let rows = rows::cached(tx, JUDGE, &[&ulids, &tables, &actions, &data], "look for traces").await?;
    let places = |acting: Vec<i32>| acting.into_iter().filter_map(|n| usize::try_from(n - 1).ok()).collect();
    let judged =
        rows.iter().map(|r| Judged { known: r.get(0), acting: r.get::<_, Option<Vec<i32>>>(1).map(places) });
    Ok(judged.collect())
}

/// A look a row into the log, by its key.
const JUDGE: &str = r#"
    SELECT (SELECT o.ulid FROM public.ops o WHERE o.ulid = op.ulid) IS NOT NULL,
           opsward.acting(op.ulid, op."table", op.action, op.data::jsonb)
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
         WITH ORDINALITY AS op(ulid, "table", action, data, place)
    ORDER BY place"#;

/// The look for the log's minimum has to find a row that came in late. Whoever
/// raises the watermark commits first or later: in both cases it is not raised
/// over this row.
pub async fn lower_watermark(tx: &Transaction<'_>, ulid: OpUlid) -> Result<()> {
    let rows = rows::cached(tx, WATERMARK, &[], "read the watermark").await?;
    if rows.iter().any(|r| r.get::<_, &str>(0) > ulid.as_str()) {
        tx.execute(LOWER, &[&ulid.as_str()]).await.doing("lower the watermark")?;
    }
    Ok(())
}

const WATERMARK: &str = "SELECT ulid FROM opsward.watermark ORDER BY n DESC LIMIT 1 FOR SHARE";
const LOWER: &str = "UPDATE opsward.watermark SET ulid = $1 WHERE ulid > $1";

/// What the guard did so far: ops refused, and ops passed after an error.
pub async fn guard_counts(client: &Client) -> Result<(u64, u64)> {
    rows::one(client, GUARD_COUNTS, &[], "read what the guard did").await
}

const GUARD_COUNTS: &str = "
    SELECT (SELECT last_value + is_called::int FROM opsward.guard_refused),
           (SELECT last_value + is_called::int FROM opsward.guard_failed)";
