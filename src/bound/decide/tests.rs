use super::*;
use crate::settings::{Archive, Bounding};
use crate::values::{Host, Replication, Unfinished};
use jiff::Timestamp;
use proptest::prelude::*;
use std::time::Duration;

pub(in crate::bound) const NOW: u64 = 1_790_000_000_000;
const DAY: u64 = DAY_MS;

pub(in crate::bound) fn host(name: &str) -> Host {
    Host::normalise(&format!("https://{name}.example"))
}

pub(in crate::bound) fn at(ms_ago: u64) -> OpUlid {
    OpUlid::first_of_ms(NOW - ms_ago)
}

fn text(ms_ago: u64) -> String {
    at(ms_ago).to_string()
}

pub(in crate::bound) fn peer(name: &str, own_ago: u64) -> PeerFact {
    PeerFact {
        host: host(name),
        first_seen_ms: NOW - 100 * DAY,
        removed_ms: None,
        own: Some(text(own_ago)),
        node: vec![text(own_ago)],
        reset: false,
        empty_since_ms: None,
        clock: None,
    }
}

fn no_cursor(name: &str) -> PeerFact {
    PeerFact { own: None, node: Vec::new(), ..peer(name, 0) }
}

pub(in crate::bound) fn reader(name: &str, ago: u64) -> ReaderFact {
    ReaderFact { host: host(name), lowest: Some(at(ago)) }
}

pub(in crate::bound) fn day(table: &str, days_ago: u64, bytes: u64) -> TableDay {
    let seconds = i64::try_from((NOW - days_ago * DAY) / 1_000).unwrap();
    TableDay {
        table: table.into(),
        day: Timestamp::from_second(seconds).unwrap().to_zoned(jiff::tz::TimeZone::UTC).date(),
        rows: 1,
        bytes,
        owed: 0,
        oldest: Some(at(days_ago * DAY)),
        newest: Some(at(days_ago * DAY)),
        estimated: false,
    }
}

/// Retention of 30 days, a margin of 1 h, readers may hold 30 days longer,
/// dormant after 90; peers that are up to date.
fn facts() -> Facts {
    Facts {
        settings: Bounding {
            retention_days: 30,
            cursor_margin: Duration::from_secs(3_600),
            reader_hold: Duration::from_secs(30 * 86_400),
            dormant_cleanup: true,
            dormant_threshold: Duration::from_secs(90 * 86_400),
            ..Bounding::default()
        },
        now_ms: NOW,
        own: host("me"),
        replication: Replication::Peers,
        chain: ChainFact::default(),
        guarded: false,
        peers: Some(vec![peer("a", 60_000), peer("b", 120_000)]),
        ignored_rows: Vec::new(),
        pulled_every: Duration::from_secs(600),
        readers: Vec::new(),
        own_ahead: None,
        census: vec![day("uploads", 0, 100)],
        census_whole: true,
        census_ms: NOW,
        overhead: 1.0,
        reclaim: None,
        disordered: None,
        since: BTreeMap::new(),
    }
}

pub(in crate::bound) fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = facts();
    change(&mut facts);
    facts
}

fn with_peer(peer: PeerFact) -> Facts {
    with(|f| f.peers.as_mut().unwrap().push(peer))
}

fn cuts(decision: Decision) -> Vec<Bounded> {
    match decision {
        Decision::Prune { cuts } => cuts,
        Decision::Skip { blockers } => panic!("{blockers:?}"),
    }
}

/// The cut of uploads by retention.
fn uploads(facts: &Facts) -> (OpUlid, BoundBy) {
    let of = cuts(retention(facts)).into_iter().find(|b| b.cut.table == "uploads").unwrap();
    (of.cut.below, of.bound_by)
}

fn codes(decision: Decision) -> Vec<&'static str> {
    match decision {
        Decision::Prune { cuts } => panic!("{cuts:?}"),
        Decision::Skip { blockers } => blockers.into_iter().map(|b| crate::values::fixed(b.code)).collect(),
    }
}

fn notices(facts: &Facts) -> Vec<(&'static str, String)> {
    let found = gate(facts).notices.into_iter();
    // `status` knows them by their codes.
    found
        .inspect(|n| assert!(crate::values::GATE_NOTICES.contains(&&*n.code)))
        .map(|n| (crate::values::fixed(n.code), n.subject))
        .collect()
}

