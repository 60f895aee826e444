//! Contract 6: digest and verify, on two validators' databases.

use crate::harness::{Cluster, Database, Schema, Start, daemon::Ran};
use opsward::clock::Clock;
use opsward::db::Db;
use opsward::reclaim::digest::{header, scope, write};
use opsward::reclaim::file::{DigestFile, Header};
use opsward::reclaim::verify::{Found, Reference, Report, Verify};
use opsward::values::Host;
use proptest::prelude::*;
use serde_json::Value;
use std::io::{Seek, Write};
use std::time::Duration;

/// Records of all four tables: odd texts, NULL and '', odd numbers and times.
const FILL: &str = r#"
    INSERT INTO uploads (id, user_wallet, template, orig_file_name, ff_probe, error, mirrors, status,
        created_by, created_at, updated_at, transcode_progress, transcode_results, error_count)
    SELECT 'Up-' || n, CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'wallet' END, 'audio',
        E'\u00e4\u0301 \u202e "quoted", \\ \U0001F3B5 {' || n, '{"format":{}}', NULL, '["http://a"]', 'done',
        'http://a', timestamptz '2024-01-01 00:00:00.123456+00' + n * interval '1 hour', now(), n / 7.0,
        '{"320":"x"}', n
    FROM generate_series(1, $N) n;
    INSERT INTO qm_audio_analyses (cid, mirrors, status, error, error_count, analyzed_at)
    SELECT CASE n % 2 WHEN 0 THEN 'Qm' ELSE 'qM' END || n, '[]', 'done', '', n, '0001-01-01 00:00:00+00'
    FROM generate_series(1, $N / 2) n;
    INSERT INTO storage_and_db_sizes (logged_at, host, storage_backend, db_used, mediorum_disk_used,
        mediorum_disk_size, last_repair_size, last_cleanup_size)
    SELECT timestamptz '2025-06-01 00:00+00' + n / 2 * interval '1 s', 'http://n' || n % 2, 'file', n, 0, 0, 0, 0
    FROM generate_series(1, $N) n;"#;

async fn fill(database: &Database, rows: u32) {
    database.client().await.batch_execute(&FILL.replace("$N", &rows.to_string())).await.unwrap();
}

/// Two databases with the same records.
async fn pair(rows: u32) -> (Database, Database) {
    let both = (Database::new().await, Database::new().await);
    fill(&both.0, rows).await;
    fill(&both.1, rows).await;
    both
}

/// Nodes of today have a column more.
#[tokio::test]
async fn equal_records_of_every_generation_match() {
    for schema in Schema::ALL {
        let (a, b) = (Database::of(schema).await, Database::of(schema).await);
        fill(&a, 50).await;
        fill(&b, 50).await;
        for report in both_ways(&a, &b).await {
            assert!(report.matches, "{schema:?}: {report:?}");
        }
    }
}

fn host(name: &str) -> Host {
    Host::parse(&format!("https://{name}.example")).unwrap()
}

/// The digest of a database, as a file has it.
async fn digest_of(db: &Db, own: &str, leave_out: &[&str]) -> Vec<u8> {
    let leave_out: Vec<String> = leave_out.iter().map(|t| (*t).to_owned()).collect();
    let scope = scope(&[], &leave_out).unwrap();
    let header = header(db, Some(&host(own)), &mut scope.clone(), Clock::System.now()).await.unwrap();
    write(db, &header, Vec::new(), &|_, _, _| {}).await.unwrap().0
}

fn file(bytes: &[u8]) -> Result<DigestFile, opsward::reclaim::file::Bad> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    DigestFile::open(file)
}

async fn compare(
    db: &Db,
    reference: &Reference,
    settle: Duration,
) -> Result<Report, opsward::reclaim::digest::Error> {
    let own = host("b");
    let verify = Verify {
        db,
        own: Some(&own),
        scope: scope(&[], &[]).unwrap(),
        settle,
        max_age: None,
        clock: Clock::System,
    };
    verify.run(reference, &|_, _, _| {}).await
}

/// Both ways of comparing: by URL and by file.
async fn both_ways(a: &Database, b: &Database) -> [Report; 2] {
    let (there, here) = (a.db().await, b.db().await);
    let by_file = Reference::File(Box::new(file(&digest_of(&there, "a", &[]).await).unwrap()));
    let by_file = compare(&here, &by_file, Duration::ZERO).await.unwrap();
    let by_url = compare(&here, &Reference::Url(there), Duration::ZERO).await.unwrap();
    [by_file, by_url]
}

