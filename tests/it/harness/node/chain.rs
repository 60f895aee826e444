//! A node whose ops come by the chain, as the database sees it: blocks, the
//! syncer's second look, the submitter, the pruner, a state sync, a new chain.

use super::startup::{Json, said};
use crate::harness::Database;
use jiff::Timestamp;
use opsward::values::OpUlid;
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

/// Its host, as its own ops name it.
pub const HOST: &str = "http://node.example";
const NEW_COLUMNS: [&str; 5] = [
    "core_tx_hash text",
    "core_tx_status text",
    "core_tx_error text",
    "core_attempted_at timestamptz",
    "core_confirmed_at timestamptz",
];
const PENDING_INDEX: &str = "CREATE INDEX CONCURRENTLY IF NOT EXISTS ops_core_pending_idx \
    ON ops(host, core_tx_status, ulid) WHERE core_tx_status IN ('pending','error')";
const CREATE_OPS: &str = r#"CREATE TABLE IF NOT EXISTS ops
    (ulid text PRIMARY KEY, host text, action text, "table" text, data jsonb)"#;
const CORE_BLOCKS: &str = "CREATE TABLE IF NOT EXISTS core_blocks (
    rowid bigserial PRIMARY KEY, height bigint NOT NULL, chain_id text NOT NULL, hash text NOT NULL,
    proposer text NOT NULL, created_at timestamp NOT NULL, UNIQUE (height, chain_id))";
const INSERT: &str = r#"INSERT INTO ops (ulid, host, action, "table", data, core_tx_status)
    VALUES ($1, $2, $3, 'qm_audio_analyses', $4, $5) ON CONFLICT DO NOTHING"#;
const UPSERT: &str = "INSERT INTO qm_audio_analyses
        (cid, mirrors, status, error_count, analyzed_by, analyzed_at, results, error)
    VALUES ($1, '[]', $2, 0, '', now(), NULL, '')
    ON CONFLICT (cid) DO UPDATE SET status = excluded.status";
const BLOCK: &str = "INSERT INTO core_blocks (height, chain_id, hash, proposer, created_at)
    VALUES ($1, $2, '', '', $3::timestamptz AT TIME ZONE 'UTC') ON CONFLICT DO NOTHING";
const SECOND_LOOK: &str = "UPDATE ops SET core_tx_hash = $2, core_tx_status = 'confirmed',
    core_confirmed_at = $3 WHERE ulid = $1 AND core_confirmed_at IS NULL";
const CURSOR: &str = "INSERT INTO cursors VALUES ('core_mediorum_blocks', $1)
    ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid";
const SUBMITTED: &str = "UPDATE ops SET core_attempted_at = now(),
        core_tx_status = CASE WHEN length(data::text) > 65536 THEN 'rejected' ELSE 'confirmed' END,
        core_confirmed_at = CASE WHEN length(data::text) > 65536 THEN NULL ELSE now() END
    WHERE ulid IN (SELECT ulid FROM ops WHERE host = $1 AND core_tx_status IN ('pending', 'error')
                   ORDER BY ulid LIMIT 100)";
const PRUNE: &str =
    "DELETE FROM ops WHERE ulid IN (SELECT ulid FROM ops WHERE ulid < $1 ORDER BY ulid LIMIT 20000)";

/// An op that comes by a block: its ULID, its record's key, what it sets.
pub type ChainOp<'a> = (OpUlid, &'a str, &'a str);

/// One of them, on one session.
pub struct ChainNode {
    pub client: Client,
    pub chain_id: String,
    pub height: i64,
}

impl ChainNode {
    /// On a database that may be of any generation: its first start makes it
    /// what it needs.
    pub async fn start(database: &Database) -> Self {
        let client = database.client().await;
        let node = Self { client, chain_id: "mainnet-1".into(), height: 1_000 };
        node.starts().await;
        node
    }

    /// What it runs at every start.
    pub async fn starts(&self) {
        upgrade_to_b(&self.client).await;
        upgrade_to_c(&self.client).await;
    }

    async fn run(&self, sql: &str) {
        run(&self.client, sql).await;
    }