const BY_AGE: fn(u64) -> (OpUlid, BoundBy) = |days| (at(days * DAY), BoundBy::Age);

#[test]
fn the_window_bounds_every_table_with_a_model() {
    let tables: Vec<String> = cuts(retention(&facts())).into_iter().map(|b| b.cut.table).collect();
    assert_eq!(tables, ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"]);
    assert_eq!(uploads(&facts()), BY_AGE(30));
}

#[test]
fn the_slowest_peer_bounds_by_its_margin() {
    let slow = with_peer(peer("slow", 40 * DAY));
    assert_eq!(uploads(&slow), (at(40 * DAY + HOUR_MS), BoundBy::Peer(host("slow"))));
    // Its cursor is younger than the window, its cursor less the margin is not.
    let close = with_peer(peer("close", 30 * DAY - HOUR_MS / 2));
    assert_eq!(uploads(&close).1, BoundBy::Peer(host("close")));
}

#[test]
fn a_peer_counts_at_the_lower_of_both_cursors() {
    let ours = PeerFact { node: vec![text(DAY)], ..peer("x", 50 * DAY) };
    assert_eq!(uploads(&with_peer(ours)).0, at(50 * DAY + HOUR_MS));
    let nodes = PeerFact { node: vec![text(DAY), text(60 * DAY), text(40 * DAY)], ..peer("x", DAY) };
    assert_eq!(uploads(&with_peer(nodes)).0, at(60 * DAY + HOUR_MS));
    let only_nodes = PeerFact { own: None, ..peer("x", 40 * DAY) };
    assert_eq!(uploads(&with_peer(only_nodes)).0, at(40 * DAY + HOUR_MS));
}

#[test]
fn an_active_peer_without_a_usable_cursor_blocks() {
    let odd = |own: &str| PeerFact { own: Some(own.into()), ..no_cursor("x") };
    for peer in [
        no_cursor("x"),
        odd("qm_fix_truncated"),
        odd("123456"),
        odd(&text(DAY).to_lowercase()),
        odd(OpUlid::first_of_ms(NOW + 25 * HOUR_MS).as_str()),
        odd(OpUlid::first_of_ms(5).as_str()),
        PeerFact { node: vec![String::new()], ..peer("x", DAY) },
        PeerFact { node: vec![text(DAY), " ".into()], ..peer("x", DAY) },
        PeerFact { reset: true, ..peer("x", DAY) },
    ] {
        let facts = with_peer(peer.clone());
        assert_eq!(codes(retention(&facts)), ["peer_without_cursor"], "{peer:?}");
        assert_eq!(codes(dormant(&facts)), ["peer_without_cursor"], "{peer:?}");
    }
}

#[test]
fn implausible_values_of_the_node_never_count() {
    let odd = vec!["123456".into(), "bafy".into(), OpUlid::first_of_ms(5).to_string(), text(DAY)];
    let facts = with_peer(PeerFact { node: odd, ..peer("x", DAY) });
    assert_eq!(uploads(&facts), BY_AGE(30));
}

#[test]
fn self_never_counts() {
    let own = PeerFact { host: Host::normalise(" HTTPS://Me.example// "), ..no_cursor("me") };
    assert_eq!(retention(&with_peer(own)), retention(&facts()));
    let reads = with(|f| {
        f.peers.as_mut().unwrap().push(no_cursor("me"));
        f.readers = vec![reader("me", 50 * DAY)];
    });
    assert_eq!(uploads(&reads), BY_AGE(30));
}

#[test]
fn ignored_peers_hold_nothing_and_are_named() {
    let mut facts = with_peer(no_cursor("gone"));
    facts.peers.as_mut().unwrap().push(peer("slow", 50 * DAY));
    facts.readers = vec![reader("slow", 50 * DAY)];
    facts.settings.ignore_peers = vec![host("gone"), host("slow"), host("nobody")];
    assert_eq!(uploads(&facts), BY_AGE(30));
    let slow = host("slow").to_string();
    let expected = [
        ("ignored_peer", host("gone").to_string()),
        ("ignored_peer", slow.clone()),
        ("ignored_reader", slow),
    ];
    assert_eq!(notices(&facts), expected);
}

#[test]
fn a_peer_too_far_behind_lets_go_where_that_is_set() {
    let lag = |facts: &mut Facts| facts.settings.max_peer_lag = Duration::from_secs(40 * 86_400);
    let mut slow = with_peer(peer("slow", 41 * DAY));
    lag(&mut slow);
    assert_eq!(uploads(&slow), BY_AGE(30));
    assert_eq!(notices(&slow), [("lagging_peer", host("slow").to_string())]);
    let mut near = with_peer(peer("near", 39 * DAY));
    lag(&mut near);
    assert_eq!(uploads(&near).1, BoundBy::Peer(host("near")));
    // Without a cursor it counts from when it was first seen.
    let mut old = with_peer(no_cursor("old"));
    lag(&mut old);
    assert_eq!(uploads(&old), BY_AGE(30));
    let mut new = with_peer(PeerFact { first_seen_ms: NOW - 39 * DAY, ..no_cursor("new") });
    lag(&mut new);
    assert_eq!(codes(retention(&new)), ["peer_without_cursor"]);
}

#[test]
fn a_removed_peer_says_how_long_it_counts() {
    let removed = |ago| PeerFact { removed_ms: Some(NOW - ago), ..peer("r", 40 * DAY) };
    let facts = with_peer(removed(2 * DAY));
    assert_eq!(notices(&facts), [("peer_removed", host("r").to_string())]);
    let text = &gate(&facts).notices[0].text;
    assert!(text.contains("120 h") && text.contains("IGNORE_PEERS"), "{text}");
    assert_eq!(uploads(&facts).1, BoundBy::Peer(host("r")));
}

#[test]
fn a_stalled_peer_is_named_and_holds() {
    let stalled = |ago| PeerFact { empty_since_ms: Some(NOW - ago), ..peer("s", 40 * DAY) };
    let facts = with_peer(stalled(DAY));
    assert_eq!(notices(&facts), [("peer_stalled", host("s").to_string())]);
    assert_eq!(uploads(&facts).1, BoundBy::Peer(host("s")));
    assert_eq!(notices(&with_peer(stalled(DAY - 1))), []);
}

#[test]
fn an_unknown_set_of_peers_blocks_and_an_empty_one_does_not() {
    let unknown = with(|f| f.peers = None);
    assert_eq!(codes(retention(&unknown)), ["peers_unknown"]);
    assert_eq!(uploads(&with(|f| f.peers = Some(Vec::new()))), BY_AGE(30));
}

#[test]
fn readers_hold_so_much_longer_than_the_window() {
    let reads = |ago, hold_days: u64| {
        with(|f| {
            f.readers = vec![reader("a", DAY), reader("b", ago)];
            f.settings.reader_hold = Duration::from_secs(hold_days * 86_400);
        })
    };
    assert_eq!(uploads(&reads(40 * DAY, 30)), (at(40 * DAY), BoundBy::Reader(host("b"))));
    assert_eq!(uploads(&reads(70 * DAY, 30)), (at(60 * DAY), BoundBy::Reader(host("b"))));
    assert_eq!(uploads(&reads(40 * DAY, 0)), BY_AGE(30));
    let dormant_for = reads(100 * DAY, 30);
    let gate = gate(&dormant_for);
    assert_eq!(gate.bound(&dormant_for, 90 * DAY, BoundBy::Age).0, at(100 * DAY));
}

#[test]
fn readers_that_are_no_peers_or_need_nothing_hold_nothing() {
    let facts = with(|f| {
        f.readers = vec![
            reader("stranger", 50 * DAY),
            ReaderFact { host: host("a"), lowest: None },
            ReaderFact { host: host("b"), lowest: Some(OpUlid::first_of_ms(5)) },
        ];
    });
    assert_eq!(uploads(&facts), BY_AGE(30));
}

/// Peers whose clocks were found to be so far off, so long ago.
fn told(clocks: impl Iterator<Item = (i64, i64)>) -> Vec<PeerFact> {
    let of = |(n, (offset_ms, ago)): (usize, (i64, i64))| PeerFact {
        clock: Some(ClockFact { offset_ms, found_ms: NOW.checked_add_signed(-ago).unwrap() }),
        ..peer(&format!("c{n}"), 60_000)
    };
    clocks.enumerate().map(of).collect()
}

#[test]
fn clocks_apart_block() {
    let clocks = |offsets: &[i64]| with(|f| f.peers = Some(told(offsets.iter().map(|o| (*o, 0)))));
    for fine in [&[][..], &[900_000, 900_000], &[0, 0, 900_000], &[300_000; 3], &[-900_000, 900_000, 1]] {
        assert_eq!(uploads(&clocks(fine)), BY_AGE(30), "{fine:?}");
    }
    for off in [&[300_001; 3][..], &[-900_000, -900_000, 0], &[301_000, 0, 400_000, 500_000]] {
        assert_eq!(codes(retention(&clocks(off))), ["clock_off"], "{off:?}");
    }
    let ahead = with(|f| f.own_ahead = Some(OpUlid::first_of_ms(NOW + 2 * HOUR_MS)));
    assert_eq!(codes(retention(&ahead)), ["own_op_ahead"]);
}

#[test]
fn what_clocks_were_found_to_be_counts_for_half_an_hour() {
    const HALF: i64 = 30 * 60_000;
    const YEAR: i64 = 365 * 86_400_000;
    let clocks = |of: &[(i64, i64)]| with(|f| f.peers = Some(told(of.iter().copied())));
    // A machine that wakes a year ahead, before anybody was pulled.
    assert_eq!(codes(retention(&clocks(&[(0, YEAR); 3]))), ["clock_unknown"]);
    assert_eq!(codes(dormant(&clocks(&[(0, HALF + 1), (0, 0), (0, 0)]))), ["clock_unknown"]);
    // One that was a year ahead and is put right.
    assert_eq!(codes(retention(&clocks(&[(-YEAR, -YEAR); 3]))), ["clock_unknown"]);
    for fine in [&[(0, HALF); 3][..], &[(0, -HALF); 3], &[(0, YEAR); 2], &[(0, 1), (0, YEAR)]] {
        assert_eq!(uploads(&clocks(fine)), BY_AGE(30), "{fine:?}");
    }
    // What dead peers said long ago is no word against those that tell.
    let dead = [(YEAR, 40 * 86_400_000); 5].into_iter().chain([(0, 0); 3]).collect::<Vec<_>>();
    assert_eq!(uploads(&clocks(&dead)), BY_AGE(30));
    // Peers that are to be ignored are not waited for; those of them that tell count.
    let ignored = |mut facts: Facts, names: &[&str]| {
        facts.settings.ignore_peers = names.iter().map(|n| host(n)).collect();
        facts
    };
    let gone = clocks(&[(0, YEAR), (0, 0), (0, 0)]);
    assert_eq!(uploads(&ignored(gone, &["c0"])), BY_AGE(30));
    assert_eq!(codes(retention(&ignored(clocks(&[(900_000, 0); 3]), &["c0"]))), ["clock_off"]);
    // One that pulls seldom does not wait for itself.
    let mut seldom = clocks(&[(0, 2 * HOUR_MS as i64); 3]);
    seldom.pulled_every = Duration::from_secs(3_600);
    assert_eq!(uploads(&seldom), BY_AGE(30));
    let Decision::Skip { blockers } = retention(&clocks(&[(0, YEAR); 3])) else { panic!() };
    for word in ["opsward sweep", "OPENAUDIO_MEDIORUM_SWEEP_PEERS", "OPS_RETENTION_IGNORE_PEERS"] {
        assert!(blockers[0].fix.contains(word), "{}", blockers[0].fix);
    }
}

#[test]
fn every_blocker_is_named_at_once_and_since_when() {
    let since = Timestamp::from_second(1_780_000_000).unwrap();
    let facts = with(|f| {
        f.peers = Some(vec![no_cursor("x"), no_cursor("y")]);
        f.peers.as_mut().unwrap().extend(told([(900_000, 0); 3].into_iter()));
        f.settings.retention_days = 0;
        f.since.insert(("peer_without_cursor".into(), host("y").to_string()), since);
    });
    assert_eq!(codes(retention(&facts)), ["off", "peer_without_cursor", "peer_without_cursor", "clock_off"]);
    let Decision::Skip { blockers } = retention(&facts) else { panic!() };
    assert_eq!(blockers[1].since.as_millisecond(), i64::try_from(NOW).unwrap());
    assert_eq!((blockers[2].subject.as_str(), blockers[2].since), (host("y").as_str(), since));
    assert!(blockers[2].fix.contains("OPENAUDIO_MEDIORUM_OPS_RETENTION_IGNORE_PEERS"));
}

#[test]
fn tables_may_have_their_own_window() {
    let facts = with(|f| {
        f.settings.tables = [
            ("uploads".into(), Keep::All),
            ("audio_previews".into(), Keep::Compact),
            ("storage_and_db_sizes".into(), Keep::Days(3)),
        ]
        .into();
    });
    let of = |b: Bounded| (b.cut.table, b.cut.below);
    let expected = [("qm_audio_analyses".into(), at(30 * DAY)), ("storage_and_db_sizes".into(), at(3 * DAY))];
    assert_eq!(cuts(retention(&facts)).into_iter().map(of).collect::<Vec<_>>(), expected);
}

#[test]
fn a_size_shortens_the_window_to_seven_days_at_least() {
    let sized = |bytes, change: fn(&mut Facts)| {
        with(|f| {
            f.census = (0..60).map(|d| day("uploads", d, 10)).collect();
            f.settings.retention_bytes = bytes;
            change(f);
        })
    };
    let none: fn(&mut Facts) = |_| {};
    // Today and the 19 days before it fit.
    let kept = uploads(&sized(200, none));
    assert_eq!(kept.1, BoundBy::Size);
    assert_eq!(kept.0.ms() % DAY, 0);
    assert_eq!((NOW / DAY - kept.0.ms() / DAY, size_notice(&sized(200, none))), (19, None));
    // Indexes are part of it.
    assert_eq!(uploads(&sized(250, |f| f.overhead = 1.25)), kept);
    assert_eq!(uploads(&sized(1_000, none)), BY_AGE(30));
    assert_eq!(uploads(&sized(310, none)), BY_AGE(30));
    let small = sized(20, none);
    assert_eq!(uploads(&small), (at(7 * DAY), BoundBy::Size));
    assert_eq!(size_notice(&small).unwrap().code, "size_not_reached");
    // What others keep leaves less; a peer still bounds.
    let others = sized(200, |f| f.census.push(day("unknown", 3, 100)));
    assert_eq!(NOW / DAY - uploads(&others).0.ms() / DAY, 9);
    let slow = sized(200, |f| f.peers.as_mut().unwrap().push(peer("slow", 25 * DAY)));
    assert_eq!(uploads(&slow).1, BoundBy::Peer(host("slow")));
    // By size alone; without a count it is no reason to act.
    assert_eq!(uploads(&sized(200, |f| f.settings.retention_days = 0)), kept);
    assert_eq!(uploads(&sized(200, |f| f.census[3].estimated = true)), BY_AGE(30));
    let uncounted = sized(200, |f| {
        f.settings.retention_days = 0;
        (f.census, f.census_whole) = (Vec::new(), false);
    });
    assert_eq!(codes(retention(&uncounted)), ["no_census"]);
    assert_eq!(size_notice(&uncounted).unwrap().code, "size_not_counted");
}

#[test]
fn dormant_tables_are_those_without_a_recent_op() {
    let facts = with(|f| {
        f.census = vec![
            day("uploads", 400, 1),
            day("uploads", 89, 1),
            day("audio_previews", 91, 1),
            day("blobs", 700, 1),
            day("legacy_things", 700, 1),
            day("", 700, 1),
        ];
    });
    let of = |b: Bounded| (b.cut.table, b.cut.below, b.bound_by);
    let dormant_now: Vec<_> = cuts(dormant(&facts)).into_iter().map(of).collect();
    let cut = at(90 * DAY);
    assert_eq!(
        dormant_now,
        [("audio_previews".into(), cut, BoundBy::Age), ("blobs".into(), cut, BoundBy::Age)]
    );
    // The peer bounds it as it bounds retention; what is to be kept is kept.
    let mut bounded = facts.clone();
    bounded.peers.as_mut().unwrap().push(peer("slow", 100 * DAY));
    bounded.settings.tables = [("audio_previews".into(), Keep::All)].into();
    let of_blobs = cuts(dormant(&bounded)).remove(0);
    assert_eq!((of_blobs.cut.table.as_str(), of_blobs.bound_by), ("blobs", BoundBy::Peer(host("slow"))));
    // Never under 24 h.
    let mut short = facts;
    short.settings.dormant_threshold = Duration::from_secs(60);
    assert!(cuts(dormant(&short)).iter().all(|b| b.cut.below == at(DAY)));
}

#[test]
fn an_implausible_op_makes_no_table_recent() {
    let facts = with(|f| {
        let newest = Some(OpUlid::first_of_ms(NOW + 30 * DAY));
        f.census = vec![day("blobs", 700, 1), TableDay { newest, ..day("blobs", 1, 1) }];
    });
    assert_eq!(cuts(dormant(&facts)).len(), 1);
}

#[test]
fn dormant_cleanup_has_its_own_reasons_to_skip() {
    let vetoed = with(|f| f.settings.keep_dormant = true);
    assert_eq!(codes(dormant(&vetoed)), ["keep_dormant"]);
    assert_eq!(codes(dormant(&with(|f| f.settings.dormant_cleanup = false))), ["off"]);
    let none = with(|f| (f.census, f.census_whole) = (Vec::new(), false));
    assert_eq!(codes(dormant(&none)), ["no_census"]);
    // Days that were counted so far may leave out the recent ones.
    assert_eq!(codes(dormant(&with(|f| f.census_whole = false))), ["census_estimated"]);
    assert_eq!(codes(dormant(&with(|f| f.census[0].estimated = true))), ["census_estimated"]);
    // Age needs no census.
    assert_eq!(uploads(&none), BY_AGE(30));
}

#[test]
fn a_census_may_be_acted_on_while_it_is_fresh() {
    let counted = |ago: i64, change: fn(&mut Facts)| {
        with(|f| {
            f.census_ms = NOW.checked_add_signed(-ago).unwrap();
            change(f);
        })
    };
    const HOURS: i64 = HOUR_MS as i64;
    let dormant_at = |ago| dormant(&counted(ago, |_| {}));
    assert_eq!(cuts(dormant_at(2 * HOURS)).len(), 0);
    for old in [2 * HOURS + 1, -2 * HOURS - 1] {
        assert_eq!(codes(dormant_at(old)), ["census_old"]);
    }
    let by_size: fn(&mut Facts) = |f| (f.settings.retention_days, f.settings.retention_bytes) = (0, 1 << 40);
    assert_eq!(cuts(retention(&counted(48 * HOURS, by_size))).len(), 0);
    assert_eq!(codes(retention(&counted(48 * HOURS + 1, by_size))), ["census_old"]);
    let both = counted(48 * HOURS + 1, |f| f.settings.retention_bytes = 1);
    assert_eq!(uploads(&both), BY_AGE(30));
    assert_eq!(size_notice(&both).unwrap().code, "size_not_counted");
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (0..80 * DAY).prop_map(text),
        1 => Just(OpUlid::first_of_ms(NOW + 30 * DAY).to_string()),
        1 => Just("qm_fix".to_owned()),
        1 => "[0-9A-Za-z]{0,27}",
    ]
}

