//! How a reclaim begins, and how one that was interrupted is gone on with: what
//! is asked for, what is there, and what stands in the way.

use super::decide::{Checkpoint, Mode, Phase, Survivors};
use super::plan::{self, Plan};
use super::{Action, Error, Gate, Request, Result, compact, reset, sample};
use crate::db::guard::Found;
use crate::db::privileges::{self, Need};
use crate::db::{self, lease::Lease};
use crate::settings::Policy;
use crate::values::{Finding, Unfinished, unix_ms};
use crate::work::Work;
use tracing::info;

/// Why a reclaim is undone that somebody aborts.
pub(super) const BY_OPERATOR: &str = "by the operator";
/// Why READ_ONLY refuses a reclaim, and what lifts that.
const READ_ONLY: (&str, &str) = (
    "READ_ONLY is set: ops stays as it is",
    "set OPENAUDIO_MEDIORUM_READ_ONLY=false to reclaim; `opsward reclaim --abort` undoes one",
);

/// The checkpoint to go on from: the one that is there, or a new one.
pub(super) async fn checkpoint(work: &Work, lease: &mut Lease, request: &Request) -> Result<Checkpoint> {
    let there = db::reclaim::load(&*lease.client()?).await?;
    let there = match there {
        Some((value, _)) => Some(serde_json::from_value::<Checkpoint>(value).map_err(|e| {
            db::Error::Unfit(format!("the checkpoint in opsward.reclaim is not of this version: {e}"))
        })?),
        None => None,
    };
    let nothing = |what: &str| {
        Error::refused(
            format!("there is no reclaim to {what}"),
            "`opsward reclaim --plan` shows what one would do",
        )
    };
    if work.settings.read_only && request.action != Action::Abort {
        return Err(Error::refused(READ_ONLY.0, READ_ONLY.1));
    }
    match (request.action, there) {
        (Action::Resume, Some(at)) if at.reset.is_some() => Err(Error::refused(
            "a reset was interrupted",
            "`opsward reclaim --abort` undoes it; then `opsward reset` begins anew",
        )),
        (Action::Start, None) => begin(work, lease, request).await,
        (Action::Start, Some(at)) => {
            // The lease is ours: nobody is at it.
            let unfinished = Unfinished {
                mode: at.mode.word().to_owned(),
                phase: at.phase.word().to_owned(),
                held: at.hold && at.phase == Phase::Swap,
                at_work: false,
                since: work.clock.now(),
            };
            let (why, fix) = unfinished.told();
            Err(Error::refused(why, fix))
        }
        (Action::Resume, Some(at)) => {
            agreed(&request.gate, &at)?;
            Ok(again(request, at))
        }
        (Action::Resume, None) => Err(nothing("go on with")),
        (Action::Abort, Some(mut at)) => {
            at.aborting.get_or_insert_with(|| BY_OPERATOR.into());
            Ok(at)
        }
        (Action::Abort, None) => Err(nothing("undo")),
        (Action::Swap, Some(at)) if at.phase.is_copied() => {
            agreed(&request.gate, &at)?;
            Ok(Checkpoint { hold: false, ..again(request, at) })
        }
        (Action::Swap, Some(at)) => Err(Error::refused(
            format!("the reclaim is in its phase {}: there is no whole copy to swap yet", at.phase.word()),
            "`opsward reclaim --resume` goes on with it",
        )),
        (Action::Swap, None) => Err(nothing("swap")),
    }
}

/// A checkpoint that is gone on with, as the request says.
fn again(request: &Request, at: Checkpoint) -> Checkpoint {
    Checkpoint {
        pace: request.pace.or(at.pace),
        old_snapshots: request.old_snapshots.unwrap_or(at.old_snapshots),
        ..at
    }
}

