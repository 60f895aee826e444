//! After everything, `uninstall` leaves the schema as it found it.

use super::*;
use crate::harness::cluster::binary;
use std::process::Command;

fn dump(database: &Database) -> String {
    let output =
        Command::new(binary("pg_dump")).args(["--schema-only", "-d", &database.url()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // Newer minor versions put a key of their own around the dump.
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|l| !l.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn uninstall_after_everything_leaves_nothing() {
    let database = Database::new().await;
    let before = dump(&database);
    let client = database.client().await;
    let mut env = vec![
        (DAYS.to_owned(), "30".to_owned()),
        (PEERS.to_owned(), "none".to_owned()),
        ("OPENAUDIO_MEDIORUM_MIN_FREE_DISK".to_owned(), "1MiB".to_owned()),
        ("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX".to_owned(), "true".to_owned()),
        ("OPENAUDIO_MEDIORUM_DORMANT_OPS_CLEANUP".to_owned(), "true".to_owned()),
        ("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD".to_owned(), "true".to_owned()),
    ];
    let guards = "SELECT count(*) = $1 FROM pg_trigger WHERE tgname = 'opsward_replay_guard'";
    let count = async |n: i64| {
        while !client.query_one(guards, &[&n]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    for guarded in [true, false] {
        let bench =
            Bench { database: Database::new().await, client: database.client().await, env: env.clone() };
        let at = |args: &[&str]| bench.start_at(args, database.url());
        bench.log(600, 60).await;
        let daemon = at(&["run"]).spawn();
        daemon.ready().await;
        for args in
            [&["pace", "full"][..], &["plan"], &["census"], &["prune"], &["history"], &["pause"], &["resume"]]
        {
            let ran = at(args).output().await;
            assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        }
        count(1).await;
        if !guarded {
            // Switched off, it is taken away; what is left is uninstalled.
            daemon.signal("TERM");
            daemon.exit().await;
            env.push(("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD".to_owned(), "false".to_owned()));
            let daemon = started(&env, &["run"], database.url()).spawn();
            count(0).await;
            daemon.line(|l| l.contains("taken off")).await;
            daemon.signal("TERM");
            daemon.exit().await;
        } else {
            let refused = at(&["uninstall", "--yes"]).output().await;
            assert_eq!(refused.code, Some(4), "{refused:?}");
            daemon.signal("TERM");
            daemon.exit().await;
        }
        let index = "SELECT count(*) FROM pg_class WHERE relname = 'opsward_ops_table_ulid'";
        assert_eq!(bench.number(index).await, 1);
        let ran = at(&["uninstall", "--yes"]).output().await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(dump(&database), before, "guarded: {guarded}");
        assert_eq!(bench.number("SELECT count(*) FROM ops").await, 60);
        bench.run("TRUNCATE ops").await;
    }
}

/// A dump of schema public brings the guard's and the capture's functions along, with their
/// triggers: they go, whatever there is of our schema.
#[tokio::test]
async fn triggers_that_a_dump_brought_go_too() {
    let database = Database::new().await;
    let before = dump(&database);
    let env = vec![
        (DAYS.to_owned(), "30".to_owned()),
        (PEERS.to_owned(), "none".to_owned()),
        ("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD".to_owned(), "true".to_owned()),
    ];
    let bench = Bench { client: database.client().await, database, env };
    let at = async |args: &[&str]| bench.start_at(args, bench.database.url()).output().await;
    bench.log(60, 6).await;
    for forget in ["DROP SCHEMA opsward CASCADE", "DELETE FROM opsward.owned"] {
        for args in [&["census"][..], &["prune"]] {
            let ran = at(args).await;
            assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        }
        bench.run("SELECT opsward.capture_make()").await;
        bench.run(forget).await;
        let doctor = at(&["doctor"]).await;
        assert_eq!(doctor.stdout.contains("opsward_replay_guard"), forget.starts_with("DROP"), "{doctor:?}");
        let ran = at(&["uninstall", "--yes"]).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(
            ran.stdout.contains("opsward_replay_guard") && ran.stdout.contains("opsward_capture"),
            "{ran:?}"
        );
        assert_eq!(dump(&bench.database), before, "{forget}");
    }
}

/// Nobody waits for tables of ours: on a slow disk their drop may take its time.
#[tokio::test]
async fn a_slow_drop_is_waited_for() {
    let bench = Bench::new().await;
    bench
        .run(
            "CREATE FUNCTION public.slowly() RETURNS event_trigger LANGUAGE plpgsql
             AS 'BEGIN IF tg_tag = ''DROP SCHEMA'' THEN PERFORM pg_sleep(5); END IF; END';
             CREATE EVENT TRIGGER slowly ON ddl_command_start EXECUTE FUNCTION public.slowly()",
        )
        .await;
    let ran = bench.start_at(&["uninstall", "--yes"], bench.database.url()).output().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// DROP SCHEMA … CASCADE would take along whatever stands on what is dropped.
#[tokio::test]
async fn what_others_made_is_never_dropped_with_ours() {
    let bench = Bench::new().await;
    let uninstall = async || bench.start_at(&["uninstall", "--yes"], bench.database.url()).output().await;
    assert_eq!(bench.start_at(&["census"], bench.database.url()).output().await.code, Some(0));
    let others = [
        (
            "VIEW",
            "public.pruned",
            "VIEW public.pruned AS SELECT * FROM opsward.history",
            "view public.pruned",
        ),
        ("TABLE", "opsward.notes", "TABLE opsward.notes (a int)", "table opsward.notes"),
        ("TABLE", "public.heir", "TABLE public.heir () INHERITS (opsward.floors)", "table public.heir"),
        (
            "MATERIALIZED VIEW",
            "public.seen",
            "MATERIALIZED VIEW public.seen AS SELECT * FROM opsward.census",
            "materialized view public.seen",
        ),
        (
            "FUNCTION",
            "public.f()",
            "FUNCTION public.f() RETURNS SETOF opsward.history LANGUAGE sql AS 'SELECT * FROM opsward.history'",
            "function public.f()",
        ),
        (
            "TABLE",
            "public.dated",
            "TABLE public.dated (a text DEFAULT opsward.ulid_at(now()))",
            "default value for public.dated.a",
        ),
    ];
    for (kind, name, made, shown) in others {
        bench.run(&format!("CREATE {made}")).await;
        let before = dump(&bench.database);
        let refused = uninstall().await;
        assert_eq!(refused.code, Some(3), "{refused:?}");
        assert!(refused.stderr.contains(shown), "{shown}: {refused:?}");
        assert_eq!(dump(&bench.database), before, "{name}");
        bench.run(&format!("DROP {kind} {name}")).await;
    }
    let ran = uninstall().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}