fn any_peer() -> impl Strategy<Value = PeerFact> {
    (0..6u8, prop::option::of(any_text()), prop::collection::vec(any_text(), 0..3))
        .prop_map(|(n, own, node)| PeerFact { own, node, ..peer(&format!("p{n}"), 0) })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let readers = prop::collection::vec((0..6u8, 0..80 * DAY), 0..4);
    let peers = prop::collection::vec(any_peer(), 0..5);
    (1..60u32, peers, readers, 0..72u64).prop_map(|(days, peers, readers, margin)| {
        with(|f| {
            f.settings.retention_days = days;
            f.settings.cursor_margin = Duration::from_secs(margin * 3_600);
            f.peers = Some(peers);
            f.readers = readers.into_iter().map(|(n, ago)| reader(&format!("p{n}"), ago)).collect();
        })
    })
}

/// The highest that anything is cut at; `None` where all is skipped.
fn reach(facts: &Facts) -> Option<OpUlid> {
    match retention(facts) {
        Decision::Prune { cuts } => cuts.iter().map(|b| b.cut.below).max(),
        Decision::Skip { .. } => None,
    }
}

/// Ops by the chain, read up to the newest block a minute ago; no peer has a
/// cursor that is any use.
fn chained(change: impl FnOnce(&mut Facts)) -> Facts {
    with(|f| {
        f.replication = Replication::Chain;
        f.peers = Some(vec![no_cursor("frozen")]);
        f.readers = vec![reader("r", 50 * DAY)];
        f.chain = ChainFact {
            has_blocks: true,
            grant: None,
            cursor: Some("1000".into()),
            tip: Some(("mainnet-1".into(), 1_000)),
            read_until_ms: Some(NOW - 60_000),
        };
        change(f);
    })
}

