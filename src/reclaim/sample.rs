//! What a plan has to know of the log beyond the census: which records some of
//! it is about.

use super::{Result, plan};
use crate::db::{census::Entry, traced};
use crate::values::OpUlid;
use crate::work::Work;
use std::collections::BTreeMap;

/// How many ranges of the log are looked at for an estimate.
const RANGES: u64 = 16;

/// Which records some of the log is about: from as many ranges below the ceiling of what may go,
/// the same number of rows apart by the census. One that takes long says nothing.
pub(super) async fn seen(work: &Work, census: &[Entry], ceiling: Option<OpUlid>) -> Result<plan::Sampled> {
    let mut seen = plan::Sampled::new();
    let Some(until) = ceiling else { return Ok(seen) };
    let mut days: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for day in census.iter().filter(|day| day.oldest < until) {
        let (rows, newest) = days.entry(day.oldest.ms()).or_default();
        (*rows, *newest) = (*rows + day.rows, (*newest).max(day.newest.ms()));
    }
    let rows: u64 = days.values().map(|(rows, _)| rows).sum();
    let mut client = work.db.client().await?;
    let mut passed = 0;
    let mut next = 0;
    for (oldest, (here, newest)) in days {
        while next < RANGES && next * rows / RANGES < passed + here {
            let part = (next * rows / RANGES - passed) as f64 / here.max(1) as f64;
            let from = OpUlid::first_of_ms(oldest + ((newest.saturating_sub(oldest)) as f64 * part) as u64);
            next += 1;
            match traced::range(&mut client, from, until).await {
                Ok(range) => {
                    for (table, of_table) in range {
                        seen.entry(table).or_default().push(of_table);
                    }
                }
                Err(error) if error.is_contended() => {}
                Err(error) => return Err(error.into()),
            }
        }
        passed += here;
    }
    Ok(seen)
}
