//! Finds the elements of a JSON array in bytes that arrive in any pieces.

use memchr::memchr2;

/// What one page may be at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one op. A longer one ends the page before it.
    pub op_bytes: usize,
    /// Bytes of the whole body, unpacked.
    pub body_bytes: u64,
    /// Ops in one page.
    pub ops: usize,
    /// Levels of arrays and objects inside one op.
    pub depth: usize,
}

/// One element of the page's array: where it begins and ends is known, whether
/// it is JSON is seen when it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Element {
    /// Its bytes; may hold invalid UTF-8 inside of strings.
    pub bytes: Vec<u8>,
    /// Nested deeper than the limit: to be refused unread.
    pub too_deep: bool,
}

/// Why a body is no page.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BodyError {
    /// Not a JSON array, or broken inside.
    #[error("the body is not a JSON array of ops: {0}")]
    NotJson(String),
    /// It ended before its array did.
    #[error("the body ended in the middle, after {0} ops")]
    Cut(usize),
    /// Larger than the limit.
    #[error("the body is larger than {0} bytes")]
    TooLong(u64),
    /// One op is larger than the limit.
    #[error("an op is larger than {0} bytes")]
    OpTooLong(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Start,
    FirstOrEnd,
    Next,
    /// A number or a word: up to what ends it.
    Scalar,
    Nested,
    String,
    Escape,
    CommaOrEnd,
    Done,
}

/// The scanner: fed with bytes, yields elements.
#[derive(Debug)]
pub struct Scanner {
    limits: Limits,
    state: State,
    element: Vec<u8>,
    depth: usize,
    too_deep: bool,
    bytes: u64,
    found: usize,
}

