//! Signs of somebody else's pruning: what was seen of the log before, and what
//! of it is still there.

use crate::db::{Client, Doing, Isolation, Result, Transaction, begin, rows};
use crate::values::{EARLIEST_ULID, OpUlid, latest_plausible};
use jiff::Timestamp;

/// What one look sees of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its smallest plausible ULID; `None` where it is empty.
    pub minimum: Option<OpUlid>,
    /// The lowest row above what was ever deleted of its table, and that table.
    pub witness: Option<(OpUlid, String)>,
    /// Its newest plausible row.
    pub newest: Option<OpUlid>,
}

/// The look before, and what became of the rows that it saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Before {
    /// What it saw.
    pub seen: Seen,
    /// The witness is still there, or lies below a floor of ours: we deleted it.
    pub accounted_for: bool,
    /// Its newest row is still there.
    pub top_is_there: bool,
}

/// One look, of one snapshot: the deletions that floors tell of are those that
/// the log shows.
///
/// # Errors
/// The database's; among them that looking over dead rows took too long.
pub async fn look(client: &mut Client, now_ms: u64) -> Result<(Option<Before>, Seen)> {
    let tx = begin(client, Isolation::Snapshot).await?;
    tx.batch_execute(BEGIN).await.doing("look at the log")?;
    let before = before(&tx).await?;
    let latest = latest_plausible(now_ms);
    let from = |rows: Vec<tokio_postgres::Row>| {
        rows.into_iter().find_map(|r| Some((OpUlid::parse(r.get(0))?, r.get::<_, Option<String>>(1)?)))
    };
    let rows = tx.query(WITNESS, &[&EARLIEST_ULID, &latest.as_str()]).await.doing("look at the log")?;
    let witness = from(rows);
    let rows = tx.query(MINIMUM, &[&EARLIEST_ULID, &latest.as_str()]).await.doing("look at the log")?;
    let minimum = from(rows).map(|(ulid, _)| ulid);
    let rows = tx.query(NEWEST, &[&latest.as_str()]).await.doing("look at the log")?;
    let newest = from(rows).map(|(ulid, _)| ulid);
    tx.commit().await.doing("look at the log")?;
    Ok((before, Seen { minimum, witness, newest }))
}

/// The lock first: a snapshot from before a swap would read an emptied table.
const BEGIN: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '1s'; \
    LOCK TABLE public.ops IN ACCESS SHARE MODE";
/// The lowest row that is not below its own table's floor: what is there of a
/// table with a lower floor, or none, tells of what lies below the others'. It
/// lies near the watermark or one of the floors, and is looked for above each:
/// rows that may never go, or were left by a compaction, lie in between. Rows
/// that are no ULIDs are stepped over, a few of them.
const WITNESS: &str = r#"
    WITH floors AS (SELECT table_name, greatest(floor, foreign_floor, horizon) AS floor FROM opsward.floors),
    starts AS (SELECT DISTINCT greatest($1::text, w.ulid, f.floor) AS at
               FROM (SELECT ulid FROM opsward.watermark ORDER BY n DESC LIMIT 1) w,
                    (SELECT floor FROM floors UNION ALL SELECT NULL) f)
    SELECT o.ulid, o.name
    FROM starts s
    CROSS JOIN LATERAL (SELECT ulid, coalesce("table", '') AS name FROM public.ops
                        WHERE ulid >= s.at AND ulid <= $2::text ORDER BY ulid LIMIT 2000) o
    LEFT JOIN floors f ON f.table_name = o.name
    WHERE f.floor IS NULL OR o.ulid >= f.floor
    ORDER BY o.ulid LIMIT 100"#;
const MINIMUM: &str = r#"
    SELECT ulid, '' FROM public.ops
    WHERE ulid >= greatest($1::text, (SELECT ulid FROM opsward.watermark ORDER BY n DESC LIMIT 1)) AND ulid <= $2::text
    ORDER BY ulid LIMIT 100"#;
const NEWEST: &str = "SELECT ulid, '' FROM public.ops WHERE ulid <= $1::text ORDER BY ulid DESC LIMIT 100";

async fn before(tx: &Transaction<'_>) -> Result<Option<Before>> {
    let row = tx.query_opt(BEFORE, &[]).await.doing("read what was seen of the log")?;
    let ulid = |text: Option<&str>| text.and_then(OpUlid::parse);
    Ok(row.map(|r| Before {
        seen: Seen { minimum: ulid(r.get(0)), witness: ulid(r.get(1)).zip(r.get(2)), newest: ulid(r.get(3)) },
        accounted_for: r.get(4),
        top_is_there: r.get(5),
    }))
}

