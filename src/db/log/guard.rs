//! The replay guard: a trigger on the log that keeps ops out which would not
//! act again, as a node would apply them over newer state.
//!
//! Its function stands in schema public, so that a dump of that schema alone
//! restores and takes inserts; `opsward.guard_make()`, in the migrations, makes
//! it. It lets pass what lies above all that was deleted or announced, for the
//! price of the call. So whatever deletes announces it first.
//!
//! Beside it stands the trigger that forgets a log in the transaction that truncates it
//! (a node's state sync): the guard would keep the refill out by floors of a log that is
//! gone.

use crate::db::{
    Client, Doing, GenericClient, Lease, Result,
    short_lock::{Behind, Brief, briefly},
};
use crate::values::OpUlid;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::sleep;

/// What there is of a trigger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// No trigger.
    Nothing,
    /// It is as this binary makes it.
    Right,
    /// It is disabled, or made otherwise.
    Other,
}

/// A trigger of ours on the log, and its function of the same name in schema public.
struct Trigger {
    name: &'static str,
    /// `pg_trigger.tgtype` and `.tgenabled`.
    like: (i16, &'static str),
    create: &'static str,
}

/// The trigger's name.
pub const NAME: &str = "opsward_replay_guard";
/// Makes the guard.
pub const CREATE: &str = "DO $guard$ BEGIN
    PERFORM opsward.guard_make();
    CREATE TRIGGER opsward_replay_guard BEFORE INSERT ON public.ops
        FOR EACH ROW EXECUTE FUNCTION public.opsward_replay_guard();
    END $guard$";
/// 7: before each row of an INSERT. `O`: not ALWAYS, as what a logical
/// subscription or a restore writes (role `replica`) is no op from a peer, and
/// nodes write in the role `origin`.
const GUARD: Trigger = Trigger { name: NAME, like: (7, "O"), create: CREATE };
/// 32: after a TRUNCATE, whoever does it.
const TRUNCATION: Trigger =
    Trigger { name: "opsward_truncation", like: (32, "A"), create: CREATE_TRUNCATION };
const CREATE_TRUNCATION: &str = "DO $truncation$ BEGIN
    PERFORM opsward.truncation_make();
    CREATE TRIGGER opsward_truncation AFTER TRUNCATE ON public.ops
        FOR EACH STATEMENT EXECUTE FUNCTION public.opsward_truncation();
    ALTER TABLE public.ops ENABLE ALWAYS TRIGGER opsward_truncation;
    END $truncation$";

impl Trigger {
    async fn find(&self, client: &impl GenericClient) -> Result<Found> {
        let (kind, enabled) = self.like;
        let row = client.query_one(FIND, &[&self.name, &kind, &enabled]).await;
        Ok(match row.doing("look for our triggers on ops")?.get(0) {
            None => Found::Nothing,
            Some(true) => Found::Right,
            Some(false) => Found::Other,
        })
    }

    fn drop(&self) -> String {
        format!("DROP TRIGGER IF EXISTS {} ON public.ops", self.name)
    }

    fn drop_function(&self) -> String {
        format!("DROP FUNCTION IF EXISTS public.{}()", self.name)
    }

