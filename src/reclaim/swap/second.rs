//! The second session of a copy. It leaves the traces of what goes, and compares what
//! stays with its copy, range by range, while the lease's session copies further on. It
//! stays so near that what it reads is still in memory.

use super::super::change::count;
use super::super::decide::Checkpoint;
use super::super::{Result, Run};
use super::copying::trusted;
use super::follow::ceiling;
use crate::db::clone::Columns;
use crate::db::copy::{self, Doomed, Range};
use crate::db::helper::Helper;
use crate::db::prune::Gone;
use crate::db::{Doing, Transaction};
use crate::values::OpUlid;
use crate::work::Halt;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How far behind the copy it may be, in bytes of the log.
const LAG: u64 = 256 << 20;
/// Bytes of a row, where nobody knows how many rows there are.
const A_ROW: u64 = 1_024;

/// What goes and how it is read; the same for all ranges.
pub(super) struct What {
    cuts: BTreeMap<String, OpUlid>,
    listed: bool,
    columns: Columns,
    /// Below it something goes. A reset leaves no traces: the reference's records stand
    /// for what goes.
    traced_below: Option<String>,
}

impl What {
    pub(super) fn of(at: &Checkpoint, columns: Columns) -> Self {
        Self {
            cuts: at.survivors.cuts.clone(),
            listed: !at.survivors.compact.is_empty(),
            columns,
            traced_below: at.reset.is_none().then(|| ceiling(at)),
        }
    }

    pub(super) fn doomed(&self) -> Doomed<'_> {
        Doomed { cuts: &self.cuts, listed: self.listed, columns: &self.columns }
    }

    /// Leaves the traces of a range, unless nothing of it can go.
    pub(super) async fn traces(&self, tx: &Transaction<'_>, range: &Range) -> Result<Vec<Gone>> {
        // What was written to the range since it was found may hide what goes in it.
        match self.traced_below.as_deref().is_none_or(|ceiling| range.is_above(ceiling)) {
            true => Ok(Vec::new()),
            false => Ok(copy::trace(tx, &self.doomed(), range).await?),
        }
    }
}

/// A range that this process copied, and how many rows of it.
pub(super) struct Fresh {
    pub(super) range: Range,
    pub(super) copied: u64,
}

/// What the second session deals with at once.
enum Part {
    Fresh(Fresh),
    /// At most so many rows of what another process copied, or what failed: after a key, up
    /// to another.
    Again((String, String), u32),
}

/// What came of a part.
pub(super) struct Checked {
    until: String,
    gone: Vec<Gone>,
    took: Duration,
}

/// A part that is being dealt with, whatever the lease's session is at: its transaction
/// never stands idle.
struct UnderWay {
    /// Gives the session back.
    ended: AbortOnDropHandle<(Helper, Result<Checked>)>,
    /// Which of the parts it is, and how many rows it has; 0 of one that is done again.
    number: u64,
    rows: u64,
}

/// Parts are begun in the order of the log's key, and told in it.
#[derive(Default)]
pub(super) struct Second {
    idle: Option<Helper>,
    under_way: Option<UnderWay>,
    /// It does again what no checkpoint told.
    again: bool,
    waiting: VecDeque<Fresh>,
    /// How many parts were begun, and how many were told.
    begun: u64,
    told: u64,
    /// Dealt with, and not told yet, by the order in which they were begun.
    checked: BTreeMap<u64, Checked>,
    /// The last range is next: nothing is copied until all before it is told.
    pub(super) ends: bool,
}

impl Second {
    /// Begins what is due.
    pub(super) async fn begin(&mut self, run: &mut Run<'_>, what: &Arc<What>) -> Result<()> {
        if self.idle.is_none() && self.under_way.is_none() {
            self.idle = Some(Helper::open(&run.work.db).await?);
        }
        if self.waiting.is_empty() && !self.is_behind() {
            self.again = false;
            let (after, until) = (run.at.comparison.last(), &run.at.position);
            if after != until {
                self.again = true;
                let part = Part::Again((after.to_owned(), until.clone()), run.kept.size.rows());
                self.start(part, what);
            }
        }
        self.next(what);
        Ok(())
    }

    /// Takes a range that is copied.
    pub(super) fn put(&mut self, fresh: Fresh, what: &Arc<What>) {
        self.waiting.push_back(fresh);
        self.next(what);
    }

    fn next(&mut self, what: &Arc<What>) {
        if self.under_way.is_none()
            && let Some(fresh) = self.waiting.pop_front()
        {
            self.start(Part::Fresh(fresh), what);
        }
    }

