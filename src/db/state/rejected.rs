//! `opsward.rejected_ops`: ops that were refused, whole and once.

use crate::db::{Client, Doing, Result, rows, transaction::begin_rare};
use crate::values::{Host, OpUlid};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// How many refused ops are kept of one peer; the rest is counted.
pub const KEPT_PER_PEER: i64 = 1_000;
/// How many bytes of them: two of the largest ops that are taken in. A peer
/// must not fill a disk that may have few GB left.
pub const KEPT_BYTES_PER_PEER: i64 = 64 << 20;

/// A refused op to be kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Its ULID, where plausible.
    pub ulid: Option<OpUlid>,
    /// Its table's name as received.
    pub table: String,
    /// Why, as a stable word.
    pub code: &'static str,
    /// Why, for a person.
    pub detail: String,
    /// The op as received.
    pub bytes: Vec<u8>,
}

/// What became of refused ops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Keeping {
    /// Kept; all others but `unkept` were kept before.
    pub kept: i64,
    /// Not kept: the peer's share is full.
    pub unkept: i64,
}

/// Keeps refused ops; one that was refused before is only counted.
pub async fn keep(client: &mut Client, peer: &Host, ops: &[Refused], now: Timestamp) -> Result<Keeping> {
    // A text for Postgres: NUL cannot be kept, nor need it be: `op` has it.
    let text = |t: &str| t.replace('\0', "\u{fffd}").chars().take(200).collect::<String>();
    let ulids: Vec<&str> = ops.iter().map(|o| o.ulid.as_ref().map_or("", OpUlid::as_str)).collect();
    let tables: Vec<String> = ops.iter().map(|o| text(&o.table)).collect();
    let codes: Vec<&str> = ops.iter().map(|o| o.code).collect();
    let details: Vec<String> = ops.iter().map(|o| text(&o.detail)).collect();
    let bytes: Vec<&[u8]> = ops.iter().map(|o| o.bytes.as_slice()).collect();
    let hashes: Vec<Vec<u8>> = ops.iter().map(|o| Sha256::digest(&o.bytes).to_vec()).collect();
    // An op may have 32 MiB: a busy disk takes its time over it.
    let tx = begin_rare(client).await?;
    let row = tx
        .query_one(
            KEEP,
            &[
                &peer.as_str(),
                &ulids,
                &tables,
                &codes,
                &details,
                &bytes,
                &hashes,
                &now,
                &KEPT_PER_PEER,
                &KEPT_BYTES_PER_PEER,
            ],
        )
        .await
        .doing("keep refused ops")?;
    tx.commit().await.doing("keep refused ops")?;
    Ok(Keeping { kept: row.get(0), unkept: row.get(1) })
}

const KEEP: &str = "
    WITH incoming AS (
        SELECT DISTINCT ON (hash) * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])
            WITH ORDINALITY AS i(ulid, table_name, code, detail, op, hash, nth)
        ORDER BY hash, nth
    ), again AS (
        UPDATE opsward.rejected_ops r SET times = times + 1, last_seen = $8
        FROM incoming i WHERE r.op_sha256 = i.hash RETURNING r.op_sha256
    ), fresh AS (
        SELECT i.*, row_number() OVER (ORDER BY nth) AS place,
               sum(octet_length(op)) OVER (ORDER BY nth) AS bytes
        FROM incoming i
        WHERE i.hash NOT IN (SELECT op_sha256 FROM again)
    ), room AS (
        SELECT $9::bigint - count(*) AS n,
               $10::bigint - coalesce(sum(octet_length(op)), 0) AS bytes
        FROM opsward.rejected_ops WHERE peer = $1
    ), kept AS (
        INSERT INTO opsward.rejected_ops
            (peer, ulid, table_name, code, detail, op, op_sha256, first_seen, last_seen)
        SELECT $1, ulid, table_name, code, detail, op, hash, $8, $8
        FROM fresh, room WHERE place <= room.n AND fresh.bytes <= room.bytes
        ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT (SELECT count(*) FROM kept),
           (SELECT count(*) FROM fresh)
           - (SELECT count(*) FROM fresh, room WHERE place <= room.n AND fresh.bytes <= room.bytes)";

/// A kept op.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// How it is named in commands.
    pub id: i64,
    /// Who sent it first.
    pub peer: String,
    /// Its ULID; empty where it had no plausible one.
    pub ulid: String,
    /// Its table.
    pub table: String,
    /// Why, as a stable word.
    pub code: String,
    /// Why, for a person.
    pub detail: String,
    /// The op as received.
    pub bytes: Vec<u8>,
    /// How often it was received.
    pub times: i64,
    /// When first.
    pub first_seen: Timestamp,
    /// When last.
    pub last_seen: Timestamp,
}

