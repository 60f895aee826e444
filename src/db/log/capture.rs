//! Noting every write to the log while a copy of it is made: triggers on `ops`,
//! each once a statement, a list of keys, and the locks that such a change of
//! the table takes. Their function stands in schema public, so that a dump of
//! that schema alone restores; `opsward.capture_make()` makes it.

use crate::db::{Doing, GenericClient, Result, Transaction, rows, short_lock::bound};
use serde::Deserialize;

/// From the commit on every write is noted: there is none that began before
/// and ends after, as the lock waits for them. A change of [`crate::db::short_lock`].
pub async fn install(tx: &Transaction<'_>) -> Result<Standing> {
    tx.batch_execute(INSTALL).await.doing("note the writes to ops")?;
    Ok(tokio::try_join!(biased; bound(tx), standing(tx))?.1)
}

/// One statement, so that one timeout bounds it. Not to be rolled back,
/// `setval` comes last.
const INSTALL: &str = "DO $install$ BEGIN
    PERFORM opsward.capture_make();
    CREATE TRIGGER opsward_capture AFTER INSERT ON public.ops REFERENCING NEW TABLE AS fresh
        FOR EACH STATEMENT EXECUTE FUNCTION public.opsward_capture();
    CREATE TRIGGER opsward_capture_update AFTER UPDATE ON public.ops
        REFERENCING OLD TABLE AS gone NEW TABLE AS fresh
        FOR EACH STATEMENT EXECUTE FUNCTION public.opsward_capture();
    CREATE TRIGGER opsward_capture_delete AFTER DELETE ON public.ops REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION public.opsward_capture();
    CREATE TRIGGER opsward_capture_truncate AFTER TRUNCATE ON public.ops
        FOR EACH STATEMENT EXECUTE FUNCTION public.opsward_capture();
    ALTER TABLE public.ops ENABLE ALWAYS TRIGGER opsward_capture,
        ENABLE ALWAYS TRIGGER opsward_capture_update,
        ENABLE ALWAYS TRIGGER opsward_capture_delete,
        ENABLE ALWAYS TRIGGER opsward_capture_truncate;
    INSERT INTO opsward.owned (kind, name, drop_sql) VALUES ('trigger', 'opsward_capture',
        'DROP TRIGGER IF EXISTS opsward_capture ON public.ops; \
         DROP TRIGGER IF EXISTS opsward_capture_truncate ON public.ops; \
         DROP FUNCTION IF EXISTS public.opsward_capture() CASCADE')
    ON CONFLICT (kind, name) DO UPDATE SET drop_sql = excluded.drop_sql;
    PERFORM setval('opsward.capture_state', 1);
    END $install$";

/// From now on nothing is noted, whoever writes: no lock is needed for it.
pub async fn switch_off(client: &impl GenericClient) -> Result<()> {
    rows::write(client, SWITCH_OFF, &[], "switch off the capture").await
}

const SWITCH_OFF: &str = "SELECT setval('opsward.capture_state', 5)";

/// Removes the triggers, those of older versions too, and their function. A change of
/// [`crate::db::short_lock`].
pub async fn remove(tx: &Transaction<'_>) -> Result<()> {
    tx.batch_execute(REMOVE).await.doing("remove the triggers")
}

const REMOVE: &str = "DO $remove$ BEGIN
    DROP TRIGGER IF EXISTS opsward_capture ON public.ops;
    DROP TRIGGER IF EXISTS opsward_capture_truncate ON public.ops;
    DROP FUNCTION IF EXISTS public.opsward_capture() CASCADE;
    DELETE FROM opsward.owned WHERE kind = 'trigger' AND name = 'opsward_capture';
    END $remove$";

/// What the catalog says of a swap under way.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Standing {
    /// Our triggers on `ops`: which they are, since when, whether always on.
    pub triggers: Option<String>,
    /// All are there and fire for every session.
    pub firing: bool,
    /// `opsward.capture_state`.
    pub state: i64,
    /// The new table is there.
    pub next: bool,
    /// The replaced table is there.
    pub old: bool,
    /// The log's file: a rewrite, which fires no trigger, gives it another one.
    pub file: i64,
}

/// Reads it.
pub async fn standing(client: &impl GenericClient) -> Result<Standing> {
    let statement = client.prepare_cached(STANDING).await.doing("look at the reclaim")?;
    rows::one(client, &statement, &[], "look at the reclaim").await
}

/// A trigger that is switched off and on again has another xmin.
const STANDING: &str = "
    SELECT string_agg(t.oid::text || ':' || t.xmin::text, ',' ORDER BY t.tgname) AS triggers,
           count(*) = 4 AND bool_and(t.tgenabled = 'A') AS firing,
           (SELECT last_value FROM opsward.capture_state) AS state,
           to_regclass('opsward.ops_next') IS NOT NULL AS next, to_regclass('opsward.ops_old') IS NOT NULL AS old,
           pg_relation_filenode('public.ops')::bigint AS file
    FROM pg_trigger t
    WHERE t.tgrelid = 'public.ops'::regclass AND starts_with(t.tgname, 'opsward_capture')";
