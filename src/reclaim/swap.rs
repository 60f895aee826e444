//! Mode swap: what survives is copied beside the log, follows it, is compared
//! with it, and takes its place.
//!
//! Nothing is taken on trust: the capture must be the one that was made and
//! never have missed a write, the table must be what it was, every survivor
//! must be there byte for byte. What is not so ends in a new start or an undo,
//! never in a swap.

use super::compact;
use super::decide::{Capture, Checkpoint, Facts, Gone, Phase, Step};
use super::walk::watched;
use super::{Result, Run};
use crate::db::clone::{self, Columns, NEXT, OPS, columns, traits};
use crate::db::copy::{self, Copied, Doomed};
use crate::db::swap::{After, Expected, Loss, Swapped};
use crate::db::{self, Doing, capture, maintain, reclaim as store};
use crate::values::OpUlid;
use crate::work::BatchSize;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// A batch of copying or comparing is steered to this: no snapshot of ours is
/// to be noticed, and a stop is to be obeyed soon.
const TARGET: Duration = Duration::from_millis(200);
/// Rows of the first batch, and of the largest.
const ROWS: (u32, u32) = (2_000, 50_000);
/// Noted keys replayed at once.
const KEYS: u32 = 2_000;
/// How often writes are replayed while something else is done.
const REPLAY_EVERY: Duration = Duration::from_secs(5);
/// The same, while it waits to go on.
const KEEP_UP_EVERY: Duration = Duration::from_secs(60);
/// Fewer keys than this left: the swap's last replay takes them.
const NEARLY_ALL: usize = 100;
/// Between two tries of a lock that writers wait behind (contract 6).
const BETWEEN_TRIES: Duration = Duration::from_secs(2);
/// Waiting for a lock that keeps writers out, plus holding it (contract 6).
const LOCKED_AT_MOST: Duration = Duration::from_millis(200);

/// What a process keeps between two batches; it is lost with it.
pub(super) struct Kept {
    pub(super) size: BatchSize,
    /// When nearly all that was noted had been replayed.
    replayed: Option<Instant>,
    /// The same, while it waits.
    kept_up: Option<Instant>,
    phase: Option<Phase>,
}

impl Default for Kept {
    fn default() -> Self {
        let size = BatchSize::new(ROWS.0, ROWS.1, TARGET);
        Self { size, replayed: None, kept_up: None, phase: None }
    }
}

/// What the catalog says now.
pub(super) async fn facts(run: &mut Run<'_>) -> Result<Facts> {
    let client = run.lease.client()?;
    let fingerprint = traits(&*client, OPS).await?.fingerprint();
    let standing = capture::standing(&*client).await?;
    let capture = match (standing.triggers, standing.firing, standing.state) {
        (None, ..) => Capture::Absent,
        (Some(_), false, _) => Capture::Broken("one of its triggers was removed or switched off"),
        (Some(which), true, 1) => Capture::Intact(which),
        (Some(_), true, 2) => Capture::Broken("its trigger failed once; the server's log may say why"),
        (Some(_), true, 3) => Capture::Broken("ops was truncated"),
        (Some(_), true, 4) => {
            Capture::Broken("nobody replayed for 24 h, or 256 MiB were noted: it ended itself")
        }
        (Some(_), true, _) => Capture::Broken("it is switched off"),
    };
    let next = match standing.next {
        true => Some(traits(&*client, NEXT).await?.fingerprint()),
        false => None,
    };
    Ok(Facts { fingerprint, capture, next, old: standing.old })
}

/// A batch of a phase's work.
pub(super) async fn step(run: &mut Run<'_>, phase: Phase) -> Result<()> {
    if run.kept.phase != Some(phase) {
        run.kept = Kept { phase: Some(phase), ..Kept::default() };
    }
    let behind = run.kept.replayed.is_none_or(|at| at.elapsed() > REPLAY_EVERY);
    if behind && matches!(phase, Phase::Judge | Phase::Copy | Phase::Verify) {
        if replay(run).await? < KEYS as usize {
            run.kept.replayed = Some(Instant::now());
        }
        return Ok(());
    }
    match phase {
        Phase::Prepare => prepare(run).await,
        Phase::Capture => install(run).await,
        Phase::Judge => compact::walk::step(run).await,
        Phase::Copy => copy_range(run).await,
        Phase::Replay => follow(run).await,
        Phase::Analyze => analyze(run).await,
        Phase::Verify => verify(run).await,
        Phase::Swap => swap(run).await,
        _ => drop_old(run).await,
    }
}

