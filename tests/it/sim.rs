//! The simulated fleet's first node on a real database: what the model says
//! of applying, deleting, floors, traces and the guard is what the functions
//! and statements do.

#[path = "../sim/bug.rs"]
mod bug;
#[path = "../sim/chain.rs"]
mod chain;
#[path = "../sim/claims.rs"]
mod claims;
#[path = "../sim/glue.rs"]
mod glue;
#[path = "../sim/model.rs"]
mod model;
#[path = "../sim/plan.rs"]
mod plan;
#[path = "../sim/world.rs"]
mod world;

use crate::harness::Database;
use crate::work;
use glue::BATCH;
use jiff::Timestamp;
use model::{Kind, PREVIEWS, SIZES, TABLES, Taped, U, UPLOADS, ulid};
use opsward::bound::guard;
use opsward::db::Db;
use opsward::db::foreign;
use opsward::db::lease::Lease;
use opsward::db::prune::{self, Doomed, Locked, Range, Run, TableCut};
use opsward::pull::apply::{Fitting, apply};
use opsward::records::models;
use opsward::values::{Action, Op, OpUlid};
use plan::{Mix, What, plan};
use std::collections::BTreeSet;
use tokio_postgres::Client;
use world::World;

struct Bench {
    _database: Database,
    db: Db,
    node: Client,
    lease: Lease,
}

const EMPTY: &str = "
    TRUNCATE ops, uploads, audio_previews, storage_and_db_sizes, opsward.floors, opsward.traces, opsward.history;
    UPDATE opsward.watermark SET ulid = ''";
/// What a node does with an op, in one statement: its records if it was new.
const SWEPT: &str = r#"
    WITH op AS (INSERT INTO ops (ulid, host, action, "table", data)
                VALUES ($1, 'h', $2, $3, $4::text::jsonb) ON CONFLICT DO NOTHING RETURNING data)
    SELECT count(*) FROM op"#;

const IN_BLOCK: &str = "UPDATE ops SET core_tx_status = 'confirmed', core_confirmed_at = $2
    WHERE ulid = $1 AND core_confirmed_at IS NULL";
const KNOWN_AS: &str =
    "INSERT INTO opsward.node (replication, why, since, looked_at) VALUES ($1, '', now(), now())
    ON CONFLICT (one) DO UPDATE SET replication = excluded.replication";

impl Bench {
    async fn new() -> Self {
        let database = Database::new().await;
        let (db, node) = (database.migrated().await, database.client().await);
        node.batch_execute(
            "ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_status text,
                 ADD COLUMN IF NOT EXISTS core_confirmed_at timestamptz",
        )
        .await
        .unwrap();
        let mut lease = Lease::take(&db).await.unwrap().unwrap();
        guard::ensure(&work::on(&db, |_| {}), &mut lease).await.unwrap();
        Self { _database: database, db, node, lease }
    }

    async fn text(&self, sql: &str) -> Vec<String> {
        self.node
            .query(sql, &[])
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"))
            .iter()
            .map(|r| r.get(0))
            .collect()
    }

