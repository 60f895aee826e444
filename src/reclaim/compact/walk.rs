//! Compaction's walk over the log, the same in both modes. A part of it is
//! judged, newest op first; what goes is deleted or listed, what was learned is
//! stored, and the checkpoint moves, in one transaction. So whatever interrupts
//! a pass, it goes on where it was.

use super::super::decide::{Checkpoint, Mode};
use super::super::{Change, Result, Run, in_place};
use super::{Bounds, Chain, Compactor, LONGEST, LogOp, Pass, Verdict};
use crate::db::{clone, copy, covers};
use crate::values::OpUlid;
use tokio::time::Instant;

/// The next part.
pub(in crate::reclaim) async fn step(run: &mut Run<'_>) -> Result<()> {
    let mut compactor = match run.compactor.take() {
        Some(compactor) => compactor,
        None => recalled(run).await?,
    };
    let pass = run.at.pass;
    let done = part(run, &mut compactor).await;
    match done {
        Ok(()) => compactor.keep(),
        Err(_) => compactor.undo(),
    }
    run.compactor = (run.at.pass == pass).then_some(compactor);
    done
}

/// A compactor of this pass that knows what the parts before taught.
async fn recalled(run: &mut Run<'_>) -> Result<Compactor> {
    let at = &run.at;
    let bounds = Bounds {
        memory_bytes: usize::try_from(run.work.settings.bounding.reclaim_memory).unwrap_or(usize::MAX),
        self_host: run.work.own.clone(),
        below: at.survivors.compact.values().max().copied().unwrap_or(OpUlid::first_of_ms(0)),
        now: run.work.clock.now(),
    };
    let mut compactor = Compactor::new(&bounds, Pass { number: at.pass, of: at.passes.max(1) });
    let mut after = 0;
    while let Some((last, learned)) = covers::next(&*run.lease.client()?, after).await? {
        compactor.recall(&learned);
        after = last;
    }
    Ok(compactor)
}

async fn part(run: &mut Run<'_>, compactor: &mut Compactor) -> Result<()> {
    let begun = Instant::now();
    let columns = clone::columns(&*run.lease.client()?).await?;
    let rows = match run.at.mode {
        Mode::Swap => run.kept.size.rows(),
        Mode::InPlace => run.place.size.rows(),
    };
    let task = in_place::task(run);
    let before = (!run.at.position.is_empty()).then_some(run.at.position.as_str());
    let mut drops = Vec::new();
    let mut change = Change::begin(run.lease, &run.at).await?;
    let (tx, at) = (&change.tx, &mut change.at);
    let walked = copy::walk(tx, (&columns, &run.at.survivors.compact), before, (rows, LONGEST), |op| {
        let chain = if op.owed { Chain::Owed } else { Chain::Settled };
        let data = op.data.as_deref();
        let op = LogOp { ulid: &op.ulid, action: &op.action, table: &op.table, data, chain };
        let verdict = compactor.judge(&op);
        let below = run.at.survivors.compact.get(op.table);
        let ulid = OpUlid::parse(op.ulid).filter(|ulid| below.is_some_and(|below| ulid < below));
        drops.extend(ulid.filter(|_| verdict == Verdict::Drop));
    });
    let (last, count) = walked.await?;
    covers::add(tx, &compactor.learned()).await?;
    let gone = match at.mode {
        Mode::Swap => copy::list(tx, at.pass, &drops).await.map(|()| Vec::new())?,
        Mode::InPlace => in_place::delete_listed(tx, &task, &drops, run.place.locked).await?,
    };
    gone.iter().for_each(|batch| in_place::count(at, batch));
    at.done = run.at.done + count;
    // The key '' is the last of all.
    match last.filter(|last| count >= u64::from(rows) && !last.is_empty()) {
        Some(last) => at.position = last,
        None => {
            covers::clear(tx).await?;
            next_pass(at);
        }
    }
    run.at = change.commit("judge a part of the log").await?;
    match run.at.mode {
        Mode::Swap => run.kept.size.took(u32::try_from(count).unwrap_or(u32::MAX).max(1), begun.elapsed()),
        Mode::InPlace => in_place::learned(run, count, &gone, begun),
    }
    Ok(())
}

fn next_pass(at: &mut Checkpoint) {
    if at.pass + 1 < at.passes {
        at.pass += 1;
        (at.position, at.done) = (String::new(), 0);
    } else {
        at.pass = 0;
        at.advance();
    }
}
