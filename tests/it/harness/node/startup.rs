//! What a node runs against `ops` and the record tables when it starts.

use opsward::values::OpUlid;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

/// The SQL of a node's ORM, as it was recorded.
const STATEMENTS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/node-statements.txt"));
/// Tables that the node migrates at every start.
const TABLES: [&str; 6] =
    ["ops", "cursors", "uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"];

/// The ORM's look whether it has to create a table.
const HAS_TABLE: &str = "SELECT count(*) FROM information_schema.tables
    WHERE table_schema = CURRENT_SCHEMA() AND table_name = $1 AND table_type = 'BASE TABLE'";
/// Its look at the columns: what differs from its model, it alters.
const COLUMNS: &str = "SELECT column_name::text, udt_name::text, is_nullable::text
    FROM information_schema.columns
    WHERE table_catalog = current_database() AND table_schema = CURRENT_SCHEMA() AND table_name = $1
    ORDER BY ordinal_position";
/// Its look at the primary key.
const KEY: &str = "SELECT c.column_name::text
    FROM information_schema.table_constraints tc
    JOIN information_schema.constraint_column_usage AS ccu
      USING (constraint_schema, constraint_catalog, table_name, constraint_name)
    JOIN information_schema.columns AS c ON c.table_schema = tc.constraint_schema
      AND tc.table_name = c.table_name AND ccu.column_name = c.column_name
    WHERE constraint_type = 'PRIMARY KEY' AND c.table_catalog = current_database()
      AND c.table_schema = CURRENT_SCHEMA() AND c.table_name = $1";
const OPS_1: &str = "SELECT oid::regclass::text FROM pg_class WHERE relname = 'ops_1'";
const CREATE_OPS: &str = r#"CREATE TABLE IF NOT EXISTS "ops"
    ("ulid" text, "host" text, "action" text, "table" text, "data" jsonb, PRIMARY KEY ("ulid"))"#;
const NEW_COLUMNS: &str = r#"ALTER TABLE "ops"
    ADD COLUMN IF NOT EXISTS "core_tx_hash" text, ADD COLUMN IF NOT EXISTS "core_tx_status" text,
    ADD COLUMN IF NOT EXISTS "core_tx_error" text, ADD COLUMN IF NOT EXISTS "core_attempted_at" timestamptz,
    ADD COLUMN IF NOT EXISTS "core_confirmed_at" timestamptz"#;
/// Its core has made the table of blocks, and its syncer has read the newest.
const READS_THE_CHAIN: &str = "CREATE TABLE IF NOT EXISTS core_blocks (
        rowid bigserial PRIMARY KEY, height bigint NOT NULL, chain_id text NOT NULL, hash text NOT NULL,
        proposer text NOT NULL, created_at timestamp NOT NULL, UNIQUE (height, chain_id));
    INSERT INTO core_blocks (height, chain_id, hash, proposer, created_at)
    SELECT coalesce(max(height), 0) + 1, 'main', '', '', now() AT TIME ZONE 'UTC' FROM core_blocks;
    INSERT INTO cursors SELECT 'core_mediorum_blocks', max(height)::text FROM core_blocks
    ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid";
const HAS_NEW_COLUMNS: &str = "SELECT column_name::text FROM information_schema.columns
    WHERE table_schema = CURRENT_SCHEMA() AND table_name = 'ops' AND column_name LIKE 'core\\_%'";
/// The name and the columns are ours: what matters is that it is built, and
/// that it is found again.
const NEW_INDEX: &str =
    r#"CREATE INDEX CONCURRENTLY IF NOT EXISTS "idx_ops_host_ulid" ON "ops" ("host", "ulid")"#;
const INVALID: &str = "SELECT indexrelid::regclass::text FROM pg_index
    WHERE indrelid = 'public.ops'::regclass AND NOT indisvalid";
const INSERT: &str = r#"INSERT INTO "ops" ("ulid","host","action","table","data") VALUES ($1,$2,$3,$4,$5) ON CONFLICT DO NOTHING"#;
const RECORD: &str = r#"INSERT INTO "audio_previews" ("cid","source_c_id","preview_start_seconds","created_by","created_at") VALUES ($1,$2,$3,$4,$5) ON CONFLICT DO NOTHING"#;
const SWEEP: &str = r#"SELECT * FROM "ops" WHERE ulid > $1 ORDER BY ulid LIMIT 10000"#;

/// Which node starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Generation {
    /// The one that the fixtures are of: five columns.
    Recorded,
    /// Newer ones: columns for the chain, and an index at every start.
    Newer,
}

/// What a start took.
#[derive(Debug)]
pub struct Startup {
    /// Each statement (its beginning) and how long it took, waiting included.
    pub took: Vec<(String, Duration)>,
    /// The op that the node wrote.
    pub wrote: OpUlid,
}

impl Startup {
    /// The statement that took longest.
    pub fn longest(&self) -> &(String, Duration) {
        self.took.iter().max_by_key(|(_, took)| *took).expect("a start has statements")
    }
}

