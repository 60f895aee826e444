//! A node that is upgraded twice while a daemon pulls, serves, prunes and
//! reclaims.

use super::*;
use crate::harness::daemon::Ran;

struct Bench {
    database: Database,
    node: ChainNode,
    daemon: Daemon,
    filled: i64,
}

impl Bench {
    fn start(&self, args: &[&str]) -> Start {
        configured(&self.database, args)
    }

    async fn number(&self, sql: &str) -> i64 {
        self.node.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }

    async fn pace(&self, percent: u8) {
        self.node
            .client
            .batch_execute(&format!("UPDATE opsward.pace SET percent = {percent}"))
            .await
            .unwrap();
    }

    /// Ops of 35 to 55 days ago, of records of their own.
    async fn fill(&mut self) {
        let from = self.filled;
        self.filled += 2_000;
        let sql = format!(
            "INSERT INTO ops (ulid, host, action, \"table\", data)
             SELECT opsward.ulid_at(now() - interval '55 d' + (n - {from}) * interval '20 d' / 2000) || lpad(n::text, 16, '0'),
                    'http://o.example', 'update', 'qm_audio_analyses',
                    jsonb_build_array(jsonb_build_object('cid', 'r' || n, 'error', repeat(md5(n::text), 20)))
             FROM generate_series({from} + 1, {from} + 2000) n"
        );
        assert_eq!(
            self.node.client.execute(&sql, &[]).await.unwrap(),
            2_000,
            "the guard lets new records pass"
        );
        let ran = self.start(&["census", "--full"]).output().await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }

    async fn old(&self) -> i64 {
        self.number("SELECT count(*) FROM ops WHERE host = 'http://o.example'").await
    }

    /// Runs a command through the daemon; once it is at it, the node does something.
    async fn beside(&mut self, args: &[&str], is_at_it: &str, does: impl AsyncFnOnce(&mut ChainNode)) -> Ran {
        self.pace(5).await;
        let command = self.start(args).spawn();
        let look = async {
            while self.number(is_at_it).await == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(120), look).await;
        waited.unwrap_or_else(|_| panic!("{args:?} never came to {is_at_it}:\n{}", command.log()));
        does(&mut self.node).await;
        self.pace(100).await;
        command.ran().await
    }

    /// The node reads the chain up to now.
    async fn reads(&mut self) {
        self.node.block(Timestamp::now(), &[]).await;
        self.node.look_again(&[], Timestamp::now()).await;
    }

    async fn is_by(&self, by: &str) {
        until(&self.daemon, "/metrics", &format!("opsward_node_replication{{by=\"{by}\"}} 1")).await;
        let page = http::get(self.daemon.public(), "/internal/crud/sweep?after=", &[]).await;
        assert_eq!(page.status, 200, "{by}: {}", page.text());
    }
}

fn configured(database: &Database, args: &[&str]) -> Start {
    start(database, args)
        .env("OPENAUDIO_MEDIORUM_PEERS", "")
        .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_SWEEP_INTERVAL", "10h")
        .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_BATCH_LIMIT", "100")
}

const SWAP: [&str; 4] = ["reclaim", "--policy=window", "--mode=swap", "--yes"];
const IN_PLACE: [&str; 4] = ["reclaim", "--policy=window", "--mode=in-place", "--yes"];
const AT_RECLAIM: &str = "SELECT count(*) FROM opsward.reclaim WHERE checkpoint::text ~ '\"(copy|delete)\"'";

#[tokio::test]
async fn a_node_is_upgraded_twice_beside_prune_and_reclaim() {
    let database = Database::of(Schema::A).await;
    database.migrated().await;
    let client = database.client().await;
    let is_gone = Arc::new(AtomicBool::new(false));
    let peer = Peer::scripted([]).await;
    let http_node = node_http(peer.url(), is_gone.clone()).await;
    let read = ulid_of(Timestamp::now() - SignedDuration::from_hours(1));
    let recent = format!(
        "INSERT INTO cursors VALUES ('{}', '{read}'); INSERT INTO opsward.pace (percent, set_at) VALUES (100, now());
         INSERT INTO ops SELECT opsward.ulid_at(now() - n * interval '1 h') || lpad(n::text, 16, '0'), 'http://r.example',
             'update', 'qm_audio_analyses', jsonb_build_array(jsonb_build_object('cid', 'recent' || n))
         FROM generate_series(2, 101) n",
        peer.url()
    );
    client.batch_execute(&recent).await.unwrap();
    let daemon = configured(&database, &["run"])
        .env("OPENAUDIO_MEDIORUM_NODE_URL", http_node.url())
        .env("OPENAUDIO_MEDIORUM_SWEEP_INTERVAL", "10s")
        .spawn();
    daemon.ready().await;
    peer.asked(1).await;
    let node = ChainNode { client, chain_id: "mainnet-1".into(), height: 1_000 };
    let mut bench = Bench { database, node, daemon, filled: 0 };
    bench.is_by("peers").await;

    // A becomes B while a swap copies: it waits until the node has read the chain.
    bench.fill().await;
    let ran = bench.beside(&SWAP, AT_RECLAIM, async |node| upgrade_to_b(&node.client).await).await;
    assert!(ran.code == Some(3) && ran.stderr.contains("core_blocks is empty"), "{ran:?}");
    assert_eq!(bench.old().await, 2_000);
    bench.reads().await;
    bench.is_by("both").await;
    let ran = bench.start(&["reclaim", "--resume", "--yes"]).output().await;
    assert_eq!((ran.code, bench.old().await), (Some(0), 0), "{ran:?}");
    let column = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('public.ops_core_pending_idx') AND indisvalid";
    assert_eq!(bench.number(column).await, 1);

    // B becomes C in the middle of a prune: it goes on below the cut that it had.
    bench.fill().await;
    bench.reads().await;
    let at_prune = "SELECT count(*) FROM (SELECT count(*) FROM ops WHERE host = 'http://o.example') q WHERE count < 2000";
    let ran = bench
        .beside(&["prune"], at_prune, async |node| {
            is_gone.store(true, Ordering::SeqCst);
            node.starts().await;
        })
        .await;
    assert_eq!((ran.code, bench.old().await), (Some(0), 0), "{ran:?}");
    bench.is_by("chain").await;

    // C is started again while rows move.
    bench.fill().await;
    bench.reads().await;
    let ran = bench.beside(&IN_PLACE, AT_RECLAIM, async |node| node.starts().await).await;
    assert_eq!((ran.code, bench.old().await), (Some(0), 0), "{ran:?}");
    let recent = "SELECT count(*) FROM ops WHERE host = 'http://r.example'";
    assert_eq!(bench.number(recent).await, 100);
    assert_eq!(bench.number("SELECT last_value FROM opsward.guard_failed").await, 0);
    assert!(!bench.daemon.log().contains("ERROR"), "{}", bench.daemon.log());
}
