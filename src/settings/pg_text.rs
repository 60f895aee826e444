//! The two spellings of a connection string, taken apart into keys and values.

use super::pg_url::Raw;

const SPACE: [char; 6] = [' ', '\t', '\n', '\r', '\x0b', '\x0c'];

/// Keys and values of either spelling.
///
/// # Errors
/// What is wrong with it, without any of its text.
pub fn read(text: &str) -> Result<Raw, String> {
    match text.split_once("://") {
        Some(("postgres" | "postgresql", rest)) => read_url(rest),
        // `password=x://y` is no URL.
        Some((scheme, _)) if !scheme.contains('=') => {
            Err("its scheme is neither postgres nor postgresql".into())
        }
        _ => read_pairs(text),
    }
}

fn read_url(rest: &str) -> Result<Raw, String> {
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains('@') {
        return Err("an @ follows its first /; in a password / is written %2F".into());
    }
    let mut raw = Raw::new();
    let places = match authority.rsplit_once('@') {
        Some((who, places)) => {
            let (user, password) = who.split_once(':').unwrap_or((who, ""));
            raw.insert("user".into(), decode(user)?);
            raw.insert("password".into(), decode(password)?);
            places
        }
        None => authority,
    };
    read_hosts(places, &mut raw)?;
    let database = decode(path.trim_start_matches('/'))?;
    if !database.is_empty() {
        raw.insert("database".into(), database);
    }
    let mut seen = Raw::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(&value.replace('+', " "))?;
        // The first of several equal keys counts, and goes before the other parts of the URL.
        seen.entry(named(decode(key)?)).or_insert(value);
    }
    raw.extend(seen);
    Ok(raw)
}

/// `a:1,b,[::1]:2` into two lists, as pgx does: a port belongs to the host of
/// its place among the ports.
fn read_hosts(places: &str, raw: &mut Raw) -> Result<(), String> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for place in places.split(',').filter(|place| !place.is_empty()) {
        let bare = place.trim_matches(['[', ']']);
        let (host, port) = if !place.contains(':') || bare.parse::<std::net::Ipv6Addr>().is_ok() {
            (place, "")
        } else {
            place.rsplit_once(':').unwrap_or((place, ""))
        };
        let inner = host.trim_matches(['[', ']']);
        if inner.contains(':') && inner.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("a host in it has too many colons".into());
        }
        if !inner.is_empty() {
            hosts.push(decode(inner)?);
        }
        if !port.is_empty() {
            ports.push(port);
        }
    }
    if !hosts.is_empty() {
        raw.insert("host".into(), hosts.join(","));
    }
    if !ports.is_empty() {
        raw.insert("port".into(), ports.join(","));
    }
    Ok(())
}

fn named(key: String) -> String {
    if key == "dbname" { "database".into() } else { key }
}

fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err("a % in it is not followed by two hexadecimal digits".into());
        };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 once its %-escapes are read".into())
}

/// `key = value key='a value'`, with `\'` and `\\` in either.
fn read_pairs(text: &str) -> Result<Raw, String> {
    let mut raw = Raw::new();
    let mut rest = text.trim_matches(SPACE);
    if rest.is_empty() {
        return Err("it is neither a URL nor key=value pairs".into());
    }
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or("it is neither a URL nor key=value pairs")?;
        let key = key.trim_matches(SPACE);
        if key.is_empty() {
            return Err("a value in it has no key".into());
        }
        let after = after.trim_start_matches(SPACE);
        let (value, after) = match after.strip_prefix('\'') {
            Some(quoted) => until(quoted, |c| c == '\'')
                .and_then(|(value, after)| Some((value, after.strip_prefix('\'')?)))
                .ok_or("a quoted value in it does not end")?,
            None => until(after, |c| SPACE.contains(&c)).ok_or("it ends in a backslash")?,
        };
        raw.insert(named(key.to_owned()), value);
        rest = after.trim_start_matches(SPACE);
    }
    Ok(raw)
}

/// The unescaped text before the first unescaped character of a kind (or the
/// end), and what begins with it. `None` when it ends in a backslash.
fn until(text: &str, stop: impl Fn(char) -> bool) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if stop(c) {
            return Some((value, &text[at..]));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let (_, escaped) = chars.next()?;
        if !matches!(escaped, '\\' | '\'') {
            value.push('\\');
        }
        value.push(escaped);
    }
    Some((value, ""))
}

/// libpq's `options`: `-c name=value`, `-cname=value` or `--name=value`, with
/// blanks inside a value escaped by a backslash.
///
/// # Errors
/// Any other switch.
pub fn options(text: &str) -> Result<Vec<(String, String)>, String> {
    const WRONG: &str = "options in it may hold -c name=value and --name=value only";
    let mut words = words(text).into_iter();
    let mut params = Vec::new();
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("--") {
            Some(pair) => pair.to_owned(),
            None if word == "-c" => words.next().ok_or(WRONG)?,
            None => word.strip_prefix("-c").ok_or(WRONG)?.to_owned(),
        };
        let (name, value) = pair.split_once('=').ok_or(WRONG)?;
        params.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(params)
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if SPACE.contains(&c) {
            words.extend(word.take());
            continue;
        }
        let c = if c == '\\' { chars.next().unwrap_or('\\') } else { c };
        word.get_or_insert_default().push(c);
    }
    words.extend(word);
    words
}
