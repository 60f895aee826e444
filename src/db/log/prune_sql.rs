//! The text of a batch's statements: it depends on the columns that `ops` has
//! and on the models.

use crate::db::{
    owed::Owed,
    prune::{Doomed, Locked},
};
use crate::records::{models, quote_ident};

/// A tuple's header, its item pointer and alignment, as the census counts.
pub(in crate::db) const OVERHEAD: u32 = 24 + 4 + 4;

/// Which rows of `$1 <= ulid < $2` go: `$3` are no ULIDs, `$4` tables, `$5`
/// their cuts or the ULIDs listed, `$6` the times of the cuts.
pub(in crate::db) fn doomed_sql(doomed: Doomed<'_>, columns: &[&str]) -> String {
    let which = match doomed {
        // Of ULIDs, bytes are in the same order, and far cheaper to compare.
        Doomed::Below(_) => "o.ulid COLLATE \"C\" < c.below",
        Doomed::Listed(_) => "o.ulid = ANY ($5)",
    };
    let may_go = Owed::of_columns(columns).may_go("o.", "c.since");
    format!("{SPAN} AND {which} AND {may_go}")
}

const SPAN: &str = "o.ulid >= $1 AND o.ulid < $2 AND o.ulid <> ALL ($3) AND o.\"table\" = c.name";

/// Leaves traces of what stays below the cuts for the chain's sake: by table
/// the highest of it, as the fifth column.
pub(in crate::db) fn stays_sql(columns: &[&str]) -> String {
    let stays = Owed::of_columns(columns).stays_a_while("o.", "c.since");
    let cuts = cuts_sql(Doomed::Below(&[]));
    let stays = format!(
        "SELECT {} FROM public.ops o, {cuts} WHERE {SPAN} AND o.ulid COLLATE \"C\" < c.below AND {stays}",
        gone_sql("0")
    );
    traced_of(&stays, "0")
}

pub(in crate::db) fn cuts_sql(doomed: Doomed<'_>) -> &'static str {
    match doomed {
        Doomed::Below(_) => "unnest($4::text[], $5::text[], $6::timestamptz[]) AS c(name, below, since)",
        // Compaction judged when each of them came.
        Doomed::Listed(_) => {
            "(SELECT name, 'infinity'::timestamptz AS since FROM unnest($4::text[]) name \
              WHERE $6::timestamptz[] IS NOT NULL) AS c"
        }
    }
}

/// Deletes, leaves traces, and tells of each table what went.
pub(in crate::db) fn sql(doomed: Doomed<'_>, columns: &[&str], locked: Locked) -> String {
    let (cuts, which) = (cuts_sql(doomed), doomed_sql(doomed, columns));
    let sizes: Vec<String> =
        columns.iter().map(|c| format!("coalesce(pg_column_size(o.{}), 0)", quote_ident(c))).collect();
    let bytes = format!("{OVERHEAD} + {}", sizes.join(" + "));
    let from = match locked {
        Locked::Wait => format!("o USING {cuts} WHERE {which}"),
        Locked::Skip => format!(
            "o WHERE o.ctid = ANY (ARRAY(
                 SELECT o.ctid FROM public.ops o, {cuts} WHERE {which} FOR UPDATE OF o SKIP LOCKED))"
        ),
    };
    let gone = format!("DELETE FROM public.ops {from} RETURNING {}", gone_sql(&bytes));
    traced_of(&gone, "width_bucket(ulid, $7::text[])")
}

/// What [`traced_of`] has to know of a row `o` that goes.
pub(in crate::db) fn gone_sql(bytes: &str) -> String {
    let (traced, key) = (traced_sql(), key_sql());
    format!(
        "o.ulid COLLATE \"C\" AS ulid, o.\"table\" AS name, {bytes} AS bytes, {key} COLLATE \"C\" AS key,
         CASE WHEN o.\"table\" IN ({traced}) AND o.data -> 1 IS NOT NULL THEN o.data END AS many"
    )
}

/// Leaves traces of the rows that a statement gives, and tells of each table
/// and day of theirs: table, day, rows, bytes, highest ULID, and the traces of
/// the whole table that were not there before.
pub(in crate::db) fn traced_of(gone: &str, day: &str) -> String {
    let key_of_record = key_of_record_sql();
    // Grouped at once, nearly always by record: what follows is a fraction.
    format!(
        "WITH gone AS ({gone}),
         grouped AS MATERIALIZED (
             SELECT name, {day} AS day, key, many, count(*) AS rows, sum(bytes) AS bytes, max(ulid) AS ulid
             FROM gone GROUP BY name, day, key, many),
         keyed AS (
             SELECT name, md5(name || E'\\n' || key)::uuid AS key, max(ulid) AS ulid
             FROM (SELECT name, key, ulid FROM grouped WHERE many IS NULL
                   UNION ALL
                   SELECT name, {key_of_record}, ulid FROM grouped, opsward.records(many) r
                   WHERE many IS NOT NULL) AS named
             WHERE key IS NOT NULL GROUP BY name, md5(name || E'\\n' || key)),
         traced AS (
             INSERT INTO opsward.traces AS t SELECT key, ulid FROM keyed ORDER BY key
             ON CONFLICT (key) DO UPDATE SET ulid = excluded.ulid WHERE t.ulid < excluded.ulid
             RETURNING key, xmax = 0 AS is_new),
         left_behind AS (
             SELECT name, count(*) AS traces FROM keyed JOIN traced USING (key) WHERE is_new GROUP BY name)
         SELECT name, day, sum(rows)::bigint, sum(bytes)::bigint, max(ulid), coalesce(max(traces), 0)
         FROM grouped LEFT JOIN left_behind USING (name) GROUP BY name, day ORDER BY name, day"
    )
}

/// The tables whose records leave traces, and the JSON key that names them.
fn traced() -> impl Iterator<Item = (&'static str, &'static str)> {
    models()
        .iter()
        .filter(|m| !m.append_only)
        .filter_map(|m| Some((m.table.as_str(), m.columns.get(*m.key.first()?)?.json.as_str())))
}

fn traced_sql() -> String {
    traced().map(|(table, _)| format!("'{table}'")).collect::<Vec<_>>().join(", ")
}

/// What names the first record of an op, as `opsward.trace_key` finds it, NULL
/// where there is none. Nearly every op has one record, under the exact key;
/// it is written out, as calling that costs more than all the rest. A test
/// holds them equal.
pub(in crate::db) fn key_sql() -> String {
    let arm = |(table, json): (&str, &str)| {
        format!(
            "WHEN '{table}' THEN coalesce(o.data -> 0 ->> '{json}',
                 CASE jsonb_typeof(o.data -> 0) WHEN 'object' THEN opsward.field(o.data -> 0, '{json}') END)"
        )
    };
    format!("(CASE o.\"table\" {} END)", traced().map(arm).collect::<Vec<_>>().join(" "))
}

/// The same of a record `r` of the table `name`.
fn key_of_record_sql() -> String {
    let arm = |(table, json): (&str, &str)| format!("WHEN '{table}' THEN opsward.field(r, '{json}')");
    format!("CASE name {} END", traced().map(arm).collect::<Vec<_>>().join(" "))
}