async fn prepare(run: &mut Run<'_>) -> Result<()> {
    let mut at = run.at.clone();
    let tx = run.lease.begin().await?;
    match clone::make(&tx).await? {
        Ok(traits) => {
            at.fingerprint = Some(traits.fingerprint());
            at.advance();
            store::clear(&tx).await?;
            store::save(&tx, &at.json()).await?;
            tx.commit().await.doing("make the new table")?;
        }
        Err(part) => {
            drop(tx);
            let way_out = match at.reset {
                Some(_) => "drop it for the time",
                None => "use --mode in-place",
            };
            at.aborting = Some(format!("a swap can't carry the {part} of ops: {way_out}"));
            run.at = at;
            return run.save().await;
        }
    }
    run.at = at;
    Ok(())
}

/// Triggers take the lock that writers hold: one short try.
async fn install(run: &mut Run<'_>) -> Result<()> {
    if wraparound(run).await? {
        return Ok(());
    }
    let mut at = run.at.clone();
    let begun = Instant::now();
    let tx = run.lease.begin().await?;
    capture::strong(&tx).await?;
    let done: db::Result<()> = async {
        at.capture = Some(capture::install(&tx).await?);
        at.advance();
        let saved = at.json();
        tokio::try_join!(biased; capture::bound(&tx), store::save(&tx, &saved)).map(|_| ())
    }
    .await;
    if !commit_in_time(tx, begun, done).await? {
        return contended(run, OPS).await;
    }
    run.at = at;
    Ok(())
}

/// Commits what was done under a lock that writers wait behind, if it did not
/// take too long; says whether it did.
async fn commit_in_time(tx: db::Transaction<'_>, begun: Instant, done: db::Result<()>) -> db::Result<bool> {
    match done {
        Ok(()) if begun.elapsed() <= LOCKED_AT_MOST => {
            tx.commit().await.doing("commit under a lock")?;
            Ok(true)
        }
        Ok(()) => tx.rollback().await.doing("give a lock back").map(|()| false),
        Err(e) if capture::is_contended(&e) => tx.rollback().await.doing("give a lock back").map(|()| false),
        Err(e) => Err(e),
    }
}

/// Waits where a VACUUM to prevent wraparound is at the log: it yields to
/// nobody, and a lock that queues behind it would hold writers up in vain.
async fn wraparound(run: &mut Run<'_>) -> Result<bool> {
    let runs = capture::wraparound(&*run.lease.client()?).await?;
    if runs {
        contended(run, OPS).await?;
    }
    Ok(runs)
}

