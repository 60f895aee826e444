//! Contract 9: the command line, as a process.

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The program with no environment but these variables.
fn opsward(env: &[(&str, &str)], line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opsward"));
    command.env_clear().envs(env.iter().copied()).env("RUST_BACKTRACE", "1").args(line).stdin(Stdio::null());
    command
}

fn run(env: &[(&str, &str)], line: &[&str]) -> (i32, String, String) {
    let output = opsward(env, line).output().unwrap();
    let Output { stdout, stderr, .. } = &output;
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(stdout).into_owned(),
        String::from_utf8_lossy(stderr).into_owned(),
    )
}

fn envelope(env: &[(&str, &str)], line: &[&str]) -> (i32, Value) {
    let (code, stdout, stderr) = run(env, line);
    assert_eq!(stderr, "", "nothing but the envelope");
    assert_eq!(stdout.lines().count(), 1);
    (code, serde_json::from_str(&stdout).unwrap())
}

const BAD: &[(&str, &str)] = &[
    ("OPENAUDIO_DB_URL", "postgres://u:hunter2@h:x/d"),
    ("OPENAUDIO_MEDIORUM_SWEEP_INTERVAL", "1s"),
    ("OPENAUDIO_MEDIORUM_OPS_X", "1"),
];

#[test]
fn usage_is_2_and_help_is_0() {
    for line in [&[][..], &["nonsense"], &["config"], &["version", "--nonsense"]] {
        let (code, stdout, stderr) = run(&[], line);
        assert_eq!((code, stdout.as_str()), (2, ""), "{line:?}: {stderr}");
        assert!(stderr.contains("Usage"), "{line:?}: {stderr}");
    }
    let (code, stdout, stderr) = run(&[], &["--help"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(!stdout.contains("OPENAUDIO_MEDIORUM_SIDECAR_LISTEN"), "{stdout}");
    for line in [&["help", "settings"][..], &["run", "--help", "settings"]] {
        let (code, stdout, stderr) = run(&[], line);
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(stdout.contains("OPENAUDIO_MEDIORUM_SIDECAR_LISTEN"), "{stdout}");
    }
    let (code, stdout, _) = run(&[], &["--version"]);
    assert_eq!((code, stdout), (0, format!("opsward {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn version_works_whatever_the_settings_are() {
    let (code, json) = envelope(BAD, &["version", "--output", "json"]);
    assert_eq!(code, 0);
    assert_eq!(json["schema"], 1);
    assert_eq!(json["command"], "version");
    assert_eq!(json["changed"], false);
    assert_eq!(json["result"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["result"]["schema_version"].is_number());
    assert!(json["at"].as_str().unwrap().ends_with('Z'));
    assert!(json.get("error").is_none());
}

#[test]
fn every_bad_setting_in_one_message_and_64() {
    let (code, stdout, stderr) = run(BAD, &["config", "show"]);
    assert_eq!((code, stdout.as_str()), (64, ""));
    for part in ["OPENAUDIO_DB_URL", "= \"1s\" (environment)", "OPENAUDIO_MEDIORUM_OPS_X"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(!stderr.contains("hunter2") && !stderr.contains("backtrace"), "{stderr}");

    let (code, json) = envelope(BAD, &["config", "show", "--output=json"]);
    assert_eq!(code, 64);
    assert_eq!(json["result"], Value::Null);
    assert_eq!(json["error"]["code"], "settings");
    assert_eq!(json["warnings"][0]["code"], "variable_unknown");
    assert!(!json.to_string().contains("hunter2"));

    let (code, json) = envelope(BAD, &["config", "check", "--output=json"]);
    assert_eq!(code, 64);
    assert_eq!(json["result"]["ok"], false);
    assert_eq!(json["result"]["problems"][1]["value"], "1s");
}

#[test]
fn config_show_says_where_from_and_hides_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my.toml");
    std::fs::write(
        &file,
        "db_url = 'postgres://u:hunter2@h/d'\nread_only = true\n[tables.uploads]\nkeep = '90d'\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let env = [("nodeEndpoint", "https://N1.example/")];
    let (code, stdout, _) = run(&[], &["config", "check", "--config", file]);
    assert_eq!(code, 64, "`run` misses its endpoint: {stdout}");
    assert!(stdout.contains("OPENAUDIO_NODE_ENDPOINT"), "{stdout}");
    let line = ["config", "show", "--config", file, "--listen=127.0.0.1:1"];
    let (code, stdout, stderr) = run(&env, &line);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("postgresql://u:***@h:5432/d"), "{stdout}");
    assert!(!stdout.contains("hunter2"));
    let (_, json) = envelope(&env, &[&line[..], &["--output=json"]].concat());
    assert_eq!(json["self"], "https://n1.example");
    assert_eq!(json["result"]["file"], file);
    assert_eq!(json["result"]["tables"]["uploads"], "90d");
    assert!(stdout.contains("tables.uploads.keep"), "{stdout}");
    let from = |key: &str| {
        let settings = json["result"]["settings"].as_array().unwrap();
        let setting = settings.iter().find(|s| s["key"] == key).unwrap();
        setting["origin"].as_str().unwrap().to_owned()
    };
    assert_eq!(from("listen"), "command line");
    assert_eq!(from("node_endpoint"), "environment nodeEndpoint");
    assert_eq!(from("read_only"), format!("file {file}"));
    assert_eq!(from("peers"), "default");
    let (code, stdout, _) = run(&env, &["config", "check", "--config", file]);
    assert_eq!(code, 0);
    assert!(stdout.contains("can be used"), "{stdout}");
}

/// The node's own variables, too, are told apart from what only looks like them.
#[test]
fn a_misspelt_variable_of_the_node_is_warned_of() {
    let own = ("OPENAUDIO_NODE_ENDPOINT", "https://n1.example");
    for (name, warned) in
        [("OPENAUDIO_OPS_RETENTON", true), ("OPENAUDIO_ARCHIVED", true), ("OPENAUDIO_ARCHIVE", false)]
    {
        let (_, json) = envelope(&[own, (name, "true")], &["config", "check", "--output=json"]);
        let warnings = json["warnings"].as_array().unwrap();
        assert_eq!(warnings.iter().any(|w| w["text"].as_str().unwrap().contains(name)), warned, "{json}");
    }
}

#[test]
fn completions_name_the_settings() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, stdout, _) = run(BAD, &["completions", shell]);
        assert_eq!(code, 0);
        assert!(stdout.contains("sweep-interval"), "{shell}");
    }
    assert_eq!(run(&[], &["completions", "tcsh"]).0, 2);
}

#[test]
fn a_reader_that_left_is_no_panic() {
    for line in [&["completions", "bash"][..], &["config", "show"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = opsward(&[], line).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line:?}");
        assert_eq!(output.status.code(), Some(0), "{line:?}");
    }
}

#[test]
fn a_full_disk_under_stdout_is_said() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let output = opsward(&[], &["version"]).stdout(full.unwrap()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("cannot be written"), "{stderr}");
}

#[test]
fn a_file_that_cannot_be_read_or_understood() {
    let (code, _, stderr) = run(&[], &["config", "check", "--config", "/nonexistent"]);
    assert_eq!(code, 64, "{stderr}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "listen = ").unwrap();
    let path = file.path().to_str().unwrap();
    let (code, stdout, _) = run(&[], &["config", "check", "--config", path]);
    assert_eq!(code, 64);
    assert!(stdout.contains("its line 1 is no TOML"), "{stdout}");
}

#[test]
fn every_error_says_what_to_do() {
    let env = [("nodeEndpoint", "https://n1.example"), ("OPENAUDIO_DB_URL", "postgres://u@127.0.0.1:1/d")];
    for line in [
        &["verify", "--against", "postgres://u@h:x/d"][..],
        &["verify", "--against", "/nonexistent"],
        &["digest", "--leave-out", "ops"],
        &["digest"],
        &["reclaim", "--hold", "--mode", "in-place"],
        &["reclaim", "--fit", "--mode", "in-place"],
        &["sweep"],
    ] {
        let (code, json) = envelope(&env, &[line, &["--output", "json"]].concat());
        assert!(
            code != 0 && json["error"]["fix"].as_str().is_some_and(|fix| !fix.is_empty()),
            "{line:?}: {json}"
        );
    }
}
