//! What watches opsward: rules, their cases, runbooks and the dashboard speak
//! of metrics that there are.

use opsward::metrics::Metrics;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

const RULES: &str = "deploy/prometheus/opsward.rules.yml";
const CASES: &str = "deploy/prometheus/opsward.rules.test.yml";
const DASHBOARD: &str = "deploy/grafana/opsward.json";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Words of a text that begin with a prefix and are made as metrics are.
fn names(text: &str, prefix: &str) -> BTreeSet<String> {
    let whole = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !whole(c)).filter(|w| w.starts_with(prefix) && *w != prefix).map(str::to_owned).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&text(DASHBOARD)).unwrap_or_else(|e| panic!("{DASHBOARD}: {e}"))
}

/// The expressions of the dashboard, for all validators.
fn expressions() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().cloned().unwrap_or_default();
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().cloned().unwrap_or_default());
    targets.map(|t| t["expr"].as_str().unwrap_or_default().replace("$instance", ".*")).collect()
}

/// The alerts, each with its lines.
fn alerts() -> Vec<(String, String)> {
    let rules = text(RULES);
    let parts = rules.split("- alert: ").skip(1);
    parts.map(|p| (p.lines().next().unwrap_or_default().trim().to_owned(), p.to_owned())).collect()
}

#[test]
fn rules_and_dashboard_speak_of_metrics_that_there_are() {
    let recorded = text(RULES);
    let recorded: BTreeSet<&str> =
        recorded.split("- record: ").skip(1).filter_map(|p| p.lines().next()).collect();
    for (place, text) in [(RULES, text(RULES)), (CASES, text(CASES)), (DASHBOARD, expressions().join("\n"))] {
        for name in names(&text, "opsward_") {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is_there = |name: &str| Metrics::NAMES.contains(&name);
            assert!(is_there(&name) || base.is_some_and(is_there), "{place}: no metric {name}");
        }
        for name in names(&text, "opsward:") {
            assert!(recorded.contains(name.as_str()), "{place}: no rule records {name}");
        }
    }
}

#[test]
fn each_alert_says_what_to_do_and_has_cases() {
    let cases = text(CASES);
    for (name, rule) in alerts() {
        for part in ["severity: ", "summary: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
        let page = format!("docs/runbooks/{name}.md");
        assert!(rule.contains(&format!("runbook_url: {page}")), "{name} names no runbook of its own");
        let runbook = text(&page);
        for part in ["## Meaning", "Raised, for example, when", "## Impact", "## Diagnosis", "## Mitigation"]
        {
            assert!(runbook.contains(part), "{page} has no {part}");
        }
        let fires =
            |case: &&str| case.contains(&format!("alertname: {name}\n")) && case.contains("exp_labels");
        let case =
            cases.split("\n  - name: ").find(fires).unwrap_or_else(|| panic!("{name}: no case fires it"));
        // Labels of what raises it are in exp_labels; another series stays quiet.
        let series = case.matches("{ series:").count();
        assert!(series > 1, "{name}: nothing in its case stays quiet");
    }
}

#[test]
fn panels_do_not_lie_on_one_another() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().cloned().unwrap_or_default();
    let field = |p: &Value, key: &str| p["gridPos"][key].as_u64().unwrap_or(99);
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in &panels {
        let title = panel["title"].as_str().unwrap_or_default();
        assert!(!title.is_empty() && ids.insert(panel["id"].as_u64()), "{title}");
        let (x, y) = (field(panel, "x"), field(panel, "y"));
        assert!(x + field(panel, "w") <= 24, "{title} runs off the grid");
        for x in x..x + field(panel, "w") {
            for y in y..y + field(panel, "h") {
                assert!(taken.insert((x, y)), "{title} lies on another panel");
            }
        }
        assert_eq!(panel["type"] == "row", panel["targets"].is_null(), "{title}");
    }
    let variables = dashboard["templating"]["list"].as_array().cloned().unwrap_or_default();
    assert!(variables.iter().any(|v| v["name"] == "instance"));
}

/// Where promtool is installed (`tests/run.sh` sees to that), it judges the
/// rules, their cases, and the dashboard's expressions as rules.
#[test]
fn promtool_finds_no_fault() {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped: there is no promtool");
        return;
    }
    let of_dashboard = std::env::temp_dir().join(format!("opsward-dashboard-{}.yml", std::process::id()));
    let rules: String = expressions()
        .iter()
        .enumerate()
        .map(|(i, expr)| format!("      - record: panel:{i}\n        expr: {}\n", Value::from(expr.as_str())))
        .collect();
    let written = std::fs::write(&of_dashboard, format!("groups:\n  - name: d\n    rules:\n{rules}"));
    assert!(written.is_ok());
    let here = of_dashboard.to_string_lossy();
    for args in [["check", "rules", RULES], ["test", "rules", CASES], ["check", "rules", &here]] {
        let ran = Command::new("promtool").args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let ran = ran.unwrap_or_else(|e| panic!("promtool: {e}"));
        let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "promtool {args:?}: {said}");
    }
    let _ = std::fs::remove_file(&of_dashboard);
}