#[test]
fn by_the_chain_peers_and_readers_hold_nothing() {
    assert_eq!(uploads(&chained(|_| {})), BY_AGE(30));
    assert_eq!(uploads(&chained(|f| f.peers = None)), BY_AGE(30));
    // Their clocks were told before the node changed.
    let stale = ClockFact { offset_ms: 0, found_ms: NOW - DAY };
    let told = ["a", "b", "c"].map(|name| PeerFact { clock: Some(stale), ..no_cursor(name) });
    assert_eq!(uploads(&chained(|f| f.peers = Some(told.to_vec()))), BY_AGE(30));
}

#[test]
fn the_window_is_ten_days_without_the_guard() {
    let days = |days, guarded| chained(|f| (f.settings.retention_days, f.guarded) = (days, guarded));
    assert_eq!(uploads(&days(5, false)), BY_AGE(10));
    assert_eq!(window_notice(&days(5, false)).map(|n| n.code), Some("window_raised".into()));
    assert_eq!(uploads(&days(5, true)), BY_AGE(5));
    assert_eq!((window_notice(&days(5, true)), window_notice(&days(10, false))), (None, None));
    let of = |replication| uploads(&with(|f| (f.settings.retention_days, f.replication) = (5, replication)));
    assert_eq!(of(Replication::Peers), BY_AGE(5));
}

