//! `verify`: whether two validators hold the same records.
//!
//! Both sides' records are folded into sums by ranges of their keys' hashes:
//! the order of the rows, and so the collation, does not matter, and a row more
//! on one side moves no range. What is in ranges that differ is read again by
//! key, as both sides live on, until it agrees or the time is up.

mod compare;
mod moving;

pub use compare::{Found, Side};

use super::digest::{Error, Tell, described, header};
use super::file::{DigestFile, Header};
use crate::clock::Clock;
use crate::db::Db;
use crate::records::Model;
use crate::values::Host;
use compare::Candidates;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at records that differ.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What a validator is compared with.
pub enum Reference {
    /// A digest's file.
    File(Box<DigestFile>),
    /// Another validator's database.
    Url(Db),
}

/// What is to be compared, and how.
#[derive(Clone)]
pub struct Verify<'a> {
    /// This validator's database.
    pub db: &'a Db,
    /// This validator.
    pub own: Option<&'a Host>,
    /// The tables.
    pub scope: Vec<&'static Model>,
    /// How long records that differ are read again.
    pub settle: Duration,
    /// How old a file may be; `None` for any age.
    pub max_age: Option<Duration>,
    /// The time.
    pub clock: Clock,
}

/// What came of a comparison. Counts are of records.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Whether both sides hold the same records.
    #[serde(rename = "match")]
    pub matches: bool,
    /// The reference's header, as it was before the first record was compared.
    #[serde(skip)]
    pub reference: Header,
    /// Tables that were not compared.
    pub left_out: Vec<String>,
    /// Peers whose logs the reference had read further, where something differs:
    /// what changed here since can't be told from what is missing here.
    pub read_less_of: Vec<String>,
    /// Each table's findings.
    pub tables: Vec<Found>,
}

impl Verify<'_> {
    /// Compares this validator with a reference.
    ///
    /// # Errors
    /// A reference that proves nothing is refused; else the databases'.
    pub async fn run(mut self, reference: &Reference, tell: Tell<'_>) -> Result<Report, Error> {
        let now = self.clock.now();
        let theirs = match reference {
            Reference::File(digest) => digest.header.clone(),
            Reference::Url(db) => {
                header(db, None, &mut self.scope.clone(), now).await.map_err(|e| match e {
                    Error::Own(e) => Error::Reference(e),
                    e => e,
                })?
            }
        };
        // What the file left out is left out.
        self.scope.retain(|m| !theirs.left_out.contains(&m.table));
        let ours = header(self.db, self.own, &mut self.scope, now).await?;
        self.guard(&ours, &theirs)?;

        let mut open = Vec::new();
        for model in &self.scope {
            let side = Side { db: self.db, reference, model };
            open.push((side, side.candidates(tell).await?));
        }
        let read_less_of = self.settle(&mut open, &theirs, tell).await?;
        let tables: Vec<Found> = open.into_iter().map(|(side, c)| c.found(&side.model.table)).collect();
        let left_out = crate::records::models()
            .iter()
            .map(|m| m.table.clone())
            .filter(|table| !tables.iter().any(|found| found.table == *table))
            .collect();
        let matches = tables.iter().all(Found::matches);
        Ok(Report { matches, reference: theirs, left_out, read_less_of, tables })
    }

    /// Refuses a reference that would prove nothing.
    fn guard(&self, ours: &Header, theirs: &Header) -> Result<(), Error> {
        let refused = |why: String| Err(Error::Refused(why));
        if ours.own.is_some() && ours.own == theirs.own {
            let own = ours.own.as_deref().unwrap_or_default();
            return refused(format!("the reference is of {own}, this very validator: take one of another"));
        }
        if ours.database.is_some() && ours.database == theirs.database {
            return refused("the reference is of this very database: take one of another validator".into());
        }
        // A file says whose it is; of databases only the servers tell.
        if theirs.own.is_none() && (ours.database.is_none() || theirs.database.is_none()) {
            return refused(
                "whether the reference is another database cannot be told: GRANT EXECUTE ON FUNCTION \
                 pg_control_system() to the role on both servers, or use a digest's file"
                    .into(),
            );
        }
        for model in &self.scope {
            let table = described(model);
            match theirs.tables.iter().find(|t| t.table == table.table) {
                Some(same) if *same == table => {}
                Some(other) => {
                    let differ = |a: &[String], b: &[String]| -> Vec<String> {
                        a.iter().filter(|c| !b.contains(c)).cloned().collect()
                    };
                    let columns =
                        [differ(&other.columns, &table.columns), differ(&table.columns, &other.columns)]
                            .concat();
                    return refused(format!(
                        "the reference reads other columns of {} than this opsward: {}; \
                         use the same version on both, beside nodes of the same generation",
                        table.table,
                        columns.join(", ")
                    ));
                }
                None => return refused(format!("the reference lacks the table {}", table.table)),
            }
        }
        self.is_fresh(theirs)
    }

    /// Refuses a reference that is too old.
    ///
    /// # Errors
    /// It is, with what is allowed.
    pub fn is_fresh(&self, theirs: &Header) -> Result<(), Error> {
        let Some(max_age) = self.max_age else {
            return Ok(());
        };
        // Half a minute ahead is the clocks' doing.
        let age = self.clock.now().as_millisecond() - theirs.taken_at.as_millisecond();
        if age < -30_000 || u128::try_from(age).is_ok_and(|age| age > max_age.as_millis()) {
            return Err(Error::Refused(format!(
                "the reference was taken at {}, and may be {} s old at most: take a new one",
                theirs.taken_at,
                max_age.as_secs()
            )));
        }
        Ok(())
    }

    /// Reads what differs again until it agrees or the time is up. Of a file
    /// only our side can be; what our own log explains is let pass.
    async fn settle(
        &self,
        open: &mut [(Side<'_>, Candidates)],
        theirs: &Header,
        tell: Tell<'_>,
    ) -> Result<Vec<String>, Error> {
        let mut read_less = Vec::new();
        let until = Instant::now() + self.settle;
        loop {
            for (side, candidates) in open.iter_mut() {
                candidates.look_again(side).await?;
            }
            let is_file = open.iter().any(|(side, _)| matches!(side.reference, Reference::File(_)));
            if is_file && open.iter().any(|(_, c)| !c.is_empty()) {
                read_less = moving::let_pass((self.db, self.own), open, theirs, self.clock.now()).await?;
            }
            let left: u64 = open.iter().map(|(_, c)| c.len()).sum();
            if left == 0 || Instant::now() >= until || open.iter().any(|(_, c)| c.is_hopeless()) {
                return Ok(if left == 0 { Vec::new() } else { read_less });
            }
            tell("records that differ", left, "left");
            sleep(LOOK_AGAIN.min(until - Instant::now())).await;
        }
    }
}
