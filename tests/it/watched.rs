//! What watches opsward finds on a live daemon what it asks for.

use crate::harness::{Database, Start, http};
use std::io::Write;
use std::process::{Command, Stdio};

const RULES: &str = include_str!("../../deploy/prometheus/opsward.rules.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/opsward.json");
/// Metrics with labels have no series before something happened.
const SOURCE: &str = include_str!("../../src/metrics.rs");

#[tokio::test]
async fn every_metric_of_rules_and_dashboard_is_on_a_live_page() {
    let database = Database::new().await;
    let daemon = Start::run(&database.url(), "https://me.example")
        .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", "29")
        .spawn();
    daemon.ready().await;
    let guarded = async {
        loop {
            let page = http::get(daemon.admin(), "/metrics", &[]).await.text();
            if page.contains("opsward_guard_wanted 1")
                && page.contains("opsward_database_state{state=\"up\"} 1")
            {
                break page;
            }
        }
    };
    let page = tokio::time::timeout(std::time::Duration::from_secs(60), guarded).await.unwrap();
    let whole = |c: char| c.is_ascii_alphanumeric() || c == '_';
    assert!(DASHBOARD.contains("opsward_waits_seconds_total"), "what bulk work waits for is shown");
    let asked = format!("{RULES}\n{DASHBOARD}");
    let asked = asked.split(|c| !whole(c)).filter(|w| w.starts_with("opsward_") || w.starts_with("process_"));
    for name in asked {
        let base = name.trim_end_matches("_bucket");
        let short = base.trim_start_matches("opsward_");
        let has_labels = SOURCE.contains(&format!("\"{short}\" ["));
        assert!(has_labels || page.contains(&format!("# TYPE {base} ")), "{name} is not there: {page}");
    }
    if let Ok(mut promtool) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}
