//! The operator's word on pace, and what bulk work must know before each
//! batch: one small query.

use crate::db::{Client, Error, Result, rows, stats::Places};
use jiff::Timestamp;
use tokio_postgres::error::SqlState;

/// Gentle: a quarter of the time at work (contract 5).
pub const GENTLE: u8 = 25;

/// What is known before a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Signs {
    /// The share of time at work, 1 to 100.
    pub percent: u8,
    /// When the operator paused the work.
    pub paused_at: Option<Timestamp>,
    /// Bytes of WAL since the last checkpoint began.
    pub wal_bytes: u64,
    /// Where WAL is written next, in bytes from its beginning.
    pub lsn: u64,
    /// Where what bulk work writes lies.
    pub places: Places,
    /// Sessions of others in this database that wait for the disk at this moment.
    pub waiting: u32,
}

/// Reads them.
pub async fn signs(client: &Client) -> Result<Signs> {
    let row = rows::cached_one(client, SIGNS, &[], "read the pace").await?;
    let (what, paths): (Vec<String>, Vec<String>) = (row.get(5), row.get(6));
    Ok(Signs {
        percent: row.get::<_, Option<i32>>(0).and_then(|p| u8::try_from(p).ok()).unwrap_or(GENTLE),
        paused_at: row.get(1),
        wal_bytes: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
        lsn: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
        places: Places { data_directory: row.get(4), tablespaces: what.into_iter().zip(paths).collect() },
        waiting: u32::try_from(row.get::<_, i64>(7)).unwrap_or(0),
    })
}

/// Tablespaces that lie in the data directory have no location of their own.
const SIGNS: &str = "
    WITH places AS MATERIALIZED (
        SELECT string_agg(DISTINCT what, ' and ') AS what, pg_tablespace_location(coalesce(nullif(own, 0), d.dattablespace)) AS path
        FROM (SELECT 'ops' AS what, c.reltablespace AS own FROM pg_class c WHERE c.oid = to_regclass('public.ops')
              UNION ALL
              SELECT 'an index of ops', x.reltablespace FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
              WHERE i.indrelid = to_regclass('public.ops')
              UNION ALL
              SELECT 'the database', 0) written, pg_database d
        WHERE d.datname = current_database() GROUP BY 2)
    SELECT p.percent, p.paused_at,
           (pg_current_wal_insert_lsn() - c.redo_lsn)::bigint,
           (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
           (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
           ARRAY(SELECT what FROM places WHERE path <> '' ORDER BY path),
           ARRAY(SELECT path FROM places WHERE path <> '' ORDER BY path),
           (SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'active' AND wait_event_type = 'IO'
              AND backend_type = 'client backend' AND application_name NOT LIKE 'opsward%')
    FROM pg_control_checkpoint() c LEFT JOIN opsward.pace p ON true";

/// What keeps WAL from being removed, where it is much: in words.
pub async fn hoard(client: &Client) -> Result<Option<String>> {
    rows::maybe(client, HOARD, &[], "see what keeps WAL").await
}

/// An archiver that fails keeps all WAL from then on; how much that is only its files tell.
const HOARD: &str = "
    SELECT words FROM (
        SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn) AS bytes,
               format('the replication slot %s keeps %s of WAL', slot_name,
                      pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn))) AS words
        FROM pg_replication_slots WHERE restart_lsn IS NOT NULL
        UNION ALL
        SELECT 1e18, format('archiving fails since %s, and all WAL from %s on is kept',
                            to_char(last_failed_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC'), last_failed_wal)
        FROM pg_stat_archiver
        WHERE current_setting('archive_mode') <> 'off'
          AND last_failed_time > coalesce(last_archived_time, '-infinity')
        UNION ALL
        SELECT setting::numeric * 1048576, format('wal_keep_size keeps %s MiB of WAL', setting)
        FROM pg_settings WHERE name = 'wal_keep_size') kept
    WHERE bytes >= 67108864 ORDER BY bytes DESC LIMIT 1";

/// Sets the pace; `None` leaves it.
pub async fn set(client: &Client, percent: u8, now: Timestamp) -> Result<()> {
    rows::write(client, SET, &[&i32::from(percent), &now], "set the pace").await
}

const SET: &str = "
    INSERT INTO opsward.pace (percent, set_at) VALUES ($1, $2)
    ON CONFLICT (one) DO UPDATE SET percent = excluded.percent, set_at = excluded.set_at";

/// Pauses the work (`Some`) or lets it go on.
pub async fn pause(client: &Client, at: Option<Timestamp>, now: Timestamp) -> Result<()> {
    rows::write(client, PAUSE, &[&i32::from(GENTLE), &at, &now], "pause or resume").await
}

const PAUSE: &str = "
    INSERT INTO opsward.pace (percent, paused_at, set_at) VALUES ($1, $2, $3)
    ON CONFLICT (one) DO UPDATE SET paused_at = excluded.paused_at, set_at = excluded.set_at";

/// Makes the server write what is in memory, so that WAL can be recycled;
/// `false` where the role may not.
pub async fn checkpoint(client: &Client) -> Result<bool> {
    // Several statements sent as one are one transaction.
    match client.batch_execute("SET LOCAL statement_timeout = 0; CHECKPOINT").await {
        Ok(()) => Ok(true),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(e) => Err(Error::of("checkpoint", e)),
    }
}
