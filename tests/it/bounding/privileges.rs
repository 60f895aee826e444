//! A role that may not everything: what needs it is off, says so once, and
//! `doctor` names what lifts it.

use super::*;
use crate::harness::cluster;

/// A role with what pulling and serving need, and no more.
async fn limited(bench: &Bench) -> (String, String) {
    let role = cluster::unique("limited");
    let name = bench.database.name();
    bench
        .run(&format!(
            "DROP SCHEMA opsward CASCADE;
             CREATE ROLE {role} LOGIN PASSWORD 'limited';
             GRANT CREATE ON DATABASE {name} TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
        ))
        .await;
    let url = bench.database.url().replace("postgres:postgres@", &format!("{role}:limited@"));
    (role, url)
}

async fn drop_role(bench: &Bench, role: &str) {
    bench.run(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).await;
}

/// Everything that is about privileges, in one line.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn what_is_missing_is_named_and_turns_off_only_what_needs_it() {
    let mut bench = Bench::new()
        .await
        .with("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
        .with("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX", "true");
    bench.log(300, 30).await;
    let (role, url) = limited(&bench).await;
    let doctor = flat(&bench.start_at(&["doctor"], url.clone()).output().await.stdout);
    for lift in [
        "VACUUM public.ops".to_owned(),
        format!("OWNER TO a role without login, and GRANT that role TO {role}"),
        format!("GRANT pg_checkpoint TO {role}"),
        format!("GRANT SET ON PARAMETER deadlock_timeout TO {role}"),
    ] {
        assert!(doctor.contains(&lift), "{lift}: {doctor}");
    }
    assert!(!doctor.contains("GRANT UPDATE, DELETE"), "{doctor}");
    let daemon = bench.start_at(&["run"], url.clone()).spawn();
    daemon.ready().await;
    daemon.line(|l| l.contains("free space on the database's volume is unknown")).await;
    let tasks = daemon.line(|l| l.contains("tasks") && l.contains("off=")).await;
    let (on, off) = tasks.split_once("off=").unwrap();
    for task in ["guard", "index"] {
        assert!(off.contains(task), "{tasks}");
    }
    for task in ["retention", "census", "discovery", "jobs"] {
        assert!(on.contains(task), "{tasks}");
    }
    // Switched on and not to be had: nothing is deleted without it.
    let ran = bench.start_at(&["prune", "--strict"], url.clone()).output().await;
    assert_eq!((ran.code, bench.left().await), (Some(3), 330), "{ran:?}");
    let lift = format!("OWNER TO a role without login, and GRANT that role TO {role}");
    assert!(flat(&ran.stdout).contains(&lift), "{ran:?}");
    let plan = ["reclaim", "--plan", "--policy", "window", "--mode", "in-place"];
    let plan = flat(&bench.start_at(&plan, url.clone()).output().await.stdout);
    assert!(plan.contains("replay guard") && plan.contains(&lift), "{plan}");
    let said =
        daemon.log().lines().filter(|l| l.contains("WARN") && l.contains("replay guard is off")).count();
    assert_eq!(said, 1, "{}", daemon.log());
    drop(daemon);
    let guard = bench.env.iter().position(|(name, _)| name.ends_with("GUARD")).unwrap();
    bench.env[guard].1 = "false".into();
    let daemon = bench.start_at(&["run"], url.clone()).spawn();
    daemon.ready().await;
    daemon.line(|l| l.contains("tasks") && l.contains("off=")).await;
    let ran = bench.start_at(&["prune", "--output", "json"], url.clone()).output().await;
    let pruned: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, bench.left().await), (Some(0), 30), "{ran:?}");
    assert_eq!(pruned["warnings"][0]["code"], "vacuum_denied", "{pruned}");
    assert_eq!(pruned["warnings"][1]["code"], "free_disk_unknown", "{pruned}");
    for words in ["free space on", "may not VACUUM", "no index", "may not CHECKPOINT"] {
        let times = daemon.log().lines().filter(|l| l.contains("WARN") && l.contains(words)).count();
        assert_eq!(times, 1, "{words}: {}", daemon.log());
    }
    drop(daemon);

    // Without DELETE nothing is deleted, and the rest goes on.
    bench.run(&format!("REVOKE DELETE ON ops FROM {role}")).await;
    let doctor = flat(&bench.start_at(&["doctor"], url.clone()).output().await.stdout);
    assert!(doctor.contains(&format!("GRANT UPDATE, DELETE ON public.ops TO {role}")), "{doctor}");
    let plan = flat(&bench.start_at(&["plan"], url.clone()).output().await.stdout);
    assert!(plan.contains("as the owner: ALTER TABLE public.ops OWNER TO a role"), "{plan}");
    let daemon = bench.start_at(&["run"], url.clone()).spawn();
    let tasks = daemon.line(|l| l.contains("tasks") && l.contains("off=")).await;
    let (on, off) = tasks.split_once("off=").unwrap();
    assert!(off.contains("retention") && on.contains("census"), "{tasks}");
    drop(daemon);

    // What doctor says lifts it.
    bench
        .run(&format!(
            "GRANT UPDATE, DELETE ON ops TO {role};
             CREATE ROLE {role}_log; ALTER TABLE ops OWNER TO {role}_log; GRANT {role}_log TO {role};
             GRANT CREATE ON SCHEMA public TO {role}_log;
             GRANT pg_checkpoint TO {role}; GRANT SET ON PARAMETER deadlock_timeout TO {role}"
        ))
        .await;
    let doctor = flat(&bench.start_at(&["doctor"], url.clone()).output().await.stdout);
    assert!(doctor.contains("the role has every right"), "{doctor}");
    bench.until(&format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '{role}'")).await;
    bench
        .run(&format!(
            "REVOKE SET ON PARAMETER deadlock_timeout FROM {role}; ALTER TABLE ops OWNER TO postgres;
             DROP OWNED BY {role}_log; DROP ROLE {role}_log"
        ))
        .await;
    drop_role(&bench, &role).await;
}

#[tokio::test]
async fn a_vacuum_yields_to_sessions_of_roles_that_are_hidden() {
    let bench = Bench::new().await;
    bench.log(40, 20).await;
    let (role, url) = limited(&bench).await;
    // The log is the role's own; who waits is not to be seen by it.
    bench.run(&format!("ALTER TABLE ops OWNER TO {role}; GRANT CREATE ON SCHEMA public TO {role}")).await;
    // Only the VACUUM is slow: what comes before it is done at full pace.
    let pruned = bench.start_at(&["prune", "--pace", "full"], url.clone()).output().await;
    assert_eq!(pruned.code, Some(0), "{pruned:?}");
    bench.dead_rows().await;
    bench.run("UPDATE opsward.unvacuumed SET rows = 20000").await;
    let command = bench.start_at(&["prune", "--pace", "3%", "--output", "json"], url).spawn();
    bench.until("SELECT count(*) > 0 FROM pg_stat_progress_vacuum WHERE relid = 'public.ops'::regclass AND datname = current_database()").await;
    let node = bench.database.client().await;
    node.batch_execute("CREATE INDEX CONCURRENTLY waits ON ops (host)").await.unwrap();
    command.line(|l| l.contains("VACUUM of ops") && l.contains("yielded")).await;
    command.signal("KILL");
    command.exit().await;
    bench.until(&format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '{role}'")).await;
    bench.run("ALTER TABLE ops OWNER TO postgres").await;
    drop_role(&bench, &role).await;
}
