//! Contract 6: a reclaim that is killed anywhere loses nothing and leaves
//! nothing that its own commands can't end.
//!
//! An ordinary run kills at a sample of the statements. All of them, each
//! kind's first, middle and last, before and after:
//! `cargo test --test it killed::everywhere -- --ignored --nocapture`,
//! every seventh with `KILLED_EVERY=7` before it. Last run whole: 1,160 trials at
//! 580 statements in 12 minutes on two cores, 1,158 reached, none failed.

use crate::harness::cluster::{binary, unique};
use crate::harness::node::{Generation, Load, Writer, node_starts};
use crate::harness::wire::{Matcher, PerKind, Plan, Point, Sessions, When, kill, kill_points, trial};
use crate::harness::{Cluster, Database, Ops, Start, Stop, Wire, ops};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio_postgres::Client;

const DAY_MS: u64 = 86_400_000;
/// Trials of the full matrix at once.
const AT_ONCE: usize = 3;

/// Rows that bloat heap and index, and are gone when the reclaim begins.
const CHURN: &str = r#"
    INSERT INTO ops (ulid, host, action, "table", data)
    SELECT '00' || upper(md5(i::text)), 'h', 'create', 'churn', '[]' FROM generate_series(1, 30000) i"#;
/// Owed to the chain, of tables without a model, of no key; several records in
/// one op; out of line.
const ODD: &str = r#"
    DELETE FROM ops WHERE "table" = 'churn';
    CREATE TEMP TABLE numbered AS SELECT ulid, row_number() OVER (ORDER BY ulid) AS n FROM ops;
    UPDATE ops SET core_tx_status = 'pending' FROM numbered WHERE ops.ulid = numbered.ulid AND n % 50 = 7;
    UPDATE ops SET core_tx_status = 'confirmed' FROM numbered WHERE ops.ulid = numbered.ulid AND n % 50 = 8;
    UPDATE ops SET "table" = 'of_no_model' FROM numbered WHERE ops.ulid = numbered.ulid AND n % 50 = 9;
    UPDATE ops SET "table" = 'blobs' FROM numbered WHERE ops.ulid = numbered.ulid AND n % 50 = 10;
    UPDATE ops SET data = data || jsonb_set(data, '{0,id}', to_jsonb(ops.ulid))
    FROM numbered WHERE ops.ulid = numbered.ulid AND n % 50 = 11 AND "table" = 'uploads';
    UPDATE ops SET data = jsonb_set(data, '{0,error}', to_jsonb((
        SELECT string_agg(md5((n * 400 + i)::text), '') FROM generate_series(1, 200) i)))
    FROM numbered WHERE ops.ulid = numbered.ulid AND n % 20 = 3;
    INSERT INTO ops (ulid, "table", action) VALUES ('no ulid', 'uploads', 'create');
    INSERT INTO opsward.census (table_name, day, rows, bytes, oldest, newest, estimated, counted_at)
    SELECT "table", date '2026-01-01', count(*), sum(pg_column_size(data)), min(ulid), max(ulid), false, now()
    FROM ops WHERE length(ulid) = 26 GROUP BY 1"#;
/// What is there of the log that all trials begin with, row by row.
const ROWS: &str = "SELECT ulid, md5(o::text) FROM ops o";
const LEFT: &str = r#"
    SELECT 'trigger ' || tgname::text FROM pg_trigger WHERE tgrelid = 'public.ops'::regclass
    UNION ALL SELECT 'relation ' || c.oid::regclass::text FROM pg_class c
    WHERE c.relnamespace = 'opsward'::regnamespace AND c.relname LIKE 'ops\_%'
    UNION ALL SELECT 'checkpoint' FROM opsward.reclaim
    UNION ALL SELECT 'captured' FROM opsward.captured
    UNION ALL SELECT 'invalid ' || indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid
    UNION ALL SELECT 'key ' || conname::text FROM pg_constraint
    WHERE conrelid = 'public.ops'::regclass AND contype = 'p' AND conname <> 'ops_pkey'
    UNION ALL SELECT 'kind ' || relkind::text FROM pg_class WHERE oid = 'public.ops'::regclass AND relkind <> 'r'"#;
const PHASE: &str = "SELECT checkpoint ->> 'phase' FROM opsward.reclaim";
/// Whatever the policy, these stay, and nothing stays or goes for their sake.
const NOBODYS: &str = r#"SELECT ulid FROM ops WHERE "table" = 'of_no_model' ORDER BY ulid DESC LIMIT 2"#;
const FOLLOWED: &str = "SELECT count(*) > 0 FROM pg_trigger WHERE tgrelid = 'public.ops'::regclass";

