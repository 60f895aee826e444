//! Every statement that opsward sends is one that Postgres takes, and none of
//! those that read or write the log does so by reading all of it.

use crate::harness::Database;
use std::path::Path;

/// A statement as the sources hold it: file, name, text.
struct Statement {
    place: String,
    sql: String,
}

/// The string constants of `src/db` that are single statements with a plan.
fn statements() -> Vec<Statement> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/db");
    let mut found = Vec::new();
    let folders = ["core", "log", "state"].map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
    for entry in folders.into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut rest = text.as_str();
        while let Some((_, after)) = rest.split_once("const ") {
            rest = after;
            let Some((name, value)) = after.split_once(": &str =") else {
                continue;
            };
            if !name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()) {
                continue;
            }
            let value = value.trim_start();
            let (open, close) = if value.starts_with("r#") { ("r#\"", "\"#;") } else { ("\"", "\";") };
            let literal = value.strip_prefix(open).unwrap().split_once(close).unwrap().0;
            let sql = if open == "\"" { unescape(literal) } else { literal.to_owned() };
            let word = sql.split_whitespace().next().unwrap_or_default().to_uppercase();
            if ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"].contains(&word.as_str()) {
                let file = path.file_name().unwrap().to_string_lossy();
                found.push(Statement { place: format!("{file}: {name}"), sql });
            }
        }
    }
    found
}

fn unescape(literal: &str) -> String {
    let mut joined = String::new();
    for line in literal.split_inclusive('\n') {
        match line.strip_suffix("\\\n") {
            Some(start) => joined.push_str(start),
            None => joined.push_str(line),
        }
    }
    joined.replace("\\\"", "\"").replace("\\\\", "\\")
}

/// Statements that are sent to servers from some major version on only.
const SINCE: [(&str, i32); 3] =
    [("order.rs: VERSIONS", 15), ("privileges.rs: MAY_SET", 15), ("maintain.rs: TELL_FIGURES", 15)];

fn is_sent_to(statement: &Statement, major: i32) -> bool {
    SINCE.iter().all(|(place, since)| statement.place != *place || major >= *since)
}

#[tokio::test]
async fn postgres_takes_every_statement() {
    let database = Database::new().await;
    let client = database.migrated().await.client().await.unwrap();
    let all = statements();
    assert!(all.len() > 25, "only {} statements were found", all.len());
    for (place, _) in SINCE {
        assert!(all.iter().any(|s| s.place == place), "{place} is no statement");
    }
    let major = client.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await;
    let major: i32 = major.unwrap().get(0);
    let mut wrong = Vec::new();
    for statement in all.iter().filter(|s| is_sent_to(s, major)) {
        if let Err(e) = client.prepare(&statement.sql).await {
            wrong.push(format!("{}: {}", statement.place, opsward::db::describe(&e)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn no_statement_reads_the_whole_log() {
    let database = Database::new().await;
    let client = database.migrated().await.client().await.unwrap();
    // On an empty table a sequential scan is the cheapest; forbidden, it is
    // planned only where there is no other way.
    client.batch_execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan").await.unwrap();
    let on_log: Vec<Statement> = statements().into_iter().filter(|s| s.sql.contains("public.ops")).collect();
    assert!(!on_log.is_empty());
    let mut wrong = Vec::new();
    for statement in on_log {
        let params = client.prepare(&statement.sql).await.unwrap().params().len();
        let nulls = vec!["NULL"; params].join(", ");
        let execute = if params == 0 { "EXECUTE s".to_owned() } else { format!("EXECUTE s({nulls})") };
        let sql = format!("PREPARE s AS {}", statement.sql);
        client.batch_execute(&sql).await.unwrap();
        let plan = client.simple_query(&format!("EXPLAIN {execute}")).await.unwrap();
        let plan: Vec<String> = plan
            .iter()
            .filter_map(|m| match m {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .collect();
        client.batch_execute("DEALLOCATE s").await.unwrap();
        if plan.iter().any(|line| line.contains("Seq Scan on ops")) {
            wrong.push(format!("{}:\n{}", statement.place, plan.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
