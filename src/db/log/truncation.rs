//! The trigger that forgets a log in the transaction that truncates it (a
//! node's state sync): beside the replay guard, which would keep the refill out
//! by floors of a log that is gone.

use crate::db::connect::Client;
use crate::db::error::{Doing, Result};
use crate::db::lease::Lease;

/// Whether the trigger is on the log.
pub(crate) async fn is_there(client: &Client) -> Result<bool> {
    Ok(client.query_one(FIND, &[]).await.doing("look for the truncation trigger")?.get(0))
}

const FIND: &str = "
    SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('public.ops')
                   AND tgname = 'opsward_truncation' AND tgenabled = 'A')";

/// Puts the trigger on the log, or takes it away: one try of a short lock.
pub(crate) async fn put(lease: &mut Lease, on: bool) -> Result<()> {
    let tx = lease.begin().await?;
    tx.batch_execute(QUICKLY).await.doing("change the truncation trigger")?;
    tx.batch_execute(if on { PUT } else { TAKE }).await.doing("change the truncation trigger")?;
    tx.commit().await.doing("change the truncation trigger")
}

const QUICKLY: &str = "SET LOCAL lock_timeout = '100ms'; SET LOCAL statement_timeout = '200ms'; \
    SET LOCAL idle_in_transaction_session_timeout = '1s'";
const PUT: &str = "DO $put$ BEGIN
    PERFORM opsward.truncation_make();
    DROP TRIGGER IF EXISTS opsward_truncation ON public.ops;
    CREATE TRIGGER opsward_truncation AFTER TRUNCATE ON public.ops
        FOR EACH STATEMENT EXECUTE FUNCTION public.opsward_truncation();
    ALTER TABLE public.ops ENABLE ALWAYS TRIGGER opsward_truncation;
    INSERT INTO opsward.owned (kind, name, drop_sql) VALUES ('trigger', 'opsward_truncation',
        'DROP TRIGGER IF EXISTS opsward_truncation ON public.ops; \
         DROP FUNCTION IF EXISTS public.opsward_truncation()')
    ON CONFLICT (kind, name) DO UPDATE SET drop_sql = excluded.drop_sql;
    END $put$";
const TAKE: &str = "DO $take$ BEGIN
    DROP TRIGGER IF EXISTS opsward_truncation ON public.ops;
    DROP FUNCTION IF EXISTS public.opsward_truncation();
    DELETE FROM opsward.owned WHERE kind = 'trigger' AND name = 'opsward_truncation';
    END $take$";