type Rows = BTreeMap<String, String>;

/// A mode and a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Combo {
    mode: &'static str,
    policy: &'static str,
}

const COMBOS: [Combo; 4] = [
    Combo { mode: "swap", policy: "window" },
    Combo { mode: "swap", policy: "compact" },
    Combo { mode: "in-place", policy: "window" },
    Combo { mode: "in-place", policy: "compact" },
];

/// What comes after the kill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Resume,
    Abort,
    /// A node and a plain daemon start; only then it is undone.
    Neither,
}

const THENS: [Then; 3] = [Then::Resume, Then::Abort, Then::Neither];

/// The log that every trial begins with, in a database of its own.
struct Base {
    database: Database,
    rows: Rows,
    schema: String,
}

static BASE: OnceCell<Base> = OnceCell::const_new();
/// A calm run of each combination on it.
static CALM: [OnceCell<(Rows, Vec<Point>)>; 4] = [const { OnceCell::const_new() }; 4];

impl Base {
    async fn get() -> &'static Self {
        BASE.get_or_init(|| Self::make(Cluster::shared())).await
    }

    /// Half of the log is far below the window, half far above: no run of
    /// these tests falls between. What is compacted lies in both.
    async fn make(cluster: &'static Cluster) -> Self {
        let database = Database::on(cluster, unique("killed")).await;
        drop(database.migrated().await);
        let mut node = database.client().await;
        node_starts(&mut node, Generation::Newer).await.unwrap();
        let now = now_ms();
        node.batch_execute(CHURN).await.unwrap();
        let mut made = Ops::new(7).starting_at(now - 100 * DAY_MS).every(50 * DAY_MS / 2_500);
        ops::insert(&node, &made.take(2_500)).await;
        let mut made = made.starting_at(now - 20 * DAY_MS).every(15 * DAY_MS / 1_000);
        ops::insert(&node, &made.take(1_000)).await;
        node.batch_execute(ODD).await.unwrap();
        let (rows, schema) = (rows(&node).await, schema(&database));
        Self { database, rows, schema }
    }

    async fn copy(&self) -> Database {
        Database::copy_of(self.database.cluster(), self.database.name()).await
    }
}

fn now_ms() -> u64 {
    opsward::clock::Clock::System.now_ms()
}

async fn rows(client: &Client) -> Rows {
    client.query(ROWS, &[]).await.unwrap().iter().map(|r| (r.get(0), r.get(1))).collect()
}

async fn texts(client: &Client, sql: &str) -> Vec<String> {
    client.query(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).iter().map(|r| r.get(0)).collect()
}

/// The schema but ours, as `pg_dump` writes it, without its random words.
fn schema(database: &Database) -> String {
    let dump = Command::new(binary("pg_dump"))
        .args(["--schema-only", "--exclude-schema=opsward", "-d", &database.url()])
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let text = String::from_utf8(dump.stdout).unwrap();
    text.lines().filter(|l| !l.contains("restrict")).collect::<Vec<_>>().join("\n")
}

fn start(combo: Combo, args: &[&str], url: String) -> Start {
    let days = if combo.policy == "window" { "30" } else { "0" };
    Start::new(args)
        .env("OPENAUDIO_DB_URL", url)
        .env("OPENAUDIO_NODE_ENDPOINT", "https://me.example")
        .env("OPENAUDIO_MEDIORUM_PEERS", "none")
        .env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "1MiB")
        .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "false")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", days)
}

fn begin(combo: Combo) -> impl Fn(String) -> Start {
    move |url| {
        let Combo { mode, policy } = combo;
        let args = ["reclaim", "--yes", "--pace", "full", "--mode", mode, "--policy", policy];
        start(combo, &args, url)
    }
}

async fn once_calm(combo: Combo) -> (&'static Base, &'static (Rows, Vec<Point>)) {
    let base = Base::get().await;
    let which = COMBOS.iter().position(|c| *c == combo).unwrap();
    (base, CALM[which].get_or_init(|| calm(base, combo)).await)
}

