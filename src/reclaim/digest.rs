//! `digest`: every record's key and hash, with what says how far its validator
//! had read. One line: header (cursors first) → each table's pages → trailer.

use super::file::{Bad, FORMAT, Header, Table, VERSION, Writer};
use crate::db::digest::{Record, Walk, cursors, identity, newest};
use crate::db::{self, Db, catalog};
use crate::records::{Model, models};
use crate::values::{Host, unix_ms};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guard refused: nothing was compared or done.
    #[error("{0}")]
    Refused(String),
    /// This validator's database.
    #[error(transparent)]
    Own(#[from] db::Error),
    /// The reference's database.
    #[error("the reference: {0}")]
    Reference(db::Error),
    /// The output can't be written.
    #[error("the digest cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl From<Bad> for Error {
    fn from(bad: Bad) -> Self {
        Self::Refused(format!("the reference file is not used: {bad}"))
    }
}

/// What has been read so far: the table, rows, and of which side.
pub type Tell<'a> = &'a dyn Fn(&str, u64, &'static str);

/// The record tables but those that are left out.
///
/// # Errors
/// A name of no such table, or nothing is left.
pub fn scope(only: &[String], leave_out: &[String]) -> Result<Vec<&'static Model>, String> {
    let known: Vec<&str> = models().iter().map(|m| m.table.as_str()).collect();
    if let Some(unknown) = only.iter().chain(leave_out).find(|name| !known.contains(&name.as_str())) {
        return Err(format!("{unknown} is no record table; there are {}", known.join(", ")));
    }
    let wanted = |m: &&Model| (only.is_empty() || only.contains(&m.table)) && !leave_out.contains(&m.table);
    let scope: Vec<&Model> = models().iter().filter(wanted).collect();
    if scope.is_empty() { Err("no table is left to be read".into()) } else { Ok(scope) }
}

/// What of a model is compared, for the header.
pub fn described(model: &Model) -> Table {
    let name = |place: usize| model.columns[place].name.clone();
    Table {
        table: model.table.clone(),
        key: model.key.iter().map(|place| name(*place)).collect(),
        columns: (0..model.columns.len()).filter(|p| Some(*p) != model.touched).map(name).collect(),
    }
}

/// The header of a digest that begins now. What was read of the peers' logs is
/// looked up here, and so before the first record is.
///
/// # Errors
/// A table that is not what its model says, or the database's.
pub async fn header(
    db: &Db,
    own: Option<&Host>,
    scope: &mut [&'static Model],
    now: Timestamp,
) -> Result<Header, Error> {
    let client = db.client().await?;
    let relations = catalog::relations(&client).await?;
    for model in scope.iter_mut() {
        *model = fitting(model, relations.columns(&model.table)).map_err(|why| {
            Error::Refused(format!("{}: {why}; an opsward that knows this node is needed", db.shown()))
        })?;
    }
    let now_ms = unix_ms(now);
    let cursors = cursors(&client, now_ms).await?;
    Ok(Header {
        format: FORMAT.into(),
        version: VERSION,
        own: own.map(Host::to_string),
        opsward: env!("CARGO_PKG_VERSION").into(),
        taken_at: now,
        database: identity(&client).await?,
        tables: scope.iter().map(|model| described(model)).collect(),
        left_out: models()
            .iter()
            .filter(|m| !scope.iter().any(|s| s.table == m.table))
            .map(|m| m.table.clone())
            .collect(),
        cursors: cursors.into_iter().map(|(host, ulid)| (host, ulid.to_string())).collect(),
        newest: newest(&client, now_ms).await?.map(|ulid| ulid.to_string()),
    })
}

/// The model as this relation has it, or how they differ.
fn fitting(model: &'static Model, columns: Option<&[String]>) -> Result<&'static Model, String> {
    let columns = columns.ok_or_else(|| format!("there is no table {}", model.table))?;
    let plain = models().get(&model.table).unwrap_or(model);
    plain.fitting(columns)
}

/// Shows every record of a table to `each`, in short reads; says how many
/// there are.
///
/// # Errors
/// The database's, or what `each` says.
pub async fn records<E: From<db::Error>>(
    db: &Db,
    model: &Model,
    mut each: impl FnMut(Record) -> Result<(), E>,
    mut tell: impl FnMut(u64),
) -> Result<u64, E> {
    let client = db.client().await?;
    let mut walk = Walk::new(model);
    let mut rows = 0;
    loop {
        let page = walk.page(&client).await?;
        if page.is_empty() {
            return Ok(rows);
        }
        rows += page.len() as u64;
        page.into_iter().try_for_each(&mut each)?;
        tell(rows);
    }
}

/// Writes a digest of these tables; says how many rows each has.
///
/// # Errors
/// The database's, or the output's.
pub async fn write<W: Write>(
    db: &Db,
    header: &Header,
    out: W,
    tell: Tell<'_>,
) -> Result<(W, BTreeMap<String, u64>), Error> {
    let mut writer = Writer::new(out, header)?;
    for model in models().iter() {
        let Some(table) = header.tables.iter().find(|t| t.table == model.table) else { continue };
        // What the header says is what is read: a newer node has more columns.
        let touched = model.touched.map(|place| model.columns[place].name.clone());
        let columns: Vec<String> = table.columns.iter().cloned().chain(touched).collect();
        let model = model.fitting(&columns).map_err(Error::Refused)?;
        writer.table(&model.table)?;
        let each = |record| writer.record(&record).map_err(Error::from);
        records(db, model, each, |rows| tell(&model.table, rows, "here")).await?;
    }
    Ok(writer.end()?)
}
