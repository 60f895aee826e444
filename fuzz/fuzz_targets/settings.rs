//! Any environment: settings or problems, never a panic, and never the password
//! in what is shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opsward::settings::{Source, TABLE, load};
use std::collections::BTreeMap;

const PASSWORD: &str = "hunter2hunter2";

fuzz_target!(|input: (u8, &str)| {
    let (first, text) = input;
    if text.contains(PASSWORD) || text.contains('\0') {
        return;
    }
    // The first line goes on a URL with a password; each other line goes to
    // the next setting of the table.
    let mut lines = text.lines();
    let rest = lines.next().unwrap_or_default();
    let mut env = BTreeMap::new();
    for (n, line) in lines.enumerate() {
        let entry = &TABLE[(usize::from(first) + n) % TABLE.len()];
        env.insert(entry.variable().to_owned(), line.into());
    }
    env.insert(
        "OPENAUDIO_DB_URL".to_owned(),
        format!("postgresql://someone:{PASSWORD}@{rest}").into(),
    );
    let source = Source {
        flags: BTreeMap::new(),
        config: None,
        env,
        read: Box::new(|_| Err(std::io::ErrorKind::NotFound.into())),
    };
    let said = match load(&source) {
        Ok(loaded) => format!("{:?}", loaded.settings),
        Err(problems) => problems.to_string(),
    };
    assert!(!said.contains(PASSWORD), "{said}");
});
