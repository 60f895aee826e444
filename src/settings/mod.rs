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

pub use bounding::{Bounding, Keep, Policy, When, Window};
pub use db_target::{DbTarget, Secret, TlsMode};
pub use duration::parse as duration;
pub use load::{Loaded, Shown, load};
pub use parse::log_filter;
pub use pg_url::{Parsed, parse as db_target};
pub use problem::{Origin, Problem, Problems, Warning};
pub use source::{DEFAULT_FILE, Source};
pub use table::{Entry, Shape, TABLE, entry};

use crate::values::Host;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Every setting, read and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's database.
    pub db: DbTarget,
    /// This validator's own host; required where self matters.
    pub node_endpoint: Option<Host>,
    /// Log level or filter.
    pub log_level: String,
    /// Text or JSON lines.
    pub log_format: LogFormat,
    /// Which network.
    pub env: Env,
    /// Accept self-signed certificates of peers; only honoured with `Env::Dev`.
    pub tls_self_signed: bool,
    /// The public listener: the sweep only.
    pub listen: SocketAddr,
    /// The operator's listener: metrics, health, status.
    pub admin_listen: SocketAddr,
    /// The node's own URL, for discovery.
    pub node_url: url::Url,
    /// Static peers instead of discovery; `Some(vec![])` is known to be empty.
    pub peers: Option<Vec<Host>>,
    /// Nothing outside the schema `opsward` is written.
    pub read_only: bool,
    /// Pull from peers at all.
    pub sweep_peers: bool,
    /// How often each peer is pulled.
    pub sweep_interval: Duration,
    /// What bounds the log.
    pub bounding: Bounding,
    /// A directory on the database's volume, for the free-disk figure.
    pub pgdata_path: Option<PathBuf>,
}

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
