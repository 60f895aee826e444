//! Bytes that call themselves gzip: a step never yields more than it may, and
//! what a step neither uses nor yields is the end of what was fed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opsward::wire::body::Unzip;

const STEP: usize = 64 * 1024;
/// A reader would long have stopped.
const ENOUGH: usize = 4 << 20;

fuzz_target!(|input: &[u8]| {
    let mut unzip = Unzip::default();
    let (mut rest, mut all) = (input, 0);
    while all < ENOUGH {
        let Ok((used, gave)) = unzip.step(rest) else {
            return;
        };
        assert!(gave.len() <= STEP && used <= rest.len());
        all += gave.len();
        if used == 0 && gave.is_empty() {
            return;
        }
        rest = &rest[used..];
    }
});
