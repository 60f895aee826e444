//! The operator's word on pace, and what bulk work must know before each
//! batch: one small query.

use crate::db::connect::Client;
use crate::db::error::{Doing, Error, Result};
use crate::db::session::{Isolation, begin};
use jiff::Timestamp;
use tokio_postgres::error::SqlState;

/// Gentle: a quarter of the time at work (contract 5).
pub const GENTLE: u8 = 25;

/// What is known before a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signs {
    /// The share of time at work, 1 to 100.
    pub percent: u8,
    /// When the operator paused the work.
    pub paused_at: Option<Timestamp>,
    /// Bytes of WAL since the last checkpoint began.
    pub wal_bytes: u64,
    /// The server's data directory, where the role may see it.
    pub data_directory: Option<String>,
}

/// Reads them.
///
/// # Errors
/// The database's.
pub async fn signs(client: &Client) -> Result<Signs> {
    let statement = client.prepare_cached(SIGNS).await.doing("read the pace")?;
    let row = client.query_one(&statement, &[]).await.doing("read the pace")?;
    Ok(Signs {
        percent: row.get::<_, Option<i32>>(0).and_then(|p| u8::try_from(p).ok()).unwrap_or(GENTLE),
        paused_at: row.get(1),
        wal_bytes: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
        data_directory: row.get(3),
    })
}

const SIGNS: &str = "
    SELECT p.percent, p.paused_at,
           (pg_current_wal_insert_lsn() - c.redo_lsn)::bigint,
           (SELECT setting FROM pg_settings WHERE name = 'data_directory')
    FROM pg_control_checkpoint() c LEFT JOIN opsward.pace p ON true";

/// Sets the pace; `None` leaves it.
///
/// # Errors
/// The database's.
pub async fn set(client: &Client, percent: u8, now: Timestamp) -> Result<()> {
    client.execute(SET, &[&i32::from(percent), &now]).await.doing("set the pace")?;
    Ok(())
}

const SET: &str = "
    INSERT INTO opsward.pace (percent, set_at) VALUES ($1, $2)
    ON CONFLICT (one) DO UPDATE SET percent = excluded.percent, set_at = excluded.set_at";

/// Pauses the work (`Some`) or lets it go on.
///
/// # Errors
/// The database's.
pub async fn pause(client: &Client, at: Option<Timestamp>, now: Timestamp) -> Result<()> {
    client.execute(PAUSE, &[&i32::from(GENTLE), &at, &now]).await.doing("pause or resume")?;
    Ok(())
}

const PAUSE: &str = "
    INSERT INTO opsward.pace (percent, paused_at, set_at) VALUES ($1, $2, $3)
    ON CONFLICT (one) DO UPDATE SET paused_at = excluded.paused_at, set_at = excluded.set_at";

/// Makes the server write what is in memory, so that WAL can be recycled;
/// `false` where the role may not.
///
/// # Errors
/// The database's.
pub async fn checkpoint(client: &mut Client) -> Result<bool> {
    let tx = begin(client, Isolation::Write).await?;
    tx.batch_execute("SET LOCAL statement_timeout = 0").await.doing("prepare a checkpoint")?;
    match tx.batch_execute("CHECKPOINT").await {
        Ok(()) => tx.commit().await.doing("end a checkpoint").map(|()| true),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(e) => Err(Error::of("checkpoint", e)),
    }
}
