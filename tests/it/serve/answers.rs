//! What an answer is made of.

use super::{ONE, PATH, Port, SELF, fill, run, ulid};
use crate::harness::{Database, Ops, http, ops};
use opsward::values::OpUlid;
use serde_json::json;

#[tokio::test]
async fn a_page_says_what_the_log_holds() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    run(
        &database,
        &format!(
            r#"INSERT INTO ops VALUES
        ('{}', 'http://a<b>&"\', 'update', 'qm_audio_analyses', '[{{"cid": "ü", "n": 1.50, "e": 1e2}}]'),
        ('{}', 'h', 'delete', 'audio_previews', '[{{"cid": "a"}}, {{"cid": "b"}}]')"#,
            ulid(1),
            ulid(2)
        ),
    )
    .await;
    let answer = port.after("").await;
    assert_eq!(answer.status, 200);
    // Numbers keep the form that the log has them in.
    let expected = format!(
        concat!(
            r#"[{{"ulid":"{}","host":"http://a<b>&\"\\","action":"update","table":"qm_audio_analyses","#,
            r#""data":[{{"e": 100, "n": 1.50, "cid": "ü"}}],"transient":false}},"#,
            r#"{{"ulid":"{}","host":"h","action":"delete","table":"audio_previews","#,
            r#""data":[{{"cid": "a"}}, {{"cid": "b"}}],"transient":false}}]"#
        ),
        ulid(1),
        ulid(2)
    );
    assert_eq!(answer.text(), expected);
    for (name, value) in [
        ("content-type", "application/json"),
        ("cache-control", "public, max-age=300"),
        ("vary", "Accept-Encoding"),
        ("x-opsward-version", env!("CARGO_PKG_VERSION")),
        ("content-length", &expected.len().to_string()),
        ("x-crud-sweep-last-scanned-ulid", &ulid(2)),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    for name in [
        "content-encoding",
        "x-crud-sweep-limited",
        "x-mediorum-retention-gap",
        "x-mediorum-available-min-ulid",
        "x-opsward-table-floors",
    ] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!(port.served("ok"), 1);
    assert_eq!(port.metrics.rows_served.get(), 2);
    assert_eq!(port.metrics.bytes_served.get(), expected.len() as u64);
    assert_eq!(port.metrics.serve_seconds.get_sample_count(), 1);
}

#[tokio::test]
async fn an_empty_page_is_an_empty_array() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    for after in ["", &ulid(7)] {
        let answer = port.after(after).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "[]"));
        assert_eq!(answer.header("x-crud-sweep-last-scanned-ulid"), None);
        assert_eq!(answer.header("x-mediorum-retention-gap"), None);
    }
    fill(&database, 1..=7, "audio_previews", ONE).await;
    let answer = port.after(&ulid(7)).await;
    assert_eq!(answer.text(), "[]");
    assert_eq!(answer.header("x-crud-sweep-limited"), None);
    assert_eq!(port.served("empty"), 3);
}

#[tokio::test]
async fn after_is_exclusive_and_the_first_one_counts() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=4, "audio_previews", ONE).await;
    assert_eq!(port.after(&ulid(2)).await.ulids(), [ulid(3), ulid(4)]);
    let twice = format!("{}&after=zzz", ulid(3));
    assert_eq!(port.after(&twice).await.ulids(), [ulid(4)]);
    let escaped = format!("%30{}", &ulid(3)[1..]);
    assert_eq!(port.after(&escaped).await.ulids(), [ulid(4)]);
    let without = http::get(port.address, PATH, &[]).await;
    assert_eq!(without.ulids().len(), 4);
}

/// As a node serves them: in the order of the database's collation, where
/// lower case mixes with upper case. No header ever holds one.
#[tokio::test]
async fn odd_ulids_are_served_in_the_collations_order() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    let sql = r#"INSERT INTO ops SELECT u, 'h', 'create', 'foo', '[{}]' FROM unnest(ARRAY[
        '01HERVE0000000000000000009', '01herve000000000000000000a', '01HERVE000000000000000000B',
        'zzz', 'ZZZ', '~tilde', 'a"b\c']) u"#;
    run(&database, sql).await;
    let answer = port.after("").await;
    let row = database.client().await;
    let row = row.query_one("SELECT array_agg(ulid ORDER BY ulid) FROM ops", &[]);
    let wanted: Vec<String> = row.await.unwrap().get(0);
    assert_eq!(answer.ulids(), wanted);
    let last = wanted.iter().filter_map(|u| OpUlid::parse(u)).next_back();
    assert_eq!(answer.header("x-crud-sweep-last-scanned-ulid"), Some(last.unwrap().as_str()));
    let answer = port.after("01HERVE0000000000000000009").await;
    assert_eq!(answer.ulids()[..2], ["01herve000000000000000000a", "01HERVE000000000000000000B"]);
}

#[tokio::test]
async fn what_is_null_reads_empty() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    let sql = format!("INSERT INTO ops (ulid, data) VALUES ('{}', '[{{}}]')", ulid(1));
    run(&database, &sql).await;
    let op = &port.after("").await.json()[0];
    let wanted = json!({"ulid": ulid(1), "host": "", "action": "", "table": "",
        "data": [{}], "transient": false});
    assert_eq!(*op, wanted);
}

