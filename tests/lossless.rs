//! Compaction loses nothing (contract 6): random histories, their full and
//! their compacted log replayed from every cursor by readers with and without
//! the gossip rule. What a reader holds comes from a model of its own, told by
//! the history as it was made, not by the code that reads the ops.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "it/harness/ops.rs"]
#[allow(dead_code, reason = "shared with the tests of other rooms")]
mod made;

use jiff::Timestamp;
use opsward::reclaim::compact::{Bounds, Chain, Compactor, LogOp, Pass, Verdict, passes};
use opsward::values::{Host, OpUlid};
use proptest::prelude::*;

const SELF: &str = "http://self.example";
const NOW_MS: u64 = 1_790_000_000_000;
const KEYS: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Table {
    Uploads,
    Analyses,
    Sizes,
    Blobs,
    NoModel,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Uploads => "uploads",
            Self::Analyses => "qm_audio_analyses",
            Self::Sizes => "storage_and_db_sizes",
            Self::Blobs => "blobs",
            Self::NoModel => "tips",
        }
    }

    /// A record, its key in one of two spellings.
    fn record(self, key: u8, spelling: bool, rest: &str) -> String {
        match (self, spelling) {
            (Self::Uploads, false) => format!(r#"{{"id":"k{key}"{rest}}}"#),
            (Self::Uploads, true) => format!(r#"{{"created_by":"x"{rest},"ID":"\u006b{key}"}}"#),
            (Self::Sizes, false) => {
                format!(r#"{{"Host":"h","LoggedAt":"2026-01-0{}T01:00:00Z"{rest}}}"#, key + 1)
            }
            (Self::Sizes, true) => {
                format!(r#"{{"LoggedAt":"2026-01-0{}T02:00:00+01:00","HOST":"h"{rest}}}"#, key + 1)
            }
            (_, false) => format!(r#"{{"cid":"k{key}"{rest}}}"#),
            (_, true) => format!(r#"{{"status":"x"{rest},"CID":"\u006b{key}"}}"#),
        }
    }

    fn mistyped(self) -> &'static str {
        if self == Self::Sizes { r#","DbUsed":"5""# } else { r#","status":5"# }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Create,
    Update,
    Delete,
}

/// Why readers refuse an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    WrongType,
    NoKey,
    NoArray,
    NoData,
    UnknownAction,
    /// Only the database notices.
    TooLongForAnIndex,
    /// A node takes it, an opsward does not.
    Implausible,
}

#[derive(Clone, Debug)]
struct Op {
    table: Table,
    action: Action,
    records: Vec<(u8, bool)>,
    /// Whether one of its records names self.
    named: bool,
    fault: Fault,
    chain: Chain,
    ulid: String,
    data: Option<String>,
}

impl Op {
    fn forwarded(&self) -> bool {
        self.table != Table::Uploads || self.data.as_ref().is_some_and(|data| data.contains(SELF))
    }

    fn accepted(&self, reader: Reader) -> bool {
        let twice = self.action == Action::Update
            && self
                .records
                .iter()
                .enumerate()
                .any(|(n, (key, _))| self.records[..n].iter().any(|(k, _)| k == key));
        match self.fault {
            Fault::None => !twice,
            Fault::Implausible => !twice && reader == Reader::Node,
            Fault::TooLongForAnIndex => !twice && self.action == Action::Delete,
            _ => false,
        }
    }

    fn row(&self) -> LogOp<'_> {
        let action = match (self.fault, self.action) {
            (Fault::UnknownAction, _) => "upsert",
            (_, Action::Create) => "create",
            (_, Action::Update) => "update",
            (_, Action::Delete) => "delete",
        };
        let table = self.table.name();
        LogOp { ulid: &self.ulid, action, table, data: self.data.as_deref(), chain: self.chain }
    }

    /// Gives an op its place in the log.
    fn placed(mut self, place: usize) -> Self {
        let ms = match self.fault {
            Fault::Implausible if place.is_multiple_of(4) => 1_000 + place as u64,
            Fault::Implausible => NOW_MS + 48 * 3_600_000 + place as u64,
            _ => NOW_MS - 1_000 + place as u64,
        };
        self.ulid = OpUlid::first_of_ms(ms).to_string();
        let last = self.records.len() - 1;
        let records: Vec<String> = (0..)
            .zip(&self.records)
            .map(|(n, (key, spelling))| {
                let mut rest = String::new();
                if self.named && n == 0 {
                    rest += &format!(r#","template":"{SELF}""#);
                }
                match self.fault {
                    Fault::WrongType if n == last => rest += self.table.mistyped(),
                    Fault::NoKey if n == last => return "{}".to_owned(),
                    Fault::TooLongForAnIndex if n == last => {
                        rest += &format!(r#","error":"{}""#, "x".repeat(2_800));
                    }
                    _ => {}
                }
                self.table.record(*key, *spelling, &rest)
            })
            .collect();
        self.data = match self.fault {
            Fault::NoData => None,
            Fault::NoArray => Some(records[0].clone()),
            _ => Some(format!("[{}]", records.join(","))),
        };
        self
    }
}

/// Who replays a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reader {
    Node,
    Opsward,
}

/// What stands under each key: the op that wrote it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Tables([[Option<usize>; KEYS]; 5]);

impl Tables {
    fn apply(&mut self, place: usize, op: &Op, reader: Reader) {
        if !op.accepted(reader) || op.table == Table::Blobs {
            return;
        }
        for (key, _) in &op.records {
            let there = &mut self.0[op.table as usize][*key as usize];
            match op.action {
                Action::Create => drop(there.get_or_insert(place)),
                Action::Update => *there = Some(place),
                Action::Delete => *there = None,
            }
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let table = prop_oneof![
        12 => Just(Table::Uploads),
        4 => Just(Table::Analyses),
        1 => Just(Table::Sizes),
        1 => Just(Table::Blobs),
        1 => Just(Table::NoModel),
    ];
    let action = prop_oneof![4 => Just(Action::Create), 5 => Just(Action::Update), 2 => Just(Action::Delete)];
    let fault = prop_oneof![
        40 => Just(Fault::None),
        2 => Just(Fault::WrongType),
        2 => Just(Fault::NoKey),
        1 => Just(Fault::NoArray),
        1 => Just(Fault::NoData),
        1 => Just(Fault::UnknownAction),
        1 => Just(Fault::TooLongForAnIndex),
        2 => Just(Fault::Implausible),
    ];
    let chain = prop_oneof![12 => Just(Chain::Settled), 1 => Just(Chain::Owed)];
    let count = prop_oneof![5 => Just(1_usize), 3 => Just(2), 1 => Just(3)];
    let records = count.prop_flat_map(|count| prop::collection::vec((0..KEYS as u8, any::<bool>()), count));
    (table, action, records, any::<bool>(), fault, chain).prop_map(
        |(table, action, records, named, fault, chain)| {
            let fault = match (fault, table) {
                // Their ops are not looked into, or have no such column.
                (
                    Fault::TooLongForAnIndex | Fault::WrongType,
                    Table::Blobs | Table::NoModel | Table::Sizes,
                ) => Fault::None,
                _ => fault,
            };
            let named = named && table == Table::Uploads;
            Op { table, action, records, named, fault, chain, ulid: String::new(), data: None }
        },
    )
}

/// A log, and where its horizon lies.
fn history() -> impl Strategy<Value = (Vec<Op>, usize)> {
    let ops = prop::collection::vec(op(), 1..14).prop_map(|ops| {
        let mut ops: Vec<Op> = ops.into_iter().enumerate().map(|(n, op)| op.placed(n)).collect();
        ops.sort_by(|a, b| a.ulid.cmp(&b.ulid));
        ops
    });
    (ops, 4_usize..14)
}

/// The verdicts of all passes, in the log's order.
fn compacted(log: &[Op], horizon: usize, memory_bytes: usize, of: u32) -> Vec<Verdict> {
    let bounds = Bounds {
        memory_bytes,
        self_host: Host::normalise(SELF),
        below: OpUlid::first_of_ms(NOW_MS - 1_000 + horizon as u64),
        now: Timestamp::from_millisecond(NOW_MS as i64).unwrap(),
    };
    let mut verdicts = vec![Verdict::Elsewhere; log.len()];
    for number in 0..of {
        let mut compactor = Compactor::new(&bounds, Pass { number, of });
        for (place, op) in log.iter().enumerate().rev() {
            let verdict = compactor.judge(&op.row());
            if verdict != Verdict::Elsewhere {
                assert_eq!(verdicts[place], Verdict::Elsewhere, "op {place} is judged twice");
                verdicts[place] = verdict;
            }
        }
    }
    assert!(!verdicts.contains(&Verdict::Elsewhere), "an op is judged in no pass");
    verdicts
}

/// Replays the full log up to each cursor and the rest of both logs from
/// there; `log[n]` is missing in the second where `gone[n]`.
fn replays_agree(log: &[Op], gone: &[bool]) -> Result<(), TestCaseError> {
    for reader in [Reader::Node, Reader::Opsward] {
        for gossip in [false, true] {
            let sent: Vec<_> = log.iter().enumerate().filter(|(_, op)| !gossip || op.forwarded()).collect();
            let mut full = Tables::default();
            sent.iter().for_each(|(n, op)| full.apply(*n, op, reader));
            let mut state = Tables::default();
            for cursor in 0..=sent.len() {
                let mut end = state.clone();
                let rest = sent[cursor..].iter().filter(|(n, _)| !gone[*n]);
                rest.for_each(|(n, op)| end.apply(*n, op, reader));
                prop_assert_eq!(&end, &full, "{:?}, gossip {}, cursor {}", reader, gossip, cursor);
                if let Some((n, op)) = sent.get(cursor) {
                    state.apply(*n, op, reader);
                }
            }
        }
    }
    Ok(())
}

/// The rule, by looking at all pairs.
fn droppable(log: &[Op], place: usize, horizon: usize) -> bool {
    let op = &log[place];
    let below = op.ulid < OpUlid::first_of_ms(NOW_MS - 1_000 + horizon as u64).to_string();
    let in_reach = below && op.chain == Chain::Settled && op.fault != Fault::Implausible;
    let covered = |key: u8| {
        log[place + 1..].iter().any(|later| {
            later.table == op.table
                && later.action != Action::Create
                && later.accepted(Reader::Opsward)
                && later.records.iter().any(|(k, _)| *k == key)
                && (later.forwarded() || !op.forwarded())
        })
    };
    match op.table {
        Table::Blobs => in_reach,
        Table::NoModel | Table::Sizes => false,
        Table::Uploads | Table::Analyses => {
            // What only the database refuses is in reach: it was applied once.
            let accepted = op.accepted(Reader::Opsward)
                || op.fault == Fault::TooLongForAnIndex
                    && Op { fault: Fault::None, ..op.clone() }.accepted(Reader::Opsward);
            in_reach && accepted && op.action != Action::Delete && op.records.iter().all(|(k, _)| covered(*k))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(4_000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever part of the dropped ops is gone, in however many passes and
    /// with however little memory they were found.
    #[test]
    fn replays_of_the_compacted_log_end_alike(
        (log, horizon) in history(),
        memory_bytes in prop_oneof![Just(0_usize), Just(1_024)],
        of in 1..4_u32,
        done in prop_oneof![Just(u16::MAX), any::<u16>()],
    ) {
        let verdicts = compacted(&log, horizon, memory_bytes, of);
        let gone: Vec<bool> =
            (0..log.len()).map(|n| verdicts[n] == Verdict::Drop && done >> n & 1 == 1).collect();
        replays_agree(&log, &gone)?;
    }

    /// In one pass with room for all keys exactly what the rule says; else no
    /// more than that.
    #[test]
    fn drops_are_those_of_the_rule((log, horizon) in history(), of in 2..4_u32) {
        let rule: Vec<bool> = (0..log.len()).map(|n| droppable(&log, n, horizon)).collect();
        let one: Vec<bool> = compacted(&log, horizon, 1_024, 1).iter().map(|v| *v == Verdict::Drop).collect();
        prop_assert_eq!(&one, &rule);
        let several = compacted(&log, horizon, 1_024, of);
        for (n, op) in log.iter().enumerate() {
            let dropped = several[n] == Verdict::Drop;
            prop_assert!(rule[n] || !dropped, "op {} must stay", n);
            prop_assert!(dropped || !rule[n] || op.records.len() > 1, "op {} lies in one part", n);
        }
    }
}

/// What judging costs in time, on ops as a node writes them, and a key in
/// memory: `cargo test --release --test lossless -- --ignored --nocapture`.
#[test]
#[ignore = "figures, for an optimised build"]
fn what_judging_costs() {
    let compactor = |memory_bytes| {
        let now = Timestamp::from_millisecond(NOW_MS as i64).unwrap();
        let below = OpUlid::first_of_ms(NOW_MS);
        let bounds = Bounds { memory_bytes, self_host: Host::normalise(SELF), below, now };
        Compactor::new(&bounds, Pass { number: 0, of: 1 })
    };
    let chain = Chain::Settled;

    // On a thread of its own, so that what it frees does not slow this one's heap.
    let made = || made::Ops::new(7).hosts(&[SELF, "http://n2.example", "http://n3.example"]).take(100_000);
    let ops = std::thread::spawn(made).join().unwrap();
    for table in ["", "uploads", "qm_audio_analyses", "storage_and_db_sizes"] {
        let mut ample = compactor(192 << 20);
        let ops: Vec<_> = ops.iter().filter(|op| table.is_empty() || op.table == table).collect();
        let bytes: usize = ops.iter().map(|op| op.data.len()).sum();
        let began = on_cpu();
        let dropped = ops.iter().rev().filter(|op| {
            let (ulid, data) = (op.ulid.as_str(), Some(op.data.as_str()));
            ample.judge(&LogOp { ulid, action: op.action, table: op.table, data, chain }) == Verdict::Drop
        });
        let dropped = dropped.count();
        let each = (on_cpu() - began) / 1e3 / ops.len() as f64;
        let (count, bytes) = (ops.len(), bytes / ops.len());
        println!("{table:20} {count:6} ops of {bytes} bytes, {dropped} dropped: {each:.2} µs each");
    }

    let (before, mut full) = (resident(), compactor(64 << 20));
    let mut keys = 0;
    let began = on_cpu();
    while full.unremembered() == 0 {
        keys += 1;
        let (ulid, data) = (OpUlid::first_of_ms(NOW_MS - keys), format!(r#"[{{"cid":"{keys}"}}]"#));
        let (ulid, table) = (ulid.as_str(), "qm_audio_analyses");
        full.judge(&LogOp { ulid, action: "delete", table, data: Some(&data), chain });
    }
    let each = (on_cpu() - began) / 1e3 / keys as f64;
    let bytes = (resident() - before) as f64 / keys as f64;
    println!("64 MiB hold {keys} keys, {bytes:.1} bytes each resident: {each:.2} µs each");
    for memory_bytes in [128 << 20, 192 << 20, 256 << 20, 384 << 20] {
        println!(
            "20 million keys in {} MiB: {} passes",
            memory_bytes >> 20,
            passes(memory_bytes, 20_000_000)
        );
    }
}

/// Nanoseconds that this thread was at work: others may share the machine.
fn on_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
