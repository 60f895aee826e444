//! Mode swap: what survives is copied beside the log, follows it, is compared
//! with it, and takes its place.
//!
//! Nothing is taken on trust: the capture must be the one that was made and
//! never have missed a write, the table must be what it was, every survivor
//! must be there byte for byte. What is not so ends in a new start or an undo,
//! never in a swap.

mod copying;
mod follow;
mod locks;
mod ready;
mod second;

use super::compact;
use super::decide::{Capture, Checkpoint, Facts, Gone, Mode, OldSnapshots, Phase, Step, next_of_swap};
use super::walk::watched;
use super::{Change, Error, Result, Run};
use crate::db::clone::{self, NEXT, OPS, columns, traits};
use crate::db::prune::floor_over;
use crate::db::short_lock::{self, Behind, Target};
use crate::db::swap::{After, Expected, Loss, Swapped};
use crate::db::{self, capture, maintain, reclaim as store};
use crate::values::OpUlid;
use crate::work::{BatchSize, WaitFor};
use copying::{copy_range, trusted, verify};
pub(in crate::reclaim) use follow::keep_up;
use follow::{
    NEARLY_ALL, ceiling, follow, follows, is_behind, replay_all, wait_for_reader, wait_for_snapshots,
};
use locks::is_due;
pub(in crate::reclaim) use locks::locked;
use ready::Ready;
use second::Second;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// A batch of copying or comparing is steered to this: no snapshot of ours is
/// to be noticed, and a stop is to be obeyed soon.
const TARGET: Duration = Duration::from_millis(200);
/// How often the catalog is looked at while ranges are copied or compared.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks whether the new table is ready.
const A_MOMENT: Duration = Duration::from_millis(20);
/// After a VACUUM that others waited behind.
const REST: Duration = Duration::from_secs(2);
/// So long a swap is tried again where something was written between the last replay and its
/// lock: then every snapshot sees all that was replayed. At 500 writes a second one try in twelve
/// finds nothing written, and a second has some eight tries.
const PATIENT_AFTER: Duration = Duration::from_secs(15);
/// What a swap locks, in this order.
const SWAPPED: Target<'static> = (&[NEXT, OPS], Behind::Everybody);
/// Rows of the first batch, and of the largest.
const ROWS: (u32, u32) = (2_000, 50_000);

/// What a process keeps between two batches; it is lost with it.
pub(super) struct Kept {
    pub(super) size: BatchSize,
    /// When nearly all that was noted had been replayed.
    replayed: Option<Instant>,
    /// When captured writes were last replayed while the reclaim was paused.
    kept_up: Option<Instant>,
    /// When the checkpoint last told the capture that somebody attends to it.
    told: Option<Instant>,
    /// The transaction that every snapshot has to be younger than, and since when
    /// that is waited for.
    settled: Option<(Instant, u64)>,
    /// When a swap was tried first.
    tried: Option<Instant>,
    /// The second session of the copy.
    second: Second,
    /// Rows that this process copied, and what makes them ready for readers.
    copied: u64,
    ready: Option<Ready>,
    /// When the catalog was looked at last.
    looked: Option<Instant>,
    phase: Option<Phase>,
}

impl Default for Kept {
    fn default() -> Self {
        let size = BatchSize::new(ROWS.0, ROWS.1, TARGET);
        Self {
            size,
            replayed: None,
            kept_up: None,
            told: None,
            settled: None,
            tried: None,
            second: Second::default(),
            copied: 0,
            ready: None,
            looked: None,
            phase: None,
        }
    }
}

/// Whether the catalog was looked at just now. Each batch that copies or compares
/// need not do it again: under the lock of the swap all of it is looked at anew.
pub(super) fn is_sure(run: &Run<'_>) -> bool {
    matches!(run.at.phase, Phase::Judge | Phase::Copy | Phase::Verify)
        && run.at.aborting.is_none()
        && run.kept.phase == Some(run.at.phase)
        && run.kept.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY)
}

/// What the catalog says now.
pub(super) async fn facts(run: &mut Run<'_>) -> Result<Facts> {
    run.kept.looked = Some(Instant::now());
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
    Ok(Facts { fingerprint, capture, file: standing.file, next, old: standing.old })
}

