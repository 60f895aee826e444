//! The page writer: ops to JSON, to gzip where asked, in chunks of 64 KiB.
//!
//! An op's `data` is JSON text already and is copied as it is; each byte of it
//! is copied once on the way into its chunk (or into the compressor's input).

mod objects;

pub use objects::is_array_of_objects;

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};

/// Bytes of a chunk.
pub const CHUNK: usize = 64 * 1024;

/// What one compressor keeps beside its output, in bytes: its window, hash
/// chains and buffers.
const GZIP_STATE: usize = 384 * 1024;

/// How a page is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    Identity,
    /// Gzip, level 1.
    Gzip,
}

/// An op as it goes into a page: texts in UTF-8, `data` JSON.
#[derive(Clone, Copy)]
pub struct PageOp<'a> {
    /// Its key.
    pub ulid: &'a [u8],
    /// Who wrote it first.
    pub host: &'a [u8],
    /// What it does.
    pub action: &'a [u8],
    /// The table of its records.
    pub table: &'a [u8],
    /// Its records: JSON text, taken over as it is.
    pub data: &'a [u8],
}

impl PageOp<'_> {
    /// What it adds to a page at least, in bytes of JSON: exact where no
    /// character needs escaping.
    pub fn weight(&self) -> usize {
        const FRAME: usize =
            r#",{"ulid":"","host":"","action":"","table":"","data":,"transient":false}"#.len();
        FRAME + self.ulid.len() + self.host.len() + self.action.len() + self.table.len() + self.data.len()
    }
}

/// Writes one page. Never fails: it writes to memory.
pub struct PageWriter {
    /// JSON that is in no chunk yet; at most `CHUNK`.
    open: Vec<u8>,
    /// JSON bytes that left `open`.
    passed: usize,
    ops: usize,
    sink: Sink,
}

enum Sink {
    Plain(Vec<Vec<u8>>),
    Gzip(Box<GzEncoder<Chunks>>),
}

impl PageWriter {
    /// An empty page.
    pub fn new(encoding: Encoding) -> Self {
        let mut open = Vec::with_capacity(CHUNK);
        open.push(b'[');
        Self {
            open,
            passed: 0,
            ops: 0,
            sink: match encoding {
                Encoding::Identity => Sink::Plain(Vec::new()),
                Encoding::Gzip => {
                    Sink::Gzip(Box::new(GzEncoder::new(Chunks::default(), Compression::new(1))))
                }
            },
        }
    }