    /// A block is finalised: each op that is new is stored and applied. The
    /// syncer's second look comes apart, some seconds later.
    pub async fn block(&mut self, at: Timestamp, ops: &[ChainOp<'_>]) -> u64 {
        self.height += 1;
        self.client.execute(BLOCK, &[&self.height, &self.chain_id, &at]).await.unwrap();
        self.execute_again(ops).await
    }

    /// The ops of a block are executed, for the first time or again; says how
    /// many were new.
    pub async fn execute_again(&mut self, ops: &[ChainOp<'_>]) -> u64 {
        let mut new = 0;
        for op in ops {
            new += self.execute(*op).await.unwrap();
        }
        new
    }

    /// As [`Self::block`], of one op, where it may fail.
    pub async fn tries(&mut self, at: Timestamp, op: ChainOp<'_>) -> Result<u64, String> {
        self.block(at, &[]).await;
        self.execute(op).await.map_err(|e| said(&e))
    }

    async fn execute(&mut self, (ulid, cid, status): ChainOp<'_>) -> Result<u64, tokio_postgres::Error> {
        let data = json!([{"cid": cid, "status": status}]);
        let tx = self.client.transaction().await?;
        let ulid = ulid.as_str();
        let values: [&(dyn ToSql + Sync); 5] =
            [&ulid, &"http://other.example", &"update", &Json(&data), &"confirmed"];
        let new = tx.execute(INSERT, &values).await?;
        if new == 1 {
            tx.execute(UPSERT, &[&cid, &status]).await?;
        }
        tx.commit().await?;
        Ok(new)
    }

    /// The syncer reads what the blocks brought again, and says how far it is.
    pub async fn look_again(&self, ops: &[ChainOp<'_>], at: Timestamp) {
        for (ulid, ..) in ops {
            self.client.execute(SECOND_LOOK, &[&ulid.as_str(), &"hash", &at]).await.unwrap();
        }
        self.client.execute(CURSOR, &[&self.height.to_string()]).await.unwrap();
    }

    /// An own write, stored and applied at once, owed until the submitter
    /// comes.
    pub async fn writes(&self, ulid: OpUlid, data: &Value) {
        let values: [&(dyn ToSql + Sync); 5] = [&ulid.as_str(), &HOST, &"create", &Json(data), &"pending"];
        self.client.execute(INSERT, &values).await.unwrap();
    }

    /// The submitter's round.
    pub async fn submits(&self) {
        self.client.execute(SUBMITTED, &[&HOST]).await.unwrap();
    }

    /// The pruner's run: from the left edge, nothing spared.
    pub async fn prunes(&self, before: OpUlid) -> u64 {
        let mut gone = 0;
        loop {
            match self.client.execute(PRUNE, &[&before.as_str()]).await.unwrap() {
                0 => return gone,
                rows => gone += rows,
            }
        }
    }

    /// A state sync: every table of the schema public emptied, `load` put in
    /// while they are UNLOGGED.
    pub async fn state_sync(&self, load: &str) {
        self.run(
            "DO $$ DECLARE t regclass; BEGIN
                 FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
                 LOOP EXECUTE format('TRUNCATE %s CASCADE', t); END LOOP;
             END $$;
             ALTER TABLE ops SET UNLOGGED",
        )
        .await;
        self.run(load).await;
        self.run("ALTER TABLE ops SET LOGGED").await;
    }

    /// A new chain, whose heights begin anew; the cursor stays where it was.
    pub async fn changes_chain(&mut self, id: &str, at: Timestamp) {
        (self.chain_id, self.height) = (id.into(), 5_800);
        self.block(at, &[]).await;
    }
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// What the first start of a node with a chain makes of an older database.
pub async fn upgrade_to_b(client: &Client) {
    let columns: String =
        NEW_COLUMNS.iter().map(|c| format!("; ALTER TABLE ops ADD COLUMN IF NOT EXISTS {c}")).collect();
    run(client, &format!("BEGIN; {CREATE_OPS}{columns}; COMMIT")).await;
    run(client, PENDING_INDEX).await;
    run(client, CORE_BLOCKS).await;
}

/// The same of a node whose ops come by the chain alone.
pub async fn upgrade_to_c(client: &Client) {
    run(client, "ALTER TABLE uploads ADD COLUMN IF NOT EXISTS user_id bigint").await;
}
