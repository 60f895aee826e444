//! Who is in the way: other sessions, named so that an operator finds them.

use crate::db::error::{Doing, Result};
use crate::db::transaction::GenericClient;

/// The sessions that build an index on the log or on its TOAST table now. An invalid
/// index may be theirs: nothing is a leftover while there is one.
pub async fn builders(client: &impl GenericClient) -> Result<Vec<String>> {
    let rows = client.query(BUILDERS, &[]).await.doing("look who builds an index on ops")?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// A concurrent build keeps its lock on the table from its first transaction to its
/// last. What it is at is hidden from other roles, that it is at work is not.
const BUILDERS: &str = "
    SELECT DISTINCT format('process %s (%s, %s): %s', a.pid, coalesce(a.usename, a.backend_type),
                  coalesce(nullif(a.application_name, ''), 'unnamed'),
                  coalesce(nullif(left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80), ''), 'no statement'))
    FROM pg_class c JOIN pg_locks l ON l.relation IN (c.oid, c.reltoastrelid)
    JOIN pg_stat_progress_create_index p ON p.pid = l.pid JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE c.oid = to_regclass('public.ops') AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