    /// Adds an op at the end.
    pub fn push(&mut self, op: PageOp<'_>) {
        self.put(if self.ops == 0 { br#"{"ulid":""# } else { br#",{"ulid":""# });
        self.ops += 1;
        self.put_escaped(op.ulid);
        self.put(br#"","host":""#);
        self.put_escaped(op.host);
        self.put(br#"","action":""#);
        self.put_escaped(op.action);
        self.put(br#"","table":""#);
        self.put_escaped(op.table);
        self.put(br#"","data":"#);
        self.put(op.data);
        self.put(br#","transient":false}"#);
    }

    /// Ops in the page.
    pub fn ops(&self) -> usize {
        self.ops
    }

    /// Bytes of JSON so far.
    pub fn json_bytes(&self) -> usize {
        self.passed + self.open.len()
    }

    /// Bytes of memory that the page takes now.
    pub fn memory(&self) -> usize {
        CHUNK
            + match &self.sink {
                Sink::Plain(chunks) => chunks.len() * CHUNK,
                Sink::Gzip(encoder) => GZIP_STATE + encoder.get_ref().memory(),
            }
    }

    /// The finished page in chunks; none is empty.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.put(b"]");
        self.pass();
        let mut chunks = match self.sink {
            Sink::Plain(chunks) => chunks,
            // Writing to memory never fails.
            Sink::Gzip(encoder) => encoder.finish().unwrap_or_default().finish(),
        };
        // Many pages are a few bytes: they need not hold a whole chunk.
        if let Some(last) = chunks.last_mut() {
            last.shrink_to_fit();
        }
        chunks
    }

    fn put_escaped(&mut self, text: &[u8]) {
        let mut plain = 0;
        for (i, byte) in text.iter().enumerate() {
            if matches!(byte, b'"' | b'\\' | 0..0x20) {
                self.put(&text[plain..i]);
                self.put_escape(*byte);
                plain = i + 1;
            }
        }
        self.put(&text[plain..]);
    }

    fn put_escape(&mut self, byte: u8) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        match byte {
            b'"' | b'\\' => self.put(&[b'\\', byte]),
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                self.put(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while bytes.len() > CHUNK - self.open.len() {
            let (now, later) = bytes.split_at(CHUNK - self.open.len());
            self.open.extend_from_slice(now);
            self.pass();
            bytes = later;
        }
        self.open.extend_from_slice(bytes);
    }

    /// Hands what is open on to the sink.
    fn pass(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.passed += self.open.len();
        match &mut self.sink {
            Sink::Plain(chunks) => {
                chunks.push(std::mem::replace(&mut self.open, Vec::with_capacity(CHUNK)));
            }
            Sink::Gzip(encoder) => {
                // Writing to memory never fails.
                let _ = encoder.write_all(&self.open);
                self.open.clear();
            }
        }
    }
}

/// Bytes in full chunks and one that is filling.
#[derive(Default)]
struct Chunks {
    full: Vec<Vec<u8>>,
    open: Vec<u8>,
}

impl Chunks {
    fn memory(&self) -> usize {
        self.full.len() * CHUNK + self.open.capacity()
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.open.is_empty() {
            self.full.push(self.open);
        }
        self.full
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.open.len() == CHUNK {
            self.full.push(std::mem::take(&mut self.open));
        }
        if self.open.capacity() == 0 {
            self.open.reserve_exact(CHUNK);
        }
        let n = bytes.len().min(CHUNK - self.open.len());
        self.open.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::io::Read;

    type Fields = (String, String, String, String, String);

    fn page(ops: &[Fields], encoding: Encoding) -> Vec<u8> {
        let mut writer = PageWriter::new(encoding);
        for (ulid, host, action, table, data) in ops {
            let op = PageOp {
                ulid: ulid.as_bytes(),
                host: host.as_bytes(),
                action: action.as_bytes(),
                table: table.as_bytes(),
                data: data.as_bytes(),
            };
            let before = writer.json_bytes();
            writer.push(op);
            assert!(writer.json_bytes() - before + 1 >= op.weight());
        }
        let (memory, json) = (writer.memory(), writer.json_bytes());
        let chunks = writer.finish();
        assert!(chunks.iter().all(|c| !c.is_empty() && c.len() <= CHUNK));
        let body = chunks.concat();
        assert!(memory + CHUNK >= body.len());
        if encoding == Encoding::Identity {
            assert_eq!(json + 1, body.len());
        }
        body
    }

    fn unzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn an_empty_page_is_an_empty_array() {
        assert_eq!(page(&[], Encoding::Identity), b"[]");
        assert_eq!(unzip(&page(&[], Encoding::Gzip)), b"[]");
    }

    #[test]
    fn key_order_and_verbatim_data() {
        let op = ("U", "h", "create", "t", r#"[{"a": 1.50}]"#);
        let op = (op.0.into(), op.1.into(), op.2.into(), op.3.into(), op.4.into());
        assert_eq!(
            String::from_utf8(page(&[op], Encoding::Identity)).unwrap(),
            r#"[{"ulid":"U","host":"h","action":"create","table":"t","data":[{"a": 1.50}],"transient":false}]"#
        );
    }

    #[test]
    fn a_large_op_fills_chunks() {
        let data = format!(r#"[{{"a": "{}"}}]"#, "x".repeat(3 * CHUNK));
        let op = ("U".into(), String::new(), String::new(), String::new(), data);
        let body = page(&[op.clone(), op], Encoding::Identity);
        let read: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(read.as_array().unwrap().len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn parses_back_to_the_ops(
            ops in prop::collection::vec(
                (any::<String>(), any::<String>(), any::<String>(), any::<String>(), "[a-z]{0,20000}"),
                0..12,
            )
        ) {
            let ops: Vec<Fields> = ops
                .into_iter()
                .map(|(u, h, a, t, d)| (u, h, a, t, json!([{ "d": d }]).to_string()))
                .collect();
            let body = page(&ops, Encoding::Identity);
            let read: Vec<Value> = serde_json::from_slice(&body).unwrap();
            let want: Vec<Value> = ops
                .iter()
                .map(|(u, h, a, t, d)| json!({
                    "ulid": u, "host": h, "action": a, "table": t,
                    "data": serde_json::from_str::<Value>(d).unwrap(), "transient": false,
                }))
                .collect();
            prop_assert_eq!(read, want);
            prop_assert_eq!(unzip(&page(&ops, Encoding::Gzip)), body);
        }
    }
}