fn of<'a>(report: &'a Report, table: &str) -> &'a Found {
    report.tables.iter().find(|found| found.table == table).unwrap()
}

#[tokio::test]
async fn equal_records_match_and_updated_at_does_not_count() {
    let (a, b) = pair(20_000).await;
    let client = b.client().await;
    client.batch_execute("UPDATE uploads SET updated_at = now() + interval '3 days'").await.unwrap();
    for report in both_ways(&a, &b).await {
        assert!(report.matches, "{report:?}");
        let rows: Vec<u64> = report.tables.iter().map(|t| t.rows_here).collect();
        assert_eq!(rows, [20_000, 10_000, 0, 20_000]);
        assert!(report.tables.iter().all(|t| t.ranges_differed == 0 && t.rows_here == t.rows_there));
    }
}

#[tokio::test]
async fn each_difference_is_listed_by_its_key() {
    let cases = [
        ("DELETE FROM uploads WHERE id = 'Up-7'", "uploads", vec!["Up-7"], "missing"),
        ("INSERT INTO audio_previews (cid) VALUES ('new')", "audio_previews", vec!["new"], "more"),
        ("UPDATE uploads SET status = 'busy' WHERE id = 'Up-8'", "uploads", vec!["Up-8"], "differs"),
        ("UPDATE uploads SET user_wallet = '' WHERE id = 'Up-9'", "uploads", vec!["Up-9"], "differs"),
        ("UPDATE uploads SET user_wallet = NULL WHERE id = 'Up-10'", "uploads", vec!["Up-10"], "differs"),
        (
            "UPDATE uploads SET created_at = created_at + interval '1 us' WHERE id = 'Up-11'",
            "uploads",
            vec!["Up-11"],
            "differs",
        ),
        // A value that moves into the next column.
        (
            "UPDATE uploads SET template = '', orig_file_name = 'audio' || orig_file_name WHERE id = 'Up-12'",
            "uploads",
            vec!["Up-12"],
            "differs",
        ),
        (
            "UPDATE storage_and_db_sizes SET storage_backend = '' WHERE db_used = 3",
            "storage_and_db_sizes",
            vec!["2025-06-01 00:00:01+00", "http://n1"],
            "differs",
        ),
    ];
    let (a, b) = pair(500).await;
    for (sql, table, key, kind) in cases {
        let client = b.client().await;
        client.batch_execute(&format!("CREATE TABLE kept AS TABLE {table}")).await.unwrap();
        client.batch_execute(sql).await.unwrap();
        for report in both_ways(&a, &b).await {
            assert!(!report.matches, "{sql}");
            let found = of(&report, table);
            let listed = match kind {
                "missing" => &found.missing_here,
                "more" => &found.missing_there,
                _ => &found.differing,
            };
            assert_eq!((listed.records, found.differs()), (1, 1), "{sql}: {found:?}");
            assert_eq!(listed.first, std::slice::from_ref(&key), "{sql}");
            assert!(report.tables.iter().all(|t| t.table == table || t.matches()), "{sql}");
        }
        let back = format!("TRUNCATE {table}; INSERT INTO {table} TABLE kept; DROP TABLE kept");
        client.batch_execute(&back).await.unwrap();
    }
    assert!(both_ways(&a, &b).await[0].matches);
}

#[tokio::test]
async fn numbers_of_another_scale_are_equal() {
    let (a, b) = pair(20).await;
    for (database, value) in [(&a, "0.5"), (&b, "0.500")] {
        let sql = format!("UPDATE uploads SET transcode_progress = {value} WHERE id = 'Up-3'");
        database.client().await.batch_execute(&sql).await.unwrap();
    }
    assert!(both_ways(&a, &b).await.iter().all(|r| r.matches));
}

