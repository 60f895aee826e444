//! The one table of settings. Flags, environment names, file keys, defaults,
//! help, README's table, config/opsward.toml and error texts come from it.

use super::bounding::{self, Policy, When, Window};
use super::{Settings, parse, pg_url};
use std::time::Duration;

/// Reads a text into its field; sentences that should be known go to the list.
type Set = fn(&mut Settings, &str, &mut Vec<String>) -> Result<(), String>;

/// One setting.
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
    /// Reads it.
    pub set: Set,
}

/// How a setting is given and shown.
#[derive(Clone, Copy)]
pub enum Shape {
    /// A text; the word stands for it in the help.
    Text(&'static str),
    /// A boolean: its flag alone means true.
    Switch,
    /// A text that is never shown; instead, what the function says.
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

const BOOLEAN: &str = "true or false (also 1, t, T, TRUE, True, 0, f, F, FALSE, False)";
const NODE_URL: &str = "a URL of http or https without password, query and fragment";
const SIZE: &str = "0, or a size with its unit such as 512MiB or 20GB";
const ADDRESS: &str = "an IP address and a port, such as 0.0.0.0:1992 or [::1]:9464";

/// A boolean.
const fn switch(
    key: &'static str,
    env: &'static [&'static str],
    default: &'static str,
    meaning: &'static str,
    set: Set,
) -> Entry {
    let (default, shape) = (Some(default), Shape::Switch);
    Entry { key, env, default, example: "", meaning, allowed: BOOLEAN, shape, set }
}

/// Every setting there is.
pub const TABLE: &[Entry] = &[
    Entry {
        key: "db_url",
        env: &["OPENAUDIO_DB_URL", "dbUrl"],
        default: Some("postgresql://postgres:postgres@localhost:5432/openaudio"),
        example: "",
        meaning: "the node's database; by default whichever of openaudio and audius_creator_node holds the log",
        allowed: "what pgx accepts: postgresql://user:password@host:port/database?sslmode=…, or key=value pairs",
        shape: Shape::Secret("URL", |settings| settings.db.masked()),
        set: |settings, text, notes| {
            let parsed = pg_url::parse(text)?;
            settings.db = parsed.target;
            notes.extend(parsed.notes);
            Ok(())
        },
    },
    Entry {
        key: "node_endpoint",
        env: &["OPENAUDIO_NODE_ENDPOINT", "nodeEndpoint", "creatorNodeEndpoint"],
        default: None,
        example: "https://validator.example",
        meaning: "this validator's own public URL, as it is registered; needed to serve and to pull",
        allowed: NODE_URL,
        shape: Shape::Text("URL"),
        set: |settings, text, _| {
            settings.node_endpoint = Some(parse::host(text)?);
            Ok(())
        },
    },
    Entry {
        key: "log_level",
        env: &["OPENAUDIO_LOG_LEVEL"],
        default: Some("info"),
        example: "",
        meaning: "how much is logged; a bare level speaks of opsward, libraries stay at warn",
        allowed: "off, error, warn, info, debug or trace, and target=level, with commas between: info,opsward::pull=debug",
        shape: Shape::Text("FILTER"),
        set: |settings, text, _| {
            parse::log_filter(text)?;
            settings.log_level = text.to_owned();
            Ok(())
        },
    },
    Entry {
        key: "log_format",
        env: &["OPENAUDIO_LOG_FORMAT"],
        default: Some("text"),
        example: "",
        meaning: "how log lines are written",
        allowed: "text or json",
        shape: Shape::Text("FORMAT"),
        set: |settings, text, _| {
            settings.log_format = parse::log_format(text)?;
            Ok(())
        },
    },
    Entry {
        key: "env",
        env: &["OPENAUDIO_ENV"],
        default: Some("prod"),
        example: "",
        meaning: "the network that the node belongs to",
        allowed: "prod, production, mainnet; stage, staging, testnet; dev, development, devnet, local, sandbox",
        shape: Shape::Text("NETWORK"),
        set: |settings, text, _| {
            settings.env = parse::env(text)?;
            Ok(())
        },
    },
    switch(
        "tls_self_signed",
        &["OPENAUDIO_TLS_SELF_SIGNED"],
        "false",
        "accept peers' self-signed certificates; only where the network is dev",
        |settings, text, _| {
            settings.tls_self_signed = parse::boolean(text)?;
            Ok(())
        },
    ),
    Entry {
        key: "listen",
        env: &["OPENAUDIO_MEDIORUM_SIDECAR_LISTEN"],
        default: Some("0.0.0.0:1992"),
        example: "",
        meaning: "where peers are served; the sweep only",
        allowed: ADDRESS,
        shape: Shape::Text("ADDRESS"),
        set: |settings, text, _| {
            settings.listen = parse::listen(text)?;
            Ok(())
        },
    },
    Entry {
        key: "admin_listen",
        env: &["OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN"],
        default: Some("127.0.0.1:9464"),
        example: "",
        meaning: "where the operator is served: metrics, health, status",
        allowed: ADDRESS,
        shape: Shape::Text("ADDRESS"),
        set: |settings, text, _| {
            settings.admin_listen = parse::listen(text)?;
            Ok(())
        },
    },
    Entry {
        key: "node_url",
        env: &["OPENAUDIO_MEDIORUM_NODE_URL"],
        default: Some("http://localhost:80"),
        example: "",
        meaning: "the node as seen from here, asked for the registered peers",
        allowed: NODE_URL,
        shape: Shape::Text("URL"),
        set: |settings, text, _| {
            settings.node_url = parse::base_url(text)?;
            Ok(())
        },
    },
    Entry {
        key: "peers",
        env: &["OPENAUDIO_MEDIORUM_PEERS"],
        default: None,
        example: "https://a.example,https://b.example",
        meaning: "the peers, instead of asking the node for them",
        allowed: "URLs of http or https with commas between, or none for no peers",
        shape: Shape::Text("URLS"),
        set: |settings, text, _| {
            settings.peers = Some(parse::peers(text)?);
            Ok(())
        },
    },
    switch(
        "read_only",
        &["OPENAUDIO_MEDIORUM_READ_ONLY"],
        "false",
        "write nothing outside the schema opsward",
        |settings, text, _| {
            settings.read_only = parse::boolean(text)?;
            Ok(())
        },
    ),
    switch(
        "sweep_peers",
        &["OPENAUDIO_MEDIORUM_SWEEP_PEERS"],
        "true",
        "pull from peers at all",
        |settings, text, _| {
            settings.sweep_peers = parse::boolean(text)?;
            Ok(())
        },
    ),
    Entry {
        key: "sweep_interval",
        env: &["OPENAUDIO_MEDIORUM_SWEEP_INTERVAL"],
        default: Some("10m"),
        example: "",
        meaning: "how often each peer is pulled",
        allowed: "a duration of at least 10s, such as 90s, 10m or 1h30m",
        shape: Shape::Text("DURATION"),
        set: |settings, text, _| {
            settings.sweep_interval = parse::sweep_interval(text)?;
            Ok(())
        },
    },
    switch(
        "ops_census",
        &["OPENAUDIO_MEDIORUM_OPS_CENSUS"],
        "true",
        "count the log by table and day; everything that bounds the log reads it",
        |settings, text, _| {
            settings.bounding.census = parse::boolean(text)?;
            Ok(())
        },
    ),
    Entry {
        key: "ops_retention_days",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS"],
        default: Some("0"),
        example: "",
        meaning: "delete ops older than so many days, behind every peer; 0 is off",
        allowed: "a whole number of days from 0 to 36500",
        shape: Shape::Text("DAYS"),
        set: |settings, text, _| {
            settings.bounding.retention_days = bounding::days(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_retention_bytes",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES"],
        default: Some("0"),
        example: "",
        meaning: "shorten the window so that the log and its indexes stay under this size, room that deletion leaves in them not counted; down to 7 days; 0 is off",
        allowed: SIZE,
        shape: Shape::Text("SIZE"),
        set: |settings, text, _| {
            settings.bounding.retention_bytes = bounding::size(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_retention_sweep_interval",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL"],
        default: Some("1h"),
        example: "",
        meaning: "how often retention and dormant cleanup run",
        allowed: "a duration of at least 10s, such as 10m or 1h",
        shape: Shape::Text("DURATION"),
        set: |settings, text, _| {
            settings.bounding.interval = parse::sweep_interval(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_retention_batch_limit",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_BATCH_LIMIT"],
        default: Some("10000"),
        example: "",
        meaning: "rows that one transaction deletes at most",
        allowed: "a whole number from 100 to 100000",
        shape: Shape::Text("ROWS"),
        set: |settings, text, _| {
            settings.bounding.batch_limit = parse::batch_limit(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_retention_cursor_margin",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_CURSOR_MARGIN"],
        default: Some("1h"),
        example: "",
        meaning: "how far behind the slowest peer deletion stays",
        allowed: "a duration of at least 1m, such as 1h",
        shape: Shape::Text("DURATION"),
        set: |settings, text, _| {
            settings.bounding.cursor_margin =
                bounding::duration_at_least(text, Duration::from_secs(60), "1m")?;
            Ok(())
        },
    },
    Entry {
        key: "ops_retention_ignore_peers",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS"],
        default: None,
        example: "https://gone.example",
        meaning: "peers and readers that hold nothing back",
        allowed: "URLs of http or https with commas between, or none",
        shape: Shape::Text("URLS"),
        set: |settings, text, _| {
            settings.bounding.ignore_peers = parse::peers(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_retention_max_peer_lag",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_MAX_PEER_LAG"],
        default: Some("0"),
        example: "",
        meaning: "a peer further behind than this no longer holds anything back; 0 is off",
        allowed: "0, or a duration of at least 24h such as 720h",
        shape: Shape::Text("DURATION"),
        set: |settings, text, _| {
            settings.bounding.max_peer_lag = parse::max_peer_lag(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_retention_reader_hold",
        env: &["OPENAUDIO_MEDIORUM_OPS_RETENTION_READER_HOLD"],
        default: Some("720h"),
        example: "",
        meaning: "how much longer than the window a reader may hold ops; 0 is off",
        allowed: "a duration such as 720h, or 0",
        shape: Shape::Text("DURATION"),
        set: |settings, text, _| {
            settings.bounding.reader_hold = bounding::duration_at_least(text, Duration::ZERO, "0")?;
            Ok(())
        },
    },
    switch(
        "dormant_ops_cleanup",
        &["OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP"],
        "false",
        "delete the old ops of tables that no longer get any",
        |settings, text, _| {
            settings.bounding.dormant_cleanup = parse::boolean(text)?;
            Ok(())
        },
    ),
    switch(
        "keep_dormant_ops",
        &["OPENAUDIO_MEDIORUM_KEEP_DORMANT_OPS"],
        "false",
        "the veto: dormant ops are kept whatever else is set",
        |settings, text, _| {
            settings.bounding.keep_dormant = parse::boolean(text)?;
            Ok(())
        },
    ),
    Entry {
        key: "dormant_ops_threshold",
        env: &["OPENAUDIO_MEDIORUM_DORMANT_OPS_THRESHOLD"],
        default: Some("2160h"),
        example: "",
        meaning: "how long a dormant table has been without a new op",
        allowed: "a duration; shorter than 24h is taken as 24h",
        shape: Shape::Text("DURATION"),
        set: |settings, text, notes| {
            settings.bounding.dormant_threshold = bounding::dormant_threshold(text, notes)?;
            Ok(())
        },
    },
    switch(
        "ensure_ops_table_index",
        &["OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX"],
        "false",
        "keep an index on the log by table and ULID",
        |settings, text, _| {
            settings.bounding.ensure_index = parse::boolean(text)?;
            Ok(())
        },
    ),
    switch(
        "ops_replay_guard",
        &["OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD"],
        "false",
        "protect the node's own sweeps from replays of deleted ops, by a trigger on the log",
        |settings, text, _| {
            settings.bounding.replay_guard = parse::boolean(text)?;
            Ok(())
        },
    ),
    Entry {
        key: "maintenance_window",
        env: &["OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW"],
        default: None,
        example: "01:00-05:00",
        meaning: "when bulk work may run, in UTC; unset is always",
        allowed: "two times of day such as 01:00-05:00; it may wrap midnight",
        shape: Shape::Text("TIMES"),
        set: |settings, text, _| {
            settings.bounding.window = Some(Window::parse(text)?);
            Ok(())
        },
    },
    Entry {
        key: "min_free_disk",
        env: &["OPENAUDIO_MEDIORUM_MIN_FREE_DISK"],
        default: Some("1GiB"),
        example: "",
        meaning: "bulk work stops while the database's volume has less than this free",
        allowed: SIZE,
        shape: Shape::Text("SIZE"),
        set: |settings, text, _| {
            settings.bounding.min_free_disk = bounding::size(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_reclaim_policy",
        env: &["OPENAUDIO_MEDIORUM_OPS_RECLAIM_POLICY"],
        default: None,
        example: "compact",
        meaning: "what a reclaim keeps: what retention keeps, or what replay needs",
        allowed: "window or compact",
        shape: Shape::Text("POLICY"),
        set: |settings, text, _| {
            settings.bounding.reclaim_policy = Some(Policy::parse(text)?);
            Ok(())
        },
    },
    Entry {
        key: "ops_reclaim_memory",
        env: &["OPENAUDIO_MEDIORUM_OPS_RECLAIM_MEMORY"],
        default: Some("256MiB"),
        example: "",
        meaning: "memory that a reclaim may use",
        allowed: "a size of at least 32MiB, such as 256MiB",
        shape: Shape::Text("SIZE"),
        set: |settings, text, _| {
            settings.bounding.reclaim_memory = parse::reclaim_memory(text)?;
            Ok(())
        },
    },
    Entry {
        key: "ops_reclaim_when",
        env: &["OPENAUDIO_MEDIORUM_OPS_RECLAIM_WHEN"],
        default: None,
        example: "bloat>50%",
        meaning: "when the daemon reclaims by itself, at most once a week; unset is never",
        allowed: "bloat>N% (10 to 95) or free<SIZE",
        shape: Shape::Text("CONDITION"),
        set: |settings, text, _| {
            settings.bounding.reclaim_when = Some(When::parse(text)?);
            Ok(())
        },
    },
    Entry {
        key: "pgdata_path",
        env: &["OPENAUDIO_MEDIORUM_PGDATA_PATH"],
        default: None,
        example: "/pgdata",
        meaning: "a directory on the database's volume, to read its free space",
        allowed: "an absolute path",
        shape: Shape::Text("DIRECTORY"),
        set: |settings, text, _| {
            settings.pgdata_path = Some(parse::directory(text)?);
            Ok(())
        },
    },
];
