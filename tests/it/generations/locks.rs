//! The node's blocks and our locks.

use super::*;
use opsward::db::lease::Lease;
use opsward::db::short_lock::{Behind, briefly};
use tokio::sync::watch;
use tokio::time::Instant;

/// Whichever task takes them, locks share the time that writers may wait.
#[tokio::test]
async fn a_lock_waits_for_the_second_of_the_one_before() {
    let database = Database::of(Schema::C).await;
    let db = database.migrated().await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        // Each a turn of another task; whether it is in time does not matter.
        let mut lease = Lease::take(&db).await.unwrap().unwrap();
        let lock = "LOCK TABLE public.ops IN SHARE ROW EXCLUSIVE MODE";
        let tried = briefly(&mut lease, (&["public.ops"], Behind::Writers), async |tx| {
            begun.push(Instant::now());
            tx.batch_execute(lock).await.unwrap();
            tokio::time::sleep(Duration::from_millis(110)).await;
            Ok(())
        });
        tried.await.unwrap();
    }
    let apart = begun[1] - begun[0];
    assert!(apart > Duration::from_millis(1_100), "{apart:?}");
}

/// Blocks until it is told to stop: how long each insert took, and what failed.
async fn blocks(mut node: ChainNode, mut stop: watch::Receiver<bool>) -> (Vec<Duration>, Vec<String>) {
    let (mut took, mut failed) = (Vec::new(), Vec::new());
    while !*stop.borrow_and_update() {
        let now = Timestamp::now();
        let ulid = OpUlid::from_parts(ulid_of(now).ms(), took.len() as u128);
        let begun = Instant::now();
        match node.tries(now, (ulid, "one", "new")).await {
            Ok(1) => {}
            other => failed.push(format!("{ulid}: {other:?}")),
        }
        took.push(begun.elapsed());
        node.look_again(&[(ulid, "one", "new")], now).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (took, failed)
}

/// Sessions of ours that hold a lock on the log that its writers wait for, or wait for
/// one: they are queued behind it then.
const STRONG: &str = "
    SELECT extract(epoch FROM clock_timestamp())::float8, count(DISTINCT l.pid), coalesce(string_agg(l.mode, ' '), '')
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.relation = to_regclass('public.ops') AND a.application_name LIKE 'opsward%'
      AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')";

/// What was seen of them: the stretches in which there was one (seconds), and where there
/// was more than one.
#[derive(Default)]
struct Strong {
    stretches: Vec<(f64, f64)>,
    several: Vec<String>,
}

impl Strong {
    async fn watch(client: Client, mut stop: watch::Receiver<bool>) -> Self {
        let (mut seen, mut since) = (Self::default(), None);
        while !*stop.borrow_and_update() {
            let row = client.query_one(STRONG, &[]).await.unwrap();
            let (at, sessions, modes): (f64, i64, String) = (row.get(0), row.get(1), row.get(2));
            if sessions > 1 {
                seen.several.push(modes);
            }
            match (sessions, since) {
                (0, Some(from)) => {
                    seen.stretches.push((from, at));
                    since = None;
                }
                (1.., None) => since = Some(at),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        seen
    }

    /// The most that they took of any second that begins with one of them.
    fn worst_second(&self) -> Duration {
        let within = |from: f64| -> f64 {
            let of = |(begin, end): &(f64, f64)| (end.min(from + 1.0) - begin.max(from)).max(0.0);
            self.stretches.iter().map(of).sum()
        };
        let worst = self.stretches.iter().map(|(from, _)| within(*from)).fold(0.0, f64::max);
        Duration::from_secs_f64(worst)
    }
}

/// Ops of 60 days, half of them older than the window.
const LOG: &str = "INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status)
    SELECT opsward.ulid_at(now() - interval '60 d' + n * interval '8 min') || lpad(n::text, 16, '0'), 'http://o.example',
               'update', 'qm_audio_analyses', jsonb_build_array(jsonb_build_object('cid', n, 'error',
               (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 40) i))), 'confirmed'
        FROM generate_series(1, 10000) n";

/// Guard on and off, an index, deletions, a swap and a reclaim in place, one
/// after the other and all at once, while a node makes blocks.
async fn whatever_we_do() -> Strong {
    let database = Database::of(Schema::C).await;
    database.migrated().await;
    let client = database.client().await;
    let (stop, stopped) = watch::channel(false);
    let node = tokio::spawn(blocks(ChainNode::start(&database).await, stopped.clone()));
    let strong = tokio::spawn(Strong::watch(database.client().await, stopped));
    let settled = "SELECT (SELECT count(*) = $1 FROM pg_trigger WHERE tgname = 'opsward_replay_guard')
        AND EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.opsward_ops_table_ulid') AND indisvalid)";
    for (guard, mode) in [("true", "--mode=swap"), ("false", "--mode=in-place")] {
        let daemon = start(&database, &["run"])
            .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", guard)
            .env("OPENAUDIO_MEDIORUM_ENSURE_OPS_TABLE_INDEX", "true")
            .env("OPENAUDIO_MEDIORUM_NODE_URL", "http://127.0.0.1:9")
            .spawn();
        daemon.ready().await;
        // Whoever comes first leaves the others nothing to do; on a slow machine one gives
        // up and is told to try again. None of that is this test's.
        let done = async |args: &[&str]| {
            let ran = start(&database, args).output().await;
            println!("{args:?}: {:?} {}", ran.code, ran.stderr.lines().last().unwrap_or(""));
        };
        while !client.query_one(settled, &[&i64::from(guard == "true")]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.batch_execute(LOG).await.unwrap();
        done(&["census", "--full", "--pace", "full"]).await;
        let args = ["reclaim", "--policy=window", mode, "--yes", "--pace", "full", "--wait"];
        tokio::join!(done(&args), done(&["prune", "--pace", "full", "--wait"]));
        daemon.signal("TERM");
        daemon.exit().await;
        client.batch_execute("DELETE FROM ops WHERE host = 'http://o.example' AND ulid > opsward.ulid_at(now() - interval '29 d')").await.unwrap();
        let left = "SELECT count(*) FROM ops WHERE host = 'http://o.example' AND ulid < opsward.ulid_at(now() - interval '31 d')";
        assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0, "{mode}");
    }
    stop.send(true).unwrap();
    let (mut took, failed) = node.await.unwrap();
    let strong = strong.await.unwrap();
    took.sort();
    println!(
        "{} blocks: the median took {:?}, the slowest {:?}; {} locks that writers wait for, {:?} of the worst second",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1],
        strong.stretches.len(),
        strong.worst_second()
    );
    assert_eq!(failed, Vec::<String>::new());
    let sql = "SELECT count(*) FROM ops WHERE host = 'http://other.example'";
    let there: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(there, took.len() as i64);
    strong
}

#[tokio::test]
async fn no_insert_of_the_nodes_fails_whatever_we_do() {
    let strong = whatever_we_do().await;
    assert!(!strong.stretches.is_empty(), "triggers, a rename, the end of a file: each takes a lock");
    assert_eq!(strong.several, Vec::<String>::new(), "one at a time");
}

#[tokio::test]
#[ignore = "timed: on a quiet machine"]
async fn locks_take_200_ms_of_any_second() {
    let worst = whatever_we_do().await.worst_second();
    assert!(worst <= Duration::from_millis(210), "{worst:?}");
}
