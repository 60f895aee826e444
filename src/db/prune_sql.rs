//! The text of a batch's statements: it depends on the columns that `ops` has
//! and on the models.

use super::prune::{Doomed, Locked};
use crate::records::{models, quote_ident};

/// A tuple's header, its item pointer and alignment, as the census counts.
pub(super) const OVERHEAD: u32 = 24 + 4 + 4;

/// Which rows of `$1 <= ulid < $2` go: `$3` are no ULIDs, `$4` tables, `$5`
/// their cuts or the ULIDs listed.
pub(super) fn doomed_sql(doomed: Doomed<'_>, columns: &[&str]) -> String {
    let which = match doomed {
        Doomed::Below(_) => "o.ulid < c.below",
        Doomed::Listed(_) => "o.ulid = ANY ($5)",
    };
    let owed = match columns.contains(&"core_tx_status") {
        true => " AND coalesce(o.core_tx_status, '') NOT IN ('pending', 'error')",
        false => "",
    };
    format!("o.ulid >= $1 AND o.ulid < $2 AND o.ulid <> ALL ($3) AND o.\"table\" = c.name AND {which}{owed}")
}

pub(super) fn cuts_sql(doomed: Doomed<'_>) -> &'static str {
    match doomed {
        Doomed::Below(_) => "unnest($4::text[], $5::text[]) AS c(name, below)",
        Doomed::Listed(_) => "unnest($4::text[]) AS c(name)",
    }
}

/// Deletes, leaves traces, and tells of each table what went.
pub(super) fn sql(doomed: Doomed<'_>, columns: &[&str], locked: Locked) -> String {
    let (cuts, which) = (cuts_sql(doomed), doomed_sql(doomed, columns));
    let sizes: Vec<String> =
        columns.iter().map(|c| format!("coalesce(pg_column_size(o.{}), 0)", quote_ident(c))).collect();
    let bytes = sizes.join(" + ");
    let from = match locked {
        Locked::Wait => format!("o USING {cuts} WHERE {which}"),
        Locked::Skip => format!(
            "o WHERE o.ctid = ANY (ARRAY(
                 SELECT o.ctid FROM public.ops o, {cuts} WHERE {which} FOR UPDATE OF o SKIP LOCKED))"
        ),
    };
    let keys = keys_sql();
    format!(
        "WITH gone AS (
             DELETE FROM public.ops {from}
             RETURNING o.ulid COLLATE \"C\" AS ulid, o.\"table\" AS name,
                       {OVERHEAD} + {bytes} AS bytes, {keys} AS keys),
         keyed AS (
             SELECT name, key, max(ulid) AS ulid FROM gone, unnest(keys) AS key
             WHERE key IS NOT NULL GROUP BY name, key),
         traced AS (
             INSERT INTO opsward.traces AS t SELECT key, ulid FROM keyed ORDER BY key
             ON CONFLICT (key) DO UPDATE SET ulid = greatest(t.ulid, excluded.ulid)
             RETURNING key, xmax = 0 AS is_new),
         left_behind AS (
             SELECT name, count(*) AS traces FROM keyed JOIN traced USING (key) WHERE is_new GROUP BY name)
         SELECT name, width_bucket(ulid, $6::text[]) AS day, count(*), sum(bytes)::bigint, max(ulid),
                coalesce(max(traces), 0)
         FROM gone LEFT JOIN left_behind USING (name) GROUP BY name, day ORDER BY name, day"
    )
}

/// The keys of an op's traces, as `opsward.trace_key` makes them; written out,
/// because calling it costs more than all the rest. A test holds them equal.
pub(super) fn keys_sql() -> String {
    let traced: Vec<(&str, &str)> = models()
        .iter()
        .filter(|m| !m.append_only)
        .filter_map(|m| Some((m.table.as_str(), m.columns.get(*m.key.first()?)?.json.as_str())))
        .collect();
    let case = |text: fn(&str) -> String| -> String {
        let arms = traced.iter().map(|(table, json)| format!("WHEN '{table}' THEN {}", text(json)));
        arms.collect::<Vec<_>>().join(" ")
    };
    let one = case(|json| format!("o.data -> 0 ->> '{json}'"));
    let each = case(|json| format!("opsward.field(r, '{json}')"));
    let tables: Vec<String> = traced.iter().map(|(table, _)| format!("'{table}'")).collect();
    let tables = tables.join(", ");
    // Nearly every op has one record, under the exact key.
    format!(
        "CASE WHEN o.\"table\" NOT IN ({tables}) THEN NULL
              WHEN jsonb_typeof(o.data) = 'array' AND o.data -> 1 IS NULL
                   AND (CASE o.\"table\" {one} END) IS NOT NULL
              THEN ARRAY[md5(o.\"table\" || E'\\n' || (CASE o.\"table\" {one} END))::uuid]
              ELSE ARRAY(SELECT md5(o.\"table\" || E'\\n' || (CASE o.\"table\" {each} END))::uuid
                         FROM opsward.records(o.data) r)
         END"
    )
}
