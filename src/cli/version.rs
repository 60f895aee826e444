//! `opsward version`: which program this is, and which schema it knows.

use crate::db::migrate;
use crate::show::{Done, Outcome};
use serde_json::json;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn run() -> Outcome {
    let schema = migrate::LATEST;
    let result = json!({ "version": VERSION, "schema_version": schema });
    Ok(Done::new(result, format!("opsward {VERSION}, schema version {schema}")))
}
