//! What comes in a sweep's request line and headers: cursors, hosts, gap
//! headers. What is read is what was written, and reading never fails badly.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opsward::values::{Host, OpUlid, SweepHeaders, is_plausible};

/// 2026-11-23.
const NOW_MS: u64 = 1_795_392_000_000;

fuzz_target!(|text: &str| {
    for line in text.lines() {
        if let Some(ulid) = OpUlid::parse(line) {
            assert_eq!(ulid.as_str(), line);
            assert!(OpUlid::first_of_ms(ulid.ms()) <= ulid);
            assert!(ulid <= OpUlid::last_of_ms(ulid.ms()));
            let _ = is_plausible(ulid, NOW_MS);
        }
        if let Some(host) = Host::parse(line) {
            assert_eq!(Host::parse(host.as_str()), Some(host.clone()));
            assert_eq!(Host::normalise(line), host);
        }
    }
    // Each line the value of a header, the names in turn.
    let headers: Vec<&str> = text.lines().collect();
    let _ = SweepHeaders::read(|name| {
        let at = name.bytes().map(usize::from).sum::<usize>();
        headers.get(at % headers.len().max(1)).copied()
    });
});