/// Another collation (its own order of the rows), time zone, date style and
/// number of digits: the records are the same.
#[tokio::test]
async fn the_servers_settings_do_not_matter() {
    let a = Database::new().await;
    fill(&a, 3_000).await;
    let admin = Cluster::shared().connect("postgres").await;
    admin
        .batch_execute("CREATE DATABASE digest_in_c TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        .await
        .unwrap();
    Cluster::shared().psql("digest_in_c", Schema::of_run().sql());
    let settings = "
        ALTER DATABASE digest_in_c SET TimeZone = 'Asia/Kolkata';
        ALTER DATABASE digest_in_c SET DateStyle = 'German, DMY';
        ALTER DATABASE digest_in_c SET extra_float_digits = 0;
        ALTER DATABASE digest_in_c SET bytea_output = 'escape'";
    for sql in settings.split(';') {
        admin.batch_execute(sql).await.unwrap();
    }
    let other = Cluster::shared().connect("digest_in_c").await;
    other.batch_execute(&FILL.replace("$N", "3000")).await.unwrap();
    let shown: String = other.query_one("SHOW TimeZone", &[]).await.unwrap().get(0);
    assert_eq!(shown, "Asia/Kolkata");

    let target = crate::harness::target(Cluster::shared(), "digest_in_c");
    let (there, here) = (a.db().await, Db::open(&target, "opsward test", 2).await.unwrap());
    let by_file = Reference::File(Box::new(file(&digest_of(&there, "a", &[]).await).unwrap()));
    for reference in [by_file, Reference::Url(there)] {
        let report = compare(&here, &reference, Duration::ZERO).await.unwrap();
        assert!(report.matches, "{report:?}");
    }
}

/// A row that is there when it is looked at again is no difference.
#[tokio::test]
async fn a_row_that_arrives_meanwhile_settles() {
    let (a, b) = pair(100).await;
    b.client().await.batch_execute("DELETE FROM uploads WHERE id = 'Up-50'").await.unwrap();
    let (there, here) = (a.db().await, b.db().await);
    let reference = Reference::File(Box::new(file(&digest_of(&there, "a", &[]).await).unwrap()));
    let own = host("b");
    let verify = Verify {
        db: &here,
        own: Some(&own),
        scope: scope(&[], &[]).unwrap(),
        settle: Duration::from_secs(600),
        max_age: None,
        clock: Clock::System,
    };
    let (seen, mut saw) = tokio::sync::mpsc::unbounded_channel();
    let tell = move |what: &str, _: u64, _: &'static str| {
        if what == "records that differ" {
            let _ = seen.send(());
        }
    };
    let arrives = async {
        saw.recv().await.unwrap();
        let row = "INSERT INTO uploads SELECT * FROM uploads_kept";
        let client = b.client().await;
        let from: Vec<String> = a
            .client()
            .await
            .query("SELECT row_to_json(u)::text FROM uploads u WHERE id = 'Up-50'", &[])
            .await
            .unwrap()
            .iter()
            .map(|r| r.get(0))
            .collect();
        client.batch_execute("CREATE TABLE uploads_kept (LIKE uploads)").await.unwrap();
        client
            .execute(
                "INSERT INTO uploads_kept SELECT * FROM json_populate_record(NULL::uploads, $1::text::json)",
                &[&from[0]],
            )
            .await
            .unwrap();
        client.batch_execute(row).await.unwrap();
    };
    let (report, ()) = tokio::join!(verify.run(&reference, &tell), arrives);
    let report = report.unwrap();
    assert!(report.matches, "{report:?}");
    assert_eq!(of(&report, "uploads").settled, 1);
}

