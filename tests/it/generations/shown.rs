//! How ops reach the node, wherever it is shown.

use super::*;

async fn says(database: &Database, set: Option<&str>, (by, told): (&str, &str)) {
    let start = |args: &[&str]| match set {
        Some(set) => start(database, args).env("OPENAUDIO_MEDIORUM_REPLICATION", set),
        None => start(database, args),
    };
    let daemon = start(&["run"]).env("OPENAUDIO_MEDIORUM_NODE_URL", "http://127.0.0.1:9").spawn();
    daemon.ready().await;
    until(&daemon, "/metrics", &format!("opsward_node_replication{{by=\"{by}\"}} 1")).await;
    until(&daemon, "/", &format!("ops {told}")).await;
    let status = http::get(daemon.admin(), "/status", &[]).await.json();
    assert_eq!(status["result"]["node"]["replication"], by, "{status}");
    daemon.signal("TERM");
    daemon.exit().await;
    for (command, words) in [("status", "ops"), ("plan", "ops"), ("doctor", "ops reach it")] {
        let ran = start(&[command]).output().await;
        assert!(ran.stdout.contains(&format!("{words} {told}")), "{command}: {ran:?}");
    }
    assert_eq!(start(&["plan"]).json().await.1["result"]["replication"], by);
}

#[tokio::test]
async fn every_view_says_how_ops_reach_the_node() {
    for (schema, said) in [
        (Schema::A, ("peers", "by peers")),
        (Schema::B, ("both", "by peers and the chain")),
        (Schema::C, ("chain", "by the chain alone")),
    ] {
        says(&Database::of(schema).await, None, said).await;
    }
    says(&Database::of(Schema::C).await, Some("both"), ("both", "by peers and the chain")).await;
}
