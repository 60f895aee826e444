use super::*;

const NOW_MS: u64 = 1_790_000_000_000;
const ONLY: Pass = Pass { number: 0, of: 1 };
const NONE: [usize; 0] = [];
const SELF: &str = "http://self.example";

fn bounds(memory_bytes: usize) -> Bounds {
    Bounds {
        memory_bytes,
        self_host: Host::normalise(SELF),
        below: at(1_000),
        now: Timestamp::from_millisecond(NOW_MS as i64).unwrap(),
    }
}

fn at(n: u64) -> OpUlid {
    OpUlid::first_of_ms(NOW_MS - 100_000 + n)
}

/// Judges ops given as action, table and data, oldest first; says which are
/// dropped, newest first, and how many covers found no place.
fn judged(ops: &[(&str, &str, &str)], memory_bytes: usize) -> (Vec<usize>, u64) {
    let mut compactor = Compactor::new(&bounds(memory_bytes), ONLY);
    let mut dropped = Vec::new();
    for (n, (action, table, data)) in ops.iter().enumerate().rev() {
        let (ulid, chain) = (at(n as u64), Chain::Settled);
        let op = LogOp { ulid: ulid.as_str(), action, table, data: Some(data), chain };
        if compactor.judge(&op) == Verdict::Drop {
            dropped.push(n);
        }
    }
    (dropped, compactor.unremembered())
}

fn drops(ops: &[(&str, &str, &str)]) -> Vec<usize> {
    judged(ops, 1 << 10).0
}

