//! The SQL that writes rows: one `text[]` parameter a column, so that one
//! statement of fixed text applies all records of an op.

use super::model::Model;

/// An identifier, quoted.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Inserts the rows that are not there. Parameters: `$1…$n`, a `text[]` for
/// each column in the model's order.
pub fn insert_sql(model: &Model) -> String {
    format!("{} ON CONFLICT DO NOTHING", insert_select(model))
}

/// Inserts the rows, or overwrites every column besides the key. Parameters: as
/// of [`insert_sql`]; for a model with a `touched` column one `text` more, the
/// time that this column gets on a conflict ([`super::time_text`]).
pub fn upsert_sql(model: &Model) -> String {
    let others = (0..model.columns.len()).filter(|c| !model.key.contains(c));
    let set = others.map(|c| {
        let name = quote_ident(&model.columns[c].name);
        if model.touched == Some(c) {
            let now = model.columns.len() + 1;
            format!("{name} = ${now}::text::timestamptz")
        } else {
            format!("{name} = excluded.{name}")
        }
    });
    let key = model.key.iter().map(|k| quote_ident(&model.columns[*k].name));
    format!("{} ON CONFLICT ({}) DO UPDATE SET {}", insert_select(model), comma(key), comma(set))
}

/// Deletes the rows of the given keys. Parameters: a `text[]` for each column
/// of the key, in its order.
pub fn delete_sql(model: &Model) -> String {
    let matches: Vec<_> = (1..)
        .zip(&model.key)
        .map(|(n, k)| {
            let column = &model.columns[*k];
            let name = quote_ident(&column.name);
            format!("t.{name} = d.k{n}::{}", column.kind.pg_type())
        })
        .collect();
    format!(
        "DELETE FROM public.{} t USING unnest({}) d({}) WHERE {}",
        quote_ident(&model.table),
        arrays(model.key.len()),
        comma((1..=model.key.len()).map(|n| format!("k{n}"))),
        matches.join(" AND ")
    )
}

fn insert_select(model: &Model) -> String {
    let columns = || model.columns.iter();
    format!(
        "INSERT INTO public.{} ({}) SELECT {} FROM unnest({}) r({})",
        quote_ident(&model.table),
        comma(columns().map(|c| quote_ident(&c.name))),
        comma((1..).zip(columns()).map(|(n, c)| format!("r.c{n}::{}", c.kind.pg_type()))),
        arrays(model.columns.len()),
        comma((1..=model.columns.len()).map(|n| format!("c{n}"))),
    )
}

fn arrays(count: usize) -> String {
    comma((1..=count).map(|n| format!("${n}::text[]")))
}

fn comma(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::models;
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_ident("a"), "\"a\"");
        assert_eq!(quote_ident("a\"; --"), "\"a\"\"; --\"");
    }

    #[test]
    fn as_written() {
        let model = models().get("audio_previews").unwrap();
        let insert = "INSERT INTO public.\"audio_previews\" (\"cid\", \"source_c_id\", \
            \"preview_start_seconds\", \"created_by\", \"created_at\") \
            SELECT r.c1::text, r.c2::text, r.c3::text, r.c4::text, r.c5::timestamptz \
            FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) \
            r(c1, c2, c3, c4, c5)";
        assert_eq!(insert_sql(model), format!("{insert} ON CONFLICT DO NOTHING"));
        assert_eq!(
            upsert_sql(model),
            format!(
                "{insert} ON CONFLICT (\"cid\") DO UPDATE SET \
                \"source_c_id\" = excluded.\"source_c_id\", \
                \"preview_start_seconds\" = excluded.\"preview_start_seconds\", \
                \"created_by\" = excluded.\"created_by\", \
                \"created_at\" = excluded.\"created_at\""
            )
        );
        assert_eq!(
            delete_sql(models().get("storage_and_db_sizes").unwrap()),
            "DELETE FROM public.\"storage_and_db_sizes\" t \
            USING unnest($1::text[], $2::text[]) d(k1, k2) \
            WHERE t.\"logged_at\" = d.k1::timestamptz AND t.\"host\" = d.k2::text"
        );
        let uploads = upsert_sql(models().get("uploads").unwrap());
        assert!(uploads.contains("\"updated_at\" = $27::text::timestamptz"));
        assert!(!uploads.contains("\"id\" = excluded"));
    }

    /// The columns of the node's own inserts, and those it sets on a conflict.
    #[test]
    fn columns_as_the_node_writes_them() {
        let recorded = include_str!("../../tests/fixtures/node-statements.txt");
        let quoted = |text: &str| -> Vec<String> {
            text.split(',').map(|c| c.trim().trim_matches('"').to_owned()).collect()
        };
        let mut seen: HashMap<&str, u32> = HashMap::new();
        for line in recorded.lines() {
            let Some(rest) = line.strip_prefix("INSERT INTO \"") else {
                continue;
            };
            let (table, rest) = rest.split_once("\" (").unwrap();
            let Some(model) = models().get(table) else {
                continue;
            };
            let (columns, rest) = rest.split_once(") VALUES").unwrap();
            let ours: Vec<_> = model.columns.iter().map(|c| c.name.clone()).collect();
            assert_eq!(quoted(columns), ours);
            *seen.entry(table).or_default() += 1;

            let Some((_, rest)) = rest.split_once("ON CONFLICT (") else {
                continue;
            };
            let (key, rest) = rest.split_once(") DO UPDATE SET ").unwrap();
            let key_ours: Vec<_> = model.key.iter().map(|k| ours[*k].clone()).collect();
            assert_eq!(quoted(key), key_ours);
            let mut set: Vec<_> = rest
                .split(" | ")
                .next()
                .unwrap()
                .split(',')
                .map(|s| s.split('=').next().unwrap().trim_matches('"').to_owned())
                .collect();
            let mut others: Vec<_> = ours.into_iter().filter(|c| !key_ours.contains(c)).collect();
            set.sort();
            others.sort();
            assert_eq!(set, others);
        }
        assert_eq!(seen.len(), models().iter().len(), "{seen:?}");
    }
}
