//! The moment at which the new table takes the log's place.

use crate::db::{
    Doing, Result, Transaction,
    activity::{self, READER},
    capture,
    clone::{Columns, NEXT, OPS, traits},
    copy::{Copied, NOTED, is_noted, recheck, replay},
    presence, remember, reset, short_lock,
};
use crate::values::{Beginning, OpUlid, signed};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::types::ToSql;

/// Noted keys that the last replay takes on at most, under the lock.
const LAST_KEYS: u32 = 500;

/// What a swap has to find, or it is none.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// What the log is like.
    pub fingerprint: &'a str,
    /// The capture as it was made, and the log's file then.
    pub capture: &'a str,
    pub file: Option<i64>,
    /// Before which transaction no snapshot may be from: all that was noted by then had been
    /// replayed. `None` where snapshots are ignored.
    pub replayed: Option<u64>,
    /// What was written since may be replayed under the lock, where no snapshot is seen that
    /// would miss it.
    pub is_patient: bool,
    /// What can be written of a row.
    pub columns: &'a Columns,
    /// Keys below it are remembered as kept.
    pub ceiling: &'a str,
    /// What is written then.
    pub after: After<'a>,
    /// The swap is a reset, now.
    pub reset: Option<(&'a Beginning, Timestamp)>,
}

/// What came of a try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Swapped {
    /// The new table is the log, once this transaction commits.
    Yes,
    /// Too much was written meanwhile: replay first.
    Behind,
    /// Something is not as it was: look again.
    Changed,
    /// A reset found a daemon connected.
    DaemonConnected,
    /// A snapshot would not see what it saw in the log: who holds it, in words.
    Unseen(String),
    /// These keys differ: the copy is not to be trusted.
    Differs(Vec<String>),
}

/// What is written in the transaction of a swap.
#[derive(Clone, Debug)]
pub struct After<'a> {
    /// The reclaim's name in the history.
    pub run: &'a str,
    /// When it began.
    pub began: Timestamp,
    /// What is gone.
    pub losses: &'a [Loss],
    /// The checkpoint.
    pub checkpoint: &'a Value,
}

/// What is written of one table when it has been swapped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Loss {
    /// The table.
    pub table: String,
    /// The lowest ULID that stays.
    pub below: OpUlid,
    /// Compacted, and not cut: it raises the horizon, not the floor.
    pub compacted: bool,
    /// Rows, bytes without indexes, traces.
    pub sums: [u64; 3],
}

/// Puts the new table in the log's place, in the transaction that
/// [`crate::db::short_lock`] prepared: the lock, the last replay, the last checks,
/// the names, our triggers, floors and horizons over what is gone, the history,
/// the checkpoint. Only `Yes` may be committed.
pub async fn swap(tx: &Transaction<'_>, expected: &Expected<'_>) -> Result<Swapped> {
    let After { run, began, losses, checkpoint } = &expected.after;
    let losses = serde_json::to_string(losses).unwrap_or_default();
    let words: [&(dyn ToSql + Sync); 4] = [run, &began.to_string(), &losses, &checkpoint.to_string()];
    tx.execute(WORDS, &words).await.doing("prepare the swap")?;
    let script = script();
    for statement in [NOTED, READER] {
        tx.prepare_cached(statement).await.doing("prepare the swap")?;
    }
    if let Some((begin, now)) = expected.reset {
        if !presence::is_alone(tx).await? {
            return Ok(Swapped::DaemonConnected);
        }
        reset::raise_cursors(tx, begin, now).await?;
    }
    tx.batch_execute(LOCK).await.doing("lock the log")?;
    // From here on nobody writes, and every statement sees all that was.
    if !is_as_expected(tx, expected).await? {
        return Ok(Swapped::Changed);
    }
    if let Some(not) = replay_last(tx, expected).await? {
        return Ok(not);
    }
    let done = async { tx.batch_execute(&script).await.doing("swap the tables") };
    tokio::try_join!(biased; short_lock::bound(tx), done)?;
    if let Some((begin, now)) = expected.reset {
        let written = reset::begin_anew(tx, begin, run, (*began, now));
        tokio::try_join!(biased; short_lock::bound(tx), written)?;
    }
    Ok(Swapped::Yes)
}

/// Whether tables and capture are what they were.
async fn is_as_expected(tx: &Transaction<'_>, expected: &Expected<'_>) -> Result<bool> {
    let (_, standing, of_ops, of_next) = tokio::try_join!(
        biased;
        short_lock::bound(tx),
        capture::standing(tx),
        traits(tx, OPS),
        traits(tx, NEXT),
    )?;
    let noted = standing.firing && standing.state == 1 && standing.next && !standing.old;
    let is_same = standing.triggers.as_deref() == Some(expected.capture)
        && expected.file.is_none_or(|file| file == standing.file);
    Ok(noted
        && is_same
        && of_ops.fingerprint() == expected.fingerprint
        && of_next.fingerprint() == expected.fingerprint)
}

