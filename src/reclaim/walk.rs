//! The line that every reclaim walks: a step, whatever it is, then the next.
//! Waiting, failed batches and the end are the same in both modes.

use super::decide::{self, Mode, Phase, Step};
use super::{Error, Outcome, Result, Run, agreed, in_place, swap};
use crate::db;
use crate::db::clone::OPS;
use crate::db::maintain::Ended;
use crate::db::prune::Locked;
use crate::db::short_lock::{Behind, holders};
use crate::work::{Halt, Room, Stop, WAL_SEGMENT, WaitFor};
use futures_util::FutureExt;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How often it is looked whether a pause or a window is over.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often the gate is asked again while ops go for good.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Between two tries of what somebody else is in the way of.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Failed batches in a row after which it gives up.
const TRIES: u32 = 50;

/// Walks a reclaim from its checkpoint to its end, or to where it is held.
///
/// # Errors
/// It was told to stop, a guard refused, or the database's.
pub(super) async fn walk(run: &mut Run<'_>) -> Result<Outcome> {
    loop {
        let step = match run.at.mode {
            Mode::Swap if swap::is_sure(run) => Step::Work(run.at.phase),
            Mode::Swap => match swap::facts(run).await {
                Ok(facts) => decide::next_of_swap(&run.at, &facts),
                // The catalog's words on ops wait for its locks, too.
                Err(error) => {
                    again(run, error, |_| false).await?;
                    continue;
                }
            },
            Mode::InPlace => {
                let leftover = run.at.aborting.is_some() && in_place::leftover(run).await?.is_some();
                decide::next_in_place(&run.at, leftover)
            }
        };
        match step {
            Step::Work(phase) => {
                run.tell();
                if turn(run, phase).await? == Turn::Over {
                    continue;
                }
                run.waited = false;
                let done = match run.at.mode {
                    Mode::Swap => swap::step(run, phase).boxed().await,
                    Mode::InPlace => in_place::step(run, phase).boxed().await,
                };
                settle(run, done).await?;
                if !run.waited {
                    run.goes_on().await;
                }
            }
            Step::Hold => return Ok(Outcome::Held),
            Step::Anew(why) => {
                info!(why, "the reclaim begins anew");
                run.at.anew();
                run.save().await?;
            }
            Step::Abort(why) => undo(run, why).await?,
            step @ (Step::DropCapture | Step::DropNext) => {
                go_on(run)?;
                swap::undo(run, &step).await?;
            }
            Step::DropLeftover => {
                go_on(run)?;
                in_place::drop_leftover(run).await?;
            }
            Step::Finish => {
                if run.at.mode == Mode::InPlace {
                    in_place::end(run).await?;
                }
                finish(run).await?;
                return Ok(match run.at.aborting.take() {
                    // What was swapped is done, whatever was told afterwards.
                    Some(why) if !matches!(run.at.phase, Phase::Drop | Phase::Done) => Outcome::Aborted(why),
                    _ => Outcome::Done,
                });
            }
        }
    }
}

/// Whether a step's turn came, or it was overtaken while it waited.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Come,
    Over,
}

/// Waits until a phase may do its next batch.
async fn turn(run: &mut Run<'_>, phase: Phase) -> Result<Turn> {
    if phase == Phase::Drop {
        // The disk comes back at once and at no cost: it waits for nothing.
        return go_on(run).map(|()| Turn::Come);
    }
    loop {
        let halt = match run.pacer.turn(run.lease).await {
            Ok(_) => break,
            Err(Stop::Halt(Halt::LittleDisk { free, .. })) if phase.frees() && free >= WAL_SEGMENT => break,
            Err(Stop::Halt(halt @ (Halt::Paused(_) | Halt::OutsideWindow(_)))) => halt,
            Err(stop) => return Err(stop.into()),
        };
        run.asked = None;
        let kept_up = swap::keep_up(run).await;
        settle(run, kept_up).await?;
        if run.at.aborting.is_some() {
            return Ok(Turn::Over);
        }
        run.wait(WaitFor::Turn, halt.to_string(), LOOK_AGAIN).await;
    }
    // What these do is for good.
    let is_due = run.asked.is_none_or(|at| at.elapsed() > ASK_EVERY);
    if is_due && matches!(phase, Phase::Swap | Phase::Delete | Phase::Compact) {
        match (run.ask)().await {
            Ok(gate) => agreed(&gate, &run.at)?,
            Err(error) => {
                again(run, error.into(), db::Error::is_too_long).await?;
                return Ok(Turn::Over);
            }
        }
        run.asked = Some(Instant::now());
    }
    Ok(Turn::Come)
}

