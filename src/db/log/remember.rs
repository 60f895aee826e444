//! What a batch that deletes writes down of what is gone: floors or horizons, and the history.

use crate::db::{
    Params, Result, Transaction,
    prune::{Doomed, Gone, Run, floor_over},
    rows,
};
use crate::values::OpUlid;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Where the versions of our own rows are that a run wrote last, by relation and table. A
/// batch updates a row there: by its key it would pass all versions of the batches before,
/// which an old snapshot keeps. A place that is no row's any more only costs that.
#[derive(Clone, Debug, Default)]
pub struct Places(Arc<Mutex<BTreeMap<(&'static str, String), String>>>);

impl Places {
    fn of(&self, relation: &'static str, tables: &[&str]) -> Vec<String> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.iter().filter_map(|t| places.get(&(relation, (*t).to_owned())).cloned()).collect()
    }

    /// Rows of a table and where its row is now; returns the tables.
    fn learn(&self, relation: &'static str, rows: &[Row]) -> Vec<String> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let learned = rows.iter().map(|r| (r.get::<_, String>(0), r.get(1)));
        learned
            .map(|(table, place)| {
                places.insert((relation, table.clone()), place);
                table
            })
            .collect()
    }
}

/// Raises the floors (or horizons) over what is gone, and adds to the history.
pub(in crate::db) async fn remember(
    tx: &Transaction<'_>,
    run: &Run,
    gone: &[Gone],
    doomed: Doomed<'_>,
) -> Result<()> {
    let cut = |table: &str| match doomed {
        Doomed::Below(cuts) => cuts.iter().find(|cut| cut.table == table),
        Doomed::Listed(_) => None,
    };
    let bounds: Vec<OpUlid> =
        gone.iter().map(|g| floor_over(g.highest, cut(&g.table).map(|cut| cut.below))).collect();
    let bounds: Vec<&str> = bounds.iter().map(OpUlid::as_str).collect();
    let belows: Vec<&str> =
        gone.iter().zip(&bounds).map(|(g, b)| cut(&g.table).map_or(*b, |c| c.below.as_str())).collect();
    let bound_by: Vec<&str> =
        gone.iter().map(|g| cut(&g.table).map_or("listed", |c| c.bound_by.as_str())).collect();
    let tables: Vec<&str> = gone.iter().map(|g| g.table.as_str()).collect();
    let counts = |of: fn(&Gone) -> u64| -> Vec<i64> {
        gone.iter().map(|g| i64::try_from(of(g)).unwrap_or(i64::MAX)).collect()
    };
    let statements = match doomed {
        Doomed::Below(_) => FLOORS,
        Doomed::Listed(_) => (RAISE_KNOWN_HORIZONS, RAISE_HORIZONS),
    };
    raise(tx, run, statements, (&tables, &bounds)).await?;
    let (gone, bytes, traces) = (counts(|g| g.rows), counts(|g| g.bytes), counts(|g| g.traces));
    let places = run.places.of("history", &tables);
    let values: [&(dyn ToSql + Sync); 6] = [&run.id, &tables, &gone, &bytes, &traces, &places];
    let added = run.places.learn("history", &write(tx, ADD_TO_KNOWN, &values).await?);
    let left: Vec<bool> = tables.iter().map(|t| !added.iter().any(|a| a == t)).collect();
    if left.contains(&true) {
        let values: [&(dyn ToSql + Sync); 10] =
            [&run.id, &run.task, &run.began_at, &bound_by, &tables, &belows, &gone, &bytes, &traces, &left];
        run.places.learn("history", &write(tx, ADD, &values).await?);
    }
    let all: i64 = gone.iter().sum();
    rows::write_cached(tx, UNVACUUMED, &[&all], "count what is gone").await
}

/// Where the row of a table is known, and where it is not or is there no more.
pub(in crate::db) const FLOORS: (&str, &str) = (RAISE_KNOWN_FLOORS, RAISE_FLOORS);

/// Raises the floors (or horizons) of tables up to these bounds.
pub(in crate::db) async fn raise(
    tx: &Transaction<'_>,
    run: &Run,
    (known, anew): (&str, &str),
    (tables, bounds): (&[&str], &[&str]),
) -> Result<()> {
    let places = run.places.of("floors", tables);
    let raised = run.places.learn("floors", &write(tx, known, &[&tables, &bounds, &places]).await?);
    if raised.len() < tables.len() {
        let left = |i: &usize| !raised.iter().any(|t| t == tables[*i]);
        let (names, bounds): (Vec<&str>, Vec<&str>) =
            (0..tables.len()).filter(left).map(|i| (tables[i], bounds[i])).unzip();
        run.places.learn("floors", &write(tx, anew, &[&names, &bounds]).await?);
    }
    Ok(())
}

async fn write(tx: &Transaction<'_>, sql: &str, values: Params<'_>) -> Result<Vec<Row>> {
    rows::cached(tx, sql, values, "write down what is gone").await
}

/// Of a key that is written so no index is made use of: it would find all versions of the row.
const RAISE_KNOWN_FLOORS: &str = r#"
    UPDATE opsward.floors f SET floor = greatest(f.floor COLLATE "C", g.bound COLLATE "C"), raised_at = now()
    FROM unnest($1::text[], $2::text[]) AS g(name, bound)
    WHERE f.ctid = ANY ($3::text[]::tid[]) AND f.table_name || '' = g.name RETURNING f.table_name, f.ctid::text"#;
const RAISE_KNOWN_HORIZONS: &str = r#"
    UPDATE opsward.floors f SET horizon = greatest(f.horizon COLLATE "C", g.bound COLLATE "C"), raised_at = now()
    FROM unnest($1::text[], $2::text[]) AS g(name, bound)
    WHERE f.ctid = ANY ($3::text[]::tid[]) AND f.table_name || '' = g.name RETURNING f.table_name, f.ctid::text"#;
pub(in crate::db) const RAISE_FLOORS: &str = r#"
    INSERT INTO opsward.floors AS f (table_name, floor, raised_at)
    SELECT name, floor, now() FROM unnest($1::text[], $2::text[]) AS g(name, floor)
    ON CONFLICT (table_name) DO UPDATE
    SET floor = greatest(f.floor COLLATE "C", excluded.floor COLLATE "C"), raised_at = now()
    RETURNING table_name, f.ctid::text"#;
pub(in crate::db) const RAISE_HORIZONS: &str = r#"
    INSERT INTO opsward.floors AS f (table_name, horizon, raised_at)
    SELECT name, horizon, now() FROM unnest($1::text[], $2::text[]) AS g(name, horizon)
    ON CONFLICT (table_name) DO UPDATE
    SET horizon = greatest(f.horizon COLLATE "C", excluded.horizon COLLATE "C"), raised_at = now()
    RETURNING table_name, f.ctid::text"#;

const ADD_TO_KNOWN: &str = "
    UPDATE opsward.history h
    SET rows = h.rows + g.rows, bytes = h.bytes + g.bytes, traces = h.traces + g.traces, ended_at = now(),
        took_ms = greatest(0, extract(epoch FROM now() - h.began_at) * 1000)::bigint
    FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) AS g(name, rows, bytes, traces)
    WHERE h.ctid = ANY ($6::text[]::tid[]) AND h.run || '' = $1 AND h.table_name || '' = g.name
    RETURNING h.table_name, h.ctid::text";
const ADD: &str = "
    INSERT INTO opsward.history AS h
        (run, task, began_at, ended_at, bound_by, table_name, below, rows, bytes, traces, took_ms, outcome)
    SELECT $1, $2, $3::timestamptz, now(), bound_by, name, below, rows, bytes, traces,
           greatest(0, extract(epoch FROM now() - $3) * 1000)::bigint, 'unfinished'
    FROM unnest($4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[], $10::boolean[])
         AS g(bound_by, name, below, rows, bytes, traces, is_left)
    WHERE is_left
    ON CONFLICT (run, task, table_name) DO UPDATE
    SET rows = h.rows + excluded.rows, bytes = h.bytes + excluded.bytes, traces = h.traces + excluded.traces,
        ended_at = excluded.ended_at, took_ms = excluded.took_ms
    RETURNING table_name, h.ctid::text";
const UNVACUUMED: &str = "
    UPDATE opsward.unvacuumed SET rows = rows + $1, n = n + 1
    WHERE n = (SELECT n FROM opsward.unvacuumed ORDER BY n DESC LIMIT 1)";
