//! `reset`: the log begun anew, after a proof that another validator holds the
//! same records. What stays is copied aside → one short transaction empties
//! the log and puts it back → the copy goes, whatever came of it.

use super::digest::Error;
use super::verify::Report;
use crate::db::lease::Lease;
use crate::db::reset::{Beginning, Keep, Reset, drop_copy, reset, users};
use crate::records::models;
use crate::values::{Host, OpUlid, is_plausible};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::sleep;

/// What is younger stays in the log: peers read each other every 10 minutes.
const YOUNG_MS: u64 = 2 * 3_600_000;
/// Tries for the lock, and the rest between two of them.
const TRIES: u32 = 30;
const BETWEEN: Duration = Duration::from_secs(2);
/// No transaction lives over 5 s (contract 1).
const LONGEST_LOCK: Duration = Duration::from_secs(4);
/// Every node skips them.
const SKIPPED: &str = "blobs";

/// What a reset would do: said before it is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How far each peer's log counts as read afterwards, at least.
    pub cursors: BTreeMap<Host, OpUlid>,
    /// Rows from here on stay; floors are raised to it.
    pub young: OpUlid,
    /// Whose records were found to be the same, or the reference's address.
    pub reference: String,
    /// How long the log may stay locked.
    pub longest_lock: Duration,
    now: Timestamp,
}

/// Refuses a scope that proves too little: only telemetry may be left out.
///
/// # Errors
/// The tables that must not be.
pub fn complete(left_out: &[String]) -> Result<(), Error> {
    let may = |table: &&String| models().get(table).is_some_and(|model| model.append_only);
    let must: Vec<&str> = left_out.iter().filter(|t| !may(t)).map(String::as_str).collect();
    match must.is_empty() {
        true => Ok(()),
        false => Err(Error::Refused(format!(
            "the proof leaves out {}: only tables that nodes never change may be left out",
            must.join(", ")
        ))),
    }
}

/// What a reset after this proof would do.
///
/// # Errors
/// The proof is none.
pub fn plan(report: &Report, own: &Host, longest_lock: Duration, now: Timestamp) -> Result<Plan, Error> {
    complete(&report.left_out)?;
    if !report.matches {
        return Err(Error::Refused("the records differ from those of the reference".into()));
    }
    let now_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let theirs = &report.reference;
    let own_log = theirs.own.iter().zip(&theirs.newest);
    let cursors = theirs.cursors.iter().chain(own_log).filter_map(|(host, ulid)| {
        let ulid = OpUlid::parse(ulid).filter(|ulid| is_plausible(*ulid, now_ms))?;
        Some((Host::parse(host).filter(|host| host != own)?, ulid))
    });
    Ok(Plan {
        cursors: cursors.collect(),
        young: OpUlid::first_of_ms(now_ms.saturating_sub(YOUNG_MS)),
        reference: theirs.own.clone().unwrap_or_else(|| "a database".into()),
        longest_lock: longest_lock.min(LONGEST_LOCK),
        now,
    })
}

impl Plan {
    /// Peers whose logs were read less far than what stays: what they still
    /// send from before inserts records that are missing, and changes none.
    pub fn behind(&self) -> Vec<&Host> {
        self.cursors.iter().filter(|(_, ulid)| **ulid < self.young).map(|(host, _)| host).collect()
    }

    /// Does it, or nothing. `tell` is told how many rows were looked at.
    ///
    /// # Errors
    /// The database's, or the log stays in use: nothing was done then.
    pub async fn carry_out(&self, lease: &mut Lease, tell: impl Fn(u64)) -> Result<Reset, Error> {
        let done = self.attempt(lease, tell).await;
        // The copy is of no use to anybody; where the session is lost, the
        // next reset removes it.
        let dropped = drop_copy(lease).await;
        let done = done?;
        dropped?;
        Ok(done)
    }

    async fn attempt(&self, lease: &mut Lease, tell: impl Fn(u64)) -> Result<Reset, Error> {
        let tables: Vec<String> = models().iter().map(|m| m.table.clone()).collect();
        let gone = tables.iter().cloned().chain([SKIPPED.to_owned()]).collect();
        let keep = Keep::begin(lease, gone, self.young).await?;
        let mut after = String::new();
        let mut seen = 0;
        while let Some((last, rows)) = keep.copy(lease, &after).await? {
            after = last;
            seen += rows;
            tell(seen);
        }
        let begin = Beginning {
            cursors: &self.cursors,
            tables: &tables,
            young: self.young,
            reference: &self.reference,
            longest_lock: self.longest_lock,
            now: self.now,
        };
        for _ in 0..TRIES {
            match reset(lease, &keep, &begin).await? {
                Reset::Busy => sleep(BETWEEN).await,
                Reset::TooLong => {
                    return Err(Error::Refused(format!(
                        "putting back what stays would lock ops for more than {} ms: nothing was done; \
                         --max-lock lets the node wait longer",
                        self.longest_lock.as_millis()
                    )));
                }
                Reset::KeptOut { back, of } => {
                    return Err(Error::Refused(format!(
                        "only {back} of {of} rows could be put back: nothing was done; a trigger on ops that \
                         is none of opsward's keeps the others out: drop it for the time",
                    )));
                }
                done => return Ok(done),
            }
        }
        let users = users(lease).await?;
        let who = if users.is_empty() { String::new() } else { format!(" (now by {})", users.join("; ")) };
        Err(Error::Refused(format!("ops stayed in use{who}: nothing was done")))
    }
}
