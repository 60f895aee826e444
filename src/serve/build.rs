//! A page, built: rows of one snapshot through the choices into the writer.

use super::decide::{self, Budget, Candidate, Limit, Part, Progress};
use super::held::Reserved;
use super::request::Ask;
use crate::db::ops::{Lent, LogData, LogFields, LogRow, Rows, SCAN_ROWS, Scan, Snapshot};
use crate::db::{self};
use crate::values::{Host, OpUlid, is_plausible};
use crate::wire::page::{Encoding, PageOp, PageWriter, is_array_of_objects};
use std::time::Duration;
use tokio::time::Instant;

/// Timeout for the lock on the table, for example behind a swap. Together with the time to read,
/// the transaction stays under 5 s.
const LOCK_WAIT: Duration = Duration::from_millis(500);
/// The least step by which a reservation grows.
const GROWTH: usize = 1024 * 1024;
/// A page that holds an op waits this long for memory, then ends: its snapshot stays open while
/// it waits.
const GROWTH_WAIT: Duration = Duration::from_millis(50);

/// What is reserved before a page is begun: a full one of ordinary ops.
pub fn expected_bytes(encoding: Encoding) -> usize {
    match encoding {
        // 10,000 ops of about 1 kB.
        Encoding::Identity => 12 * 1024 * 1024,
        Encoding::Gzip => 3 * 1024 * 1024,
    }
}

/// What a page is built for.
pub struct Order<'a> {
    /// What was asked.
    pub ask: &'a Ask,
    /// Uploads that do not name it are left out.
    pub self_host: &'a Host,
    /// What reading it may cost.
    pub budget: Budget,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: u64,
}

/// A page that is complete.
pub struct Built {
    pub writer: PageWriter,
    /// The last row scanned that has a plausible ULID.
    pub last_scanned: Option<OpUlid>,
    /// What ended it before the log did.
    pub limit: Option<Limit>,
    /// The minimum to signal a gap with.
    pub gap: Option<OpUlid>,
    /// Floors above `after`.
    pub floors: Vec<(String, OpUlid)>,
    /// Uploads that do not name this host.
    pub gossip: u64,
    /// Rows that no node can apply.
    pub unappliable: u64,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum NoPage {
    /// The database's.
    #[error(transparent)]
    Db(#[from] db::Error),
    /// Its first op found no memory in time.
    #[error("no memory for the page's first op")]
    Memory,
}

/// Reads a page: the snapshot begins and ends here.
///
/// # Errors
/// The database's, or no memory for the first op.
pub async fn build(lent: &mut Lent, order: &Order<'_>, reserved: &Reserved) -> Result<Built, NoPage> {
    let snapshot = lent.snapshot(LOCK_WAIT, order.budget.reading).await?;
    let mut page = Reading {
        order,
        reserved,
        granted: expected_bytes(order.ask.encoding),
        began: Instant::now(),
        scanned: 0,
        first: None,
        position: order.ask.after.map_or(String::new(), |u| u.to_string()),
        built: Built {
            writer: PageWriter::new(order.ask.encoding),
            last_scanned: None,
            limit: None,
            gap: None,
            floors: Vec::new(),
            gossip: 0,
            unappliable: 0,
        },
    };
    let mut minimum = None;
    if let Some(after) = order.ask.after {
        let (min, floors) = tokio::join!(snapshot.minimum(order.now_ms), snapshot.floors_above(after));
        minimum = min?;
        page.built.floors = floors?;
        page.built.floors.retain(|(_, floor)| is_plausible(*floor, order.now_ms));
    }
    page.built.limit = page.read(&snapshot).await?;
    snapshot.close().await?;
    let minimum = decide::minimum(minimum, page.first);
    page.built.gap = decide::gap(order.ask.after, minimum);
    Ok(page.built)
}

struct Reading<'a> {
    order: &'a Order<'a>,
    reserved: &'a Reserved,
    granted: usize,
    began: Instant,
    scanned: usize,
    /// The first plausible row scanned.
    first: Option<OpUlid>,
    /// Where the next scan begins.
    position: String,
    built: Built,
}

impl Reading<'_> {
    /// Scans until the log or the page ends.
    async fn read(&mut self, snapshot: &Snapshot<'_>) -> Result<Option<Limit>, NoPage> {
        match self.scans(snapshot).await {
            // Out of time: what was read so far is the page.
            Err(NoPage::Db(e)) if e.is_too_long() && self.scanned > 0 => Ok(Some(Limit::Time)),
            ended => ended,
        }
    }