const BEFORE: &str = "
    SELECT s.minimum, s.witness, s.witness_table, s.newest,
           EXISTS (SELECT FROM public.ops o WHERE o.ulid = s.witness)
               OR EXISTS (SELECT FROM opsward.floors f WHERE f.table_name = s.witness_table
                          AND greatest(f.floor, f.horizon) > s.witness),
           EXISTS (SELECT FROM public.ops o WHERE o.ulid = s.newest)
    FROM (SELECT * FROM opsward.minimum_seen ORDER BY at DESC LIMIT 1) s";

/// Keeps what was seen for the next look, forgets the one before, and corrects
/// the census by it.
pub async fn keep(client: &mut Client, seen: &Seen, now: Timestamp) -> Result<()> {
    let tx = begin(client, Isolation::Write).await?;
    tx.execute(FORGET, &[]).await.doing("keep what was seen of the log")?;
    let text = |ulid: Option<OpUlid>| ulid.map(|u| u.to_string());
    let witness = seen.witness.as_ref();
    let (ulid, table) = (text(witness.map(|w| w.0)), witness.map(|w| w.1.as_str()));
    if let Some(minimum) = seen.minimum {
        tx.execute(UNCOUNT, &[&minimum.as_str()]).await.doing("correct the census")?;
        let (minimum, newest) = (text(seen.minimum), text(seen.newest));
        tx.execute(KEEP, &[&now, &minimum, &ulid, &table, &newest])
            .await
            .doing("keep what was seen of the log")?;
    }
    tx.commit().await.doing("keep what was seen of the log")
}

const FORGET: &str = "DELETE FROM opsward.minimum_seen";
/// Nothing is left below the log's minimum, whoever deleted it.
const UNCOUNT: &str = "
    WITH gone AS (
        DELETE FROM opsward.census WHERE day > 'epoch' AND newest < $1::text COLLATE \"C\")
    INSERT INTO opsward.census_touched
    SELECT DISTINCT c.day FROM opsward.census c
    WHERE c.day > 'epoch' AND c.oldest < $1::text COLLATE \"C\" AND c.newest >= $1::text COLLATE \"C\"
      AND NOT EXISTS (SELECT FROM opsward.census_touched t WHERE t.day = c.day)";
const KEEP: &str = "
    INSERT INTO opsward.minimum_seen (at, minimum, ours, witness, witness_table, newest)
    VALUES ($1, $2, true, $3, $4, $5)";

/// Raises the foreign floor of tables; never lowers it.
pub async fn raise(client: &Client, tables: &[&str], floor: OpUlid, now: Timestamp) -> Result<()> {
    rows::write(client, RAISE, &[&tables, &floor.as_str(), &now], "raise the floors").await
}

const RAISE: &str = "
    INSERT INTO opsward.floors AS f (table_name, foreign_floor, raised_at)
    SELECT t, $2, $3 FROM unnest($1::text[]) t
    ON CONFLICT (table_name) DO UPDATE SET raised_at = excluded.raised_at,
        foreign_floor = greatest(f.foreign_floor, excluded.foreign_floor)";

/// The highest foreign floor that no reset of ours raised: a node prunes by
/// itself.
pub async fn floor(client: &Client) -> Result<Option<OpUlid>> {
    let row = client.query_one(FLOOR, &[]).await.doing("read the floors")?;
    Ok(row.get::<_, Option<&str>>(0).and_then(OpUlid::parse))
}

const FLOOR: &str = "
    SELECT max(foreign_floor) FROM opsward.floors f
    WHERE NOT EXISTS (SELECT FROM opsward.history h
                      WHERE h.task = 'reset' AND h.below = f.foreign_floor COLLATE \"default\")";

/// Rows that others wrote below the watermark lower it; a bounded look.
///
/// # Errors
/// The database's; among them that looking over dead rows took too long.
pub async fn lower_watermark(client: &mut Client) -> Result<Option<OpUlid>> {
    let tx = begin(client, Isolation::Write).await?;
    tx.batch_execute(BRIEFLY).await.doing("look below the watermark")?;
    let rows = tx.query(BELOW, &[&EARLIEST_ULID]).await.doing("look below the watermark")?;
    let found = rows.iter().find_map(|r| OpUlid::parse(r.get(0)));
    if let Some(ulid) = found {
        tx.execute(LOWER, &[&ulid.as_str()]).await.doing("lower the watermark")?;
    }
    tx.commit().await.doing("lower the watermark")?;
    Ok(found)
}

const BRIEFLY: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '1s'";
const BELOW: &str = "
    SELECT ulid FROM public.ops
    WHERE ulid >= $1::text AND ulid < (SELECT ulid FROM opsward.watermark ORDER BY n DESC LIMIT 1) ORDER BY ulid LIMIT 100";
const LOWER: &str = "UPDATE opsward.watermark SET ulid = $1 WHERE ulid > $1";
