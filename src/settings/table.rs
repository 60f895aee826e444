//! The one table of settings. Flags, environment names, file keys, defaults,
//! help, README's table, config/opsward.toml and error texts come from it.

use super::{Settings, parse, pg_url};

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
const ADDRESS: &str = "an IP address and a port, such as 0.0.0.0:1992 or [::1]:9464";

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
    Entry {
        key: "tls_self_signed",
        env: &["OPENAUDIO_TLS_SELF_SIGNED"],
        default: Some("false"),
        example: "",
        meaning: "accept peers' self-signed certificates; only where the network is dev",
        allowed: BOOLEAN,
        shape: Shape::Switch,
        set: |settings, text, _| {
            settings.tls_self_signed = parse::boolean(text)?;
            Ok(())
        },
    },
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
    Entry {
        key: "read_only",
        env: &["OPENAUDIO_MEDIORUM_READ_ONLY"],
        default: Some("false"),
        example: "",
        meaning: "write nothing outside the schema opsward",
        allowed: BOOLEAN,
        shape: Shape::Switch,
        set: |settings, text, _| {
            settings.read_only = parse::boolean(text)?;
            Ok(())
        },
    },
    Entry {
        key: "sweep_peers",
        env: &["OPENAUDIO_MEDIORUM_SWEEP_PEERS"],
        default: Some("true"),
        example: "",
        meaning: "pull from peers at all",
        allowed: BOOLEAN,
        shape: Shape::Switch,
        set: |settings, text, _| {
            settings.sweep_peers = parse::boolean(text)?;
            Ok(())
        },
    },
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
