//! The order of the log's keys. Whatever walks over ranges of the log relies on
//! ULIDs being in the order of their bytes, which is that of time, under the
//! collation that the database gives them.

use crate::db::{Client, Doing, Error, Result};
use crate::values::OpUlid;
use tokio_postgres::error::SqlState;

/// What is wrong with the order, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disorder {
    /// What was found.
    pub text: String,
    /// What to do.
    pub fix: String,
}

/// Looks whether ULIDs are in the order that they have to be in; all is well where there is no log.
pub async fn look(client: &Client) -> Result<Option<Disorder>> {
    let probes = probes();
    let row = match client.query_one(ORDER, &[&probes]).await {
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(None),
        row => row.doing("look at the order of keys")?,
    };
    let (is_right, version): (bool, i32) = (row.get(0), row.get(1));
    if !is_right {
        return Ok(Some(Disorder {
            text: "the collation of ops.ulid does not put ULIDs in the order of their bytes: \
                   nothing that walks over the log can be right"
                .into(),
            fix: "give the column the database's own collation, as a node makes it; where that is the one, \
                  dump the database and restore it into one of locale en_US.UTF-8 or C"
                .into(),
        }));
    }
    if version < FIRST_WITH_VERSIONS {
        return Ok(None);
    }
    let row = client.query_one(VERSIONS, &[]).await.doing("look at the collation's version")?;
    let (made, now): (Option<String>, Option<String>) = (row.get(0), row.get(1));
    Ok(made.zip(now).filter(|(made, now)| made != now).map(|(made, now)| Disorder {
        text: format!(
            "the database's collation was of version {made} when it was made and is of {now}: \
             its indexes may be out of order"
        ),
        fix: "REINDEX DATABASE, then ALTER DATABASE … REFRESH COLLATION VERSION".into(),
    }))
}

/// As [`look`]; what is wrong is an error.
pub async fn check(client: &Client) -> Result<()> {
    match look(client).await? {
        Some(Disorder { text, fix }) => Err(Error::Unfit(format!("{text}; {fix}"))),
        None => Ok(()),
    }
}

/// ULIDs that collations could have their own ideas about, in the order of their bytes: each of
/// the 32 characters in several places, and digits that would be numbers of another size.
fn probes() -> Vec<String> {
    let (start, step) = (1_672_531_200_000, 8_123_456_789);
    let mut probes: Vec<String> = (0..32_u64)
        .flat_map(|n| {
            let spread = |shift: u32| u128::from(n) << shift;
            [
                OpUlid::from_parts(start + n * step, spread(75)),
                OpUlid::from_parts(start + n, spread(40)),
                OpUlid::from_parts(start, spread(5)),
                OpUlid::from_parts(start, spread(70) + 31),
            ]
        })
        .map(|ulid| ulid.to_string())
        .collect();
    probes.sort_unstable();
    probes.dedup();
    probes
}

/// The column decides which collation it is; none of its rows is read.
const ORDER: &str = "
    SELECT array_agg(ulid ORDER BY ulid) = $1::text[], current_setting('server_version_num')::int
    FROM (SELECT ulid FROM public.ops WHERE false UNION ALL SELECT unnest($1::text[])) probes";

/// Servers before do not remember the version of a database's collation.
const FIRST_WITH_VERSIONS: i32 = 150_000;
const VERSIONS: &str = "
    SELECT datcollversion, pg_database_collation_actual_version(oid)
    FROM pg_database WHERE datname = current_database()";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_have_every_character_and_numbers_of_all_sizes() {
        let probes = probes();
        assert!(probes.len() > 100 && probes.iter().all(|p| OpUlid::parse(p).is_some()));
        for c in "0123456789ABCDEFGHJKMNPQRSTVWXYZ".chars() {
            assert!(probes.iter().any(|p| p[4..].starts_with(c) || p[10..].contains(c)), "{c}");
        }
    }
}