    /// What brings about a change of what there is.
    fn script(&self, change: Change, found: Found) -> Vec<String> {
        let drop = Some(self.drop()).filter(|_| found != Found::Nothing);
        let then = match change {
            Change::Put if found == Found::Right => return Vec::new(),
            Change::Put => self.create.to_owned(),
            Change::Take => self.drop_function(),
        };
        drop.into_iter().chain([then]).collect()
    }
}

/// Looks for the guard on the log.
pub async fn find(client: &Client) -> Result<Found> {
    let found = GUARD.find(client).await?;
    Ok(match lost_function(client).await? {
        Some(_) if found == Found::Right => Found::Other,
        _ => found,
    })
}

/// A function of the schema opsward that the guard calls, and that somebody dropped: it lets
/// everything pass then.
pub async fn lost_function(client: &Client) -> Result<Option<String>> {
    Ok(client.query_opt(LOST, &[]).await.doing("look for the guard's functions")?.map(|row| row.get(0)))
}

const LOST: &str = "
    SELECT f FROM unnest(ARRAY['opsward.announced(text)', 'opsward.guard_make()', 'opsward.truncation_make()',
        'opsward.guard_refuses(text,text,text,text,jsonb)', 'opsward.guard_keeps(text,text,text,text,jsonb)',
        'opsward.acting(text,text,text,jsonb)', 'opsward.records(jsonb)', 'opsward.trace_key(text,jsonb)']) f
    WHERE to_regclass('opsward.migrations') IS NOT NULL AND to_regprocedure(f) IS NULL LIMIT 1";

/// Whether the guard and the trigger beside it are on the log, or gone from it.
pub async fn is_as(client: &Client, change: Change) -> Result<bool> {
    let wanted = match change {
        Change::Put => Found::Right,
        Change::Take => Found::Nothing,
    };
    Ok(GUARD.find(client).await? == wanted && TRUNCATION.find(client).await? == wanted)
}

const FIND: &str = "
    SELECT CASE WHEN t.oid IS NOT NULL THEN
               coalesce(t.tgtype = $2 AND t.tgenabled::text = $3::text AND t.tgqual IS NULL AND p.prosecdef
                        AND t.tgfoid = p.oid, false)
           END
    FROM (SELECT to_regprocedure(format('public.%I()', $1::text)) AS oid) f
    LEFT JOIN pg_proc p ON p.oid = f.oid
    LEFT JOIN pg_trigger t
        ON t.tgrelid = to_regclass('public.ops') AND t.tgname = $1::text AND NOT t.tgisinternal";

/// Tells the guard what is about to be deleted: by table, below which ULID.
/// Nothing where there is no guard. Inserts that are under way meanwhile have
/// asked the guard as it was: they are waited for.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn announce<'a>(
    lease: &mut Lease,
    cuts: impl IntoIterator<Item = (&'a String, OpUlid)>,
) -> Result<()> {
    let (tables, below): (Vec<&str>, Vec<String>) =
        cuts.into_iter().map(|(table, below)| (table.as_str(), below.to_string())).unzip();
    let tx = lease.begin().await?;
    let raised = tx.execute(ANNOUNCE, &[&tables, &below]).await.doing("announce a deletion to the guard")?;
    tx.commit().await.doing("announce a deletion to the guard")?;
    if raised == 0 {
        return Ok(());
    }
    let client = lease.client()?;
    let since: Timestamp =
        client.query_one("SELECT clock_timestamp()", &[]).await.doing("read the clock")?.get(0);
    for _ in 0..LOOKS {
        let row = client.query_one(UNDER_WAY, &[&since]).await.doing("look for inserts under way")?;
        if !row.get::<_, bool>(0) {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

const ANNOUNCE: &str = "
    INSERT INTO opsward.floors AS f (table_name, announced, raised_at)
    SELECT c.name, c.below, now() FROM unnest($1::text[], $2::text[]) AS c(name, below)
    WHERE to_regprocedure('public.opsward_replay_guard()') IS NOT NULL
    ON CONFLICT (table_name) DO UPDATE SET announced = excluded.announced
        WHERE excluded.announced > coalesce(f.announced, '')";
/// A second: an insert is between its question and its row for microseconds,
/// and a longer statement asks anew for each row.
const LOOKS: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(50);
const UNDER_WAY: &str = "
    SELECT EXISTS (
        SELECT FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.relation = to_regclass('public.ops') AND l.granted AND l.mode = 'RowExclusiveLock'
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.pid <> pg_backend_pid()
          AND (a.state IS NULL OR a.state = 'active' AND a.query_start < $1))";

/// What is done with the guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Put on the log, anew where one is there.
    Put,
    /// Taken away.
    Take,
}

/// Tries once to put the guard and the trigger beside it on the log, or to take them
/// away. That we own them is recorded before, and forgotten after.
///
/// # Errors
/// The lease is lost, or the database's.
pub async fn change(lease: &mut Lease, change: Change) -> Result<Brief<()>> {
    let mut script = Vec::new();
    for trigger in [GUARD, TRUNCATION] {
        if change == Change::Put {
            let drop = format!("{}; {}", trigger.drop(), trigger.drop_function());
            lease.client()?.execute(OWN, &[&trigger.name, &drop]).await.doing("record a trigger on ops")?;
        }
        script.extend(trigger.script(change, trigger.find(&*lease.client()?).await?));
    }
    // A trigger that is there goes under a lock that readers are in the way of.
    let drops = script.iter().any(|sql| sql.starts_with("DROP TRIGGER"));
    let behind = if drops { Behind::Everybody } else { Behind::Writers };
    briefly(lease, (&["public.ops"], behind), async |tx| {
        tx.batch_execute(&script.join("; ")).await.doing("change the triggers on ops")?;
        if change == Change::Take {
            let names = [GUARD.name, TRUNCATION.name].as_slice();
            tx.execute(DISOWN, &[&names]).await.doing("forget the triggers on ops")?;
        }
        Ok(())
    })
    .await
}

const OWN: &str = "
    INSERT INTO opsward.owned (kind, name, drop_sql) VALUES ('trigger', $1, $2)
    ON CONFLICT (kind, name) DO UPDATE SET drop_sql = excluded.drop_sql";
const DISOWN: &str = "DELETE FROM opsward.owned WHERE kind = 'trigger' AND name = ANY ($1)";