/// Replays what was noted up to the lock; says why there can be no swap now, where there can't.
async fn replay_last(tx: &Transaction<'_>, expected: &Expected<'_>) -> Result<Option<Swapped>> {
    let last = replay(tx, expected.columns, Copied::All, (expected.ceiling, LAST_KEYS));
    let (_, keys) = tokio::try_join!(biased; short_lock::bound(tx), last)?;
    if let Some(replayed) = expected.replayed {
        if !keys.is_empty() && !expected.is_patient {
            return Ok(Some(Swapped::Behind));
        }
        // What is replayed now is seen by those alone whose snapshot is yet to come.
        let reader = activity::reader(tx, replayed, !keys.is_empty());
        if let (_, Some(who)) = tokio::try_join!(biased; short_lock::bound(tx), reader)? {
            return Ok(Some(Swapped::Unseen(who)));
        }
    }
    let differs = recheck(tx, expected.columns, Copied::All, &keys);
    let (_, differs, left) = tokio::try_join!(biased; short_lock::bound(tx), differs, is_noted(tx))?;
    Ok(match left {
        true => Some(Swapped::Behind),
        false if differs.is_empty() => None,
        false => Some(Swapped::Differs(differs)),
    })
}

/// The script takes no parameters.
const WORDS: &str = "
    SELECT set_config('opsward.run', $1, true), set_config('opsward.began', $2, true),
           set_config('opsward.losses', $3, true), set_config('opsward.checkpoint', $4, true)";

/// The new table first: an autovacuum of it yields while nobody waits yet.
const LOCK: &str = "DO $lock$ BEGIN
    LOCK TABLE opsward.ops_next IN ACCESS EXCLUSIVE MODE;
    LOCK TABLE public.ops IN ACCESS EXCLUSIVE MODE;
    END $lock$";

/// All that changes, as one statement: one timeout bounds it.
fn script() -> String {
    SCRIPT
        .replace("RAISE_FLOORS", remember::RAISE_FLOORS)
        .replace("RAISE_HORIZONS", remember::RAISE_HORIZONS)
        .replace("SAVE", crate::db::reclaim::SAVE)
}

/// Tables and indexes change their names inside our schema, where no name is
/// somebody else's. A sequence that the table owns goes to and fro with it, and
/// belongs to the new one then. Triggers of ours but the capture come back on
/// the new table, after the last replay.
const SCRIPT: &str = r#"DO $swap$
DECLARE
    steps text[];
    step text;
    gone CONSTANT jsonb := current_setting('opsward.losses');
