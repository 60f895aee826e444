//! Removes all that opsward made. Reads what versions of any age have in
//! common: the schema's name, and `opsward.owned`.

use crate::db::clone::{NEXT, OLD};
use crate::db::error::{Doing, Result};
use crate::db::lease::Lease;
use crate::db::migrate::{LATEST, MIGRATIONS, version};
use crate::db::presence::is_alone;
use crate::db::rows;
use crate::db::short_lock::{Behind, Brief, Patience, Target, bound, briefly};
use crate::db::swap::FREE_SEQUENCES;
use crate::db::transaction::{GenericClient, Transaction};
use crate::db::{in_place, reclaim};
use std::time::Duration;
use tokio::time::sleep;
use tokio_postgres::error::SqlState;

/// What there is to remove.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing of ours.
    Nothing,
    /// A schema of our name that no opsward made.
    Foreign,
    /// The schema, and what was made outside it: kind, name, and the statement
    /// that removes it, the last made first.
    Ours(Vec<Owned>),
    /// No schema, but triggers that a dump of schema public brought.
    Brought(Vec<Owned>),
    /// It would take with it what others made: each thing in words.
    Used(Vec<String>),
}

/// A thing outside the schema.
#[derive(Clone, PartialEq, Eq, Debug, serde::Deserialize)]
pub struct Owned {
    /// What it is: an index, a trigger.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The statement that removes it.
    pub drop_sql: String,
}

/// Looks for what there is to remove.
pub async fn find(client: &impl GenericClient) -> Result<Found> {
    let row = client.query_one(THERE, &[]).await.doing("look for the schema opsward")?;
    let (schema, ours): (bool, bool) = (row.get(0), row.get(1));
    if !schema {
        let brought = brought(client).await?;
        return Ok(if brought.is_empty() { Found::Nothing } else { Found::Brought(brought) });
    }
    if !ours {
        return Ok(Found::Foreign);
    }
    let used = others(client).await?;
    if !used.is_empty() {
        return Ok(Found::Used(used));
    }
    let mut owned: Vec<Owned> = rows::all(client, OWNED, &[], "read what is owned").await?;
    let brought = brought(client).await?.into_iter().filter(|b| owned.iter().all(|o| o.name != b.name));
    owned.extend(brought.collect::<Vec<_>>());
    Ok(Found::Ours(owned))
}

/// Functions of ours in schema public with the triggers that call them, whoever made them there:
/// a dump of that schema brings them along.
pub async fn brought(client: &impl GenericClient) -> Result<Vec<Owned>> {
    rows::all(client, BROUGHT, &[], "look for our triggers").await
}

const BROUGHT: &str = "
    SELECT 'trigger' AS kind, proname::text AS name,
           format('DROP FUNCTION IF EXISTS public.%I() CASCADE', proname) AS drop_sql
    FROM pg_proc
    WHERE pronamespace = to_regnamespace('public') AND prosrc LIKE '%Made by opsward%'
      AND proname IN ('opsward_capture', 'opsward_replay_guard', 'opsward_truncation')
    ORDER BY proname";

/// What others made, in the schema or on top of it: DROP … CASCADE would take it along.
async fn others(client: &impl GenericClient) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Dependent {
        /// Its name, where it lies in the schema.
        name: Option<String>,
        shown: String,
    }
    // What a newer version made is not known here.
    let is_newer = version(client).await? > LATEST;
    let is_ours = |d: &Dependent| {
        d.name.as_ref().is_some_and(|name| {
            let name = format!("opsward.{name}");
            is_newer || [NEXT, OLD].contains(&&*name) || MIGRATIONS.iter().any(|(_, sql)| sql.contains(&name))
        })
    };
    let all: Vec<Dependent> = rows::all(client, DEPENDENTS, &[], "look for what depends on opsward").await?;
    Ok(all.into_iter().filter(|d| !is_ours(d)).map(|d| d.shown).collect())
}

/// What goes with the schema. A view depends on tables by its rule. Our own triggers on the
/// log are owned, its sequences are freed, and the parts of tables go with them.
const DEPENDENTS: &str = "
    WITH RECURSIVE gone (classid, objid) AS (
        SELECT 'pg_namespace'::regclass::oid, 'opsward'::regnamespace::oid
        UNION
        SELECT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END,
               coalesce(r.ev_class, d.objid)
        FROM gone g JOIN pg_depend d ON d.refclassid = g.classid AND d.refobjid = g.objid
        LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid)
    SELECT substring(i.identity FROM '^opsward\\.(\\w+)') AS name, i.type || ' ' || i.identity AS shown
    FROM gone, pg_identify_object(classid, objid, 0) i
    WHERE i.type IN ('table', 'foreign table', 'view', 'materialized view', 'function', 'procedure', 'aggregate',
                     'table constraint', 'default value', 'trigger', 'policy')
      AND i.identity !~ '( on|^for) opsward\\.|^for public\\.ops\\.' AND i.identity !~ '^opsward_\\w+ on public\\.ops$'
    ORDER BY shown";