/// A run that nobody disturbs: what it leaves of the log, and where another
/// can be killed.
async fn calm(base: &Base, combo: Combo) -> (Rows, Vec<Point>) {
    let database = base.copy().await;
    let calm = trial(database.cluster(), database.name(), Plan::Observe, begin(combo)).await;
    assert_eq!(calm.ran.code, Some(0), "{combo:?}: {}", calm.ran.stderr);
    let client = database.client().await;
    let survivors = rows(&client).await;
    assert!(survivors.len() < base.rows.len(), "{combo:?}: nothing was dropped");
    assert!(survivors.iter().all(|(ulid, row)| base.rows.get(ulid) == Some(row)), "{combo:?}");
    assert_eq!(texts(&client, LEFT).await, [""; 0], "{combo:?}");
    assert_eq!(schema(&database), base.schema, "{combo:?}");
    (survivors, kill_points(&calm.events, PerKind::FirstMiddleLast))
}

/// What happened to a run, and what is to come of it.
struct Case<'a> {
    base: &'a Base,
    combo: Combo,
    survivors: &'a Rows,
    /// It was disturbed, and did not come to its end.
    reached: bool,
    then: Then,
}

/// One kill and what follows. `Err` says what was not as it has to be; `Ok`
/// whether the point was reached.
async fn killed(
    base: &Base,
    (combo, survivors): (Combo, &Rows),
    plan: Plan,
    then: Then,
) -> Result<bool, String> {
    let database = base.copy().await;
    let load = Load {
        rate: 40,
        sessions: 2,
        late_by: Duration::from_secs(15 * 86_400),
        updates: 30,
        deletes: 10,
        ..Load::default()
    };
    let writer = Writer::start(&database.cluster().config(database.name()), &load, 3).await;
    writer.more(4).await;
    let ended = trial(database.cluster(), database.name(), plan, begin(combo)).await;
    let reached = ended.killed_at.is_some();
    if !reached && ended.ran.code != Some(0) {
        return Err(format!("not killed, and ended with {:?}: {}", ended.ran.code, ended.ran.stderr));
    }
    ends_well(&database, Case { base, combo, survivors, reached, then }).await?;
    writer.more(4).await;
    let written = writer.stop().await;
    if !written.errors.is_empty() {
        return Err(format!("a writer met an error: {}", written.summary()));
    }
    let complaints = written.verify(&database.client().await, |_| false).await;
    match complaints.is_empty() {
        true => Ok(reached),
        false => Err(format!("acknowledged writes: {complaints:?}")),
    }
}