    async fn scans(&mut self, snapshot: &Snapshot<'_>) -> Result<Option<Limit>, NoPage> {
        loop {
            let scan = snapshot.scan(&self.position, self.order.self_host).await?;
            let (mut left, mut came, mut bytes) = (SCAN_ROWS, 0, 0);
            let mut part = self.part(snapshot, &scan, &mut left, (came, bytes)).await?;
            while let Some((want, mut rows)) = part {
                // The next part is under way while this one is read.
                let next = self.part(snapshot, &scan, &mut left, (came, bytes)).await?;
                let mut got = 0;
                while let Some(row) = rows.next().await? {
                    got += 1;
                    bytes += row.bytes();
                    if let Some(limit) = self.take(&row).await? {
                        return Ok(Some(limit));
                    }
                }
                came += got;
                if got < want {
                    return Ok(None);
                }
                part = next;
            }
        }
    }

    /// Asks for the next part of a scan that has `left` rows to go and whose
    /// rows `came` so far, with their bytes.
    async fn part<'s>(
        &self,
        snapshot: &'s Snapshot<'_>,
        scan: &Scan,
        left: &mut usize,
        (came, bytes): (usize, usize),
    ) -> Result<Option<(usize, Rows<'s>)>, NoPage> {
        if *left == 0 {
            return Ok(None);
        }
        let part = match *left {
            SCAN_ROWS => Part::First,
            _ => Part::Later,
        };
        let want = decide::next_fetch(came, bytes).min(*left);
        *left -= want;
        let at_most = decide::part_time(self.began.elapsed(), part, self.order.budget);
        let rows = snapshot.fetch(scan, want, at_most).await?;
        Ok(Some((want, rows)))
    }

    /// Adds a row to the page or leaves it out; `Some` when the page ends before the row.
    async fn take(&mut self, row: &LogRow) -> Result<Option<Limit>, NoPage> {
        let fields = row.fields()?;
        // An implausible ULID is never served: a reader might take it as its cursor.
        let parsed = OpUlid::parse(fields.ulid);
        let ulid = parsed.filter(|ulid| is_plausible(*ulid, self.order.now_ms));
        let op = page_op(&fields).filter(|_| ulid == parsed);
        let candidate = op.map_or(Candidate::LeftOut, |op| Candidate::Op(op.weight()));
        let progress = Progress {
            scanned: self.scanned,
            ops: self.built.writer.ops(),
            bytes: self.built.writer.json_bytes(),
            elapsed: self.began.elapsed(),
        };
        if let Some(limit) = decide::full(progress, candidate, self.order.budget) {
            return Ok(Some(limit));
        }
        match op {
            Some(op) => {
                if !self.has_memory_for(op.weight()).await {
                    return match progress.ops {
                        0 => Err(NoPage::Memory),
                        _ => Ok(Some(Limit::Memory)),
                    };
                }
                self.built.writer.push(op);
            }
            None if fields.data == LogData::Gossip => self.built.gossip += 1,
            None => self.built.unappliable += 1,
        }
        self.scanned += 1;
        self.position.clear();
        self.position.push_str(fields.ulid);
        self.built.last_scanned = ulid.or(self.built.last_scanned);
        self.first = self.first.or(ulid);
        Ok(None)
    }

    async fn has_memory_for(&mut self, weight: usize) -> bool {
        let needed = self.built.writer.memory() + weight;
        if needed <= self.granted {
            return true;
        }
        let wait = match self.built.writer.ops() {
            0 => self.order.budget.reading.saturating_sub(self.began.elapsed()),
            _ => GROWTH_WAIT,
        };
        let wanted = needed.max(self.granted + GROWTH);
        let grown = self.reserved.grow(wanted, Instant::now() + wait).await;
        if grown {
            self.granted = wanted;
        }
        grown
    }
}

/// The op of a row, where a node can apply it and it concerns this host.
fn page_op<'a>(fields: &LogFields<'a>) -> Option<PageOp<'a>> {
    match fields.data {
        LogData::Text(data) if is_array_of_objects(data) => Some(PageOp {
            ulid: fields.ulid.as_bytes(),
            host: fields.host,
            action: fields.action,
            table: fields.table,
            data,
        }),
        _ => None,
    }
}
