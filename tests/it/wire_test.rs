//! The line that kills anywhere does as it says.

use crate::harness::wire::{Event, Matcher, PerKind, Plan, Sessions, When, kill_points, kind, trial};
use crate::harness::{Answer, Database, Ops, Peer, Schema, Start, Wire, ops};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_postgres::Client;

async fn through(database: &Database, wire: &crate::harness::wire::Running) -> Client {
    let mut config = wire.config(database.name());
    crate::harness::cluster::connect(config.application_name("through")).await
}

fn stop(at: Matcher, when: When, sessions: Sessions) -> Plan {
    Plan::Stop { at, when, sessions }
}

fn text(text: &str, n: u64) -> Matcher {
    Matcher::Text(text.to_owned(), n)
}

async fn hosts(client: &Client) -> Vec<String> {
    let rows = client.query("SELECT host FROM cursors ORDER BY host", &[]).await.unwrap();
    rows.iter().map(|r| r.get(0)).collect()
}

#[test]
fn kinds_differ_in_more_than_values() {
    let same = [
        "DELETE FROM ops WHERE ulid = '01A''x' AND n < 17;",
        "delete from ops\n  WHERE ulid = 'b' -- why\n AND n < 4",
    ];
    assert_eq!(kind(same[0]), "delete from ops where ulid = ? and n < #");
    assert_eq!(kind(same[0]), kind(same[1]));
    let rows = |n: usize| format!("INSERT INTO a VALUES {}", vec!["($1, $2)"; n].join(", "));
    assert_eq!(kind(&rows(1)), kind(&rows(7)));
    assert_eq!(kind(&rows(7)), "insert into a values ($#)");
    let long = |tail: &str| format!("SELECT {} {tail}", "wide, ".repeat(40));
    assert_ne!(kind(&long("FROM a")), kind(&long("FROM b")));
    assert_eq!(kind(&long("FROM a").replace("wide, w", "wide,   w")), kind(&long("FROM a")));
}

#[test]
fn points_are_first_middle_and_last_of_a_kind() {
    let event = |(n, kind): (usize, &str)| Event {
        number: n as u64 + 1,
        connection: 1,
        application: String::new(),
        sql: kind.to_owned(),
        kind: kind.to_owned(),
        answer: None,
    };
    let events: Vec<Event> =
        ["a", "b", "a", "a", "c", "a", "b", "a"].into_iter().enumerate().map(event).collect();
    let points = kill_points(&events, PerKind::FirstMiddleLast);
    let shown: Vec<String> = points.iter().map(|p| format!("{}{}", p.kind, p.occurrence)).collect();
    assert_eq!(shown, ["a1", "b1", "a3", "c1", "b2", "a5"]);
    assert_eq!(kill_points(&events, PerKind::Every).len(), events.len());
}

#[tokio::test]
async fn executions_are_seen_as_they_are() {
    let database = Database::of(Schema::A).await;
    let wire = Wire::to(database.cluster()).await.observe();
    let mut client = through(&database, &wire).await;
    let insert = client.prepare("INSERT INTO cursors VALUES ($1, $2)").await.unwrap();
    for host in ["a", "b"] {
        client.execute(&insert, &[&host, &""]).await.unwrap();
    }
    // Duplicate: the group fails, the session lives on.
    client.execute(&insert, &[&"a", &""]).await.unwrap_err();
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("SET LOCAL lock_timeout = 100; DELETE FROM cursors").await.unwrap();
    // Three at once on one connection, answered in order.
    let one = |n: i32| {
        let transaction = &transaction;
        async move { transaction.query_one("SELECT $1::int", &[&n]).await.unwrap().get::<_, i32>(0) }
    };
    assert_eq!(tokio::join!(one(1), one(2), one(3)), (1, 2, 3));
    transaction.commit().await.unwrap();
    let events = wire.events();
    let lines: Vec<String> = events
        .iter()
        .map(|e| {
            format!("{} {}: {} = {}", e.number, e.application, e.kind, e.answer.as_deref().unwrap_or("-"))
        })
        .collect();
    assert_eq!(
        lines,
        [
            "1 through: insert into cursors values ($#) = INSERT 0 1",
            "2 through: insert into cursors values ($#) = INSERT 0 1",
            "3 through: insert into cursors values ($#) = ERROR 23505",
            "4 through: start transaction = START TRANSACTION",
            "5 through: set local lock_timeout = #; delete from cursors = DELETE 2",
            "6 through: select $#::int = SELECT 1",
            "7 through: select $#::int = SELECT 1",
            "8 through: select $#::int = SELECT 1",
            "9 through: commit = COMMIT",
        ]
    );
    assert!(events.iter().all(|e| e.connection == 1));
}