const THERE: &str = "
    SELECT to_regnamespace('opsward') IS NOT NULL,
           to_regclass('opsward.migrations') IS NOT NULL AND to_regclass('opsward.owned') IS NOT NULL";
const OWNED: &str = "SELECT kind, name, drop_sql FROM opsward.owned ORDER BY made_at DESC, kind, name";

/// Drops of what an interrupted reclaim in place left among the log's indexes,
/// each to be run by itself and watched.
pub async fn leftovers(client: &impl GenericClient) -> Result<Vec<String>> {
    let row = client.query_one(RECLAIMS, &[]).await.doing("look for a reclaim")?;
    if !row.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let unfinished = match reclaim::unfinished(client).await {
        // A newer schema, whose reclaims are not known here.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_COLUMN) => None,
        found => found?,
    };
    match unfinished {
        Some(of) if of.mode == "in-place" => in_place::leftovers(client).await,
        _ => Ok(Vec::new()),
    }
}

const RECLAIMS: &str = "SELECT to_regclass('opsward.reclaim') IS NOT NULL";

/// Tries of what others hold locked: half a minute of them.
pub const TRIES: u32 = 15;
/// Between two tries: whoever waits behind ours gets through (contract 6).
pub const PAUSE: Duration = Duration::from_secs(2);

/// What came of a removal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Removal {
    /// All is gone.
    Done,
    /// A daemon is connected: nothing was done.
    DaemonConnected,
    /// More is owned than was shown: nothing was done.
    Changed,
    /// Others held it at every try, in words. What is left goes another time.
    Blocked(String),
}

/// Removes what was `shown`, then the schema: the log is locked for the first
/// only, as briefly as ever.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn remove(lease: &mut Lease, shown: &[Owned]) -> Result<Removal> {
    if !shown.is_empty() {
        match outside(lease, shown).await? {
            Removal::Done => {}
            other => return Ok(other),
        }
    }
    match find(&*lease.client()?).await? {
        Found::Nothing => Ok(Removal::Done),
        _ => schema(lease).await,
    }
}

/// What was made outside the schema: all of it is on the log.
async fn outside(lease: &mut Lease, shown: &[Owned]) -> Result<Removal> {
    let drop_owned = async |tx: &Transaction<'_>| {
        if let Some(not) = unlike(tx, shown).await? {
            return Ok(not);
        }
        for thing in shown {
            let dropped = async { tx.batch_execute(&thing.drop_sql).await.doing("remove what is owned") };
            tokio::try_join!(biased; bound(tx), dropped)?;
        }
        tx.batch_execute(FORGET).await.doing("forget what is owned")?;
        Ok(Removal::Done)
    };
    removed(lease, (&["public.ops"], Behind::Everybody), drop_owned).await
}

const FORGET: &str = "DO $forget$ BEGIN
    IF to_regclass('opsward.owned') IS NOT NULL THEN DELETE FROM opsward.owned; END IF;
    END $forget$";

/// No node waits for our own tables, so what drops them may take its time.
async fn schema(lease: &mut Lease) -> Result<Removal> {
    removed(lease, (&["opsward.traces"], Behind::Nobody), drop_schema).await
}

async fn removed(
    lease: &mut Lease,
    target: Target<'_>,
    change: impl AsyncFn(&Transaction<'_>) -> Result<Removal>,
) -> Result<Removal> {
    let mut patience = Patience::of(PAUSE * TRIES);
    loop {
        let came = briefly(lease, target, &change).await?;
        let pause = patience.pause(&came);
        match (came, pause) {
            (Brief::Done(removal), _) => return Ok(removal),
            (_, Some(pause)) => sleep(pause).await,
            (Brief::Overtaken, None) => return Ok(Removal::Changed),
            (Brief::Held(who) | Brief::Refused(who), None) => return Ok(Removal::Blocked(who.to_string())),
        }
    }
}

async fn drop_schema(tx: &Transaction<'_>) -> Result<Removal> {
    if let Some(not) = unlike(tx, &[]).await? {
        return Ok(not);
    }
    tx.batch_execute(FREE_SEQUENCES).await.doing("keep the sequences of ops")?;
    tx.batch_execute("DROP SCHEMA opsward CASCADE").await.doing("drop the schema opsward")?;
    Ok(Removal::Done)
}

/// Why it is not to be removed, where it is not as it was shown.
async fn unlike(tx: &Transaction<'_>, shown: &[Owned]) -> Result<Option<Removal>> {
    if !is_alone(tx).await? {
        return Ok(Some(Removal::DaemonConnected));
    }
    Ok(match find(tx).await? {
        Found::Ours(owned) | Found::Brought(owned) if owned == shown => None,
        _ => Some(Removal::Changed),
    })
}
