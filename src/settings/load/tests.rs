use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::time::Duration;

/// A source of nothing but these variables and files.
fn source(env: &[(&str, &str)], files: &[(&str, &str)]) -> Source {
    let files: BTreeMap<PathBuf, String> =
        files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
    Source {
        flags: BTreeMap::new(),
        config: None,
        env: env.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect(),
        read: Box::new(move |path| {
            let text = files.get(path).cloned();
            text.ok_or_else(|| io::Error::from(ErrorKind::NotFound))
        }),
    }
}

fn ours(env: &[(&str, &str)]) -> Loaded {
    load(&source(env, &[])).unwrap()
}

fn problems(source: &Source) -> String {
    load(source).unwrap_err().to_string()
}

fn codes(loaded: &Loaded) -> Vec<&str> {
    loaded.warnings.iter().map(|w| &*w.code).collect()
}

#[test]
fn nothing_set_is_the_defaults() {
    let Loaded { settings, origins, warnings, file } = ours(&[]);
    assert_eq!(settings.listen.to_string(), "0.0.0.0:1992");
    assert_eq!(settings.admin_listen.to_string(), "127.0.0.1:9464");
    assert_eq!(settings.sweep_interval, Duration::from_secs(600));
    assert!(settings.sweep_peers && !settings.read_only);
    assert_eq!(settings.db.dbname, None, "looked for");
    assert_eq!(settings.db.shown(), "localhost:5432/?");
    assert_eq!(settings.node_endpoint, None);
    assert_eq!(settings.peers, None);
    assert!(origins.iter().all(|shown| shown.origin == Origin::Default));
    assert_eq!((warnings, file), (vec![], None));
    assert_eq!(origins.len(), TABLE.len());
}

#[test]
fn the_nodes_own_settings_are_read_as_the_node_reads_them() {
    let day = |days: u64| Some(Duration::from_secs(days * 86_400));
    for (name, text, unread) in [
        ("OPENAUDIO_OPS_RETENTION", "720h", false),
        ("OPENAUDIO_OPS_RETENTION", "60d", true),
        ("OPENAUDIO_OPS_RETENTION", "720", true),
        ("OPENAUDIO_OPS_RETENTION", "", false),
        ("OPENAUDIO_OPS_PRUNE_INTERVAL", "1h30m", false),
        ("OPENAUDIO_OPS_PRUNE_INTERVAL", "hourly", true),
        ("OPENAUDIO_ARCHIVE", "true", false),
        ("OPENAUDIO_ARCHIVE", "0", false),
        ("OPENAUDIO_ARCHIVE", "True", true),
        ("OPENAUDIO_ARCHIVE", "yes", true),
    ] {
        let loaded = ours(&[(name, text)]);
        let wanted: &[&str] = if unread { &["node_setting_unread"] } else { &[] };
        assert_eq!(codes(&loaded), wanted, "{name}={text}");
        let said = loaded.warnings.first().map_or(String::new(), |w| w.text.clone());
        assert!(!unread || said.contains(&format!("{name} = {text:?}")), "{said}");
    }
    let keeps = |text| {
        let set = ours(&[("OPENAUDIO_OPS_RETENTION", text)]).settings.bounding;
        set.node_keeps(crate::values::Replication::Chain)
    };
    // The node knows no days: what it cannot read is its default.
    assert_eq!(["1440h", "60d", "90d", "", "24h"].map(keeps), [day(60), day(30), day(30), day(30), day(1)]);
}

#[test]
fn flag_then_environment_then_file_then_default() {
    let file = "listen = '1.1.1.1:1'\nadmin_listen = '1.1.1.1:2'\nnode_url = 'http://file'\n\
                read_only = true\npeers = ['http://a', 'http://b']";
    let mut source = source(
        &[
            ("OPENAUDIO_MEDIORUM_SIDECAR_LISTEN", "2.2.2.2:1"),
            ("OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN", "2.2.2.2:2"),
            ("OPENAUDIO_MEDIORUM_NODE_URL", " "),
        ],
        &[(DEFAULT_FILE, file)],
    );
    source.flags.insert("listen", "3.3.3.3:1".into());
    let loaded = load(&source).unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.listen.to_string(), "3.3.3.3:1");
    assert_eq!(settings.admin_listen.to_string(), "2.2.2.2:2");
    assert_eq!(settings.node_url.as_str(), "http://file/");
    assert!(settings.read_only);
    assert_eq!(settings.peers.as_ref().map(Vec::len), Some(2));
    assert_eq!(loaded.file, Some(DEFAULT_FILE.into()));
    let origin = |key| origin_of(&loaded.origins, key).unwrap().to_string();
    assert_eq!(origin("listen"), "command line");
    assert_eq!(origin("admin_listen"), "environment OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN");
    assert_eq!(origin("node_url"), "file /etc/opsward/opsward.toml");
    assert_eq!(origin("env"), "default");
}

