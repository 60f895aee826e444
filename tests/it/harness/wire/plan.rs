//! What the line saw, and where it is to stop: values only.

use std::collections::BTreeMap;

/// Longest label of a kind, in characters, before it is cut and hashed.
const LABEL: usize = 100;

/// One execution of one statement: a simple query (whatever it holds, a
/// server runs it as one) or an Execute of a prepared statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// From 1 on, in the order in which they reached the line.
    pub number: u64,
    /// Which connection, from 1 on.
    pub connection: u64,
    /// The client's `application_name`.
    pub application: String,
    /// The text; of a very long one its beginning (64 KiB).
    pub sql: String,
    /// A label that is the same for all statements that differ in values only.
    pub kind: String,
    /// The command tag (`DELETE 10`), or `ERROR` and an SQLSTATE; `None` while
    /// it has none.
    pub answer: Option<String>,
}

/// Which execution.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Matcher {
    /// By its number over all connections.
    Number(u64),
    /// The n-th (from 1 on) of a kind.
    Kind(String, u64),
    /// The n-th (from 1 on) whose text holds this.
    Text(String, u64),
    /// The COMMIT of the n-th (from 1 on) whose text holds this.
    CommitOf(String, u64),
}

/// Whether the server still gets the statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It never does.
    Before,
    /// It does and has answered, transaction ended where the statement ended
    /// it; the client never hears of it.
    After,
}

/// What becomes of the server's sessions once the client is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sessions {
    /// The server sees their sockets closed.
    Cut,
    /// They hang, as when a host vanishes, until released.
    Hang,
}

/// What the line is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Pass everything on.
    Observe,
    /// Stop the world at an execution: from there on nothing passes.
    Stop { at: Matcher, when: When, sessions: Sessions },
    /// Hold one execution back until it is let go; all else passes.
    Hold { at: Matcher },
}

/// A place to kill at, found again in another run of the same work.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    /// The kind of the statement.
    pub kind: String,
    /// The how manieth of its kind, from 1 on.
    pub occurrence: u64,
}

/// Which executions of each kind become points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PerKind {
    FirstMiddleLast,
    Every,
}

/// The points of an undisturbed run, in its order.
pub fn kill_points(events: &[Event], per_kind: PerKind) -> Vec<Point> {
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events {
        *totals.entry(&event.kind).or_default() += 1;
    }
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let mut points = Vec::new();
    for event in events {
        let occurrence = seen.entry(&event.kind).or_default();
        *occurrence += 1;
        let total = totals[event.kind.as_str()];
        if per_kind == PerKind::Every || [1, total.div_ceil(2), total].contains(occurrence) {
            points.push(Point { kind: event.kind.clone(), occurrence: *occurrence });
        }
    }
    points
}

impl Plan {
    /// Stops at a point, the server's sessions cut.
    pub fn kill(point: &Point, when: When) -> Self {
        let at = Matcher::Kind(point.kind.clone(), point.occurrence);
        Self::Stop { at, when, sessions: Sessions::Cut }
    }
}

impl Matcher {
    /// Whether this is the one, given all before it.
    pub(super) fn is(&self, event: &Event, before: &[Event]) -> bool {
        let nth = |n: u64, of: &dyn Fn(&Event) -> bool| {
            of(event) && before.iter().filter(|e| of(e)).count() as u64 + 1 == n
        };
        match self {
            Self::Number(n) => event.number == *n,
            Self::Kind(kind, n) => nth(*n, &|e| e.kind == *kind),
            Self::Text(text, n) => nth(*n, &|e| e.sql.contains(text)),
            Self::CommitOf(text, n) => {
                let commits = |e: &Event, of: &Event| e.connection == of.connection && e.sql == "COMMIT";
                let mut of = before.iter().filter(|e| e.sql.contains(text)).skip(*n as usize - 1);
                let since = |of: &Event| &before[of.number as usize..];
                of.next().is_some_and(|of| commits(event, of) && !since(of).iter().any(|e| commits(e, of)))
            }
        }
    }
}

/// The label of a statement: lower case, without comments, values and digits;
/// a long one is cut and told apart by a hash of the rest.
pub fn kind(sql: &str) -> String {
    let text = without_values(sql).to_lowercase();
    let text = text.trim_end_matches([';', ' ']);
    if text.chars().count() <= LABEL {
        return text.to_owned();
    }
    // FNV-1a: the same in every build.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let start: String = text.chars().take(LABEL).collect();
    format!("{start}… {:06x}", hash & 0xff_ffff)
}

fn without_values(sql: &str) -> String {
    let mut out = String::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("--") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            put(&mut out, ' ');
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, after)| after);
            put(&mut out, ' ');
        } else if c == '\'' {
            // A doubled quote reads as two literals, which collapse into one.
            rest = rest[1..].split_once('\'').map_or("", |(_, after)| after);
            put(&mut out, '?');
        } else if c.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            put(&mut out, '#');
        } else {
            put(&mut out, if c.is_whitespace() { ' ' } else { c });
            rest = &rest[c.len_utf8()..];
        }
    }
    collapsed(out.trim())
}

fn put(out: &mut String, c: char) {
    if !(matches!(c, ' ' | '?' | '#') && (out.is_empty() || out.ends_with(c))) {
        out.push(c);
    }
}

/// Lists of values and of rows of them are as one of them.
fn collapsed(text: &str) -> String {
    let mut text = text.replace(", ", ",");
    for value in ["$#", "#", "?", "($#)", "(#)", "(?)"] {
        let (twice, spaced) = (format!("{value},{value}"), text.len());
        for _ in 0..spaced {
            let shorter = text.replace(&twice, value);
            if shorter.len() == text.len() {
                break;
            }
            text = shorter;
        }
    }
    text
}
