use super::*;
use crate::show::advice::warnings;
use crate::show::status::*;
use crate::values::{TaskReport, TaskState};
use jiff::Timestamp;

fn at(seconds_ago: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 - seconds_ago).unwrap()
}

fn peer(host: &str) -> PeerStatus {
    PeerStatus {
        host: host.into(),
        active: true,
        last_seen: at(30),
        cursor: Some("01KZ8Z8Z8Z0000000000000000".into()),
        lag_seconds: Some(42),
        last_at: Some(at(300)),
        last_ok_at: Some(at(300)),
        outcome: Some("ok".into()),
        detail: None,
        failures_in_a_row: 0,
        pages: 12,
        applied: 104_321,
        duplicates: 7,
        replays: 0,
        rejected: 0,
        rejected_unkept: 0,
        gap_advances: 1,
        last_gap: None,
        held: None,
        read_to_end_at: None,
    }
}

fn task(name: &str) -> TaskReport {
    let mut task = TaskReport::new(name.into(), TaskState::Waiting);
    task.runs = 12;
    task.last_success = Some(at(61));
    task.next_run = Some(at(-540));
    task
}

fn status() -> Status {
    let mut failing = peer("https://validator-with-a-long-name.region-7.operator.example:8443");
    failing.outcome = Some("failed".into());
    failing.detail = Some("connection refused".into());
    failing.failures_in_a_row = 9;
    failing.lag_seconds = Some(200_000);
    let mut held = peer("https://n3.example");
    held.outcome = Some("held".into());
    held.held = Some(HoldStatus {
        ulid: "01KZ8Z8Z8Z0000000000000001".into(),
        table: "playlists".into(),
        reason: "the table exists here and is in no model".into(),
        since: at(4_000),
    });
    let mut off = TaskReport::new("prune".into(), TaskState::Off);
    off.note = Some("OPENAUDIO_X=1 turns it on".into());
    Status {
        read_only: true,
        own: Some("https://me.example".into()),
        version: "0.1.0".into(),
        at: at(0),
        daemon: Some(DaemonStatus {
            started_at: at(90_000),
            uptime_seconds: 90_000,
            pid: 1,
            listen: "0.0.0.0:1992".into(),
            admin_listen: "127.0.0.1:9464".into(),
            tasks: vec![task("discovery"), task("pull https://n2.example"), off],
        }),
        database: DatabaseStatus {
            shown: "localhost:5432/openaudio".into(),
            up: true,
            state: "ready".into(),
            server_version: Some("15.20".into()),
            schema_version: Some(1),
            ops_bytes: Some(90_000_000_000),
            index_bytes: Some(12_000_000_000),
            dead_rows: Some(1_234),
            ..DatabaseStatus::default()
        },
        node: None,
        peers: PeersStatus {
            source: Some("discovered".into()),
            via: Some("http://localhost/".into()),
            refreshed_at: Some(at(120)),
            list: vec![peer("https://n2.example"), held, failing],
        },
        readers: vec![ReaderStatus {
            host: "https://n2.example".into(),
            lowest: None,
            lag_seconds: None,
            last_at: at(5),
            requests: 288,
        }],
        rejected: vec![RejectedStatus {
            peer: "https://n3.example".into(),
            code: "bad_ulid".into(),
            ops: 3,
            last_seen: at(70),
        }],
        bounding: Some(BoundingStatus {
            window: Some("01:00-05:00 UTC".into()),
            in_window: true,
            known: Overview {
                percent: 25,
                census: Some(CensusStatus {
                    rows: 250_000_000,
                    bytes: 90_000_000_000,
                    oldest: Some("2023-03-01".into()),
                    newest: Some("2026-11-23".into()),
                    estimated: true,
                    finished_at: None,
                }),
                job: Some(JobStatus { id: 7, kind: "prune".into(), progress: None }),
                runs: vec![RunStatus {
                    at: at(3_000),
                    task: "retention".into(),
                    table: "storage_and_db_sizes".into(),
                    rows: 1_234_567,
                    bytes: 1 << 31,
                    bound_by: "age".into(),
                    outcome: "done".into(),
                }],
                ..Overview::default()
            },
            ..BoundingStatus::default()
        }),
    }
}

#[test]
fn reads_well_at_80_columns() {
    let status = status();
    let text = text(&status, &warnings(&status));
    let wide: Vec<&str> = text.lines().filter(|l| l.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:#?}");
    insta::assert_snapshot!(text);
}

#[test]
fn both_away_is_said() {
    let mut status = status();
    status.read_only = false;
    status.daemon = None;
    status.database = DatabaseStatus {
        up: false,
        away: true,
        state: "database_away".into(),
        error: Some("the database is away: localhost:5432/openaudio: refused".into()),
        server_version: None,
        schema_version: None,
        ops_bytes: None,
        index_bytes: None,
        ..status.database
    };
    status.peers = PeersStatus::default();
    (status.readers, status.rejected) = (Vec::new(), Vec::new());
    insta::assert_snapshot!(text(&status, &warnings(&status)));
}

#[test]
fn what_waiting_does_not_mend_is_not_called_down() {
    let mut status = status();
    status.database.up = false;
    status.database.state = "database_denied".into();
    status.database.error = Some("the server refused the login; check the password".into());
    let text = text(&status, &warnings(&status));
    assert!(text.contains("openaudio: NOT USABLE"), "{text}");
    assert!(text.contains("refused the login"), "{text}");
    assert!(!text.contains("start the node's Postgres"), "{text}");
}

#[test]
fn little_disk_is_what_bulk_work_leaves_free() {
    let little = |free, least| {
        let mut status = status();
        (status.database.free_disk_bytes, status.database.min_free_disk_bytes) = (Some(free), least);
        warnings(&status).iter().any(|w| w.code == "little_disk")
    };
    assert!(little(4 << 30, Some(5 << 30)) && !little(5 << 30, Some(5 << 30)));
    assert!(!little(300 << 20, Some(256 << 20)) && little(300 << 20, None));
}

#[test]
fn a_task_without_end_is_well_while_it_runs() {
    let mut status = status();
    let mut serve = TaskReport::new("serve".into(), TaskState::Running);
    serve.last_success = Some(at(5_000));
    if let Some(daemon) = &mut status.daemon {
        daemon.tasks = vec![serve];
    }
    let text = text(&status, &[]);
    let line = text.lines().find(|l| l.contains("serve")).unwrap();
    assert!(line.contains("now") && !line.contains("ago"), "{line}");
}

#[test]
fn survives_the_way_through_json() {
    let status = status();
    let json = serde_json::to_string(&status).unwrap();
    let back: Status = serde_json::from_str(&json).unwrap();
    assert_eq!(back, status);
}
