//! Contract 7: the node's records. A model says which columns a table has and
//! how its JSON becomes a column (`config/models.toml`); `convert` turns the
//! `data` of one op into rows exactly as a node's ORM would; `statement` is the
//! SQL that writes them. Pure: no case by table name, no clock, no database.
//!
//! The line a value walks: `data` → `fit_for_jsonb` → `json` (objects, entries)
//! → the column's `Slot` (decoded in place, as Go does) → its text form.

mod convert;
mod json;
mod jsonb;
mod model;
mod names;
mod statement;

pub use convert::{Row, check, convert, time_text};
pub use jsonb::fit_for_jsonb;
pub use model::{Kind, Model, Models, models};
pub use statement::{delete_sql, insert_sql, quote_ident, upsert_sql};

/// The codes of the reasons that this room gives.
pub mod code {
    /// `data` is no JSON.
    pub const BAD_JSON: &str = "bad_json";
    /// `data` is no array of objects, or an empty one.
    pub const NOT_RECORDS: &str = "not_records";
    /// A record without its key.
    pub const NO_KEY: &str = "no_key";
    /// One key twice in an update: no statement could apply both.
    pub const KEY_TWICE: &str = "key_twice";
    /// A field of the wrong JSON type.
    pub const WRONG_TYPE: &str = "wrong_type";
    /// More records than a node can apply.
    pub const TOO_MANY: &str = "too_many_records";
    /// A value of the right type that its column can't hold.
    pub const OUT_OF_RANGE: &str = "out_of_range";
    /// Text that jsonb refuses.
    pub const NOT_STORABLE: &str = "not_storable";
}