#[test]
fn a_later_update_or_delete_covers() {
    let q = "qm_audio_analyses";
    let (a, b, ab) = (r#"[{"cid":"a"}]"#, r#"[{"cid":"b"}]"#, r#"[{"cid":"a"},{"cid":"b"}]"#);
    assert_eq!(drops(&[("create", q, a), ("update", q, a), ("update", q, a)]), [1, 0]);
    assert_eq!(drops(&[("create", q, a), ("delete", q, a), ("create", q, a)]), [0]);
    assert_eq!(drops(&[("create", q, a), ("create", q, a)]), NONE);
    // Deletes stay, and each record needs its cover.
    assert_eq!(drops(&[("delete", q, a), ("update", q, a)]), NONE);
    assert_eq!(drops(&[("update", q, ab), ("update", q, a)]), NONE);
    assert_eq!(drops(&[("update", q, ab), ("update", q, a), ("delete", q, b)]), [0]);
    // Another table's record of the same key, or an op of no known table, is another.
    assert_eq!(drops(&[("create", q, a), ("update", "audio_previews", r#"[{"CID":"a"}]"#)]), NONE);
    assert_eq!(drops(&[("create", "tips", a), ("update", "tips", a)]), NONE);
}

#[test]
fn only_what_apply_accepts_counts() {
    let q = "qm_audio_analyses";
    let a = r#"[{"cid":"a"}]"#;
    let long = format!(r#"[{{"cid":"a","error":"{}"}}]"#, "x".repeat(2_001));
    let huge = format!(r#"[{{"cid":"a","x":"{}"}}]"#, "x".repeat(LONGEST));
    for cover in [r#"[{"cid":"a","status":5}]"#, r#"[{"cid":"a"},{}]"#, r#"[{"cid":"a"},{"cid":"a"}]"#, "{}"]
    {
        assert_eq!(drops(&[("create", q, a), ("update", q, cover)]), NONE, "{cover}");
        assert_eq!(drops(&[("update", q, cover), ("update", q, a)]), NONE, "{cover}");
    }
    assert_eq!(drops(&[("create", q, a), ("update", q, &long)]), NONE);
    assert_eq!(drops(&[("create", q, a), ("update", q, &huge)]), NONE);
    assert_eq!(drops(&[("create", q, a), ("upsert", q, a)]), NONE);
    // However a key is spelled.
    assert_eq!(drops(&[("create", q, a), ("update", q, r#"[{"CID":"x","cid":"\u0061"}]"#)]), [0]);
}

#[test]
fn a_cover_reaches_whoever_the_op_reaches() {
    let (named, other) = (format!(r#"[{{"id":"a","created_by":"{SELF}"}}]"#), r#"[{"id":"a"}]"#);
    assert_eq!(drops(&[("create", "uploads", &named), ("update", "uploads", other)]), NONE);
    assert_eq!(drops(&[("create", "uploads", other), ("update", "uploads", &named)]), [0]);
    assert_eq!(drops(&[("create", "uploads", other), ("update", "uploads", other)]), [0]);
    let both = [("update", "uploads", &*named), ("update", "uploads", other), ("update", "uploads", &named)];
    assert_eq!(drops(&both), [1, 0]);
}

const DATA: Option<&str> = Some(r#"[{"CID":"a"}]"#);

fn update(ulid: &str) -> LogOp<'_> {
    LogOp { ulid, action: "update", table: "audio_previews", data: DATA, chain: Chain::Settled }
}

#[test]
fn what_is_kept_whatever_covers_it() {
    let mut compactor = Compactor::new(&bounds(1 << 10), ONLY);
    let ulids: Vec<_> = (0..=2_000).map(|n| at(n).to_string()).collect();
    let mut judge = |op: LogOp<'_>| compactor.judge(&op);
    assert_eq!(judge(update(&ulids[2_000])), Verdict::Keep);
    assert_eq!(judge(update(&ulids[1_000])), Verdict::Keep, "not below the horizon");
    assert_eq!(judge(update(&ulids[999])), Verdict::Drop);
    assert_eq!(judge(LogOp { chain: Chain::Owed, ..update(&ulids[998]) }), Verdict::Keep);
    assert_eq!(judge(LogOp { data: None, ..update(&ulids[997]) }), Verdict::Keep);
    for implausible in ["01HKFACTS", "01hkfacts00000000000000001", "00000000010000000000000000"] {
        assert_eq!(judge(update(implausible)), Verdict::Keep, "{implausible}");
    }
    assert_eq!(judge(update(&ulids[997])), Verdict::Keep, "a second time");
    assert_eq!(judge(update(&ulids[998])), Verdict::Keep, "out of order");
    assert_eq!(judge(LogOp { table: "blobs", data: None, ..update(&ulids[996]) }), Verdict::Drop);
    assert_eq!(judge(LogOp { table: "blobs", chain: Chain::Owed, ..update(&ulids[995]) }), Verdict::Keep);
    assert_eq!(judge(LogOp { table: "blobs", ..update("01HKFACTS") }), Verdict::Keep);
}

/// Of twenty records with covers seven find a place; the others' ops are kept.
#[test]
fn without_memory_ops_are_kept() {
    let data: Vec<String> = (0..20).map(|n| format!(r#"[{{"CID":"{n}"}}]"#)).collect();
    let covers = data.iter().map(|data| ("update", "audio_previews", data.as_str()));
    let ops: Vec<_> = covers.clone().map(|(_, table, data)| ("create", table, data)).chain(covers).collect();
    let count = |memory_bytes| {
        let (dropped, unremembered) = judged(&ops, memory_bytes);
        (dropped.len(), unremembered)
    };
    assert_eq!(count(0), (7, 13));
    assert_eq!(count(20 * 16), (18, 2));
    assert_eq!(count(1 << 10), (20, 0));
}

#[test]
fn passes_for_a_log() {
    assert_eq!(passes(0, 0), 1);
    assert_eq!(passes(0, 7), 1);
    assert_eq!(passes(0, 8), 2);
    assert_eq!(passes(256 << 20, 13_000_000), 1);
    assert_eq!(passes(256 << 20, 14_000_000), 2);
    assert_eq!(passes(192 << 20, 20_000_000), 2);
    assert_eq!(passes(0, u64::MAX), u32::MAX);
}

proptest::proptest! {
    /// As a map would have it, as long as there is room; never more than it.
    #[test]
    fn covers_are_remembered(
        adds in proptest::collection::vec((0_u128..40, proptest::bool::ANY), 0..60),
        bytes in 0_usize..1_000,
    ) {
        // Keys that crowd at the end of the places, so that searches wrap.
        let key = |n: u128| u128::MAX - (n << 1);
        let reach = |all| if all { Reach::All } else { Reach::Few };
        let (mut covers, mut map) = (Covers::new(bytes), std::collections::HashMap::new());
        for (n, all) in adds {
            if map.len() < Covers::room(bytes) || map.contains_key(&n) {
                *map.entry(n).or_insert(false) |= all;
            }
            covers.add(key(n), reach(all));
        }
        for n in 0..40 {
            proptest::prop_assert_eq!(covers.has(key(n), Reach::Few), map.contains_key(&n));
            proptest::prop_assert_eq!(covers.has(key(n), Reach::All), map.get(&n) == Some(&true));
        }
    }
}