#[test]
fn the_chain_bounds_by_its_margin() {
    // So far behind that the window is the shorter one: what a margin is for.
    let far = chained(|f| {
        f.settings.retention_days = 10;
        f.settings.cursor_margin = Duration::from_secs(20 * 86_400);
    });
    assert_eq!(uploads(&far), (at(20 * DAY + 60_000), BoundBy::Chain));
}

#[test]
fn what_is_unknown_of_the_chain_blocks() {
    let code = |change: fn(&mut ChainFact)| codes(retention(&chained(|f| change(&mut f.chain))));
    assert_eq!(code(|c| c.has_blocks = false), ["chain_unknown"]);
    assert_eq!(code(|c| c.grant = Some("GRANT …".into())), ["chain_unknown"]);
    assert_eq!(code(|c| c.tip = None), ["chain_unknown"]);
    assert_eq!(code(|c| c.cursor = None), ["chain_unknown"]);
    for text in ["", "height", "-1", "+1", "1e3", "12a", " 12"] {
        let of = codes(retention(&chained(|f| f.chain.cursor = Some(text.into()))));
        assert_eq!(of, ["chain_unknown"], "{text:?}");
    }
    assert_eq!(code(|c| c.read_until_ms = None), ["chain_unknown"]);
    // Heights began anew, the node's cursor did not.
    assert_eq!(code(|c| c.cursor = Some("34000000".into())), ["chain_changed"]);
    assert_eq!(code(|c| c.read_until_ms = Some(NOW - 61 * 60_000)), ["chain_behind"]);
    assert_eq!(code(|c| c.read_until_ms = Some(NOW + 6 * 60_000)), ["clock_off"]);
    assert_eq!(uploads(&chained(|f| f.chain.read_until_ms = Some(NOW + 60_000))), BY_AGE(30));
}

