//! The one table of settings. Struct fields, flags, environment names, file keys, defaults,
//! help, README's table, config/opsward.toml and error texts are all made from it.

use super::Shape::{Secret, Switch, Text};
use super::bounding::{self, Archive, Keep, Policy, When, Window};
use super::{DbTarget, Env, LogFormat, duration, parse, pg_url};
use crate::values::{Host, Replication};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

/// One setting.
#[derive(Clone)]
pub struct Entry {
    /// Its key in the file; with dashes for underscores, its flag.
    pub key: &'static str,
    /// Its environment variables: opsward's name for it, then the node's others.
    pub env: &'static [&'static str],
    /// Its default as text; `None` for unset.
    pub default: Option<&'static str>,
    /// A value that it may have, where there is no default to show.
    pub example: &'static str,
    /// What it sets.
    pub meaning: &'static str,
    /// What it may be.
    pub allowed: &'static str,
    /// How it is given and shown.
    pub shape: Shape,
    /// Parses the text into the setting's field.
    pub set: fn(&mut Settings, &str) -> Result<(), String>,
}

/// How a setting is given and shown.
#[derive(Clone, Copy)]
pub enum Shape {
    /// A text; the word stands for it in the help.
    Text(&'static str),
    /// A boolean: its flag alone means true.
    Switch,
    /// A text that is never shown; the function returns what is shown instead.
    Secret(&'static str, fn(&Settings) -> String),
}

impl Entry {
    /// Its flag, without the dashes in front.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Its first environment variable.
    pub fn variable(&self) -> &'static str {
        self.env.first().copied().unwrap_or(self.key)
    }

    /// The variable that names a file to read it from, where it is a secret.
    pub fn file_variable(&self) -> Option<String> {
        (!self.is_open()).then(|| format!("{}_FILE", self.variable()))
    }

    /// Whether its text may be shown.
    pub fn is_open(&self) -> bool {
        !matches!(self.shape, Shape::Secret(..))
    }
}

/// The entry of a key.
pub fn entry(key: &str) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.key == key)
}

