//! The file that `digest` writes: lines of JSON. A header, then for each table
//! a line that names it and a line for each record (its key's texts and its
//! hash), then a trailer with counts and a SHA-256 over every byte before it.

use crate::db::digest::Record;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};

/// The first words of the header.
pub const FORMAT: &str = "opsward digest";
/// The version of the format: another one is refused.
pub const VERSION: u32 = 1;
/// The longest line: a key has at most 2.7 kB, the header's cursors some kB.
const LONGEST_LINE: u64 = 1 << 20;

/// What the records of a digest are of, and how far they go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Whose records they are; none of a database that is reached by its URL.
    #[serde(rename = "self")]
    pub own: Option<String>,
    /// The opsward that wrote it.
    pub opsward: String,
    /// Before the first record was read.
    pub taken_at: jiff::Timestamp,
    /// The server and the database, where the role may know.
    pub database: Option<String>,
    /// The tables, in the order in which they follow.
    pub tables: Vec<Table>,
    /// Tables that were left out.
    pub left_out: Vec<String>,
    /// How far each peer's log had been read before the first record was.
    pub cursors: BTreeMap<String, String>,
    /// The newest op of its own log then.
    pub newest: Option<String>,
}

/// A table and what of it is compared.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Its name.
    pub table: String,
    /// Its key's columns.
    pub key: Vec<String>,
    /// The columns that are hashed, in their order.
    pub columns: Vec<String>,
}

/// The line before a table's records.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    table: String,
}

/// The last line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    rows: BTreeMap<String, u64>,
    sha256: String,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    /// It can't be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not whole, or not what `digest` wrote.
    #[error("{0}")]
    Broken(String),
}

fn broken<T>(why: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::Broken(why.into()))
}

/// Writes a digest.
pub struct Writer<W: Write> {
    out: W,
    hash: Sha256,
    table: String,
    rows: BTreeMap<String, u64>,
}

impl<W: Write> Writer<W> {
    /// Begins with the header.
    ///
    /// # Errors
    /// The output's.
    pub fn new(out: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { out, hash: Sha256::new(), table: String::new(), rows: BTreeMap::new() };
        writer.line(header)?;
        Ok(writer)
    }

    /// Begins a table.
    ///
    /// # Errors
    /// The output's.
    pub fn table(&mut self, table: &str) -> io::Result<()> {
        self.table = table.to_owned();
        self.rows.insert(self.table.clone(), 0);
        self.line(&Begin { table: self.table.clone() })
    }

    /// A record of the table that was begun last.
    ///
    /// # Errors
    /// The output's.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        *self.rows.entry(self.table.clone()).or_default() += 1;
        let hash = format!("{:032x}", record.hash);
        let line: Vec<&str> = record.key.iter().map(String::as_str).chain([hash.as_str()]).collect();
        self.line(&line)
    }

    /// Ends with the trailer; says how many rows of each table there are.
    ///
    /// # Errors
    /// The output's.
    pub fn end(mut self) -> io::Result<(W, BTreeMap<String, u64>)> {
        let sha256 = hex(std::mem::take(&mut self.hash));
        let trailer = Trailer { rows: std::mem::take(&mut self.rows), sha256 };
        self.line(&trailer)?;
        self.out.flush()?;
        Ok((self.out, trailer.rows))
    }

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.hash.update(&line);
        self.out.write_all(&line)
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// A digest's file that can be read again and again.
pub struct DigestFile {
    file: File,
    /// What it says of itself.
    pub header: Header,
    /// Its rows by table.
    pub rows: BTreeMap<String, u64>,
}

impl DigestFile {
    /// Opens a file and makes sure that it is whole.
    ///
    /// # Errors
    /// It can't be read, is of another version, or is not whole.
    pub fn open(file: File) -> Result<Self, Bad> {
        let (header, rows) = {
            let mut reader = Reader::new(&file)?;
            let header = reader.header()?;
            let rows = reader.rest(&header, "", &mut |_| {})?;
            (header, rows)
        };
        Ok(Self { file, header, rows })
    }

