//! A peer's body in any pieces: the same elements however it is cut, those that
//! serde_json sees, and never more kept than one op may hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opsward::wire::body::{BodyError, Element, Limits, Scanner, read_envelope};
use serde_json::value::RawValue;

const LIMITS: Limits = Limits {
    op_bytes: 4096,
    body_bytes: 1 << 20,
    ops: 1000,
    depth: 64,
};
/// 2026-11-23.
const NOW_MS: u64 = 1_795_392_000_000;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, body) = (usize::from(input.0) + 1, input.1);
    let (whole, end) = scan(body, body.len().max(1));
    let (pieces, end_of_pieces) = scan(body, piece);
    assert_eq!(whole, pieces);
    assert_eq!(end, end_of_pieces);

    let mut sound = end.is_ok();
    for element in &whole {
        assert!(element.bytes.len() <= LIMITS.op_bytes);
        sound &= read_envelope(element, NOW_MS).is_ok();
    }
    // What follows the first value is ignored.
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Vec<&RawValue>>();
    if let Some(Ok(seen)) = values.next()
        && seen.len() <= LIMITS.ops
        && seen.iter().all(|raw| raw.get().len() <= LIMITS.op_bytes)
    {
        assert!(sound, "serde_json reads it: {end:?}");
        let texts: Vec<&[u8]> = seen.iter().map(|raw| raw.get().as_bytes()).collect();
        let found: Vec<&[u8]> = whole.iter().map(|element| &element.bytes[..]).collect();
        assert_eq!(found, texts);
    }
});

fn scan(body: &[u8], piece: usize) -> (Vec<Element>, Result<(), BodyError>) {
    let (mut scanner, mut out) = (Scanner::new(LIMITS), Vec::new());
    for part in body.chunks(piece) {
        if let Err(e) = scanner.feed(part, &mut out) {
            return (out, Err(e));
        }
        assert!(scanner.pending() <= LIMITS.op_bytes);
        assert_eq!(scanner.found(), out.len());
        if scanner.is_full() {
            return (out, Ok(()));
        }
    }
    let end = scanner.finish();
    (out, end)
}