/// Starts a node of a generation: looks at its tables as its ORM does, makes
/// what its generation makes, writes an op with its record, and sweeps.
///
/// # Errors
/// With a sentence on what would have made the node alter, rewrite or panic.
pub async fn node_starts(client: &mut Client, generation: Generation) -> Result<Startup, String> {
    let mut start = Start { client, took: Vec::new() };
    for table in TABLES {
        start.model(table).await?;
    }
    let ops_1 = start.texts(OPS_1, &[]).await?;
    if !ops_1.is_empty() {
        return Err(format!("the node would rewrite ops: there is {ops_1:?}"));
    }
    start.run(CREATE_OPS).await?;
    if generation == Generation::Newer {
        // The ORM alters only what is missing.
        if start.texts(HAS_NEW_COLUMNS, &[]).await?.len() < 5 {
            start.run(NEW_COLUMNS).await?;
        }
        start.run(READS_THE_CHAIN).await?;
        start.run(NEW_INDEX).await?;
    }
    let invalid = start.texts(INVALID, &[]).await?;
    if !invalid.is_empty() {
        return Err(format!("ops has invalid indexes: {invalid:?}"));
    }
    // All that its ORM sends is still something that can be prepared.
    let recorded: BTreeSet<&str> =
        STATEMENTS.lines().filter_map(|l| Some(l.split_once(" | vars=")?.0)).collect();
    for sql in recorded {
        start.timed(sql, start.client.prepare(sql)).await.map(|(_, took)| start.took.push(took))?;
    }
    let wrote = start.writes().await?;
    Ok(Startup { took: start.took, wrote })
}

struct Start<'a> {
    client: &'a mut Client,
    took: Vec<(String, Duration)>,
}

type Took = (String, Duration);

impl Start<'_> {
    async fn timed<T>(
        &self,
        sql: &str,
        done: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<(T, Took), String> {
        let (begun, label) = (Instant::now(), sql.chars().take(80).collect::<String>());
        let done = done.await.map_err(|e| format!("{label}: {}", said(&e)))?;
        Ok((done, (label, begun.elapsed())))
    }

    async fn run(&mut self, sql: &str) -> Result<(), String> {
        let ((), took) = self.timed(sql, self.client.batch_execute(sql)).await?;
        self.took.push(took);
        Ok(())
    }

    async fn rows(
        &mut self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, String> {
        let (rows, took) = self.timed(sql, self.client.query(sql, values)).await?;
        self.took.push(took);
        Ok(rows)
    }

    async fn texts(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<String>, String> {
        Ok(self.rows(sql, values).await?.iter().map(|row| row.get(0)).collect())
    }

    /// The ORM's comparison of a table with its model.
    async fn model(&mut self, table: &str) -> Result<(), String> {
        let count = self.rows(HAS_TABLE, &[&table]).await?;
        if count[0].get::<_, i64>(0) != 1 {
            return Err(format!("the node finds no plain table {table} and would create it"));
        }
        self.rows(&format!(r#"SELECT * FROM "{table}" LIMIT 1"#), &[]).await?;
        let key: BTreeSet<String> = self.texts(KEY, &[&table]).await?.into_iter().collect();
        let columns = self.rows(COLUMNS, &[&table]).await?;
        let columns: Vec<[String; 3]> = columns.iter().map(|c| [c.get(0), c.get(1), c.get(2)]).collect();
        if table != "ops" {
            return Ok(());
        }
        if key != BTreeSet::from(["ulid".to_owned()]) {
            return Err(format!("the primary key of ops is {key:?}"));
        }
        let model = [("ulid", "text", "NO"), ("host", "text", "YES"), ("action", "text", "YES")];
        let model = model.into_iter().chain([("table", "text", "YES"), ("data", "jsonb", "YES")]);
        for (place, (name, kind, nullable)) in model.enumerate() {
            if columns.get(place).is_none_or(|c| c != &[name, kind, nullable]) {
                return Err(format!("the node would alter ops: column {place} is not {name}: {columns:?}"));
            }
        }
        Ok(())
    }

    /// An op with its record in one transaction, the same op again (a
    /// duplicate), and a sweep that finds it.
    async fn writes(&mut self) -> Result<OpUlid, String> {
        let now = opsward::clock::Clock::System.now_ms();
        let ulid = OpUlid::from_parts(now, u128::from(fastrand::u64(..)));
        let cid = format!("start-{ulid}");
        let data = serde_json::json!([{"cid": cid}]);
        let (ulid_text, host) = (ulid.as_str(), "http://node.example");
        self.run("BEGIN").await?;
        let insert: [&(dyn ToSql + Sync); 5] =
            [&ulid_text, &host, &"create", &"audio_previews", &Json(&data)];
        let mut counts = Vec::new();
        for _ in 0..2 {
            let (count, took) = self.timed(INSERT, self.client.execute(INSERT, &insert)).await?;
            self.took.push(took);
            counts.push(count);
        }
        let at: Option<jiff::Timestamp> = None;
        let record: [&(dyn ToSql + Sync); 5] = [&cid, &"", &"", &host, &at];
        self.rows(RECORD, &record).await?;
        self.run("COMMIT").await?;
        if counts != [1, 0] {
            return Err(format!("a new op and its duplicate were {counts:?} rows"));
        }
        let before = OpUlid::from_parts(now - 1, u128::MAX);
        let page = self.rows(SWEEP, &[&before.as_str()]).await?;
        if !page.iter().any(|row| row.get::<_, &str>("ulid") == ulid_text) {
            return Err(format!("the sweep does not find {ulid}"));
        }
        Ok(ulid)
    }
}

/// JSON as a jsonb parameter.
#[derive(Debug)]
pub(super) struct Json<'a>(pub &'a serde_json::Value);

impl ToSql for Json<'_> {
    fn to_sql(
        &self,
        _: &tokio_postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        // The binary form of jsonb: a version, then text.
        out.extend_from_slice(&[1]);
        out.extend_from_slice(self.0.to_string().as_bytes());
        Ok(tokio_postgres::types::IsNull::No)
    }

    fn accepts(kind: &tokio_postgres::types::Type) -> bool {
        *kind == tokio_postgres::types::Type::JSONB
    }

    tokio_postgres::types::to_sql_checked!();
}

/// The server's own words, with their SQLSTATE.
pub(super) fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(words) => format!("{} {}", words.code().code(), words.message()),
        None => error.to_string(),
    }
}