    /// An op as a node applies it.
    async fn swept(&self, world: &World, op: u32) {
        let of = world.op(op);
        let data = data(world, op);
        let (ulid, action, table) = (ulid(of.u).to_string(), of.action.word(), TABLES[usize::from(of.table)]);
        let new: i64 = self.node.query_one(SWEPT, &[&ulid, &action, &table, &data]).await.unwrap().get(0);
        if new == 0 {
            return;
        }
        let (columns, key, values) = match of.table {
            UPLOADS => ("id, status", "id", "r->>'id', r->>'status'"),
            PREVIEWS => ("cid, source_c_id", "cid", "r->>'CID', r->>'SourceCID'"),
            _ => (
                "logged_at, storage_backend, db_used, mediorum_disk_used, mediorum_disk_size, \
                 last_repair_size, last_cleanup_size, host",
                "host",
                "(r->>'LoggedAt')::timestamptz, '', 0, 0, 0, 0, 0, r->>'Host'",
            ),
        };
        let last = columns.split(", ").last().unwrap();
        let records = "FROM jsonb_array_elements($1::text::jsonb) r";
        let sql = match of.action {
            Action::Delete => format!(
                "DELETE FROM {table} WHERE {key} IN (SELECT {} {records})",
                values.split(',').next().unwrap()
            ),
            Action::Create => {
                format!("INSERT INTO {table} ({columns}) SELECT {values} {records} ON CONFLICT DO NOTHING")
            }
            Action::Update => format!(
                "INSERT INTO {table} ({columns}) SELECT {values} {records} ON CONFLICT ({key}) DO UPDATE SET {last} = excluded.{last}"
            ),
        };
        self.node.execute(&sql, &[&data]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    async fn play(&mut self, world: &World, taped: &Taped) {
        let now = Timestamp::from_second(1_760_000_000).unwrap();
        match taped {
            Taped::Wrote { op, owed } => {
                self.swept(world, *op).await;
                if *owed {
                    let sql = "UPDATE ops SET core_tx_status = 'pending' WHERE ulid = $1";
                    self.node.execute(sql, &[&ulid(world.op(*op).u).as_str()]).await.unwrap();
                }
            }
            Taped::Swept { op } => self.swept(world, *op).await,
            Taped::Confirmed => {
                self.node.batch_execute("UPDATE ops SET core_tx_status = 'confirmed'").await.unwrap()
            }
            Taped::Pulled { ops } => {
                let fitting = ops.iter().map(|op| {
                    let of = world.op(*op);
                    let made = Op {
                        ulid: ulid(of.u),
                        host: "h".into(),
                        action: of.action,
                        table: TABLES[usize::from(of.table)].into(),
                        data: data(world, *op).into(),
                    };
                    let model = models().get(&made.table).unwrap();
                    Fitting::new(made, model, now).unwrap()
                });
                let fitting: Vec<Fitting> = fitting.collect();
                let outcome = apply(&mut self.db.client().await.unwrap(), &fitting, now).await.unwrap();
                assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
            }
            Taped::Batch { from, cuts } => self.batch(*from, cuts, now).await,
            Taped::InBlock { op, at } => {
                let at = Timestamp::from_millisecond(*at as i64).unwrap();
                self.node.execute(IN_BLOCK, &[&ulid(world.op(*op).u).as_str(), &at]).await.unwrap();
            }
            Taped::NodePruned { below } => {
                let below = OpUlid::first_of_ms(*below);
                self.node.execute("DELETE FROM ops WHERE ulid < $1", &[&below.as_str()]).await.unwrap();
            }
            Taped::SeenPruned { floor } => {
                let tables: Vec<&str> = models().iter().map(|model| model.table.as_str()).collect();
                let client = self.db.client().await.unwrap();
                foreign::raise(&client, &tables, OpUlid::first_of_ms(*floor), now).await.unwrap();
            }
        }
    }

    async fn batch(&mut self, from: U, cuts: &[Option<U>; 3], now: Timestamp) {
        let cut = |t: usize| {
            Some(TableCut {
                table: TABLES[t].into(),
                below: OpUlid::first_of_ms(cuts[t]?),
                bound_by: "age".into(),
            })
        };
        let cuts: Vec<TableCut> = (0..3).filter_map(cut).collect();
        let Some(until) = cuts.iter().map(|cut| cut.below).max() else { return };
        let run =
            Run { id: "sim".into(), task: "retention", began_at: now, places: prune::Places::default() };
        let range = Range { from: OpUlid::first_of_ms(from).to_string(), until, rows: BATCH as u32 };
        let tx = self.lease.begin().await.unwrap();
        prune::batch(&tx, &run, &range, Doomed::Below(&cuts), Locked::Wait).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn compare(&self, seed: u64, world: &World) {
        let it = &world.nodes[0];
        let ops: Vec<String> = it.log.iter().map(|row| ulid(row.u).to_string()).collect();
        assert_eq!(self.text("SELECT ulid FROM ops ORDER BY ulid").await, ops, "seed {seed}: ops");
        let records = "SELECT id || '=' || status FROM uploads
            UNION ALL SELECT cid || '=' || source_c_id FROM audio_previews
            UNION ALL SELECT host || '=' FROM storage_and_db_sizes";
        let there: BTreeSet<String> = self.text(records).await.into_iter().collect();
        let value = |(rec, op): (usize, &u32)| match rec {
            101.. => format!("r{rec}="),
            _ => format!("r{rec}=v{op}"),
        };
        let want = it.records.iter().enumerate().filter(|(_, op)| **op > 0).map(value).collect();
        assert_eq!(there, want, "seed {seed}: records");
        let floors =
            (0..3).filter_map(|t| Some(format!("{}={}", TABLES[t], OpUlid::first_of_ms(it.ward.floors[t]?))));
        let floors: BTreeSet<String> = floors.collect();
        let sql = "SELECT table_name || '=' || floor FROM opsward.floors";
        assert_eq!(self.text(sql).await.into_iter().collect::<BTreeSet<_>>(), floors, "seed {seed}: floors");
        let traces = it.ward.traces.iter().enumerate().filter(|(_, u)| **u > 0).map(|(rec, u)| {
            let (table, key) = if rec < 60 { (UPLOADS, "id") } else { (PREVIEWS, "CID") };
            format!(
                "(opsward.trace_key('{}', '{{\"{key}\": \"r{rec}\"}}') || '={}')",
                TABLES[usize::from(table)],
                ulid(*u)
            )
        });
        let want: Vec<String> = traces.collect();
        let sql = format!(
            "SELECT v FROM (VALUES ('') {}) AS t(v) WHERE v <> '' ORDER BY v",
            want.iter().map(|v| format!(", ({v})")).collect::<String>()
        );
        let there = self.text("SELECT key || '=' || ulid FROM opsward.traces ORDER BY 1").await;
        assert_eq!(there, self.text(&sql).await, "seed {seed}: traces");
    }
}

/// An op's records; each says which op wrote it.
fn data(world: &World, op: u32) -> String {
    let of = world.op(op);
    let record = |rec: &u16| match of.table {
        UPLOADS => format!(r#"{{"id":"r{rec}","status":"v{}"}}"#, op + 1),
        SIZES => format!(r#"{{"LoggedAt":"2025-01-01T00:00:00Z","Host":"r{rec}"}}"#),
        _ => format!(r#"{{"CID":"r{rec}","SourceCID":"v{}"}}"#, op + 1),
    };
    format!("[{}]", of.recs.iter().map(record).collect::<Vec<_>>().join(","))
}

async fn seeds(range: std::ops::Range<u64>, mix: Mix) {
    let mut bench = Bench::new().await;
    let (kind, by) = match mix {
        Mix::Chain => (Kind::ChainWard { guard: true, ahead: true }, "chain"),
        _ => (Kind::Ward { guard: true }, "peers"),
    };
    bench.node.execute(KNOWN_AS, &[&by]).await.unwrap();
    let mut deleted = 0;
    for seed in range {
        let mut plan = plan(seed, mix);
        // No second session holds rows here; the guard is on the log.
        plan.nodes[0] = (kind, 0);
        for event in &mut plan.events {
            match &mut event.what {
                What::Prune { locked, .. } => *locked = None,
                // What the guard keeps as it acts in part, a daemon applies.
                What::ChainWrite { key, .. } => *key &= !0x40,
                _ => {}
            }
        }
        let mut world = World::new(&plan, None);
        world.run(&plan).unwrap();
        bench.node.batch_execute(EMPTY).await.unwrap();
        for taped in &world.tape {
            bench.play(&world, taped).await;
        }
        bench.compare(seed, &world).await;
        deleted += world.ghost.gone[0].len();
    }
    assert!(deleted > 0);
}

#[tokio::test]
async fn a_node_of_the_model_is_one_on_postgres() {
    seeds(0..12, Mix::Any).await;
}

#[tokio::test]
async fn a_node_of_the_chain_of_the_model_is_one_on_postgres() {
    seeds(0..4, Mix::Chain).await;
}

#[tokio::test]
#[ignore = "a long run"]
async fn a_node_of_the_model_is_one_on_postgres_for_longer() {
    seeds(12..400, Mix::Any).await;
    seeds(4..100, Mix::Chain).await;
}