/// Makes sure that what was chosen to go may go still.
pub(super) fn agreed(gate: &Gate, at: &Checkpoint) -> Result<()> {
    let forbidden = match at.aborting.is_none() && at.phase.is_open() && at.reset.is_none() {
        true => gate.forbids(&at.survivors),
        false => Vec::new(),
    };
    if forbidden.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        format!("what this reclaim was to drop may not go now: {}", forbidden.join("; ")),
        "`opsward plan` shows what lifts it, then `opsward reclaim --resume` goes on; `--abort` undoes it",
    ))
}

/// What a reclaim would do, and what stands in its way. Writes nothing.
///
/// # Errors
/// The database's.
pub async fn plan(work: &Work, client: &mut db::Client, request: &Request) -> Result<Plan> {
    let settings = &work.settings.bounding;
    // What fits is a window.
    let fit = request.fit.then_some(Policy::Window);
    let policy = request.policy.or(fit).unwrap_or(settings.reclaim_policy);
    let signs = db::pace::signs(client).await?;
    let mut standing = db::preflight::standing(&*client).await?;
    standing.lease = db::lease::other(client).await?.map(|holder| holder.to_string());
    let traits = db::clone::traits(&*client, db::clone::OPS).await?.fingerprint();
    // A plan of another database, or of the log before a swap, is another plan.
    let fingerprint = format!("{traits} {}", db::clone::identity(&*client).await?);
    let census = db::census::load(client).await?;
    let horizons = db::floors::horizons(client).await?.into_iter().collect();
    let volumes = db::stats::volumes(work.settings.pgdata_path.as_deref(), &work.settings.db, &signs.places);
    let seen = sample::seen(work, &census, request.gate.ceiling).await?;
    let mut plan = plan::plan(&plan::Facts {
        asked: plan::Asked {
            mode: request.mode,
            policy,
            fit: request.fit,
            set_logged: request.set_logged,
            percent: request.pace.unwrap_or(signs.percent),
        },
        settings,
        gate: &request.gate,
        census: &census,
        is_counted: !census.is_empty() || db::gate::counted_whole(client).await?,
        horizons: &horizons,
        standing: &standing,
        fingerprint: &fingerprint,
        volumes: &volumes,
        seen: &seen,
        now_ms: unix_ms(work.clock.now()),
    });
    name_the_path(work, &mut plan);
    let mut stands = |is: bool, code, text: &str, fix: &str| {
        if is {
            plan.obstacles.push(Finding::new(code, text, fix));
        }
    };
    stands(work.settings.read_only, "read_only", READ_ONLY.0, READ_ONLY.1);
    stands(
        request.hold && plan.mode == Mode::InPlace,
        "hold",
        "mode in-place has no swap that --hold could stop before",
        "leave out --hold, or make room for --mode swap",
    );
    stands(
        request.set_logged && plan.mode == Mode::InPlace,
        "set_logged",
        "mode in-place makes no new table that could be LOGGED",
        "leave out --set-logged and run ALTER TABLE public.ops SET LOGGED, or make room for --mode swap",
    );
    plan.obstacles.extend(guard_lacks(work, client).await?);
    // The sizes are of a log in between: what there is to do comes first.
    if let Some(unfinished) = db::reclaim::unfinished(&*client).await? {
        let (text, fix) = unfinished.told();
        plan.obstacles.insert(0, Finding::new("unfinished", text, fix));
    } else if plan.mode == Mode::Swap && plan.obstacles.is_empty() {
        plan.obstacles.extend(rehearsed(client).await?);
    }
    Ok(plan)
}

/// Names the directory that is set to see free disk by, where it is not there.
fn name_the_path(work: &Work, plan: &mut Plan) {
    let unknown = plan.obstacles.iter_mut().find(|obstacle| obstacle.code == "free_unknown");
    if let (Some(path), Some(obstacle)) = (&work.settings.pgdata_path, unknown) {
        obstacle.text = format!(
            "how much disk is free is not known, and mode swap needs much: there is no \
             OPENAUDIO_MEDIORUM_PGDATA_PATH={} where opsward runs",
            path.display()
        );
        obstacle.fix = "mount a directory of the database's volume there, or use --mode in-place".into();
    }
}