/// Kept ops above an id, the oldest first, at most `limit`; of one peer where
/// it is named.
pub async fn list(client: &Client, peer: Option<&Host>, above: i64, limit: i64) -> Result<Vec<Kept>> {
    let peer = peer.map(Host::as_str);
    let rows = client.query(LIST, &[&peer, &above, &limit]).await.doing("list refused ops")?;
    Ok(rows.iter().map(kept).collect())
}

const LIST: &str = "
    SELECT id, peer, ulid, table_name, code, detail, op, times, first_seen, last_seen
    FROM opsward.rejected_ops
    WHERE id > $2 AND ($1::text IS NULL OR peer = $1) ORDER BY id LIMIT $3";

/// A kept op without its bytes.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Name {
    /// How it is named in commands.
    pub id: i64,
    /// Its ULID; empty where it had no plausible one.
    pub ulid: String,
    /// Its table.
    pub table: String,
    /// The size of the op as received.
    pub bytes: u64,
}

/// The kept ops of these ids, of one peer, or all; in the order of their ULIDs.
pub async fn names(client: &Client, ids: Option<&[i64]>, peer: Option<&Host>) -> Result<Vec<Name>> {
    rows::all(client, NAMES, &[&ids, &peer.map(Host::as_str)], "name refused ops").await
}

const NAMES: &str = r#"
    SELECT id, ulid, table_name AS "table", octet_length(op)::bigint AS bytes FROM opsward.rejected_ops
    WHERE ($1::bigint[] IS NULL OR id = ANY ($1)) AND ($2::text IS NULL OR peer = $2) ORDER BY ulid, id"#;

/// The kept ops of these ids, whole, in the order of their ULIDs.
pub async fn whole(client: &Client, ids: &[i64]) -> Result<Vec<Kept>> {
    let rows = client.query(WHOLE, &[&ids]).await.doing("read refused ops")?;
    Ok(rows.iter().map(kept).collect())
}

const WHOLE: &str = "
    SELECT id, peer, ulid, table_name, code, detail, op, times, first_seen, last_seen
    FROM opsward.rejected_ops WHERE id = ANY ($1) ORDER BY ulid, id";

/// The code of ops that the replay guard kept from the node, since they act in
/// part only.
pub const PARTIAL: &str = "partial_replay";

/// The first kept op of a code above an id.
pub async fn next_of(client: &Client, code: &str, above: i64) -> Result<Option<Kept>> {
    let row = client.query_opt(NEXT_OF, &[&code, &above]).await.doing("read a refused op")?;
    Ok(row.as_ref().map(kept))
}

const NEXT_OF: &str = "
    SELECT id, peer, ulid, table_name, code, detail, op, times, first_seen, last_seen
    FROM opsward.rejected_ops WHERE code = $1 AND id > $2 ORDER BY id LIMIT 1";

fn kept(row: &tokio_postgres::Row) -> Kept {
    Kept {
        id: row.get(0),
        peer: row.get(1),
        ulid: row.get(2),
        table: row.get(3),
        code: row.get(4),
        detail: row.get(5),
        bytes: row.get(6),
        times: row.get(7),
        first_seen: row.get(8),
        last_seen: row.get(9),
    }
}

/// Forgets kept ops; says how many there were.
pub async fn drop(client: &Client, ids: &[i64]) -> Result<u64> {
    client.execute(DROP, &[&ids]).await.doing("drop refused ops")
}

const DROP: &str = "DELETE FROM opsward.rejected_ops WHERE id = ANY($1)";