#[tokio::test]
async fn a_commit_is_stopped_before_or_after() {
    for (when, expected) in [(When::Before, vec![]), (When::After, vec!["x".to_owned()])] {
        let database = Database::of(Schema::A).await;
        let called = Arc::new(AtomicU64::new(0));
        let plan = stop(text("COMMIT", 1), when, Sessions::Cut);
        let wire = Wire::to(database.cluster()).await.run(plan, {
            let called = called.clone();
            move |event| called.store(event.number, Ordering::SeqCst)
        });
        let mut client = through(&database, &wire).await;
        let transaction = client.transaction().await.unwrap();
        transaction.execute("INSERT INTO cursors VALUES ('x', '')", &[]).await.unwrap();
        transaction.commit().await.unwrap_err();
        let event = wire.stopped().await;
        assert_eq!((event.kind.as_str(), event.number), ("commit", called.load(Ordering::SeqCst)));
        assert_eq!(event.answer.is_some(), when == When::After);
        let direct = database.client().await;
        wire.sessions_ended(&direct).await;
        assert_eq!(hosts(&direct).await, expected, "{when:?}");
        let mut config = wire.config(database.name());
        config.connect_timeout(std::time::Duration::from_secs(5));
        assert!(config.connect(tokio_postgres::NoTls).await.is_err(), "the world has stopped");
    }
}

#[tokio::test]
async fn a_prepared_statement_of_its_own_is_stopped_before_or_after() {
    for (when, expected) in [(When::Before, vec!["1"]), (When::After, vec!["1", "2"])] {
        let database = Database::of(Schema::A).await;
        let plan = stop(text("INSERT", 2), when, Sessions::Cut);
        let wire = Wire::to(database.cluster()).await.run(plan, |_| {});
        let (first, second) = tokio::join!(through(&database, &wire), through(&database, &wire));
        let sql = "INSERT INTO cursors VALUES ($1, '')";
        first.execute(sql, &[&"1"]).await.unwrap();
        // What comes behind the marked one on its connection never passes.
        let insert = second.prepare(sql).await.unwrap();
        let (a, b) =
            tokio::join!(second.execute(&insert, &[&"2"]), second.batch_execute("DELETE FROM cursors"));
        assert!(a.is_err() && b.is_err());
        wire.stopped().await;
        assert!(first.batch_execute("DELETE FROM cursors").await.is_err(), "all connections are cut");
        let direct = database.client().await;
        wire.sessions_ended(&direct).await;
        assert_eq!(hosts(&direct).await, expected, "{when:?}");
    }
}

