//! A validator of today: ops reach it by the chain alone, its own pruner deletes
//! them and gives no byte back. What opsward says of it, and the disk given back
//! while blocks go on.

use crate::cluster::Cluster;
use crate::step;
use crate::volume::{Opsward, mib};
use anyhow::{Result, bail};
use opsward::clock::Clock;
use opsward::values::OpUlid;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::Client;

const SCHEMA: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/node-schema-c.sql"));
const OPS: u64 = 150_000;
const DAYS: u64 = 300;
const DAY: u64 = 24 * 3_600_000;
const INSERT: &str = "
    INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status, core_confirmed_at)
    SELECT u, 'http://today.example', 'update', 'uploads',
           jsonb_build_array(jsonb_build_object('id', 'u' || n % 5000, 'probe', repeat(md5(n::text), 8))),
           'confirmed', to_timestamp(ms / 1000.0)
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS o(u, n, ms)";
/// The node's pruner, with its very statement.
const PRUNE: &str =
    "DELETE FROM ops WHERE ulid IN (SELECT ulid FROM ops WHERE ulid < $1 ORDER BY ulid LIMIT 20000)";
const BLOCK: &str = "
    WITH block AS (
        INSERT INTO core_blocks (height, chain_id, hash, proposer, created_at)
        VALUES ($1, 'main', '', '', now() AT TIME ZONE 'UTC'))
    INSERT INTO cursors VALUES ('core_mediorum_blocks', $1::bigint::text)
    ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid";
const SECOND_LOOK: &str = "UPDATE ops SET core_tx_hash = 'hash', core_confirmed_at = now() WHERE ulid = $1";

/// Shows it.
pub async fn show(cluster: &Cluster) -> Result<()> {
    step("A validator of today: ops by the chain alone, and the node prunes by itself");
    cluster.create_database("today", "template0").await;
    cluster.psql("today", SCHEMA);
    let client = cluster.connect("today").await;
    fill(&client).await?;
    let full = size(&client).await?;
    let mut gone = 0;
    let before = OpUlid::first_of_ms(Clock::System.now_ms() - DAYS / 10 * DAY);
    loop {
        match client.execute(PRUNE, &[&before.as_str()]).await? {
            0 => break,
            rows => gone += rows,
        }
    }
    let pruned = size(&client).await?;
    println!(
        "   the node's pruner deleted {gone} of {OPS} ops: the file was {}, and is {}",
        mib(full),
        mib(pruned)
    );

    let stop = Arc::new(AtomicBool::new(false));
    let blocks = tokio::spawn(blocks(cluster.connect("today").await, stop.clone()));
    let opsward = Opsward::new(cluster.url("today"), cluster.data_dir(), "29");
    opsward.run(&["census", "--pace", "full"])?;
    step("What opsward says of it");
    opsward.run(&["plan"])?;
    step("The disk is given back; blocks go on");
    opsward.run(&["reclaim", "--policy", "window", "--mode", "in-place", "--yes", "--pace", "full"])?;
    stop.store(true, Ordering::Relaxed);
    let (made, slowest) = blocks.await??;
    let after = size(&client).await?;
    let found: i64 =
        client.query_one("SELECT count(*) FROM ops WHERE host = 'http://block.example'", &[]).await?.get(0);
    println!(
        "   the file was {}, and is {}; {made} blocks meanwhile, the slowest took {} ms, {found} of their ops are \
         in the log",
        mib(pruned),
        mib(after),
        slowest.as_millis()
    );
    if found.unsigned_abs() != made || after > pruned / 2 {
        bail!("ops are missing, or the disk was not given back");
    }
    Ok(())
}

async fn size(client: &Client) -> Result<u64> {
    let bytes: i64 = client.query_one("SELECT pg_table_size('ops')", &[]).await?.get(0);
    Ok(bytes.unsigned_abs())
}

async fn fill(client: &Client) -> Result<()> {
    let (first, every) = (Clock::System.now_ms() - DAYS * DAY, DAYS * DAY / OPS);
    for part in 0..OPS / 10_000 {
        let numbers: Vec<i64> = (part * 10_000..(part + 1) * 10_000).map(u64::cast_signed).collect();
        let times: Vec<i64> =
            numbers.iter().map(|n| (first + n.unsigned_abs() * every).cast_signed()).collect();
        let ulids: Vec<String> = (times.iter().zip(&numbers))
            .map(|(ms, n)| OpUlid::from_parts(ms.unsigned_abs(), n.unsigned_abs().into()).to_string())
            .collect();
        client.execute(INSERT, &[&ulids, &numbers, &times]).await?;
    }
    Ok(())
}

/// A block every 50 ms: its op, how far the node is, and the second look at it.
async fn blocks(client: Client, stop: Arc<AtomicBool>) -> Result<(u64, Duration)> {
    let (mut height, mut slowest) = (0_u64, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        height += 1;
        let ulid = OpUlid::from_parts(Clock::System.now_ms(), height.into()).to_string();
        let begun = std::time::Instant::now();
        client
            .execute(
                "INSERT INTO ops (ulid, host, action, \"table\", data, core_tx_status) VALUES
                     ($1, 'http://block.example', 'create', 'uploads', '[{\"id\": \"b\"}]', 'confirmed')",
                &[&ulid],
            )
            .await?;
        slowest = slowest.max(begun.elapsed());
        client.execute(BLOCK, &[&height.cast_signed()]).await?;
        client.execute(SECOND_LOOK, &[&ulid]).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((height, slowest))
}