    #[allow(clippy::disallowed_methods, reason = "it goes on while the lease's session does other things")]
    fn start(&mut self, part: Part, what: &Arc<What>) {
        let Some(mut helper) = self.idle.take() else { return };
        let (number, what) = (self.begin_one(), what.clone());
        let rows = if let Part::Fresh(fresh) = &part { fresh.range.rows } else { 0 };
        let ended = AbortOnDropHandle::new(tokio::spawn(async move {
            let checked = checked(&mut helper, &what, part).await;
            (helper, checked)
        }));
        self.under_way = Some(UnderWay { ended, number, rows });
    }

    /// The number of the part that begins.
    fn begin_one(&mut self) -> u64 {
        self.begun += 1;
        self.begun - 1
    }

    /// Whether something is not told yet.
    pub(super) fn is_behind(&self) -> bool {
        self.under_way.is_some() || !self.waiting.is_empty() || !self.checked.is_empty()
    }

    /// Whether a range waits to be dealt with.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether nothing may be copied before it has done more.
    pub(super) fn is_waited_for(&self, at: &Checkpoint) -> bool {
        let under_way = self.under_way.iter().map(|under_way| under_way.rows);
        let rows: u64 = under_way.chain(self.waiting.iter().map(|fresh| fresh.range.rows)).sum();
        let a_row = at.total.map_or(A_ROW, |total| at.bytes_before / total.max(1));
        let is_far = self.under_way.is_some() && rows.saturating_mul(a_row) > LAG;
        is_far || (self.again || self.ends) && self.is_behind()
    }

    /// Waits for the part under way. Where that failed, it and all after it is done again.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        let number = under_way.number;
        let (helper, checked) = match (&mut under_way.ended).await.map_err(JoinError::try_into_panic) {
            Ok(done) => done,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => return Err(Halt::Stopped.into()),
        };
        let before = std::mem::take(self);
        let checked = checked?;
        *self = Self { idle: Some(helper), under_way: None, ..before };
        self.checked.insert(number, checked);
        Ok(())
    }

    /// Lends the lease's session to it: the next range that waits is dealt with there, too.
    pub(super) async fn assist(&mut self, tx: &Transaction<'_>, what: &Arc<What>) -> Result<()> {
        let Some(fresh) = self.waiting.pop_front() else { return Ok(()) };
        let number = self.begin_one();
        let checked = self.beside(check(tx, what, Part::Fresh(fresh)), what).await?;
        self.checked.insert(number, checked);
        Ok(())
    }

    /// Does what else is to be done, at the same time.
    pub(super) async fn beside<T>(
        &mut self,
        work: impl Future<Output = Result<T>>,
        what: &Arc<What>,
    ) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let second = async {
            while self.under_way.is_some() {
                self.settle().await?;
                self.next(what);
            }
            pending::<Result<Infallible>>().await
        };
        tokio::select! {
            done = &mut work => done,
            failed = second => match failed? {},
        }
    }

    /// Puts into the checkpoint what was dealt with; says how long the longest of it took.
    pub(super) fn told(&mut self, at: &mut Checkpoint, now_ms: i64) -> Duration {
        let mut longest = Duration::ZERO;
        while let Some(checked) = self.checked.remove(&self.told) {
            self.told += 1;
            count(at, &checked.gone);
            at.comparison.add(checked.until, now_ms);
            longest = longest.max(checked.took);
        }
        longest
    }
}

async fn checked(helper: &mut Helper, what: &What, part: Part) -> Result<Checked> {
    let tx = helper.begin().await?;
    let checked = check(&tx, what, part).await?;
    tx.commit().await.doing("commit the traces of a range")?;
    Ok(checked)
}

/// Leaves the traces of a part that was copied, and compares it with its copy. Two sessions
/// may leave the same record's at the same time: one waits for the other, in the order of keys.
async fn check(tx: &Transaction<'_>, what: &What, part: Part) -> Result<Checked> {
    let begun = Instant::now();
    copy::begin(tx).await?;
    let (range, nothing_copied, until) = match part {
        Part::Fresh(Fresh { range, copied }) => {
            let until = range.until.clone().unwrap_or_default();
            (range, copied == 0, until)
        }
        Part::Again((after, until), rows) => {
            (copy::known_range(tx, (&after, Some(&until)), rows).await?, false, until)
        }
    };
    let gone = what.traces(tx, &range).await?;
    let rows: u64 = gone.iter().map(|gone| gone.rows).sum();
    // Where all of it goes there is nothing to compare.
    let all_goes = nothing_copied && rows == range.rows && copy::is_empty(tx, &range).await?;
    if !all_goes {
        trusted(&copy::verify(tx, &what.doomed(), &range).await?)?;
    }
    Ok(Checked { until: range.until.unwrap_or(until), gone, took: begun.elapsed() })
}
