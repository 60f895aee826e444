//! Unpacks gzip in steps of at most 64 KiB, so that the reader can stop a gzip bomb after any
//! step.

use flate2::{Decompress, FlushDecompress, Status};

/// What one step yields at most.
const STEP: usize = 64 * 1024;

/// Most members of a stream. Servers send one; an empty member is 20 bytes and costs a new
/// decompressor.
const MOST_MEMBERS: u32 = 1_000;

/// The first byte of a gzip member.
const MAGIC: u8 = 0x1f;

/// A gzip stream being unpacked.
#[derive(Debug)]
pub struct Unzip {
    inner: Decompress,
    step: Vec<u8>,
    ended: bool,
    members: u32,
}

impl Default for Unzip {
    fn default() -> Self {
        Self { inner: Decompress::new_gzip(15), step: vec![0; STEP], ended: false, members: 1 }
    }
}

impl Unzip {
    /// Unpacks some of `input`: how much of it was used, and what it gave (at
    /// most 64 KiB). Nothing used and nothing given: feed more. Bytes after
    /// the end that are no further member are ignored.
    ///
    /// # Errors
    /// The bytes are no gzip, damaged, or of too many members.
    pub fn step(&mut self, input: &[u8]) -> Result<(usize, &[u8]), String> {
        match (self.ended, input.first()) {
            // Members may follow each other, as Go reads them too.
            (true, Some(&MAGIC)) if self.members >= MOST_MEMBERS => {
                return Err(format!("the gzip stream has more than {MOST_MEMBERS} members"));
            }
            (true, Some(&MAGIC)) => {
                self.members += 1;
                self.inner = Decompress::new_gzip(15);
                self.ended = false;
            }
            (true, _) => return Ok((input.len(), &[])),
            (false, _) => {}
        }
        let (read, wrote) = (self.inner.total_in(), self.inner.total_out());
        let status = self
            .inner
            .decompress(input, &mut self.step, FlushDecompress::None)
            .map_err(|e| format!("damaged gzip: {e}"))?;
        self.ended = status == Status::StreamEnd;
        let used = (self.inner.total_in() - read) as usize;
        let gave = (self.inner.total_out() - wrote) as usize;
        Ok((used, &self.step[..gave]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use std::io::Write;

    fn unzip(mut input: &[u8]) -> Result<Vec<u8>, String> {
        let mut unzip = Unzip::default();
        let mut out = Vec::new();
        loop {
            let (used, bytes) = unzip.step(input)?;
            if used == 0 && bytes.is_empty() {
                return Ok(out);
            }
            out.extend_from_slice(bytes);
            input = &input[used..];
        }
    }

    #[test]
    fn members_are_bounded() {
        let empty = GzEncoder::new(Vec::new(), Compression::fast()).finish().unwrap();
        assert_eq!(unzip(&empty.repeat(1_000)), Ok(Vec::new()));
        assert!(unzip(&empty.repeat(1_001)).unwrap_err().contains("1000 members"));
    }

    proptest! {
        #[test]
        fn gives_back_what_was_packed(data: Vec<u8>, copies in 1usize..3000) {
            let data = data.repeat(copies);
            let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
            gz.write_all(&data).unwrap();
            prop_assert_eq!(unzip(&gz.finish().unwrap()), Ok(data));
        }

        #[test]
        fn members_follow_each_other(a: Vec<u8>, b: Vec<u8>) {
            let gzip = |data: &[u8]| {
                let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
                gz.write_all(data).unwrap();
                gz.finish().unwrap()
            };
            prop_assert_eq!(unzip(&[gzip(&a), gzip(&b), b"\0\0".to_vec()].concat()), Ok([a, b].concat()));
        }

        #[test]
        fn never_panics(data: Vec<u8>) {
            let _ = unzip(&data);
        }
    }
}