    /// Shows each record of a table to `each`. The file is checked anew: it may
    /// have changed meanwhile.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn records(&self, table: &str, each: &mut dyn FnMut(Record)) -> Result<(), Bad> {
        let mut reader = Reader::new(&self.file)?;
        if reader.header()? != self.header || reader.rest(&self.header, table, each)? != self.rows {
            return broken("it changed while it was being read");
        }
        Ok(())
    }
}

struct Reader<'f> {
    input: Box<dyn BufRead + 'f>,
    hash: Sha256,
    line: Vec<u8>,
}

impl<'f> Reader<'f> {
    /// From the start of the file; gzip is told by its first bytes.
    fn new(mut file: &'f File) -> Result<Self, Bad> {
        file.rewind()?;
        let mut buffered = BufReader::with_capacity(1 << 16, file);
        let zipped = buffered.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead> = match zipped {
            // Members may follow each other: what follows the last must be one.
            true => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(buffered))),
            false => Box::new(buffered),
        };
        Ok(Self { input, hash: Sha256::new(), line: Vec::new() })
    }

    /// The next line without its end.
    fn next(&mut self) -> Result<&[u8], Bad> {
        self.line.clear();
        (&mut self.input).take(LONGEST_LINE).read_until(b'\n', &mut self.line)?;
        match self.line.strip_suffix(b"\n") {
            Some(line) => Ok(line),
            None => broken("it is cut off, or no digest: a line does not end"),
        }
    }

    fn header(&mut self) -> Result<Header, Bad> {
        /// What any version begins with.
        #[derive(Deserialize)]
        struct Any {
            format: String,
            version: u32,
        }
        let line = self.next()?;
        let Ok(any) = serde_json::from_slice::<Any>(line) else {
            return broken("its first line is no header of a digest");
        };
        if any.format != FORMAT || any.version != VERSION {
            return broken(format!(
                "it is a {:?} of version {}: this opsward reads {FORMAT:?} of version {VERSION}",
                any.format, any.version
            ));
        }
        let header = parse(line, "header")?;
        self.hash.update(&self.line);
        Ok(header)
    }

    /// All that follows the header; records of `table` are shown.
    fn rest(
        &mut self,
        header: &Header,
        table: &str,
        each: &mut dyn FnMut(Record),
    ) -> Result<BTreeMap<String, u64>, Bad> {
        let mut rows = BTreeMap::new();
        let mut tables = header.tables.iter();
        let (mut count, mut begun): (u64, Option<&Table>) = (0, None);
        loop {
            let line = self.next()?;
            if line.first() == Some(&b'[') {
                let Some(Table { table: name, key, .. }) = begun else {
                    return broken("it was changed: a record in it is of no table");
                };
                if name == table {
                    each(record(line, key.len())?);
                }
                count += 1;
                self.hash.update(&self.line);
                continue;
            }
            if let Some(Table { table, .. }) = begun {
                rows.insert(table.clone(), count);
                count = 0;
            }
            begun = tables.next();
            match begun {
                Some(next) if parse::<Begin>(line, "table")?.table == next.table => {}
                Some(next) => return broken(format!("the table {} does not follow", next.table)),
                None => break,
            }
            self.hash.update(&self.line);
        }
        let sha256 = hex(std::mem::take(&mut self.hash));
        let expected = serde_json::to_vec(&Trailer { rows: rows.clone(), sha256 });
        // Byte by byte: the trailer is under no hash but says it.
        if self.line.strip_suffix(b"\n") != expected.ok().as_deref() {
            return broken("it was changed: counts or SHA-256 of its last line do not fit what is before it");
        }
        match self.input.read(&mut [0])? {
            0 => Ok(rows),
            _ => broken("something follows its last line"),
        }
    }
}

fn parse<T: DeserializeOwned>(line: &[u8], what: &str) -> Result<T, Bad> {
    serde_json::from_slice(line)
        .or_else(|_| broken(format!("it is cut off or was changed: no line of a {what}")))
}

fn record(line: &[u8], key: usize) -> Result<Record, Bad> {
    let mut parts: Vec<String> = parse(line, "record")?;
    let hash = parts.pop().and_then(|text| u128::from_str_radix(&text, 16).ok());
    match hash {
        Some(hash) if parts.len() == key => Ok(Record { key: parts, hash }),
        _ => broken("it was changed: no line of a record"),
    }
}