/// That the replay guard is switched on and lacks a privilege to be put on the log.
async fn guard_lacks(work: &Work, client: &db::Client) -> db::Result<Option<Finding>> {
    let is_wanted = work.settings.bounding.replay_guard && !work.settings.read_only;
    if !is_wanted || db::guard::find(client).await? == Found::Right {
        return Ok(None);
    }
    let lacking = privileges::lacking(client, &[]).await?;
    let lacking = lacking.into_iter().find(|lacking| lacking.need == Need::Guard);
    let way_out = "OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD=false deletes without it";
    let found = |l: privileges::Lacking| {
        Finding::new("replay_guard", l.need.consequence(), format!("as the owner: {}; {way_out}", l.lift))
    };
    Ok(lacking.map(found))
}

/// Whether a table with every attribute of `ops` can be made: it is, in a
/// transaction that is rolled back.
async fn rehearsed(client: &mut db::Client) -> Result<Option<Finding>> {
    let found = db::clone::rehearse(client).await?;
    Ok(found.map(|part| {
        let text = format!("a swap can't carry all that ops is: a copy of it differs in {part}");
        Finding::new("dependents", text, "change it for the time, or use --mode in-place")
    }))
}

/// A new reclaim: only as the plan that was read, and with nothing in its way.
async fn begin(work: &Work, lease: &mut Lease, request: &Request) -> Result<Checkpoint> {
    if let Some(beginning) = &request.reset {
        return reset::begin(work, lease, beginning).await;
    }
    let plan = plan(work, lease.client()?, request).await?;
    if let Some(hash) = request.apply.as_ref().filter(|hash| **hash != plan.hash) {
        let why = format!(
            "the plan is now {}, not {hash}: mode, policy, cutoff, settings or table changed",
            plan.hash
        );
        return Err(Error::refused(why, "read it again: `opsward reclaim --plan`"));
    }
    if !plan.obstacles.is_empty() {
        let of = |part: fn(&Finding) -> &str| plan.obstacles.iter().map(part).collect::<Vec<_>>();
        return Err(Error::refused(of(|o| &o.text).join("; "), of(|o| &o.fix).join("; ")));
    }
    if let Some(risk) = plan.risks.first().filter(|_| !request.at_risk) {
        return Err(Error::refused(&risk.text, &risk.fix));
    }
    if !plan.notes.is_empty() {
        info!(mode = plan.mode.word(), "a reclaim begins: {}", plan.notes.join(" "));
    }
    let (now, is_moves_only) = (work.clock.now(), plan.moves_only());
    let rows: u64 = plan.tables.iter().map(|t| t.rows).sum();
    // About every tenth op changes a record that compaction must remember.
    let memory = usize::try_from(work.settings.bounding.reclaim_memory).unwrap_or(usize::MAX);
    // A window of a size is found by the census, which waits while this goes on.
    let fitted = request.fit || work.settings.bounding.retention_bytes > 0;
    let survivors = Survivors { fitted, ..plan.survivors };
    let run = format!("reclaim-{}", now.as_millisecond());
    let begin = Checkpoint::begin(run, plan.mode, plan.policy, survivors);
    let phase = match plan.mode {
        // Nothing is to be deleted.
        Mode::InPlace if is_moves_only => Phase::Vacuum,
        _ => begin.phase,
    };
    Ok(Checkpoint {
        pace: request.pace,
        phase,
        expected: Some(plan.space.afterwards),
        hold: request.hold,
        set_logged: request.set_logged,
        old_snapshots: request.old_snapshots.unwrap_or_default(),
        passes: compact::passes(memory, rows / 10),
        total: Some(rows),
        bytes_before: plan.space.table + plan.space.indexes,
        began_ms: now.as_millisecond(),
        ..begin
    })
}
