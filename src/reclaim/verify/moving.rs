//! What changed here since a file was taken, told by our own log: a record
//! whose last op is one that the reference had not read. An update or a delete
//! decides all of a record, so that it hides no older difference; a create
//! decides only one that was not there.

use super::super::digest::Error;
use super::super::file::Header;
use super::compare::{Candidates, Side};
use crate::db::Db;
use crate::db::digest::{cursors, ops_above};
use crate::records::{convert, models};
use crate::values::{Action, Host, OpUlid, is_plausible, unix_ms};
use jiff::Timestamp;
use std::collections::HashMap;

/// How far before the file the look into our log begins: an op may be that
/// late. As long as `reset` keeps ops.
const LATE_MS: u64 = 2 * 3_600_000;
/// A file this much older is no longer explained.
const LONGEST_MS: u64 = 24 * 3_600_000;

/// Lets those records pass that changed here since the file was taken, unless
/// the reference had read more of some peer's log: an op that only it knows
/// could change such a record, too. Returns those peers.
pub(super) async fn let_pass(
    (db, own): (&Db, Option<&Host>),
    open: &mut [(Side<'_>, Candidates)],
    theirs: &Header,
    now: Timestamp,
) -> Result<Vec<String>, Error> {
    if unix_ms(now).saturating_sub(unix_ms(theirs.taken_at)) > LONGEST_MS {
        return Ok(Vec::new());
    }
    let ours = cursors(&db.client().await?, unix_ms(now)).await?;
    let theirs_read = theirs.cursors.iter().chain(theirs.own.iter().zip(&theirs.newest));
    let read_less = theirs_read.filter(|(host, ulid)| {
        own.is_none_or(|own| own.as_str() != host.as_str())
            && OpUlid::parse(ulid).is_some_and(|ulid| is_plausible(ulid, unix_ms(now)))
            && ours.get(*host).is_none_or(|ours| ours.as_str() < ulid.as_str())
    });
    let read_less: Vec<String> = read_less.map(|(host, _)| host.clone()).collect();
    if !read_less.is_empty() {
        return Ok(read_less);
    }
    // The last op of each record that differs.
    let mut last: HashMap<(usize, Vec<String>), Action> = HashMap::new();
    let from = OpUlid::first_of_ms(unix_ms(theirs.taken_at).saturating_sub(LATE_MS));
    ops_above(db, from, |op| {
        let host = Host::normalise(&op.host);
        let read = match theirs.own.as_deref() == Some(host.as_str()) {
            true => theirs.newest.as_deref(),
            false => theirs.cursors.get(host.as_str()).map(String::as_str),
        };
        let (Some(action), Some(model)) = (Action::parse(&op.action), models().get(&op.table)) else {
            return;
        };
        if read.is_some_and(|read| op.ulid.as_str() <= read) {
            return;
        }
        let Some(place) = open.iter().position(|(side, _)| side.model.table == model.table) else {
            return;
        };
        for row in convert(model, action, &op.data, now).unwrap_or_default() {
            if open[place].1.there(&row.key).is_some() {
                last.insert((place, row.key), action);
            }
        }
    })
    .await?;
    for ((place, key), action) in last {
        let candidates = &mut open[place].1;
        if action != Action::Create || candidates.there(&key) == Some(false) {
            candidates.let_pass(&key);
        }
    }
    Ok(Vec::new())
}