#[tokio::test]
async fn sessions_hang_until_they_are_released() {
    let database = Database::of(Schema::A).await;
    let plan = stop(Matcher::Number(3), When::Before, Sessions::Hang);
    let wire = Wire::to(database.cluster()).await.run(plan, |_| {});
    let mut client = through(&database, &wire).await;
    let direct = database.client().await;
    let work = async {
        let transaction = client.transaction().await.unwrap();
        transaction.batch_execute("LOCK TABLE cursors IN EXCLUSIVE MODE").await.unwrap();
        transaction.batch_execute("SELECT 1").await.unwrap();
    };
    tokio::select! {
        () = work => panic!("it passed"),
        event = wire.stopped() => assert_eq!(event.sql, "SELECT 1"),
    }
    drop(client);
    let probe = "BEGIN; LOCK TABLE cursors IN EXCLUSIVE MODE NOWAIT; COMMIT";
    let held = direct.batch_execute(probe).await.unwrap_err();
    assert_eq!(held.code().unwrap().code(), "55P03");
    direct.batch_execute("ROLLBACK").await.unwrap();
    wire.release();
    wire.sessions_ended(&direct).await;
    direct.batch_execute(probe).await.unwrap();
}

#[tokio::test]
async fn large_messages_copies_and_cancels_pass() {
    use futures_util::{SinkExt, StreamExt};
    let database = Database::of(Schema::A).await;
    let wire = Wire::to(database.cluster()).await.observe();
    let client = through(&database, &wire).await;
    let big = "y".repeat(5 << 20);
    let row = client.query_one("SELECT $1::text || 'z'", &[&big]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0).len(), big.len() + 1);
    let row = client.query_one(&format!("SELECT length('{big}')"), &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 5 << 20);

    let sink = client.copy_in("COPY cursors FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    for n in 0..20_000 {
        sink.send(bytes::Bytes::from(format!("h{n}\t\n"))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 20_000);
    let copied = client.copy_out("COPY cursors TO STDOUT").await.unwrap();
    assert_eq!(copied.count().await, 20_000);

    let asleep = client.batch_execute("SELECT pg_sleep(60)");
    let cancelled = async {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'
                   AND datname = current_database()";
        let direct = database.client().await;
        while direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        client.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(asleep, cancelled);
    assert_eq!(slept.unwrap_err().code().unwrap().code(), "57014");
    assert_eq!(wire.cancels(), 1);
    let answers: Vec<_> = wire.events().into_iter().map(|e| e.answer.unwrap()).collect();
    assert_eq!(answers, ["SELECT 1", "SELECT 1", "COPY 20000", "COPY 20000", "ERROR 57014"]);
    assert!(wire.events().iter().all(|e| e.sql.len() <= 64 << 10));
}

#[tokio::test]
async fn a_statement_is_held_back_until_it_is_let_go() {
    let database = Database::of(Schema::A).await;
    let line = Wire::to(database.cluster()).await.run(Plan::Hold { at: text("'b'", 1) }, |_| {});
    let (client, other) = (through(&database, &line).await, through(&database, &line).await);
    client.batch_execute("INSERT INTO cursors VALUES ('a', '')").await.unwrap();
    let held = client.execute("INSERT INTO cursors SELECT 'b', $1 || host FROM cursors", &[&"x"]);
    let between = async {
        assert!(line.held().await.sql.contains("'b'"));
        other.batch_execute("DELETE FROM cursors").await.unwrap();
        line.let_go();
    };
    let (inserted, ()) = tokio::join!(held, between);
    assert_eq!(inserted.unwrap(), 0);
    assert_eq!(hosts(&other).await, [""; 0]);
}

#[tokio::test]
async fn the_world_stops_at_the_commit_of_a_statement() {
    let database = Database::of(Schema::A).await;
    let at = Matcher::CommitOf("'b'".into(), 2);
    let line = Wire::to(database.cluster()).await.run(stop(at, When::After, Sessions::Cut), |_| {});
    let (mut client, mut other) = (through(&database, &line).await, through(&database, &line).await);
    for n in ["1", "2"] {
        let transaction = client.transaction().await.unwrap();
        transaction.batch_execute(&format!("INSERT INTO cursors VALUES ('b' || {n}, '')")).await.unwrap();
        other.transaction().await.unwrap().commit().await.unwrap();
        assert_eq!(transaction.commit().await.is_ok(), n == "1");
    }
    assert_eq!(line.stopped().await.sql, "COMMIT");
    assert_eq!(hosts(&database.client().await).await, ["b1", "b2"]);
}

#[tokio::test]
async fn a_client_that_asks_for_tls_gets_none() {
    let database = Database::of(Schema::A).await;
    let wire = Wire::to(database.cluster()).await;
    let url = wire.url(database.name()).replace("sslmode=disable", "sslmode=prefer&gssencmode=prefer");
    let line = wire.observe();
    let psql = crate::harness::cluster::binary("psql");
    let output = tokio::task::spawn_blocking(move || {
        std::process::Command::new(psql).args(["-X", "-At", &url, "-c", "SELECT 40 + 2"]).output().unwrap()
    });
    let output = output.await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "42\n", "{output:?}");
    assert_eq!((line.events().len(), line.events()[0].application.as_str()), (1, "psql"));
}