/// Whether the table or what the swap made beside it is no longer what it was:
/// then a statement may have failed for that, and the walk finds out what to do.
pub(super) async fn is_changed(run: &mut Run<'_>) -> bool {
    let facts = if run.at.mode == Mode::Swap { facts(run).await.ok() } else { None };
    run.kept.looked = None;
    facts.is_some_and(|facts| !matches!(next_of_swap(&run.at, &facts), Step::Work(_)))
}

/// A batch of a phase's work.
pub(super) async fn step(run: &mut Run<'_>, phase: Phase) -> Result<()> {
    if run.kept.phase != Some(phase) {
        let before = std::mem::take(&mut run.kept);
        run.kept = Kept { phase: Some(phase), looked: before.looked, ..Kept::default() };
        if matches!(phase, Phase::Replay | Phase::Analyze) {
            (run.kept.copied, run.kept.ready) = (before.copied, before.ready);
        }
    }
    if is_behind(run) && matches!(phase, Phase::Judge | Phase::Copy | Phase::Verify) {
        return follows(run).await.map(|_| ());
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
    let way_out = match run.at.reset {
        Some(_) => "drop it for the time",
        None => "use --mode in-place",
    };
    stands_free(run, way_out).await?;
    let mut change = Change::begin(run.lease, &run.at).await?;
    let made = clone::make(&change.tx, run.at.set_logged).await?;
    let traits =
        made.map_err(|part| Error::Undo(format!("a swap can't carry the {part} of ops: {way_out}")))?;
    change.at.fingerprint = Some(traits.fingerprint());
    change.at.advance();
    store::clear(&change.tx).await?;
    run.at = change.commit("make the new table").await?;
    Ok(())
}

/// What came to depend on the log since the plan was made would be left behind.
async fn stands_free(run: &mut Run<'_>, way_out: &str) -> Result<()> {
    let dependents = db::preflight::dependents(&*run.lease.client()?).await?;
    match dependents.is_empty() {
        true => Ok(()),
        false => Err(Error::Undo(format!(
            "a swap can't carry what depends on ops by now: {}: {way_out}",
            dependents.join(", ")
        ))),
    }
}

/// Triggers take the lock that writers hold.
async fn install(run: &mut Run<'_>) -> Result<()> {
    let mut at = run.at.clone();
    let installed = locked(run, (&[OPS], Behind::Writers), async |tx| {
        let made = capture::install(tx).await?;
        (at.capture, at.file) = (made.triggers, Some(made.file));
        at.advance();
        let saved = at.json();
        tokio::try_join!(biased; short_lock::bound(tx), store::save(tx, &saved)).map(|_| ())
    });
    if installed.await?.is_some() {
        run.at = at;
    }
    Ok(())
}

/// Nobody waits on the new table; VACUUM sets the bits that readers of a new
/// table would have to set, ANALYZE is bounded as every statement is. Both can
/// be left to the server's autovacuum where the disk is nearly full.
async fn analyze(run: &mut Run<'_>) -> Result<()> {
    if run.kept.ready.as_ref().is_some_and(Ready::is_under_way) {
        run.pacer.idle(A_MOMENT).await;
        return Ok(());
    }
    let is_analyzed = match run.kept.ready.take() {
        Some(ready) => ready.tells(run.kept.copied).await,
        None => false,
    };
    let floor = run.work.settings.bounding.min_free_disk;
    if let Some(free) = run.pacer.free().await?.filter(|free| *free < floor) {
        warn!(free, floor, "little disk is free: the new table is left to the server's autovacuum");
    } else {
        if !watched(run, clone::VACUUM_NEXT).await? {
            run.wait(WaitFor::Others, "the sessions that waited behind VACUUM".into(), REST).await;
            return Ok(());
        }
        if !is_analyzed && let Err(error) = clone::analyze(&*run.lease.client()?).await {
            warn!(%error, "no statistics of the new table: the server's autovacuum will make them");
        }
    }
    run.at.compare(run.now_ms());
    run.save().await
}

async fn swap(run: &mut Run<'_>) -> Result<()> {
    // Nearly all is replayed outside the lock, again and again.
    if is_behind(run) && follows(run).await? >= NEARLY_ALL {
        return Ok(());
    }
    if wait_for_snapshots(run).await? || !is_due(run, SWAPPED).await? {
        return Ok(());
    }
    if run.at.comparison.is_old(run.now_ms()) {
        run.at.compare(run.now_ms());
        return run.save().await;
    }
    stands_free(run, "drop it, and try again").await?;
    let replayed = replay_all(run).await?;
    let mut at = run.at.clone();
    at.advance();
    let (losses, saved, ceiling) = (losses(&run.at), at.json(), ceiling(&run.at));
    let began = jiff::Timestamp::from_millisecond(at.began_ms).unwrap_or_default();
    let columns = columns(&*run.lease.client()?).await?;
    let expected = Expected {
        fingerprint: at.fingerprint.as_deref().unwrap_or_default(),
        capture: at.capture.as_deref().unwrap_or_default(),
        file: at.file,
        replayed: Some(replayed).filter(|_| at.old_snapshots == OldSnapshots::Wait),
        is_patient: is_patient(run),
        columns: &columns,
        ceiling: &ceiling,
        after: After { run: &at.run, began, losses: &losses, checkpoint: &saved },
        reset: at.reset.as_ref().map(|begin| (begin, run.work.clock.now())),
    };
    db::guard::announce(run.lease, run.at.survivors.below()).await?;
    let (mut begun, mut came) = (Instant::now(), None);
    let swapped = locked(run, SWAPPED, async |tx| {
        begun = Instant::now();
        match came.insert(db::swap::swap(tx, &expected).await?) {
            Swapped::Yes => Ok(()),
            _ => Err(db::Error::Overtaken("swap the tables")),
        }
    });
    if swapped.await?.is_none() {
        return fell_short(run, came).await;
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

/// Whether swaps were tried for so long that what is written meanwhile may be replayed under
/// the lock.
fn is_patient(run: &mut Run<'_>) -> bool {
    run.kept.tried.get_or_insert_with(Instant::now).elapsed() > PATIENT_AFTER
}

/// What comes of a try that changed nothing; `None` where not even the lock was had.
async fn fell_short(run: &mut Run<'_>, came: Option<Swapped>) -> Result<()> {
    (run.kept.replayed, run.kept.settled) = (None, None);
    match came {
        Some(Swapped::Unseen(who)) if is_patient(run) => {
            wait_for_reader(run, &who).await;
            Ok(())
        }
        Some(Swapped::Differs(keys)) => trusted(&keys),
        Some(Swapped::DaemonConnected) => Err(Error::Undo("a daemon is connected".into())),
        // The next look at the catalog says what is changed.
        _ => Ok(()),
    }
}

/// What is lost of each table, and up to where.
fn losses(at: &Checkpoint) -> Vec<Loss> {
    let of = |table: &String, gone: &Gone| {
        let cut = at.survivors.cuts.get(table);
        let below: OpUlid = *cut.or_else(|| at.survivors.compact.get(table))?;
        // What stays is deleted by the node's own pruner, though nothing of its table goes now.
        let below = match (gone.rows, gone.stays) {
            (0, stays) => floor_over(stays?, Some(below)),
            _ => below,
        };
        let sums = [gone.rows, gone.bytes, gone.traces];
        Some(Loss { table: table.clone(), below, compacted: cut.is_none(), sums })
    };
    at.gone.iter().filter_map(|(table, gone)| of(table, gone)).collect()
}

/// The swap's commit may not be on disk yet. This one is made durable, and with
/// it all before it: WAL has one order.
async fn drop_old(run: &mut Run<'_>) -> Result<()> {
    let losses = losses(&run.at);
    let target = (["opsward.ops_old"].as_slice(), Behind::Nobody);
    if locked(run, target, async |tx| db::swap::drop_old(tx, &losses).await).await?.is_none() {
        return Ok(());
    }
    capture::switch_off(&*run.lease.client()?).await?;
    // The new table has no deleted rows.
    maintain::vacuumed(run.lease).await?;
    run.advance().await
}

/// Removes what is left of an earlier start: the capture costs writers
/// nothing from the first moment, and goes when its lock is had.
pub(super) async fn undo(run: &mut Run<'_>, step: &Step) -> Result<()> {
    run.kept.ready = None;
    if *step == Step::DropCapture {
        capture::switch_off(&*run.lease.client()?).await?;
        locked(run, (&[OPS], Behind::Everybody), async |tx| capture::remove(tx).await).await?;
    } else {
        locked(run, (&[NEXT], Behind::Nobody), async |tx| db::swap::drop_next(tx).await).await?;
    }
    Ok(())
}