/// Told to stop, it ends here.
fn go_on(run: &Run<'_>) -> Result<()> {
    match run.work.stop.is_cancelled() {
        true => Err(Halt::Stopped.into()),
        false => Ok(()),
    }
}

/// A failed batch left nothing; the same is tried again, smaller or later.
async fn settle(run: &mut Run<'_>, done: Result<()>) -> Result<()> {
    match done {
        Ok(()) => run.failures = 0,
        Err(Error::Undo(why)) => undo(run, why).await?,
        Err(error) => again(run, error, db::Error::is_too_long).await?,
    }
    Ok(())
}

/// From here on it is undone.
async fn undo(run: &mut Run<'_>, why: String) -> Result<()> {
    warn!(why, "the reclaim is undone");
    run.at.aborting = Some(why);
    run.save().await
}

/// Makes ready for another try, unless none would help; of fewer rows after an error that `shrinks`.
async fn again(run: &mut Run<'_>, error: Error, shrinks: impl Fn(&db::Error) -> bool) -> Result<()> {
    let Error::Db(error) = error else { return Err(error) };
    if error.is_disk_full() && give_back(run, &error).await? {
        return Ok(());
    }
    run.failures += 1;
    if run.failures > TRIES || !error.is_contended() && !swap::is_changed(run).await {
        return Err(error.into());
    }
    debug!(%error, "a batch is tried again");
    match run.at.mode {
        // The next look at the catalog says what to do.
        _ if !error.is_contended() => {}
        Mode::Swap if shrinks(&error) => run.kept.size.too_long(),
        Mode::InPlace if shrinks(&error) => run.place.size.too_long(),
        _ => {
            run.place.locked = Locked::Skip;
            let who = holders(&*run.lease.client()?, (&[OPS], Behind::Everybody)).await?;
            run.wait(WaitFor::Lock, who.to_string(), RETRY_AFTER).await;
        }
    }
    Ok(())
}

/// The disk is full: what this took is given back at once. Whether there was anything.
async fn give_back(run: &mut Run<'_>, error: &db::Error) -> Result<bool> {
    if run.at.aborting.is_some() {
        return Ok(false);
    }
    match (run.at.mode, run.at.phase) {
        (Mode::Swap, Phase::Drop | Phase::Done) => Ok(false),
        (Mode::Swap, _) => {
            warn!(%error, "the reclaim is undone: the disk is full");
            run.at.aborting = Some(format!("the disk is full ({error})"));
            run.save().await.map(|()| true)
        }
        // What it left is dropped before the next index is looked for.
        (Mode::InPlace, Phase::Reindex) => {
            in_place::leave_indexes(run, error).await?;
            Ok(true)
        }
        (Mode::InPlace, _) => Ok(false),
    }
}

/// A statement that others may have to wait for, at the pace, as long as there
/// is room for what it writes; whether it came to its end.
pub(super) async fn watched(run: &mut Run<'_>, statement: &str) -> Result<bool> {
    let settings = [("vacuum_cost_delay", format!("{:.2}ms", run.pacer.cost_delay_ms()))];
    let room = if run.at.phase == Phase::Reindex { Room::Takes } else { Room::Makes };
    match run.pacer.watch(run.lease, statement, &settings, room).await? {
        Ended::Done => return Ok(true),
        Ended::Yielded => info!(statement, "another session waited behind it: tried again later"),
        // The next turn says so.
        Ended::Stopped => {}
    }
    Ok(false)
}

/// It is all over: what only this one used is emptied, for which somebody who
/// reads it, as a dump does, is waited for.
async fn finish(run: &mut Run<'_>) -> Result<()> {
    let target = (["opsward.captured"].as_slice(), Behind::Nobody);
    while swap::locked(run, target, async |tx| db::reclaim::forget(tx).await).await?.is_none() {
        go_on(run)?;
    }
    Ok(())
}