#[test]
fn the_nodes_other_names_hold_too_and_the_first_goes_before() {
    let loaded = ours(&[("dbUrl", "postgres://u@h/d")]);
    assert_eq!(loaded.settings.db.shown(), "h:5432/d");
    let loaded = ours(&[("creatorNodeEndpoint", "https://C.example/")]);
    let host = loaded.settings.node_endpoint.as_ref().unwrap();
    assert_eq!(host.as_str(), "https://c.example");
    let loaded = ours(&[("nodeEndpoint", "https://b"), ("creatorNodeEndpoint", "https://c")]);
    let host = loaded.settings.node_endpoint.as_ref().unwrap();
    assert_eq!(host.as_str(), "https://b");
    assert_eq!(codes(&loaded), ["variable_shadowed"]);
}

#[test]
fn an_empty_variable_is_unset() {
    let env: Vec<(&str, &str)> =
        TABLE.iter().flat_map(|entry| entry.env.iter().map(|name| (*name, ""))).collect();
    let loaded = ours(&env);
    assert!(loaded.origins.iter().all(|s| s.origin == Origin::Default));
}

#[test]
fn all_that_is_wrong_is_said_together() {
    let mut source = source(
        &[
            ("OPENAUDIO_DB_URL", "postgres://u:hunter2@h:x/d"),
            ("OPENAUDIO_LOG_LEVEL", "loud"),
            ("OPENAUDIO_MEDIORUM_SWEEP_INTERVAL", "5x"),
            ("OPENAUDIO_MEDIORUM_PEERS", "https://a,b"),
            ("nodeEndpoint", "https://me:hunter2@h"),
            ("OPENAUDIO_MEDIORUM_SIDECAR_LISTEN", "0.0.0.0:9464"),
        ],
        &[("/my.toml", "lisen = '1'\nread_only = 'yes'\nsweep_peers = 1.5\nenv = 'moon'")],
    );
    source.config = Some("/my.toml".into());
    source.flags.insert("pgdata_path", "here".into());
    let text = problems(&source);
    insta::assert_snapshot!(text, @r#"
    11 settings cannot be used:
      OPENAUDIO_DB_URL (environment): a port in it is no number from 1 to 65535; allowed: what pgx accepts: postgresql://user:password@host:port/database?sslmode=…, or key=value pairs
      nodeEndpoint = "https://***@h" (environment): it is no URL of a node; allowed: a URL of http or https without password, query and fragment
      OPENAUDIO_LOG_LEVEL = "loud" (environment): it names a level that there is not; allowed: off, error, warn, info, debug or trace, and target=level, with commas between: info,opsward::pull=debug
      env = "moon" (file /my.toml): there is no such network; allowed: prod, production, mainnet; stage, staging, testnet; dev, development, devnet, local, sandbox
      OPENAUDIO_MEDIORUM_PEERS = "https://a,b" (environment): its part 2 is no URL; allowed: URLs of http or https with commas between, or none for no peers
      read_only = "yes" (file /my.toml): it is no boolean; allowed: true or false (also 1, t, T, TRUE, True, 0, f, F, FALSE, False)
      sweep_peers (file /my.toml): a float cannot be its value; allowed: true or false (also 1, t, T, TRUE, True, 0, f, F, FALSE, False)
      OPENAUDIO_MEDIORUM_SWEEP_INTERVAL = "5x" (environment): a unit in it is unknown; allowed: a duration of at least 10s, such as 90s, 10m or 1h30m
      --pgdata-path = "here" (command line): it is no absolute path; allowed: an absolute path
      lisen (file /my.toml): there is no such setting; did you mean listen?; allowed: db_url, node_endpoint, log_level, log_format, env, tls_self_signed, listen, admin_listen, node_url, peers, read_only, sweep_peers, sweep_interval, pgdata_path, ops_census, ops_retention_days, ops_retention_bytes, ops_retention_sweep_interval, ops_retention_batch_limit, ops_retention_cursor_margin, ops_retention_ignore_peers, ops_retention_max_peer_lag, ops_retention_reader_hold, dormant_ops_cleanup, keep_dormant_ops, dormant_ops_threshold, ensure_ops_table_index, ops_replay_guard, replication, node_ops_retention, node_ops_prune_interval, node_archive, ops_delete_archived, maintenance_window, min_free_disk, ops_reclaim_policy, ops_reclaim_memory, ops_reclaim_when
      OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN = "127.0.0.1:9464" (default): it takes the same port as OPENAUDIO_MEDIORUM_SIDECAR_LISTEN = 0.0.0.0:9464; allowed: two different ports
    "#);
    assert!(!text.contains("hunter2"));
}

#[test]
fn an_interval_below_ten_seconds_is_refused() {
    let at = |text| load(&source(&[("OPENAUDIO_MEDIORUM_SWEEP_INTERVAL", text)], &[]));
    assert!(at("10s").is_ok());
    for text in ["9.999s", "0", "-10s"] {
        assert!(at(text).is_err(), "{text}");
    }
}

#[test]
fn a_file_that_is_named_must_be_there_and_be_toml() {
    let mut missing = source(&[], &[]);
    missing.config = Some("/none.toml".into());
    insta::assert_snapshot!(problems(&missing), @r#"
    1 setting cannot be used:
      --config = "/none.toml" (command line): it cannot be read: entity not found; allowed: a readable file of key = value lines in TOML
    "#);
    let broken = "listen = '1.1.1.1:1'\ndb_url = 'postgres://u:hunter2@h/d";
    let text = problems(&source(&[], &[(DEFAULT_FILE, broken)]));
    assert!(text.contains("its line 2 is no TOML"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_secret_from_a_file() {
    let env = [("OPENAUDIO_DB_URL_FILE", "/run/secrets/db")];
    let file = [("/run/secrets/db", "postgres://u:hunter2@h/d\n")];
    let loaded = load(&source(&env, &file)).unwrap();
    let shown = &loaded.origins[0];
    assert_eq!(loaded.settings.db.password.as_ref().unwrap().reveal(), "hunter2");
    assert_eq!(shown.value.as_deref(), Some("postgresql://u:***@h:5432/d?sslmode=prefer"));
    assert_eq!(shown.origin.to_string(), "file /run/secrets/db named by OPENAUDIO_DB_URL_FILE");
    insta::assert_snapshot!(problems(&source(&env, &[])), @r#"
    1 setting cannot be used:
      OPENAUDIO_DB_URL_FILE = "/run/secrets/db" (file /run/secrets/db): the file cannot be read: entity not found; allowed: OPENAUDIO_DB_URL or this, a readable file
    "#);
    assert!(problems(&source(&env, &[("/run/secrets/db", "\n")])).contains("is empty"));
    let both = [env[0], ("OPENAUDIO_DB_URL", "postgres://h/d")];
    insta::assert_snapshot!(problems(&source(&both, &file)), @r#"
    1 setting cannot be used:
      OPENAUDIO_DB_URL_FILE = "/run/secrets/db" (file /run/secrets/db): OPENAUDIO_DB_URL is set too; allowed: OPENAUDIO_DB_URL or this, a readable file
    "#);
}

#[test]
fn a_variable_that_is_not_utf8_is_said() {
    use std::os::unix::ffi::OsStringExt;
    let mut source = source(&[], &[]);
    let value = OsString::from_vec(vec![b'/', 0xff]);
    source.env.insert("OPENAUDIO_MEDIORUM_PGDATA_PATH".into(), value);
    assert!(problems(&source).contains("not UTF-8"));
}

#[test]
fn a_misspelt_variable_ends_the_start_and_an_unknown_one_warns() {
    let misspelt = source(
        &[
            ("OPENAUDIO_MEDIORUM_SIDECAR_LISTN", "1"),
            ("OPENAUDIO_MEDIORUM_READONLY", "1"),
            ("OPSWARD_READ_ONLY", "1"),
            ("OPSWARD_REGENERATE", "1"),
        ],
        &[],
    );
    insta::assert_snapshot!(problems(&misspelt), @r#"
    3 settings cannot be used:
      OPENAUDIO_MEDIORUM_READONLY (environment): there is no such setting; did you mean OPENAUDIO_MEDIORUM_READ_ONLY?; allowed: OPENAUDIO_MEDIORUM_READ_ONLY, or none of the two
      OPENAUDIO_MEDIORUM_SIDECAR_LISTN (environment): there is no such setting; did you mean OPENAUDIO_MEDIORUM_SIDECAR_LISTEN?; allowed: OPENAUDIO_MEDIORUM_SIDECAR_LISTEN, or none of the two
      OPSWARD_READ_ONLY (environment): there is no such setting; did you mean OPENAUDIO_MEDIORUM_READ_ONLY?; allowed: OPENAUDIO_MEDIORUM_READ_ONLY, or none of the two
    "#);
    let loaded = ours(&[
        ("OPENAUDIO_MEDIORUM_OPS_SOMETHING", "1"),
        ("OPENAUDIO_MEDIORUM_DORMANT_X", ""),
        ("OPENAUDIO_MEDIORUM_BLOB_STORE", "1"),
    ]);
    let texts: Vec<String> = loaded.warnings.iter().map(|w| w.text.clone()).collect();
    insta::assert_snapshot!(texts.join("\n").replace(env!("CARGO_PKG_VERSION"), "V"), @"OPENAUDIO_MEDIORUM_OPS_SOMETHING is set, and opsward V has no such setting");
}

#[test]
fn combinations_without_effect_warn() {
    let loaded = ours(&[
        ("OPENAUDIO_TLS_SELF_SIGNED", "true"),
        ("OPENAUDIO_NODE_ENDPOINT", "https://a"),
        ("OPENAUDIO_MEDIORUM_PEERS", "https://A/,https://b"),
        ("OPENAUDIO_DB_URL", "postgres://h/d?pool_max_conns=3"),
    ]);
    assert_eq!(codes(&loaded), ["setting_partly_ignored", "tls_self_signed_ignored", "peers_name_self"]);
    assert_eq!(loaded.settings.peers.map(|p| p.len()), Some(1));
    let dev = ours(&[("OPENAUDIO_TLS_SELF_SIGNED", "1"), ("OPENAUDIO_ENV", "local")]);
    assert_eq!(codes(&dev), [""; 0]);
}

#[test]
fn what_acts_on_a_census_warns_where_nothing_counts() {
    const CENSUS: (&str, &str) = ("OPENAUDIO_MEDIORUM_OPS_CENSUS", "false");
    const DORMANT: (&str, &str) = ("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP", "true");
    assert_eq!(codes(&ours(&[CENSUS])), [""; 0]);
    assert_eq!(codes(&ours(&[DORMANT])), [""; 0]);
    for (on, within) in [
        (DORMANT, "within 2 h"),
        (("OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES", "20GiB"), "within 48 h"),
        (("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "90"), "came late"),
    ] {
        let loaded = ours(&[CENSUS, on]);
        assert_eq!(codes(&loaded), ["census_off"]);
        let text = &loaded.warnings[0].text;
        assert!(text.contains(on.0) && text.contains(within) && text.contains(CENSUS.0), "{text}");
    }
    let vetoed = [CENSUS, DORMANT, ("OPENAUDIO_MEDIORUM_KEEP_DORMANT_OPS", "true")];
    assert_eq!(codes(&ours(&vetoed)), ["dormant_vetoed"]);
}

proptest! {
    #[test]
    fn no_file_and_no_variable_panics(file in "\\PC*", value in "\\PC*", at in 0..TABLE.len()) {
        let name = TABLE[at].variable();
        let _ = load(&source(&[(name, &value)], &[(DEFAULT_FILE, &file)]));
        let line = format!("{} = {file}", TABLE[at].key);
        let _ = load(&source(&[], &[(DEFAULT_FILE, &line)]));
    }
}

#[test]
fn what_bounds_the_log_is_said_exactly() {
    let mut source = source(
        &[
            ("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "-1"),
            ("OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES", "20"),
            ("OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW", "01:00-01:00"),
            ("OPENAUDIO_MEDIORUM_OPS_RECLAIM_WHEN", "bloat>50%"),
        ],
        &[(
            "/my.toml",
            "[tables.uplods]\nkeep = '90d'\n[tables.uploads]\nkeep = '1.5d'\n[tables.audio_previews]\nkep = 1",
        )],
    );
    source.config = Some("/my.toml".into());
    insta::assert_snapshot!(problems(&source), @r#"
    7 settings cannot be used:
      OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS = "-1" (environment): it is negative; allowed: a whole number of days from 0 to 36500
      OPENAUDIO_MEDIORUM_OPS_RETENTION_BYTES = "20" (environment): it has no unit; allowed: 0, or a size with its unit such as 512MiB or 20GB
      OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW = "01:00-01:00" (environment): it is no window: it ends when it begins; allowed: two times of day such as 01:00-05:00; it may wrap midnight
      tables.audio_previews.kep = "1" (file /my.toml): there is no such key; allowed: keep
      tables.audio_previews.keep (file /my.toml): it is not set to a text; allowed: "all", "compact" or days such as "90d"
      tables.uploads.keep = "1.5d" (file /my.toml): it is no whole number of days; allowed: "all", "compact" or days such as "90d"
      tables.uplods (file /my.toml): no model knows the table "uplods"; did you mean uploads?; allowed: uploads, qm_audio_analyses, audio_previews, storage_and_db_sizes
    "#);
    let mut source = source_of("[tables.uploads]\nkeep = 'compact'");
    source.config = Some("/my.toml".into());
    let tables = load(&source).unwrap().settings.bounding.tables;
    assert_eq!(tables.get("uploads"), Some(&crate::settings::Keep::Compact));
}

fn source_of(file: &'static str) -> Source {
    source(&[], &[("/my.toml", file)])
}
