//! Contract 8: what an operator can set. `Settings` is what the rest of the
//! program sees; where a value came from and how it reads is known here only.
//!
//! The straight line: a `Source` (flags, environment, file) is read by `load`
//! along the one `TABLE` of settings; what is wrong is collected as `Problems`.

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

pub use bounding::{Keep, Policy, When, Window};
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
