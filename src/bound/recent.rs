//! Before a dormant table is cleaned up: whether the log has no recent op of it
//! after all. The census is from before, and of ops that the node itself wrote
//! late, with the ULIDs of other days, it learns within a week only. So what is
//! recent is read once a run, in slices, and only where something would go.

use crate::db::{self, Lease, census_slice, recent};
use crate::values::{OpUlid, Progress, latest_plausible};
use crate::work::{BatchSize, Pacer, Stop, Work};
use std::time::Duration;
use tokio::time::Instant;

/// What a slice is steered to take.
const TARGET: Duration = Duration::from_millis(200);
/// Rows of the first slice, and the most of any.
const FIRST_ROWS: u32 = 2_000;
const MOST_ROWS: u32 = 50_000;

/// What came of a look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Looked {
    /// Tables that have a recent op.
    pub active: Vec<String>,
    /// All that is recent was read, or every table was found.
    pub is_over: bool,
}

/// Which of `tables` have an op from `since` on; until `ends` at most. The next
/// look goes on where this one ended.
///
/// # Errors
/// It may not go on, the lease is lost, or the database's.
pub async fn look(
    work: &Work,
    lease: &mut Lease,
    pacer: &mut Pacer,
    (tables, since): (&[&str], OpUlid),
    ends: Instant,
) -> Result<Looked, Stop> {
    let first = OpUlid::last_of_ms(since.ms().saturating_sub(1));
    let read = recent::read_to(lease.client()?, tables).await?;
    let from = tables.iter().map(|table| read.get(*table).copied().unwrap_or(first).max(first)).min();
    let read_to = from.unwrap_or(first);
    let after = read_to.to_string();
    let mut look = Look { silent: tables.to_vec(), active: Vec::new(), after, read_to };
    let done = look.walk(work, lease, pacer, ends).await;
    recent::keep(lease.client()?, &look.silent, look.read_to).await?;
    Ok(Looked { is_over: done?, active: look.active })
}

/// All that was dormant is cleaned up: the next look begins anew.
pub async fn done(lease: &mut Lease) -> db::Result<()> {
    recent::forget(lease.client()?).await
}

struct Look<'a> {
    silent: Vec<&'a str>,
    active: Vec<String>,
    /// The last key that was read, whatever it is.
    after: String,
    /// All ULIDs up to this one are read. A key that is no ULID says nothing of time.
    read_to: OpUlid,
}

impl Look<'_> {
    /// Whether all was read, or every table found.
    async fn walk(
        &mut self,
        work: &Work,
        lease: &mut Lease,
        pacer: &mut Pacer,
        ends: Instant,
    ) -> Result<bool, Stop> {
        let now_ms = work.clock.now_ms();
        let latest = latest_plausible(now_ms);
        let (mut size, mut narrowed) = (BatchSize::new(FIRST_ROWS, MOST_ROWS, TARGET), None);
        let mut read = 0;
        while !self.silent.is_empty() {
            if Instant::now() >= ends {
                return Ok(false);
            }
            pacer.turn(lease).await?;
            let (to, rows, began) = (narrowed.unwrap_or(latest), size.rows(), Instant::now());
            let slice = match recent::slice(lease, &self.silent, &self.after, (to, now_ms), rows).await {
                Ok(slice) => slice,
                Err(error) if error.is_too_long() => {
                    // Dead entries of the index are what takes long, or rows.
                    size.too_long();
                    narrowed = Some(narrow(self.read_to.ms(), to, rows).ok_or(error)?);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            size.took(u32::try_from(slice.rows).unwrap_or(u32::MAX).max(1), began.elapsed());
            read += slice.rows;
            self.silent.retain(|table| !slice.found.iter().any(|found| found == table));
            self.active.extend(slice.found);
            (work.tell)(Progress {
                phase: "looking for recent ops".into(),
                done: read,
                unit: "rows".into(),
                ..Progress::default()
            });
            if let Some(last) = slice.last {
                self.read_to = OpUlid::parse(&last).map_or(self.read_to, |ulid| self.read_to.max(ulid));
                self.after = last;
            }
            if slice.rows < u64::from(rows) {
                if narrowed.take().is_none_or(|to| to >= latest) {
                    break;
                }
                self.read_to = self.read_to.max(to);
                self.after = census_slice::later(lease.client()?, &self.after, to).await?;
            }
        }
        Ok(true)
    }
}

/// Half the time of a range; `None` where it cannot be made smaller.
fn narrow(from: u64, to: OpUlid, rows: u32) -> Option<OpUlid> {
    let middle = from + to.ms().saturating_sub(from) / 2;
    match middle > from {
        true => Some(OpUlid::last_of_ms(middle)),
        false => (rows > 1).then_some(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_halved_down_to_one_row_of_a_millisecond() {
        let after = 1_000_000;
        let to = OpUlid::last_of_ms(1_000_100);
        assert_eq!(narrow(after, to, 100), Some(OpUlid::last_of_ms(1_000_050)));
        let next = OpUlid::last_of_ms(1_000_001);
        assert_eq!(narrow(after, next, 100), Some(next));
        assert_eq!(narrow(after, next, 1), None);
    }
}