/// A node writes, the reclaim is ended in one way or another, and all is as it
/// has to be.
async fn ends_well(database: &Database, case: Case<'_>) -> Result<(), String> {
    let Case { base, combo, survivors, reached, then } = case;
    let client = database.client().await;
    let phase = texts(&client, PHASE).await.pop();
    // A node's own writes to what was there: an update, a delete, a late op.
    let followed: bool = client.query_one(FOLLOWED, &[]).await.unwrap().get(0);
    let swapped = matches!(phase.as_deref(), Some("drop" | "done"));
    let [updated, deleted] = &texts(&client, NOBODYS).await[..] else { return Err("no op is left".into()) };
    let late = Ops::new(99).ulid_at(now_ms() - 60 * DAY_MS).to_string();
    client
        .batch_execute(&format!(
            "UPDATE ops SET core_tx_status = 'confirmed', core_tx_hash = 'x' WHERE ulid = '{updated}';
             DELETE FROM ops WHERE ulid = '{deleted}';
             INSERT INTO ops (ulid, host, action, \"table\", data)
             VALUES ('{late}', 'http://late.example', 'create', 'qm_audio_analyses', '[{{\"cid\": \"late\"}}]')"
        ))
        .await
        .map_err(|e| format!("a node's writes: {e:?}"))?;
    let followed = combo.mode == "swap" && (followed || swapped);
    let late_stays = followed || phase.is_none() || then != Then::Resume || combo.policy == "compact";
    // A daemon with a window cleans up by itself.
    let cleaned = then == Then::Neither && combo.policy == "window";

    if then == Then::Neither {
        let mut node = database.client().await;
        node_starts(&mut node, Generation::Newer).await?;
        let status = start(combo, &["status"], database.url()).output().await;
        let says = status.stdout.contains(&format!("mode {}, phase", combo.mode));
        if says != phase.is_some() {
            return Err(format!("in {phase:?} status says: {}", status.stdout));
        }
        let daemon = start(combo, &["run"], database.url()).spawn();
        daemon.ready().await;
        daemon.signal("TERM");
        daemon.exit().await;
    }
    let flag = if then == Then::Resume { "--resume" } else { "--abort" };
    let again = start(combo, &["reclaim", "--yes", "--pace", "full", flag], database.url()).output().await;
    let code = if phase.is_some() { 0 } else { 3 };
    if again.code != Some(code) {
        return Err(format!(
            "in {phase:?} {flag} ended with {:?}: {}{}",
            again.code, again.stdout, again.stderr
        ));
    }
    let now = rows(&client).await;
    let wrong = |what: &str, keys: Vec<&String>| match keys.first() {
        None => Ok(()),
        Some(first) => Err(format!("in {phase:?}: {} {what}, such as {first}", keys.len())),
    };
    let kept =
        |(ulid, row): (&String, &String)| now.get(ulid) == Some(row) || ulid == updated || ulid == deleted;
    let lost: Vec<_> = survivors.iter().filter(|one| !kept(*one)).map(|(ulid, _)| ulid).collect();
    wrong("survivors are lost or changed", lost)?;
    let doomed: Vec<_> = base.rows.keys().filter(|ulid| !survivors.contains_key(*ulid)).collect();
    let there: Vec<_> = doomed.iter().copied().filter(|ulid| now.contains_key(*ulid)).collect();
    let gone: Vec<_> = doomed.iter().copied().filter(|ulid| !now.contains_key(*ulid)).collect();
    let changed = there.iter().copied().filter(|ulid| now[*ulid] != base.rows[*ulid]).collect();
    wrong("ops that stayed are changed", changed)?;
    let done = match &phase {
        None => !reached || !gone.is_empty() && !cleaned,
        Some(_) => swapped || then == Then::Resume,
    };
    match (done, combo.mode) {
        (true, _) => wrong("ops are still there", there)?,
        (false, "swap") if !cleaned => wrong("ops went", gone)?,
        // In place what was deleted is deleted.
        _ => {}
    }
    if now.contains_key(deleted) {
        return Err(format!("{deleted} was deleted and is back"));
    }
    let sql = "SELECT core_tx_hash FROM ops WHERE ulid = ";
    if texts(&client, &format!("{sql}'{updated}'")).await != ["x"] {
        return Err(format!("the update of {updated} is lost"));
    }
    if late_stays && !cleaned && !now.contains_key(&late) {
        return Err(format!("in {phase:?}: the late op {late} is lost"));
    }
    let left = texts(&client, LEFT).await;
    if !left.is_empty() {
        return Err(format!("in {phase:?} after {flag} there is left: {left:?}"));
    }
    if schema(database) != base.schema {
        return Err("the schema is another".into());
    }
    let mut node = database.client().await;
    node_starts(&mut node, Generation::Newer).await?;
    Ok(())
}

/// A sample of a combination: spread evenly over the run.
async fn sampled(combo: Combo, count: usize, shift: usize) {
    let (base, (survivors, points)) = once_calm(combo).await;
    for n in 0..count {
        let point = &points[(2 * n + 1) * points.len() / (2 * count)];
        let (when, then) = ([When::Before, When::After][(n + shift) % 2], THENS[(n + shift) % 3]);
        let came = killed(base, (combo, survivors), Plan::kill(point, when), then).await;
        came.unwrap_or_else(|e| panic!("{combo:?} {when:?} {point:?} {then:?}: {e}"));
    }
}

#[tokio::test]
async fn a_swap_of_a_window() {
    sampled(COMBOS[0], 4, 0).await;
}

#[tokio::test]
async fn a_swap_of_what_is_compacted() {
    sampled(COMBOS[1], 3, 1).await;
}

#[tokio::test]
async fn in_place_a_window() {
    sampled(COMBOS[2], 2, 0).await;
}

#[tokio::test]
async fn in_place_what_is_compacted() {
    sampled(COMBOS[3], 2, 1).await;
}

/// The first range of the copy, and the swap itself: once they are committed,
/// so is that they are done.
#[tokio::test]
async fn an_effect_commits_with_its_checkpoint() {
    let (base, (survivors, _)) = once_calm(COMBOS[0]).await;
    // Of the first ranges nothing may survive, and the last one is copied twice where the
    // second session is behind.
    let copies = (1..=4).map(|n| ("INSERT INTO opsward.ops_next (", n));
    for (effect, n) in copies.chain([("RENAME TO ops_old", 1)]) {
        let at = Matcher::CommitOf(effect.into(), n);
        let plan = Plan::Stop { at, when: When::After, sessions: Sessions::Cut };
        let came = killed(base, (COMBOS[0], survivors), plan, Then::Resume).await;
        assert!(came == Ok(true) || n > 1 && came == Ok(false), "{effect} {n}: {came:?}");
    }
}

/// In the middle of the log: behind its first batch in either mode.
fn in_the_middle(when: When) -> Plan {
    let at = Matcher::Text("INSERT INTO opsward.reclaim (".into(), 4);
    Plan::Stop { at, when, sessions: Sessions::Hang }
}

#[tokio::test]
async fn a_second_one_is_refused_as_long_as_sessions_of_the_first_hang() {
    for combo in [COMBOS[0]] {
        let (base, (survivors, _)) = once_calm(combo).await;
        let database = base.copy().await;
        let wire = Wire::to(database.cluster()).await;
        let first = begin(combo)(wire.url(database.name())).spawn();
        let line = wire.run(in_the_middle(When::Before), |_| {});
        line.stopped().await;
        for args in
            [&["reclaim", "--yes", "--mode", combo.mode, "--policy", "window"][..], &["reclaim", "--resume"]]
        {
            let second = start(combo, args, database.url()).output().await;
            assert_eq!(second.code, Some(4), "{args:?}: {}{}", second.stdout, second.stderr);
            assert!(second.stderr.contains("the lease is held by"), "{}", second.stderr);
        }
        kill(first.pid());
        first.exit().await;
        line.release();
        line.sessions_ended(&database.client().await).await;
        let second = begin(combo)(database.url()).output().await;
        assert_eq!(second.code, Some(3), "{}", second.stderr);
        assert!(second.stderr.contains("--resume"), "{}", second.stderr);
        let case = Case { base, combo, survivors, reached: true, then: Then::Resume };
        ends_well(&database, case).await.unwrap();
    }
}

#[tokio::test]
async fn a_cut_connection_ends_it_and_it_is_resumed() {
    for combo in [COMBOS[0], COMBOS[2]] {
        let (base, (survivors, _)) = once_calm(combo).await;
        let database = base.copy().await;
        let wire = Wire::to(database.cluster()).await;
        let first = begin(combo)(wire.url(database.name())).spawn();
        let line = wire.run(in_the_middle(When::After), |_| {});
        line.stopped().await;
        line.release();
        let ran = first.ran().await;
        assert!(matches!(ran.code, Some(1 | 75)), "{:?}: {}", ran.code, ran.stderr);
        line.sessions_ended(&database.client().await).await;
        let case = Case { base, combo, survivors, reached: true, then: Then::Resume };
        ends_well(&database, case).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_stops_at_once_costs_nothing() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::private()));
    let base = Base::make(cluster).await;
    for combo in [COMBOS[0], COMBOS[2]] {
        let (survivors, _) = calm(&base, combo).await;
        let database = base.copy().await;
        let wire = Wire::to(cluster).await;
        let first = begin(combo)(wire.url(database.name())).spawn();
        let line = wire.run(in_the_middle(When::Before), |_| {});
        line.stopped().await;
        cluster.stop(Stop::Immediate);
        line.release();
        let ran = first.ran().await;
        assert!(matches!(ran.code, Some(1 | 75)), "{:?}: {}", ran.code, ran.stderr);
        cluster.start();
        let case = Case { base: &base, combo, survivors: &survivors, reached: true, then: Then::Resume };
        ends_well(&database, case).await.unwrap();
    }
    cluster.stop(Stop::Fast);
}