#[test]
fn both_gates_hold_where_ops_come_both_ways() {
    let both = |peer_ago: u64, read_ago: u64| {
        chained(|f| {
            f.replication = Replication::Both;
            (f.readers, f.peers) = (Vec::new(), Some(vec![peer("a", peer_ago)]));
            f.chain.read_until_ms = Some(NOW - read_ago);
        })
    };
    assert_eq!(uploads(&both(60_000, 60_000)), BY_AGE(30));
    assert_eq!(uploads(&both(40 * DAY, 60_000)), (at(40 * DAY + HOUR_MS), BoundBy::Peer(host("a"))));
    assert_eq!(codes(retention(&both(60_000, 2 * HOUR_MS))), ["chain_behind"]);
    let unknown = with(|f| f.replication = Replication::Both);
    assert_eq!(codes(retention(&unknown)), ["chain_unknown"]);
}

#[test]
fn a_reset_keeps_what_the_gate_of_the_chain_keeps() {
    let hours = |facts: &Facts| {
        reset_from(facts).map(|from| (NOW - from.ms()) / HOUR_MS).map_err(|b| crate::values::fixed(b.code))
    };
    assert_eq!(hours(&with(|_| {})), Ok(2));
    assert_eq!(hours(&chained(|_| {})), Ok(240));
    assert_eq!(hours(&chained(|f| f.guarded = true)), Ok(2));
    assert_eq!(hours(&chained(|f| f.chain.cursor = None)), Err("chain_unknown"));
    assert_eq!(hours(&with(|f| f.settings.node_archive = Some(Archive::Kept))), Err("archive"));
}

