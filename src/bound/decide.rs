//! The gate: what may be deleted now, from facts alone.

use crate::values::OpUlid;

/// What is to be deleted of one table: its ops below a ULID.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Cut {
    /// The table, as ops name it.
    pub table: String,
    /// The lowest ULID that stays.
    pub below: OpUlid,
}