#[tokio::test]
async fn a_copy_in_is_stopped_after_its_last_row() {
    use futures_util::SinkExt;
    let database = Database::of(Schema::A).await;
    let plan = stop(text("COPY", 1), When::After, Sessions::Cut);
    let wire = Wire::to(database.cluster()).await.run(plan, |_| {});
    let client = through(&database, &wire).await;
    let sink = client.copy_in("COPY cursors FROM STDIN").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(bytes::Bytes::from_static(b"x\t\n")).await.unwrap();
    sink.finish().await.unwrap_err();
    assert_eq!(wire.stopped().await.answer.as_deref(), Some("COPY 1"));
    assert_eq!(hosts(&database.client().await).await, ["x"]);
}

#[tokio::test]
async fn the_binary_is_killed_where_it_was_told() {
    let made = Ops::new(7).take(40);
    let page = ops::page(&made);
    let peer = Peer::serving(move |_| Answer::json(&page)).await;
    let url = format!("http://{}", peer.address());
    let sweep = |db: String| {
        Start::new(&["sweep", "--peer", &url])
            .env("OPENAUDIO_DB_URL", db)
            .env("OPENAUDIO_NODE_ENDPOINT", "http://self.example")
            .env("OPENAUDIO_MEDIORUM_PEERS", "none")
    };
    let whole = Database::of(Schema::A).await;
    whole.migrated().await;
    let calm = trial(whole.cluster(), whole.name(), Plan::Observe, sweep).await;
    assert_eq!((calm.ran.code, calm.killed_at), (Some(0), None), "{}", calm.ran.stderr);
    assert!(calm.events.iter().all(|e| e.application.contains("opsward")), "{:?}", calm.events[0]);

    let points = kill_points(&calm.events, PerKind::Every);
    let insert = points.iter().position(|p| p.kind.contains("insert into public.ops")).unwrap();
    let commit = &points[insert..].iter().find(|p| p.kind == "commit").unwrap();
    let insert = &points[insert];
    let count = async |client: &Client| {
        client.query_one("SELECT count(*) FROM ops", &[]).await.unwrap().get::<_, i64>(0)
    };
    for (point, when, expected) in
        [(insert, When::After, 0), (*commit, When::Before, 0), (*commit, When::After, 40)]
    {
        let database = Database::of(Schema::A).await;
        database.migrated().await;
        let killed = trial(database.cluster(), database.name(), Plan::kill(point, when), sweep).await;
        assert_eq!(killed.ran.code, None, "by a signal: {}", killed.ran.stderr);
        assert_eq!(killed.killed_at.unwrap().kind, point.kind);
        let client = database.client().await;
        assert_eq!(count(&client).await, expected, "{point:?} {when:?}");
        // The next run finishes what the killed one began.
        let again = sweep(database.url()).output().await;
        assert_eq!(again.code, Some(0), "{}", again.stderr);
        assert_eq!(count(&client).await, 40);
    }
}
