//! The catalog of the node's database: read, never assumed.

use crate::db::{Client, Result, rows};
use std::collections::HashMap;

/// The relations of schema public, each with its columns' names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Relations(HashMap<String, Vec<String>>);

impl Relations {
    /// The columns of a relation, where there is one of this name.
    pub fn columns(&self, name: &str) -> Option<&[String]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

/// Reads the relations of schema public.
pub async fn relations(client: &Client) -> Result<Relations> {
    let relations: Vec<_> = rows::all(client, RELATIONS, &[], "read the catalog").await?;
    Ok(Relations(relations.into_iter().collect()))
}

/// Tables, views and whatever else can hold or show rows.
const RELATIONS: &str = "
    SELECT c.relname::text,
           coalesce(array_agg(a.attname::text ORDER BY a.attnum)
                    FILTER (WHERE a.attnum > 0 AND NOT a.attisdropped), '{}')
    FROM pg_class c
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    GROUP BY c.relname";