#[tokio::test]
async fn uploads_that_do_not_name_this_host_are_left_out() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    run(
        &database,
        &format!(
            r#"INSERT INTO ops VALUES
        ('{}', '{SELF}', 'create', 'uploads', '[{{"id": "1", "mirrors": ["https://n1.example"]}}]'),
        ('{}', 'h', 'create', 'uploads', '[{{"id": "2", "mirrors": ["{SELF}"]}}]'),
        ('{}', 'h', 'create', 'uploads', '[{{"id": "3"}}, {{"mirrors": ["{SELF}"]}}]'),
        ('{}', 'h', 'create', 'audio_previews', '[{{"cid": "4"}}]'),
        ('{}', 'h', 'delete', 'uploads', '[{{"id": "5"}}]')"#,
            ulid(1),
            ulid(2),
            ulid(3),
            ulid(4),
            ulid(5)
        ),
    )
    .await;
    let answer = port.after("").await;
    assert_eq!(answer.ulids(), [ulid(2), ulid(3), ulid(4)]);
    let last = answer.header("x-crud-sweep-last-scanned-ulid");
    assert_eq!(last, Some(ulid(5).as_str()), "left-out rows count as scanned");
    assert_eq!((port.left_out("gossip"), port.left_out("unappliable")), (2, 0));
}

#[tokio::test]
async fn rows_that_no_node_can_apply_are_left_out() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    let bad = [
        "NULL",
        "'null'",
        "'[]'",
        "'{}'",
        "'{\"a\": [{}]}'",
        "'[null]'",
        "'[{}, null]'",
        "'[{}, [], {}]'",
        "'[{}, \"}, {\", {}]'",
        "'[{}, 5]'",
        "'\"[{}]\"'",
        "'7'",
    ];
    let good = [r#"'[{}]'"#, r#"'[{"a": "}, null"}, {"b": [1, {"c": {}}]}]'"#];
    let values: Vec<String> = bad
        .iter()
        .chain(&good)
        .zip(1..)
        .map(|(data, n)| format!("('{}', 'h', 'create', 'foo', {data})", ulid(n)))
        .collect();
    run(&database, &format!("INSERT INTO ops VALUES {}", values.join(","))).await;
    let first = bad.len() as u64 + 1;
    assert_eq!(port.after("").await.ulids(), [ulid(first), ulid(first + 1)]);
    assert_eq!(port.left_out("unappliable"), bad.len() as u64);
}

#[tokio::test]
async fn gzip_where_it_is_accepted() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    let made = Ops::new(3).hosts(&[SELF, "https://n1.example"]).take(2_000);
    ops::insert(&database.client().await, &made).await;
    let plain = port.after("").await;
    for accept in ["gzip", "br, gzip;q=0.5", "*"] {
        let zipped = port.ask("", &[&format!("Accept-Encoding: {accept}")]).await;
        assert_eq!(zipped.header("content-encoding"), Some("gzip"), "{accept}");
        assert_eq!(zipped.header("vary"), Some("Accept-Encoding"));
        assert!(zipped.body.len() < plain.body.len() / 3);
        assert_eq!(zipped.text(), plain.text());
    }
    for refuse in ["gzip;q=0", "identity", "br"] {
        let answer = port.ask("", &[&format!("Accept-Encoding: {refuse}")]).await;
        assert_eq!(answer.header("content-encoding"), None, "{refuse}");
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
    }
}

/// A made log comes through whole, page by page, but for what gossip leaves out.
#[tokio::test]
async fn a_log_is_read_by_its_pages() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    let hosts = [SELF, "https://n1.example", "https://n2.example"];
    let made = Ops::new(5).hosts(&hosts).take(23_000);
    ops::insert(&database.client().await, &made).await;
    let concerns = |op: &&ops::MadeOp| op.table != "uploads" || op.data.contains(SELF);
    let mut wanted = made.iter().filter(concerns);
    let (mut after, mut pages) = (String::new(), 0);
    loop {
        let answer = port.ask(&after, &["Accept-Encoding: gzip"]).await;
        let page = answer.json();
        for op in page.as_array().unwrap() {
            let want = wanted.next().unwrap();
            let mut own: serde_json::Value = serde_json::from_str(&want.json()).unwrap();
            // jsonb's numbers: the same value in decimal form.
            own["data"] = op["data"].clone();
            assert_eq!(op, &own);
        }
        pages += 1;
        let last = answer.header("x-crud-sweep-last-scanned-ulid");
        after = last.unwrap().to_owned();
        if answer.header("x-crud-sweep-limited").is_none() {
            break;
        }
    }
    assert_eq!((pages, wanted.next()), (3, None));
}

#[tokio::test]
async fn a_bad_after_is_told_what_it_must_be() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    for bad in ["zzz", "01hkfacts00000000000000001", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "%F0%9F%98%80", "%00", "+"]
    {
        let answer = port.after(bad).await;
        assert_eq!(answer.status, 400, "{bad}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let words = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(words.contains("26 characters"), "{words}");
    }
    assert_eq!(port.served("bad_request"), 6);
}

#[tokio::test]
async fn methods_and_paths() {
    let database = Database::new().await;
    let port = Port::on(&database).await;
    fill(&database, 1..=3, "audio_previews", ONE).await;
    let target = format!("{PATH}?after={}", ulid(1));
    let get = http::get(port.address, &target, &[]).await;
    let head = http::request("HEAD", port.address, &target, &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let without_date = |r: &http::Response| {
        let headers = r.headers.iter().filter(|(name, _)| name != "date");
        headers.cloned().collect::<Vec<_>>()
    };
    assert_eq!(without_date(&head), without_date(&get));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = http::request(method, port.address, &target, &[]).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        assert!(answer.json()["error"].is_string());
    }
    for path in ["/", "/metrics", "/internal/crud", "/internal/crud/sweep/x"] {
        let answer = http::get(port.address, path, &[]).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["error"].is_string());
        assert!(answer.header("x-opsward-version").is_some());
    }
    assert_eq!((port.served("method"), port.served("not_found")), (5, 4));
}