impl Scanner {
    /// A scanner at the start of a body.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Start,
            element: Vec::new(),
            depth: 0,
            too_deep: false,
            bytes: 0,
            found: 0,
        }
    }

    /// Whether the array has ended; what follows is ignored, as nodes do.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes kept of an element that is not complete yet.
    pub fn pending(&self) -> usize {
        self.element.len()
    }

    /// How many elements were found.
    pub fn found(&self) -> usize {
        self.found
    }

    /// Whether the page holds as many ops as it may: the rest is left unread.
    pub fn is_full(&self) -> bool {
        self.found >= self.limits.ops
    }

    /// Takes the next bytes and appends the elements completed by them.
    ///
    /// # Errors
    /// The body is no page; elements found before are already in `out`.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<Element>) -> Result<(), BodyError> {
        self.bytes += input.len() as u64;
        if self.bytes > self.limits.body_bytes && self.state != State::Done {
            return Err(BodyError::TooLong(self.limits.body_bytes));
        }
        while !input.is_empty() && self.state != State::Done && !self.is_full() {
            let used = self.step(input, out)?;
            input = &input[used..];
        }
        Ok(())
    }

    /// Says that the body has ended.
    ///
    /// # Errors
    /// It ended before its array did.
    pub fn finish(&self) -> Result<(), BodyError> {
        if self.is_done() { Ok(()) } else { Err(BodyError::Cut(self.found)) }
    }

    /// Moves on by a byte or a state, says how many bytes that took.
    fn step(&mut self, input: &[u8], out: &mut Vec<Element>) -> Result<usize, BodyError> {
        let byte = input[0];
        match self.state {
            State::Nested | State::String | State::Escape => return self.nested(input, out),
            State::Scalar => {
                if matches!(byte, b',' | b']') || is_space(byte) {
                    self.complete(out);
                    return Ok(usize::from(is_space(byte)));
                }
                self.keep(&input[..1])?;
            }
            _ if is_space(byte) => {}
            State::Start if byte == b'[' => self.state = State::FirstOrEnd,
            State::Start => {
                return Err(BodyError::NotJson(format!("it starts with {:?}", char::from(byte))));
            }
            State::FirstOrEnd | State::CommaOrEnd if byte == b']' => self.state = State::Done,
            State::CommaOrEnd if byte == b',' => self.state = State::Next,
            State::CommaOrEnd => {
                return Err(BodyError::NotJson(format!("{:?} after op {}", char::from(byte), self.found)));
            }
            State::FirstOrEnd | State::Next => self.begin(byte)?,
            State::Done => {}
        }
        Ok(1)
    }

    fn begin(&mut self, byte: u8) -> Result<(), BodyError> {
        self.depth = 0;
        self.too_deep = false;
        self.state = match byte {
            b'{' | b'[' => {
                self.depth = 1;
                State::Nested
            }
            b'"' => State::String,
            b',' | b']' | b'}' => {
                return Err(BodyError::NotJson(format!("no op where op {} is due", self.found + 1)));
            }
            _ => State::Scalar,
        };
        self.keep(&[byte])
    }

    /// Runs over an array, an object or a string to its end or to the
    /// end of the input: one pass, one copy.
    fn nested(&mut self, input: &[u8], out: &mut Vec<Element>) -> Result<usize, BodyError> {
        let mut used = 0;
        while used < input.len() {
            match self.state {
                State::String => match memchr2(b'"', b'\\', &input[used..]) {
                    Some(at) => {
                        used += at + 1;
                        self.state = if input[used - 1] == b'"' { State::Nested } else { State::Escape };
                        if self.state == State::Nested && self.depth == 0 {
                            self.keep(&input[..used])?;
                            self.complete(out);
                            return Ok(used);
                        }
                    }
                    None => used = input.len(),
                },
                State::Escape => {
                    used += 1;
                    self.state = State::String;
                }
                _ => {
                    let byte = input[used];
                    used += 1;
                    match byte {
                        b'"' => self.state = State::String,
                        b'{' | b'[' => {
                            self.depth += 1;
                            self.too_deep |= self.depth > self.limits.depth;
                        }
                        b'}' | b']' => {
                            self.depth -= 1;
                            if self.depth == 0 {
                                self.keep(&input[..used])?;
                                self.complete(out);
                                return Ok(used);
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        self.keep(input)?;
        Ok(used)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        if self.element.len() + bytes.len() > self.limits.op_bytes {
            return Err(BodyError::OpTooLong(self.limits.op_bytes));
        }
        let needed = self.element.len() + bytes.len();
        if needed > self.element.capacity() {
            // A quarter more, not twice as much: an op may be large.
            self.element.reserve_exact(bytes.len() + self.element.len() / 4);
        }
        self.element.extend_from_slice(bytes);
        Ok(())
    }

    fn complete(&mut self, out: &mut Vec<Element>) {
        let bytes = std::mem::take(&mut self.element);
        self.state = State::CommaOrEnd;
        self.found += 1;
        out.push(Element { bytes, too_deep: self.too_deep });
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::super::read_envelope;
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    const LIMITS: Limits = Limits { op_bytes: 1000, body_bytes: 10_000, ops: 100, depth: 8 };

    fn scan(pieces: &[&[u8]]) -> (Vec<String>, Result<(), BodyError>) {
        let mut scanner = Scanner::new(LIMITS);
        let mut out = Vec::new();
        let fed = pieces
            .iter()
            .try_for_each(|p| scanner.feed(p, &mut out))
            .and_then(|()| scanner.finish())
            .and_then(|()| out.iter().try_for_each(|e| read_envelope(e, 0).map(drop)));
        (out.into_iter().map(|e| String::from_utf8_lossy(&e.bytes).into_owned()).collect(), fed)
    }

    #[test]
    fn whole_pages() {
        assert_eq!(scan(&[b"[]"]), (vec![], Ok(())));
        assert_eq!(scan(&[b" [ ]\n"]), (vec![], Ok(())));
        assert_eq!(
            scan(&[br#"[{"a":"]}\""}, 5 ,"x",null,[1]]"#]).0,
            [r#"{"a":"]}\""}"#, "5", "\"x\"", "null", "[1]"]
        );
        // As a node, which decodes the first value of the body.
        assert_eq!(scan(&[b"[1]garbage"]), (vec!["1".into()], Ok(())));
    }

    #[test]
    fn no_pages() {
        for body in [
            "",
            " ",
            "null",
            "{}",
            "\"x\"",
            "[1",
            "[1,",
            "[,]",
            "[1 2]",
            "[1,]",
            "[{]",
            "[}",
            "[tru]",
            "[{\"a\":}]",
            "\u{feff}[]",
            "[\"a\nb\"]",
        ] {
            assert!(scan(&[body.as_bytes()]).1.is_err(), "{body}");
        }
    }

    #[test]
    fn limits_hold() {
        let mut scanner = Scanner::new(LIMITS);
        let mut out = Vec::new();
        scanner.feed(b"[", &mut out).unwrap();
        assert_eq!(scanner.feed(b"\"", &mut out), Ok(()));
        assert_eq!(scanner.feed(&[b'a'; 2000], &mut out), Err(BodyError::OpTooLong(1000)));

        let mut scanner = Scanner::new(LIMITS);
        assert_eq!(scanner.feed(&[b' '; 20_000], &mut out), Err(BodyError::TooLong(10_000)));

        let mut scanner = Scanner::new(LIMITS);
        let deep = format!("[{}{}]", "[".repeat(400), "]".repeat(400));
        scanner.feed(deep.as_bytes(), &mut out).unwrap();
        assert!(out[0].too_deep);

        let mut scanner = Scanner::new(Limits { ops: 2, ..LIMITS });
        let mut out = Vec::new();
        scanner.feed(b"[1,2,3,4]", &mut out).unwrap();
        assert_eq!((out.len(), scanner.is_full(), scanner.is_done()), (2, true, false));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            json in r#"\[ ?(\{"a":"[^\x00-\x1f"\\]{0,8}","b":[1-9][0-9]{0,2}\}, ?){0,4}\{\}\]"#,
            at in proptest::collection::vec(0usize..60, 0..6),
        ) {
            let bytes = json.as_bytes();
            let mut cuts: Vec<usize> = at.into_iter().map(|i| i.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            pieces.push(&bytes[from..]);
            let whole = scan(&[bytes]);
            prop_assert_eq!(whole.1.clone(), Ok(()));
            prop_assert_eq!(scan(&pieces), whole);
        }

        #[test]
        fn every_cut_is_seen(len in 0usize..40) {
            let body = br#"[{"a":"b]"},{"c":[1,{"d":null}]} ,7]"#;
            if len < body.len() {
                prop_assert!(matches!(scan(&[&body[..len]]).1, Err(BodyError::Cut(_))));
            }
        }

        #[test]
        fn agrees_with_serde(text in "[\\[\\]{}\",:a1 \\\\]{0,24}") {
            let ours = scan(&[text.as_bytes()]);
            let mut theirs = serde_json::Deserializer::from_str(&text).into_iter::<Vec<&RawValue>>();
            match theirs.next() {
                Some(Ok(elements)) => {
                    prop_assert_eq!(ours.1, Ok(()));
                    prop_assert_eq!(ours.0, elements.iter().map(|e| e.get().to_owned()).collect::<Vec<_>>());
                }
                _ => prop_assert!(ours.1.is_err()),
            }
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = scan(&[b"[", &bytes]);
        }
    }
}