BEGIN
    SELECT array_agg(words ORDER BY place, n) INTO steps FROM (
        WITH i AS (
            SELECT c.relname, x.indrelid = 'public.ops'::regclass AS old,
                   row_number() OVER (PARTITION BY x.indrelid ORDER BY c.oid) AS n
            FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
            WHERE x.indrelid IN ('public.ops'::regclass, 'opsward.ops_next'::regclass))
        SELECT 1 AS place, n, format('ALTER INDEX opsward.%I RENAME TO ops_next_%s_idx', relname, n) AS words
        FROM i WHERE NOT old
        UNION ALL SELECT 2, 0, 'ALTER TABLE public.ops SET SCHEMA opsward'
        UNION ALL SELECT 3, 0, 'ALTER TABLE opsward.ops RENAME TO ops_old'
        UNION ALL SELECT 4, n, format('ALTER INDEX opsward.%I RENAME TO ops_old_%s_idx', relname, n) FROM i WHERE old
        UNION ALL SELECT 5, n, format('ALTER INDEX opsward.ops_next_%s_idx RENAME TO %I', n, relname)
        FROM i WHERE NOT old
        UNION ALL SELECT 6, d.objid, format('ALTER SEQUENCE opsward.%I OWNED BY opsward.ops_next.%I', s.relname, a.attname)
        FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a'
          AND d.refobjid = 'public.ops'::regclass
        UNION ALL SELECT 7, 0, 'ALTER TABLE opsward.ops_next RENAME TO ops'
        UNION ALL SELECT 8, 0, 'ALTER TABLE opsward.ops SET SCHEMA public'
        UNION ALL
        SELECT 9, t.oid::bigint, pg_get_triggerdef(t.oid)
        FROM pg_trigger t
        WHERE t.tgrelid = 'public.ops'::regclass AND NOT t.tgisinternal
          AND starts_with(t.tgname, 'opsward_') AND NOT starts_with(t.tgname, 'opsward_capture')
        UNION ALL
        SELECT 10, t.oid::bigint, format('ALTER TABLE public.ops %s TRIGGER %I', CASE t.tgenabled
                   WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'DISABLE' END, t.tgname)
        FROM pg_trigger t
        WHERE t.tgrelid = 'public.ops'::regclass AND NOT t.tgisinternal
          AND starts_with(t.tgname, 'opsward_') AND NOT starts_with(t.tgname, 'opsward_capture')
          AND t.tgenabled <> 'O') script;
    FOREACH step IN ARRAY steps LOOP
        EXECUTE step;
    END LOOP;
    UPDATE opsward.known_log SET relation = 'public.ops'::regclass;
    EXECUTE $floors$ RAISE_FLOORS $floors$ USING
        ARRAY(SELECT l ->> 'table' FROM jsonb_array_elements(gone) l WHERE NOT (l ->> 'compacted')::boolean),
        ARRAY(SELECT l ->> 'below' FROM jsonb_array_elements(gone) l WHERE NOT (l ->> 'compacted')::boolean);
    EXECUTE $horizons$ RAISE_HORIZONS $horizons$ USING
        ARRAY(SELECT l ->> 'table' FROM jsonb_array_elements(gone) l WHERE (l ->> 'compacted')::boolean),
        ARRAY(SELECT l ->> 'below' FROM jsonb_array_elements(gone) l WHERE (l ->> 'compacted')::boolean);
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, traces, bound_by, took_ms, outcome)
    SELECT current_setting('opsward.run'), 'reclaim', l ->> 'table', b.at, now(), l ->> 'below',
           (l #>> '{sums,0}')::bigint, (l #>> '{sums,1}')::bigint, (l #>> '{sums,2}')::bigint,
           CASE WHEN (l ->> 'compacted')::boolean THEN 'compact' ELSE 'window' END,
           greatest(0, extract(epoch FROM now() - b.at) * 1000)::bigint, 'done'
    FROM jsonb_array_elements(gone) l, (SELECT current_setting('opsward.began')::timestamptz AS at) b
    WHERE l #>> '{sums,0}' <> '0'
    ON CONFLICT (run, task, table_name) DO NOTHING;
    EXECUTE $save$ SAVE $save$ USING current_setting('opsward.checkpoint');
END $swap$"#;

/// Drops the replaced table, and takes what it lost off the census.
pub async fn drop_old(tx: &Transaction<'_>, losses: &[Loss]) -> Result<()> {
    tx.batch_execute(FREE_SEQUENCES).await.doing("keep the sequences of ops")?;
    tx.batch_execute("DROP TABLE IF EXISTS opsward.ops_old").await.doing("drop the old table")?;
    for loss in losses {
        let lost = signed(loss.sums[0]);
        let words: [&(dyn ToSql + Sync); 4] = [&loss.table, &loss.below.as_str(), &lost, &loss.compacted];
        tx.execute(RECOUNT, &words).await.doing("take off the census")?;
    }
    Ok(())
}

/// Sequences that a table in our schema owns, and somebody else needs: an
/// earlier version left them to the old table. They go back to the log.
pub(in crate::db) const FREE_SEQUENCES: &str = r#"DO $free$
DECLARE
    s record;
BEGIN
    FOR s IN
        SELECT q.oid, q.relname, q.relnamespace, a.attname,
               EXISTS (SELECT FROM pg_attribute o WHERE o.attrelid = to_regclass('public.ops')
                       AND o.attname = a.attname AND NOT o.attisdropped) AS is_known
        FROM pg_depend d JOIN pg_class q ON q.oid = d.objid AND q.relkind = 'S'
        JOIN pg_class t ON t.oid = d.refobjid AND t.relnamespace = 'opsward'::regnamespace
         AND t.relname IN ('ops_old', 'ops_next')
        JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a'
    LOOP
        EXECUTE format('ALTER SEQUENCE %s OWNED BY NONE', s.oid::regclass);
        IF s.relnamespace = 'opsward'::regnamespace THEN
            EXECUTE format('ALTER SEQUENCE %s SET SCHEMA public', s.oid::regclass);
        END IF;
        IF s.is_known THEN
            EXECUTE format('ALTER SEQUENCE %s OWNED BY public.ops.%I', s.oid::regclass, s.attname);
        END IF;
    END LOOP;
END $free$"#;

/// Of a day wholly below the cut stays what is owed to the chain; the day that the cut lies in
/// lost the rest. Compaction takes the same share of each day. All of them are counted again.
const RECOUNT: &str = "
    WITH days AS (
        SELECT day, rows, bytes, owed, newest < $2 AND NOT $4::boolean AS whole,
               sum(rows) OVER () AS all_rows,
               sum(rows - owed) FILTER (WHERE newest < $2) OVER () AS in_whole
        FROM opsward.census WHERE table_name = $1 AND oldest < $2 AND day > 'epoch' AND rows > 0),
    stay AS (
        SELECT day, CASE WHEN whole THEN owed
                         WHEN $4::boolean THEN rows - rows * least(1, $3::bigint / all_rows)
                         ELSE greatest(owed, rows - greatest(0, $3::bigint - coalesce(in_whole, 0))) END AS rows
        FROM days),
    less AS (
        UPDATE opsward.census c
        SET rows = s.rows::bigint, bytes = (c.bytes::numeric * s.rows / c.rows)::bigint
        FROM stay s WHERE c.table_name = $1 AND c.day = s.day AND c.rows > 0)
    INSERT INTO opsward.census_touched SELECT DISTINCT day FROM days
    ON CONFLICT DO NOTHING";

/// Drops the new table.
pub async fn drop_next(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute(FREE_SEQUENCES).await.doing("keep the sequences of ops")?;
    tx.batch_execute("DROP TABLE IF EXISTS opsward.ops_next").await.doing("drop the new table")
}