/// Makes a struct of settings, its defaults and its entries. The third argument
/// finds the struct in `Settings`. Each setting reads:
///
/// ```text
/// field: Type = "default" (or: unset "example"), reader;
///     "key" ["ENVIRONMENT"] shape;
///     "meaning";
///     "allowed";
/// ```
///
/// A reader is `fn(&str) -> Result<Type, String>`; where the type is an
/// `Option`, the reader returns what is inside.
macro_rules! settings {
    (@text) => { None };
    (@text $text:literal) => { Some($text) };
    (@value $read:expr) => { Default::default() };
    (@value $read:expr, $text:literal) => { $read($text)?.into() };
    ($(#[$about:meta])* $name:ident, $entries:ident, $part:expr, {
     $($field:ident: $type:ty = $($default:literal)? $(unset $example:literal)?, $read:expr;
        $key:literal $env:tt $shape:expr;
        $meaning:expr;
        $allowed:expr;)*
    } $(#[$doc:meta])* $other:ident: $other_type:ty = $other_value:expr) => {
        $(#[$about])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $(#[doc = $meaning] pub $field: $type,)*
            $(#[$doc])* pub $other: $other_type,
        }

        impl $name {
            /// Each setting's variable and value, as programs see them.
            fn values(&self) -> BTreeMap<String, String> {
                let values = [$(($env[0], format!("{:?}", self.$field))),*];
                values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }

            /// Every default of the table.
            pub(super) fn defaults() -> Result<Self, String> {
                Ok(Self {
                    $($field: settings!(@value $read $(, $default)?),)*
                    $other: $other_value,
                })
            }
        }

        const $entries: &[Entry] = &[$(Entry {
            key: $key,
            env: &$env,
            default: settings!(@text $($default)?),
            example: concat!($($example)?),
            meaning: $meaning,
            allowed: $allowed,
            shape: $shape,
            set: |settings, text| {
                $part(settings).$field = $read(text)?.into();
                Ok(())
            },
        }),*];
    };
}

/// What the node cannot read is no mistake of opsward's settings: it is warned of.
fn nodes_duration(text: &str) -> Result<Option<Duration>, String> {
    Ok(duration::as_node(text))
}

const NODE_DURATION: &str =
    "a duration such as 720h; the node knows h, m and s, and takes its default for anything else";
const BOOLEAN: &str = "true or false (also 1, t, T, TRUE, True, 0, f, F, FALSE, False)";
const NODE_URL: &str = "a URL of http or https without password, query and fragment";
const SIZE: &str = "0, or a size with its unit such as 512MiB or 20GB";
const ADDRESS: &str = "an IP address and a port, such as 0.0.0.0:1992 or [::1]:9464";

/// Every setting there is.
pub static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| [OF_DAEMON, OF_BOUNDING].concat());

settings! {
    /// Every setting, read and checked.
    Settings, OF_DAEMON, std::convert::identity::<&mut Settings>, {
    db: DbTarget = "postgresql://postgres:postgres@localhost:5432/openaudio", pg_url::parse;
        "db_url" ["OPENAUDIO_DB_URL", "dbUrl"] Secret("URL", |settings| settings.db.masked());
        "the node's database; by default whichever of openaudio and audius_creator_node holds the log";
        "what pgx accepts: postgresql://user:password@host:port/database?sslmode=…, or key=value pairs";
    node_endpoint: Option<Host> = unset "https://validator.example", parse::host;
        "node_endpoint" ["OPENAUDIO_NODE_ENDPOINT", "nodeEndpoint", "creatorNodeEndpoint"] Text("URL");
        "this validator's own public URL, as it is registered; needed to serve and to pull";
        NODE_URL;
    log_level: String = "info", parse::log_level;
        "log_level" ["OPENAUDIO_LOG_LEVEL"] Text("FILTER");
        "how much is logged; a bare level speaks of opsward, libraries stay at warn";
        "off, error, warn, info, debug or trace, and target=level, with commas between: info,opsward::pull=debug";
    log_format: LogFormat = "text", parse::log_format;
        "log_format" ["OPENAUDIO_LOG_FORMAT"] Text("FORMAT");
        "how log lines are written";
        "text or json";
    env: Env = "prod", parse::env;
        "env" ["OPENAUDIO_ENV"] Text("NETWORK");
        "the network that the node belongs to";
        "prod, production, mainnet; stage, staging, testnet; dev, development, devnet, local, sandbox";
    tls_self_signed: bool = "false", parse::boolean;
        "tls_self_signed" ["OPENAUDIO_TLS_SELF_SIGNED"] Switch;
        "accept peers' self-signed certificates; only where the network is dev";
        BOOLEAN;
    listen: SocketAddr = "0.0.0.0:1992", parse::listen;
        "listen" ["OPENAUDIO_MEDIORUM_SIDECAR_LISTEN"] Text("ADDRESS");
        "where peers are served; the sweep only";
        ADDRESS;
    admin_listen: SocketAddr = "127.0.0.1:9464", parse::listen;
        "admin_listen" ["OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN"] Text("ADDRESS");
        "where the operator is served: metrics, health, status";
        ADDRESS;
    node_url: url::Url = "http://localhost:80", parse::base_url;
        "node_url" ["OPENAUDIO_MEDIORUM_NODE_URL"] Text("URL");
        "the node as seen from here, asked for the registered peers";
        NODE_URL;
    peers: Option<Vec<Host>> = unset "https://a.example,https://b.example", parse::peers;
        "peers" ["OPENAUDIO_MEDIORUM_PEERS"] Text("URLS");
        "the peers, instead of asking the node for them";
        "URLs of http or https with commas between, or none for no peers";
    read_only: bool = "false", parse::boolean;
        "read_only" ["OPENAUDIO_MEDIORUM_READ_ONLY"] Switch;
        "write nothing outside the schema opsward";
        BOOLEAN;
    sweep_peers: bool = "true", parse::boolean;
        "sweep_peers" ["OPENAUDIO_MEDIORUM_SWEEP_PEERS"] Switch;
        "pull from peers at all";
        BOOLEAN;
    sweep_interval: Duration = "10m", |text: &str| parse::at_least(text, 10, "10s");
        "sweep_interval" ["OPENAUDIO_MEDIORUM_SWEEP_INTERVAL"] Text("DURATION");
        "how often each peer is pulled";
        "a duration of at least 10s, such as 90s, 10m or 1h30m";
    pgdata_path: Option<PathBuf> = unset "/pgdata", parse::directory;
        "pgdata_path" ["OPENAUDIO_MEDIORUM_PGDATA_PATH"] Text("DIRECTORY");
        "a directory on the database's volume, to read its free space";
        "an absolute path";
}
    /// What bounds the log.
    bounding: Bounding = Bounding::defaults()?
}

fn bounding_of(settings: &mut Settings) -> &mut Bounding {
    &mut settings.bounding
}

settings! {
    /// What bounds the log.
    #[derive(PartialEq, Default)]
    Bounding, OF_BOUNDING, bounding_of, {
    census: bool = "true", parse::boolean;
        "ops_census" ["OPENAUDIO_MEDIORUM_OPS_CENSUS"] Switch;
        "count the log by table and day; everything that bounds the log reads it";
        BOOLEAN;
    retention_days: u32 = "0", bounding::days;
        "ops_retention_days" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS"] Text("DAYS");
        "delete ops older than so many days, behind every peer; 0 is off";
        "a whole number of days from 0 to 36500";
    retention_bytes: u64 = "0", bounding::size;
        "ops_retention_bytes" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES"] Text("SIZE");
        "shorten the window so that the log and its indexes stay under this size, room that deletion leaves in them not counted; down to 7 days; 0 is off";
        SIZE;
    interval: Duration = "1h", |text: &str| parse::at_least(text, 10, "10s");
        "ops_retention_sweep_interval" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL"] Text("DURATION");
        "how often retention and dormant cleanup run";
        "a duration of at least 10s, such as 10m or 1h";
    batch_limit: u32 = "10000", parse::batch_limit;
        "ops_retention_batch_limit" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_BATCH_LIMIT"] Text("ROWS");
        "rows that one transaction deletes at most";
        "a whole number from 100 to 100000";
    cursor_margin: Duration = "1h", |text: &str| parse::at_least(text, 60, "1m");
        "ops_retention_cursor_margin" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_CURSOR_MARGIN"] Text("DURATION");
        "how far behind the slowest peer deletion stays";
        "a duration of at least 1m, such as 1h";
    ignore_peers: Vec<Host> = unset "https://gone.example", parse::peers;
        "ops_retention_ignore_peers" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS"] Text("URLS");
        "peers and readers that hold nothing back";
        "URLs of http or https with commas between, or none";
    max_peer_lag: Duration = "0", parse::max_peer_lag;
        "ops_retention_max_peer_lag" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_MAX_PEER_LAG"] Text("DURATION");
        "a peer further behind than this no longer holds anything back; 0 is off";
        "0, or a duration of at least 24h such as 720h";
    reader_hold: Duration = "720h", duration::parse;
        "ops_retention_reader_hold" ["OPENAUDIO_MEDIORUM_OPS_RETENTION_READER_HOLD"] Text("DURATION");
        "how much longer than the window a reader may hold ops; 0 is off";
        "a duration such as 720h, or 0";
    dormant_cleanup: bool = "false", parse::boolean;
        "dormant_ops_cleanup" ["OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP"] Switch;
        "delete the old ops of tables that no longer get any";
        BOOLEAN;
    keep_dormant: bool = "false", parse::boolean;
        "keep_dormant_ops" ["OPENAUDIO_MEDIORUM_KEEP_DORMANT_OPS"] Switch;
        "the veto: dormant ops are kept whatever else is set";
        BOOLEAN;
    dormant_threshold: Duration = "2160h", duration::parse;
        "dormant_ops_threshold" ["OPENAUDIO_MEDIORUM_DORMANT_OPS_THRESHOLD"] Text("DURATION");
        "how long a dormant table has been without a new op";
        "a duration; shorter than 24h is taken as 24h";
    ensure_index: bool = "false", parse::boolean;
        "ensure_ops_table_index" ["OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX"] Switch;
        "keep an index on the log by table and ULID";
        BOOLEAN;
    replay_guard: bool = "false", parse::boolean;
        "ops_replay_guard" ["OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD"] Switch;
        "protect the node's own sweeps from replays of deleted ops, by a trigger on the log";
        BOOLEAN;
    replication: Option<Replication> = "auto", bounding::replication;
        "replication" ["OPENAUDIO_MEDIORUM_REPLICATION"] Text("WAY");
        "how ops reach this node: from peers, from the chain, or both; auto finds out";
        "auto, peers, both or chain";
    node_retention: Option<Duration> = unset "720h", nodes_duration;
        "node_ops_retention" ["OPENAUDIO_OPS_RETENTION"] Text("DURATION");
        "the node's own setting: ops older than this it deletes by itself; told here, plan and forecast reckon with it";
        NODE_DURATION;
    node_prune_interval: Option<Duration> = unset "6h", nodes_duration;
        "node_ops_prune_interval" ["OPENAUDIO_OPS_PRUNE_INTERVAL"] Text("DURATION");
        "the node's own setting: how often it deletes them";
        NODE_DURATION;
    node_archive: Option<Archive> = unset "true", |text: &str| Ok::<_, String>(bounding::archive(text));
        "node_archive" ["OPENAUDIO_ARCHIVE"] Switch;
        "the node's own setting: its whole history stays; opsward then deletes nothing either";
        "true or false";
    delete_archived: bool = "false", parse::boolean;
        "ops_delete_archived" ["OPENAUDIO_MEDIORUM_OPS_DELETE_ARCHIVED"] Switch;
        "delete although OPENAUDIO_ARCHIVE says that history stays";
        BOOLEAN;
    window: Option<Window> = unset "01:00-05:00", Window::parse;
        "maintenance_window" ["OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW"] Text("TIMES");
        "when bulk work may run, in UTC; unset is always";
        "two times of day such as 01:00-05:00; it may wrap midnight";
    min_free_disk: u64 = "1GiB", bounding::size;
        "min_free_disk" ["OPENAUDIO_MEDIORUM_MIN_FREE_DISK"] Text("SIZE");
        "bulk work stops while the database's volume has less than this free";
        SIZE;
    reclaim_policy: Policy = "window", bounding::policy;
        "ops_reclaim_policy" ["OPENAUDIO_MEDIORUM_OPS_RECLAIM_POLICY"] Text("POLICY");
        "what a reclaim keeps: what retention keeps, or what replay needs";
        "window or compact";
    reclaim_memory: u64 = "256MiB", parse::reclaim_memory;
        "ops_reclaim_memory" ["OPENAUDIO_MEDIORUM_OPS_RECLAIM_MEMORY"] Text("SIZE");
        "memory that a reclaim may use";
        "a size of at least 32MiB, such as 256MiB";
    reclaim_when: Option<When> = unset "bloat>50%", When::parse;
        "ops_reclaim_when" ["OPENAUDIO_MEDIORUM_OPS_RECLAIM_WHEN"] Text("CONDITION");
        "when the daemon reclaims by itself, at most once a week; unset is never";
        "bloat>N% (10 to 95) or free<SIZE";
}
    /// What is kept of single tables instead of the window; from the file only.
    tables: BTreeMap<String, Keep> = BTreeMap::new()
}

impl Settings {
    /// What the settings say of deletion, by variable.
    pub fn of_deletion(&self) -> BTreeMap<String, String> {
        let mut all = self.values();
        all.retain(|name, _| {
            matches!(name.as_str(), "OPENAUDIO_MEDIORUM_PEERS" | "OPENAUDIO_MEDIORUM_READ_ONLY")
        });
        all.extend(self.bounding.values());
        all.insert("tables".to_owned(), format!("{:?}", self.bounding.tables));
        all
    }

    /// Which of the settings of another process say something else: name, theirs and ours.
    pub fn differing(&self, theirs: &BTreeMap<String, String>) -> Vec<[String; 3]> {
        let ours = self.of_deletion();
        let differ = ours.into_iter().filter_map(|(name, ours)| {
            let theirs = theirs.get(&name).filter(|theirs| **theirs != ours)?.clone();
            Some([name, theirs, ours])
        });
        differ.collect()
    }
}