/// Says who is in the way, and waits.
pub(super) async fn contended(run: &mut Run<'_>, table: &str) -> Result<()> {
    let holders = capture::holders(&*run.lease.client()?, table).await?;
    let waiting = match holders.is_empty() {
        true => format!("a lock on {table}"),
        false => format!("a lock on {table}, held by {}", holders.join("; ")),
    };
    info!(waiting, "the reclaim tries again");
    run.tell(Some(waiting));
    let stop = run.work.stop.clone();
    tokio::select! {
        () = sleep(BETWEEN_TRIES) => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Replays what is noted while nothing else may be done: it stays little, and
/// the capture knows that it is attended to.
pub(super) async fn keep_up(run: &mut Run<'_>) -> Result<()> {
    let lately = run.kept.kept_up.is_some_and(|at| at.elapsed() < KEEP_UP_EVERY);
    if run.at.phase.follows() && !lately && replay(run).await? < KEYS as usize {
        run.kept.kept_up = Some(Instant::now());
    }
    Ok(())
}

/// Replays a part of what was noted; returns how many keys there were.
async fn replay(run: &mut Run<'_>) -> Result<usize> {
    let copied = match run.at.phase {
        Phase::Judge => Copied::To(""),
        Phase::Copy => Copied::To(&run.at.position),
        _ => Copied::All,
    };
    let (ceiling, saved) = (ceiling(&run.at), run.at.json());
    let columns = columns(&*run.lease.client()?).await?;
    let tx = run.lease.begin().await?;
    let keys = copy::replay(&tx, &columns, copied, (&ceiling, KEYS)).await?;
    if copied == Copied::All {
        let differs = copy::recheck(&tx, &columns, &keys).await?;
        if !differs.is_empty() {
            drop(tx);
            distrust(run, &differs).await?;
            return Ok(0);
        }
    }
    store::save(&tx, &saved).await?;
    tx.commit().await.doing("replay what was written")?;
    Ok(keys.len())
}

/// Below it something goes.
fn ceiling(at: &Checkpoint) -> String {
    let cuts = at.survivors.cuts.values().chain(at.survivors.compact.values());
    cuts.max().map(ToString::to_string).unwrap_or_default()
}

/// The copy is not what it has to be: it is undone, and nothing was swapped.
async fn distrust(run: &mut Run<'_>, keys: &[String]) -> Result<()> {
    let why =
        format!("the copy differs from ops, nothing was swapped; the first ops that do: {}", keys.join(", "));
    warn!(why, "the reclaim failed its own check");
    run.at.aborting = Some(why);
    run.save().await
}

async fn copy_range(run: &mut Run<'_>) -> Result<()> {
    let mut at = run.at.clone();
    let begun = Instant::now();
    let columns = columns(&*run.lease.client()?).await?;
    let tx = run.lease.begin().await?;
    let range = copy::range(&tx, &at.position, run.kept.size.rows()).await?;
    let doomed = doomed(&run.at, &columns);
    let copied = copy::copy(&tx, &doomed, &range).await?;
    // What was written to the range since it was found may hide what goes in it.
    // A reset leaves no traces: the reference's records stand for what goes.
    if at.reset.is_none() && !range.is_above(&ceiling(&run.at)) {
        for gone in copy::trace(&tx, &doomed, &range).await? {
            let sum = at.gone.entry(gone.table).or_default();
            sum.rows += gone.rows;
            sum.bytes += gone.bytes;
            sum.traces += gone.traces;
        }
    }
    at.done += range.rows;
    match &range.until {
        Some(until) => at.position.clone_from(until),
        None => at.advance(),
    }
    store::save(&tx, &at.json()).await?;
    tx.commit().await.doing("copy a range of the log")?;
    run.kept.size.took(range.rows as u32, begun.elapsed());
    run.work.metrics.reclaim_rows_copied.inc_by(copied);
    run.at = at;
    Ok(())
}

fn doomed<'a>(at: &'a Checkpoint, columns: &'a Columns) -> Doomed<'a> {
    Doomed { cuts: &at.survivors.cuts, listed: !at.survivors.compact.is_empty(), columns }
}

async fn follow(run: &mut Run<'_>) -> Result<()> {
    if replay(run).await? < NEARLY_ALL && run.at.aborting.is_none() {
        run.at.advance();
        run.save().await?;
    }
    Ok(())
}

/// Nobody waits on the new table; VACUUM sets the bits that readers of a new
/// table would have to set, ANALYZE is bounded as every statement is.
async fn analyze(run: &mut Run<'_>) -> Result<()> {
    if !watched(run, clone::VACUUM_NEXT).await? {
        run.pacer.idle(BETWEEN_TRIES).await;
        return Ok(());
    }
    if let Err(error) = clone::analyze(&*run.lease.client()?).await {
        warn!(%error, "no statistics of the new table: the server's autovacuum will make them");
    }
    run.at.advance();
    run.save().await
}

async fn verify(run: &mut Run<'_>) -> Result<()> {
    let mut at = run.at.clone();
    let begun = Instant::now();
    let columns = columns(&*run.lease.client()?).await?;
    let tx = run.lease.begin().await?;
    let range = copy::known_range(&tx, &at.position, run.kept.size.rows()).await?;
    let differs = copy::verify(&tx, &doomed(&run.at, &columns), &range).await?;
    if !differs.is_empty() {
        drop(tx);
        return distrust(run, &differs).await;
    }
    at.done += range.rows;
    match &range.until {
        Some(until) => at.position.clone_from(until),
        None => at.advance(),
    }
    store::save(&tx, &at.json()).await?;
    tx.commit().await.doing("compare a range of the log")?;
    run.kept.size.took(range.rows as u32, begun.elapsed());
    run.at = at;
    Ok(())
}

async fn swap(run: &mut Run<'_>) -> Result<()> {
    // Nearly all is replayed outside the lock, again and again.
    if replay(run).await? >= NEARLY_ALL || run.at.aborting.is_some() || wraparound(run).await? {
        return Ok(());
    }
    let mut at = run.at.clone();
    at.advance();
    let (losses, saved, ceiling) = (losses(&run.at), at.json(), ceiling(&run.at));
    let began = jiff::Timestamp::from_millisecond(at.began_ms).unwrap_or_default();
    let columns = columns(&*run.lease.client()?).await?;
    let expected = Expected {
        fingerprint: run.at.fingerprint.as_deref().unwrap_or_default(),
        capture: run.at.capture.as_deref().unwrap_or_default(),
        columns: &columns,
        ceiling: &ceiling,
        after: After { run: &at.run, began, losses: &losses, checkpoint: &saved },
        reset: run.at.reset.as_ref().map(|begin| (begin, run.work.clock.now())),
    };
    db::guard::announce(run.lease, run.at.survivors.below()).await?;
    let tx = run.lease.begin().await?;
    capture::strong(&tx).await?;
    // Bounded by the client too: a lock that waits in a queue keeps others out.
    let begun = Instant::now();
    let mut came = Swapped::Changed;
    let done: db::Result<()> = async {
        came = db::swap::swap(&tx, &expected).await?;
        Ok(())
    }
    .await;
    if done.is_ok() && came != Swapped::Yes {
        tx.rollback().await.doing("give a lock back")?;
        return match came {
            Swapped::Differs(keys) => distrust(run, &keys).await,
            Swapped::DaemonConnected => {
                run.at.aborting = Some("a daemon is connected".into());
                run.save().await
            }
            // The next look at the catalog says what; who waited has a turn.
            _ => contended(run, OPS).await,
        };
    }
    if !commit_in_time(tx, begun, done).await? {
        return contended(run, OPS).await;
    }
    let metrics = &run.work.metrics;
    for Loss { table, sums: [rows, bytes, _], .. } in &losses {
        metrics.rows_deleted.with_label_values(&["reclaim", table]).inc_by(*rows);
        metrics.bytes_deleted.with_label_values(&["reclaim", table]).inc_by(*bytes);
    }
    metrics.reclaim_locked.observe(begun.elapsed().as_secs_f64());
    run.locked_ms = begun.elapsed().as_millis() as u64;
    info!(held_ms = run.locked_ms, "the new table is the log");
    run.at = at;
    Ok(())
}

/// What is lost of each table, and up to where.
fn losses(at: &Checkpoint) -> Vec<Loss> {
    let of = |table: &String, gone: &Gone| {
        let cut = at.survivors.cuts.get(table);
        let below: OpUlid = *cut.or_else(|| at.survivors.compact.get(table))?;
        let sums = [gone.rows, gone.bytes, gone.traces];
        Some(Loss { table: table.clone(), below, compacted: cut.is_none(), sums })
    };
    at.gone.iter().filter(|(_, gone)| gone.rows > 0).filter_map(|(table, gone)| of(table, gone)).collect()
}

/// The swap's commit may not be on disk yet. This one is made durable, and with
/// it all before it: WAL has one order.
async fn drop_old(run: &mut Run<'_>) -> Result<()> {
    let losses = losses(&run.at);
    let tx = run.lease.begin().await?;
    let done = db::swap::drop_old(&tx, &losses).await;
    if !commit_in_time(tx, Instant::now(), done).await? {
        return contended(run, "opsward.ops_old").await;
    }
    capture::switch_off(&*run.lease.client()?).await?;
    // The new table has no deleted rows.
    maintain::vacuumed(run.lease).await?;
    run.at.advance();
    run.save().await
}

/// Removes what is left of an earlier start: the capture costs writers
/// nothing from the first moment, and goes when its lock is had.
pub(super) async fn undo(run: &mut Run<'_>, step: &Step) -> Result<()> {
    if *step == Step::DropCapture {
        capture::switch_off(&*run.lease.client()?).await?;
        if wraparound(run).await? {
            return Ok(());
        }
    }
    let begun = Instant::now();
    let tx = run.lease.begin().await?;
    let (table, done) = match step {
        Step::DropCapture => match capture::strong(&tx).await {
            Ok(()) => (OPS, capture::remove(&tx).await),
            Err(e) => (OPS, Err(e)),
        },
        _ => (clone::NEXT, db::swap::drop_next(&tx).await),
    };
    if !commit_in_time(tx, begun, done).await? {
        return contended(run, table).await;
    }
    Ok(())
}