/// What an op changed here that the reference had not read is told by the log;
/// an older difference is not hidden by it.
#[tokio::test]
async fn what_changed_here_since_the_file_is_let_pass() {
    let (a, b) = pair(50).await;
    let (there, here) = (a.db().await, b.db().await);
    let bytes = digest_of(&there, "a", &[]).await;
    let now = Clock::System.now_ms();
    let op = |n: u64, action: &str, record: &str| {
        let ulid = opsward::values::OpUlid::from_parts(now, u128::from(n));
        format!("INSERT INTO ops VALUES ('{ulid}', 'http://c.example', '{action}', 'uploads', '[{record}]');")
    };
    let sql = [
        op(1, "update", r#"{"id":"Up-1","status":"x"}"#),
        "UPDATE uploads SET status = 'x' WHERE id = 'Up-1';".into(),
        op(2, "create", r#"{"id":"brand new"}"#),
        "INSERT INTO uploads (id) VALUES ('brand new');".into(),
        op(3, "delete", r#"{"id":"Up-2"}"#),
        "DELETE FROM uploads WHERE id = 'Up-2';".into(),
        // A create of a record that the reference has decides nothing.
        op(4, "create", r#"{"id":"Up-3"}"#),
        "UPDATE uploads SET status = 'old difference' WHERE id = 'Up-3';".into(),
    ]
    .concat();
    b.client().await.batch_execute(&sql).await.unwrap();
    let reference = Reference::File(Box::new(file(&bytes).unwrap()));
    let report = compare(&here, &reference, Duration::ZERO).await.unwrap();
    let found = of(&report, "uploads");
    assert_eq!(found.changed_here_since, 3, "{found:?}");
    assert_eq!(found.differing.first, [["Up-3"]]);
    assert_eq!(found.differs(), 1);

    // What the reference had read explains nothing.
    let read = opsward::values::OpUlid::from_parts(now, 99);
    let cursor = format!("INSERT INTO cursors VALUES ('http://C.example/', '{read}')");
    a.client().await.batch_execute(&cursor).await.unwrap();
    let reference = Reference::File(Box::new(file(&digest_of(&there, "a", &[]).await).unwrap()));
    let report = compare(&here, &reference, Duration::ZERO).await.unwrap();
    assert_eq!(of(&report, "uploads").changed_here_since, 0);
    assert_eq!(of(&report, "uploads").differs(), 4);
}

#[tokio::test]
async fn the_cursors_are_the_lowest_plausible_ones() {
    let database = Database::new().await;
    let db = database.migrated().await;
    database
        .client()
        .await
        .batch_execute(
            "INSERT INTO cursors VALUES ('https://P.example/', '01JZZZZZZZ0000000000000009'),
                ('https://q.example', '01JZZZZZZZ0000000000000001'), ('https://r.example', ''),
                ('https://s.example', '7ZZZZZZZZZ0000000000000000'), ('qm_fix_truncated', 'Qmabc'),
                ('core_mediorum_blocks', '1234')
             ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid;
             INSERT INTO opsward.cursors VALUES
                ('https://p.example', '01JZZZZZZZ0000000000000003', NULL, now()),
                ('https://q.example', '01JZZZZZZZ0000000000000005', NULL, now()),
                ('https://s.example', '01JZZZZZZZ0000000000000007', NULL, now());
             INSERT INTO ops VALUES ('01JZZZZZZZ000000000000000A', 'x', 'create', 'uploads', '[]'),
                ('7ZZZZZZZZZ000000000000000A', 'x', 'create', 'uploads', '[]')",
        )
        .await
        .unwrap();
    let digest = file(&digest_of(&db, "a", &["storage_and_db_sizes"]).await).unwrap();
    let cursors: Vec<(&str, &str)> =
        digest.header.cursors.iter().map(|(h, u)| (h.as_str(), u.as_str())).collect();
    assert_eq!(
        cursors,
        [
            ("https://p.example", "01JZZZZZZZ0000000000000003"),
            ("https://q.example", "01JZZZZZZZ0000000000000001"),
            ("https://s.example", "01JZZZZZZZ0000000000000007"),
        ]
    );
    assert_eq!(digest.header.newest.as_deref(), Some("01JZZZZZZZ000000000000000A"));
    assert_eq!(digest.header.left_out, ["storage_and_db_sizes"]);
}

fn refused(outcome: Result<Report, opsward::reclaim::digest::Error>) -> String {
    match outcome {
        Err(opsward::reclaim::digest::Error::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reference_that_proves_nothing_is_refused() {
    let (a, b) = pair(10).await;
    let (there, here) = (a.db().await, b.db().await);
    let open = |bytes: &[u8]| Reference::File(Box::new(file(bytes).unwrap()));
    let why = refused(compare(&here, &open(&digest_of(&there, "b", &[]).await), Duration::ZERO).await);
    assert!(why.contains("this very validator"), "{why}");
    let why = refused(compare(&here, &open(&digest_of(&here, "a", &[]).await), Duration::ZERO).await);
    assert!(why.contains("this very database"), "{why}");
    let why = refused(compare(&here, &Reference::Url(b.db().await), Duration::ZERO).await);
    assert!(why.contains("this very database"), "{why}");

    let bytes = digest_of(&there, "a", &[]).await;
    let newer = String::from_utf8(bytes.clone()).unwrap().replacen("\"version\":1", "\"version\":2", 1);
    let why = file(newer.as_bytes()).err().unwrap().to_string();
    assert!(why.contains("version 2") && why.contains("version 1"), "{why}");

    let own = host("b");
    let later = Clock::fixed(Clock::System.now().as_millisecond() + 7_200_000);
    let verify = Verify {
        db: &here,
        own: Some(&own),
        scope: scope(&[], &[]).unwrap(),
        settle: Duration::ZERO,
        max_age: Some(Duration::from_secs(3_600)),
        clock: later,
    };
    let why = refused(verify.run(&open(&bytes), &|_, _, _| {}).await);
    assert!(why.contains("3600 s old at most"), "{why}");

    let alter = "ALTER TABLE uploads ADD COLUMN shiny text";
    a.client().await.batch_execute(alter).await.unwrap();
    let why = refused(compare(&here, &Reference::Url(there), Duration::ZERO).await);
    assert!(why.contains("uploads has columns that the model does not know: shiny"), "{why}");
    b.client().await.batch_execute(alter).await.unwrap();
    let why = refused(compare(&here, &open(&bytes), Duration::ZERO).await);
    assert!(why.contains("shiny"), "{why}");
}

#[tokio::test]
async fn what_the_file_left_out_is_left_out() {
    let (a, b) = pair(10).await;
    b.client().await.batch_execute("DELETE FROM storage_and_db_sizes").await.unwrap();
    let bytes = digest_of(&a.db().await, "a", &["storage_and_db_sizes"]).await;
    let report = compare(&b.db().await, &Reference::File(Box::new(file(&bytes).unwrap())), Duration::ZERO)
        .await
        .unwrap();
    assert!(report.matches);
    assert_eq!(report.left_out, ["storage_and_db_sizes"]);
    assert_eq!(report.tables.len(), 3);
}

/// A whole small digest, made without a database.
fn small() -> Vec<u8> {
    let scope = scope(&[], &[]).unwrap();
    let header = Header {
        format: "opsward digest".into(),
        version: 1,
        own: Some("https://a.example".into()),
        opsward: "0.1.0".into(),
        taken_at: Clock::System.now(),
        database: Some("1/2".into()),
        tables: scope.iter().map(|m| opsward::reclaim::digest::described(m)).collect(),
        left_out: Vec::new(),
        cursors: [("https://c.example".into(), "01JZZZZZZZ0000000000000003".into())].into(),
        newest: None,
    };
    let mut writer = opsward::reclaim::file::Writer::new(Vec::new(), &header).unwrap();
    for model in scope {
        writer.table(&model.table).unwrap();
        for n in 0..2 {
            let key = model.key.iter().map(|place| format!("{n} \"ü\n{place}")).collect();
            writer.record(&opsward::db::digest::Record { key, hash: u128::MAX / 3 + n }).unwrap();
        }
    }
    writer.end().unwrap().0
}

#[test]
fn every_cut_is_noticed() {
    let whole = small();
    assert!(file(&whole).is_ok());
    for end in 0..whole.len() {
        assert!(file(&whole[..end]).is_err(), "cut at {end} of {}", whole.len());
    }
    assert!(file(&[&whole[..], b"\n"].concat()).is_err());
    assert!(file(&[&whole[..], &whole[..]].concat()).is_err());
}

#[test]
fn every_cut_of_a_compressed_one_is_noticed() {
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(&small()).unwrap();
    let whole = zip.finish().unwrap();
    let digest = file(&whole).unwrap();
    let mut records = 0;
    digest.records("uploads", &mut |_| records += 1).unwrap();
    assert_eq!(records, 2);
    for end in 0..whole.len() {
        assert!(file(&whole[..end]).is_err(), "cut at {end} of {}", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_other_byte_is_noticed(place: prop::sample::Index, flip in 1_u8..) {
        let mut bytes = small();
        let place = place.index(bytes.len());
        bytes[place] ^= flip;
        prop_assert!(file(&bytes).is_err(), "byte {} xor {:02x}", place, flip);
    }

    #[test]
    fn any_bytes_are_no_digest(bytes: Vec<u8>) {
        prop_assert!(file(&bytes).is_err());
    }
}

async fn opsward(database: &Database, own: &str, line: &[&str]) -> Ran {
    let start = Start::new(line).env("OPENAUDIO_DB_URL", database.url());
    start.env("OPENAUDIO_NODE_ENDPOINT", host(own).as_str()).output().await
}

fn envelope(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
}

/// The commands as an operator has them: exit codes, the envelope, no secret.
#[tokio::test]
async fn the_commands() {
    let (a, b) = pair(60).await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ran = opsward(&a, "a", &["digest", "--leave-out", "audio_previews"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("uploads, here: 60"), "{}", ran.stderr);
    let path = write("digest", &ran.stdout);

    let ran = opsward(&b, "b", &["verify", "--against", &path, "--output", "json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let json = envelope(&ran);
    assert_eq!(json["result"]["match"], true);
    assert_eq!(json["result"]["left_out"][0], "audio_previews");
    assert_eq!(json["result"]["reference"]["self"], "https://a.example");
    assert_eq!(json["result"]["tables"][0]["rows_here"], 60);

    b.client().await.batch_execute("UPDATE uploads SET status = 'odd' WHERE id = 'Up-5'").await.unwrap();
    let url = a.url().replace(":postgres@", ":hunter2@");
    for against in [&path, &url] {
        let line = ["verify", "--against", against, "--settle=0"];
        let ran = opsward(&b, "b", &line).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stdout.contains("uploads differ: Up-5"), "{}", ran.stdout);
        assert!(!format!("{ran:?}").contains("hunter2"));
    }

    // One that differs and one that does not: each is named, with what differs.
    let third = Database::new().await;
    fill(&third, 60).await;
    third.client().await.batch_execute("UPDATE uploads SET status = 'odd' WHERE id = 'Up-5'").await.unwrap();
    let same = write("same", &opsward(&third, "c", &["digest"]).await.stdout);
    let line = ["verify", "--against", &path, "--against", &same, "--settle=0"];
    let ran = opsward(&b, "b", &line).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stdout.starts_with("https://a.example: differs in uploads\nhttps://c.example: match\n"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("uploads differ: Up-5"), "{}", ran.stdout);
    let ran = opsward(&b, "b", &[&line[..], &["--output=json"]].concat()).await;
    let json = envelope(&ran);
    assert_eq!(
        (&json["result"]["match"], &json["result"]["references"][1]["match"]),
        (&false.into(), &true.into())
    );

    let cut = write("cut", &std::fs::read_to_string(&path).unwrap()[..2_000]);
    // One that cannot be used does not hide what came of another.
    let ran = opsward(&b, "b", &["verify", "--against", &same, "--against", &cut, "--settle=0"]).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stdout.starts_with(&format!("https://c.example: match\n{cut}: ")), "{ran:?}");
    let ran = opsward(&b, "b", &["verify", "--against", &cut, "--output=json"]).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert_eq!(envelope(&ran)["error"]["code"], "refused");
    let ran = opsward(&b, "b", &["verify", "--against", "/nonexistent"]).await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let ran = opsward(&b, "b", &["verify", "--against", "postgres://u:hunter2@127.0.0.1:1/x"]).await;
    assert_eq!(ran.code, Some(75), "{ran:?}");
    assert!(!format!("{ran:?}").contains("hunter2"));
    let ran = opsward(&b, "b", &["digest", "--leave-out", "ops"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let ran = opsward(&a, "a", &["digest", "--gzip"]).await;
    assert_eq!(ran.code, Some(0));

    // Into a file, with the envelope on stdout.
    let ran = opsward(&a, "a", &["digest", "--output", "json"]).await;
    assert_eq!((ran.code, &envelope(&ran)["error"]["code"]), (Some(2), &"usage".into()), "{ran:?}");
    let path = dir.path().join("out").to_str().unwrap().to_owned();
    let ran = opsward(&a, "a", &["digest", "--out", &path, "--gzip", "--output", "json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let json = envelope(&ran);
    assert_eq!(
        (&json["result"]["out"], &json["result"]["tables"]["uploads"]),
        (&path.as_str().into(), &60.into())
    );
    let ran = opsward(&b, "b", &["verify", "--against", &path, "--settle=0"]).await;
    assert!(ran.code == Some(1) && ran.stdout.contains("uploads differ: Up-5"), "{ran:?}");
}