#[test]
fn an_archive_keeps_everything_unless_it_is_overridden_by_name() {
    for said in [Archive::Kept, Archive::Meant] {
        let archive =
            |over| with(|f| (f.settings.node_archive, f.settings.delete_archived) = (Some(said), over));
        assert_eq!(codes(retention(&archive(false))), ["archive"]);
        assert_eq!(codes(dormant(&archive(false)))[0], "archive");
        assert_eq!(uploads(&archive(true)), BY_AGE(30));
    }
    assert_eq!(uploads(&with(|f| f.settings.node_archive = Some(Archive::Pruned))), BY_AGE(30));
}

proptest! {
    #[test]
    fn nothing_passes_the_window_or_a_peer_less_the_margin(facts in any_facts()) {
        if let Some(reach) = reach(&facts) {
            let days = u64::from(facts.settings.retention_days);
            prop_assert!(reach <= at(days * DAY));
            for peer in facts.peers.as_ref().unwrap() {
                for text in peer.own.iter().chain(&peer.node) {
                    let plausible = OpUlid::parse(text).filter(|u| is_plausible(*u, NOW));
                    if let Some(cursor) = plausible {
                        prop_assert!(reach.ms() + ms(facts.settings.cursor_margin) <= cursor.ms());
                    }
                }
            }
        }
    }

    #[test]
    fn another_peer_or_reader_never_raises(facts in any_facts(), more in any_peer(), ago in 0..80 * DAY) {
        let mut held = facts.clone();
        held.peers.as_mut().unwrap().push(more);
        prop_assert!(reach(&held) <= reach(&facts));
        let mut read = facts.clone();
        read.readers.push(reader("p1", ago));
        prop_assert!(reach(&read) <= reach(&facts));
    }

    #[test]
    fn order_does_not_matter(facts in any_facts()) {
        let mut turned = facts.clone();
        turned.peers.as_mut().unwrap().reverse();
        turned.readers.reverse();
        prop_assert_eq!(reach(&turned), reach(&facts));
    }

    #[test]
    fn those_that_are_no_peers_never_matter(facts in any_facts(), ago in 0..80 * DAY) {
        let mut more = facts.clone();
        more.readers.push(reader("stranger", ago));
        more.settings.ignore_peers.push(host("stranger"));
        prop_assert_eq!(retention(&more), retention(&facts));
    }

    #[test]
    fn implausible_values_never_matter(facts in any_facts(), ahead in 25u64..9_999, odd in "[a-z]{1,27}|[0-9]{3}") {
        let mut more = facts.clone();
        for peer in more.peers.as_mut().unwrap() {
            peer.node.push(odd.clone());
            peer.node.push(OpUlid::first_of_ms(NOW + ahead * HOUR_MS).to_string());
        }
        prop_assert_eq!(retention(&more), retention(&facts));
    }
}

#[test]
fn an_unfinished_swap_holds_back_what_is_on() {
    let swap = || {
        Some(Unfinished {
            mode: "swap".into(),
            phase: "copy".into(),
            held: false,
            at_work: false,
            since: timestamp(NOW),
        })
    };
    let swapping = with(|facts| facts.reclaim = swap());
    for decision in [retention(&swapping), dormant(&swapping)] {
        let Decision::Skip { blockers } = decision else { panic!("{decision:?}") };
        assert_eq!(blockers.iter().map(|b| &*b.code).collect::<Vec<_>>(), ["reclaim"]);
        assert!(blockers[0].text.contains("copy") && blockers[0].fix.contains("--abort"));
    }
    let off = with(|facts| {
        facts.reclaim = swap();
        facts.settings.dormant_cleanup = false;
    });
    assert!(matches!(dormant(&off), Decision::Skip { blockers } if blockers.iter().all(|b| b.code == "off")));
}
