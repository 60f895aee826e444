//! Contract 8: what an operator can set. The rest of the program sees `Settings`; only this
//! room knows where a value came from and how it is parsed.
//!
//! The straight line: `load` reads a `Source` (flags, environment, file) along the one `TABLE`
//! of settings and collects what is wrong as `Problems`.

mod bounding;
mod check;
mod db_target;
mod duration;
pub mod generate;
mod load;
mod parse;
mod pg_text;
mod pg_url;
mod problem;
mod source;
mod table;

pub use bounding::{Archive, Keep, Policy, When, Window};
pub use db_target::{DbTarget, Secret, TlsMode};
pub use duration::parse as duration;
pub use load::{Loaded, Shown, load};
pub use parse::log_filter;
pub use pg_url::parse as db_target;
pub use problem::{Origin, Problem, Problems};
pub use source::{DEFAULT_FILE, Source};
pub use table::{Bounding, Entry, Settings, Shape, TABLE, entry};

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which network the node belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Env {
    /// The main network.
    Prod,
    /// The staging network.
    Stage,
    /// A developer's network.
    Dev,
}