#[tokio::test]
#[ignore = "the full matrix takes long; the module says how to run it"]
async fn everywhere() {
    let every = std::env::var("KILLED_EVERY").map_or(1, |n| n.parse().unwrap());
    let base = Base::get().await;
    let (mut tried, mut reached, mut failed) = (0, 0, BTreeSet::new());
    for combo in COMBOS {
        let (survivors, points) = calm(base, combo).await;
        println!("{combo:?}: {} points", points.len());
        let cases = points.iter().flat_map(|p| [(p, When::Before), (p, When::After)]);
        let cases = cases.step_by(every).enumerate();
        let mut trials = futures_util::stream::iter(cases.map(|(n, (point, when))| {
            let (survivors, then) = (&survivors, THENS[n % 3]);
            async move {
                let came = killed(base, (combo, survivors), Plan::kill(point, when), then).await;
                (format!("{combo:?} {when:?} {point:?} {then:?}"), came)
            }
        }))
        .buffer_unordered(AT_ONCE);
        while let Some((what, came)) = trials.next().await {
            tried += 1;
            reached += u32::from(came == Ok(true));
            if let Err(why) = came {
                println!("FAILED {what}: {why}");
                failed.insert(what);
            }
            if tried % 20 == 0 {
                println!("{tried} tried, {reached} reached and passed, {} failed", failed.len());
            }
        }
    }
    println!("{tried} tried, {reached} reached and passed, {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}
