use super::super::decide::tests::{NOW, at, day, peer, reader, with};
use super::*;
use crate::metrics::Metrics;
use crate::settings::Keep;
use crate::values::OpUlid;
use std::time::Duration;

const DAY: u64 = decide::DAY_MS;

fn around() -> Surroundings {
    Surroundings {
        now: Timestamp::from_millisecond(i64::try_from(NOW).unwrap()).unwrap(),
        read_only: false,
        figures: Figures {
            server_version: String::new(),
            ops_bytes: 0,
            index_bytes: 0,
            dead_rows: 0,
            data_directory: None,
        },
        free_bytes: None,
        paused_at: None,
        index: index::Found { there: None, leftovers: Vec::new(), bytes: 100, wal_bytes: 0, may: true },
        lacking: Vec::new(),
        hindrances: Vec::new(),
        census_at: None,
        routed: Routed::Routed,
        guard: Found::Nothing,
    }
}

/// Ops from `from` to `to` milliseconds ago.
fn spread(table: &str, (from, to): (u64, u64), rows: u64) -> TableDay {
    TableDay {
        rows,
        bytes: rows * 10,
        oldest: Some(at(from)),
        newest: Some(at(to)),
        ..day(table, from / DAY, 0)
    }
}

fn retention(plan: &Plan) -> &TaskPlan {
    plan.task("retention").unwrap()
}

#[test]
fn a_cut_in_the_middle_of_a_day_takes_its_share() {
    let whole = spread("uploads", (40 * DAY, 39 * DAY), 1_000);
    let split = spread("uploads", (30 * DAY + DAY / 4, 29 * DAY + DAY / 4), 1_000);
    let facts = with(|f| f.census = vec![whole.clone(), split]);
    let made = plan(&facts, &around());
    let uploads = &retention(&made).deletes[0];
    assert_eq!((uploads.rows, uploads.bytes, uploads.about), (1_250, 12_500, true));
    assert_eq!((made.rows, made.trace_bytes_about), (1_250, 125_000));
    // What is owed to the chain stays; what was cut already is not cut again.
    let owed = with(|f| f.census = vec![TableDay { owed: 400, ..whole.clone() }]);
    let made = plan(&owed, &around());
    assert_eq!((made.rows, made.bytes, retention(&made).deletes[0].about), (600, 6_000, false));
    let done = with(|f| f.census = vec![spread("uploads", (30 * DAY, 29 * DAY), 5)]);
    assert_eq!(retention(&plan(&done, &around())).state, State::NothingToDo);
}

#[test]
fn what_two_tasks_delete_counts_once() {
    let facts = with(|f| f.census = vec![spread("uploads", (200 * DAY, 199 * DAY), 100)]);
    let made = plan(&facts, &around());
    let dormant = made.task("dormant_cleanup").unwrap();
    assert_eq!((dormant.state, dormant.deletes[0].rows), (State::WouldRun, 100));
    assert_eq!((retention(&made).deletes[0].rows, made.rows), (100, 100));
}

#[test]
fn states_of_tasks() {
    let state = |plan: &Plan| {
        (
            retention(plan).state,
            retention(plan).blockers.iter().map(|b| crate::values::fixed(b.code.clone())).collect(),
        )
    };
    let old = |f: &mut Facts| f.census = vec![day("uploads", 50, 1)];
    let on = with(old);
    assert_eq!(state(&plan(&on, &around())), (State::WouldRun, vec![]));
    let read_only = Surroundings { read_only: true, ..around() };
    assert_eq!(state(&plan(&on, &read_only)), (State::Blocked, vec!["read_only"]));
    assert_eq!(state(&plan(&with(|f| f.settings.retention_days = 0), &around())), (State::Off, vec!["off"]));
    assert_eq!(state(&plan(&with(|f| f.peers = None), &around())), (State::Blocked, vec!["peers_unknown"]));
    // By age it acts without a census, whatever there is.
    let uncounted = with(|f| (f.census, f.census_whole) = (Vec::new(), false));
    assert_eq!(state(&plan(&uncounted, &around())), (State::WouldRun, vec![]));
}

#[test]
fn what_prune_would_refuse_is_blocked() {
    let facts = with(|f| {
        f.census = vec![day("uploads", 50, 1)];
        (f.settings.ensure_index, f.settings.replay_guard, f.settings.min_free_disk) = (true, true, 10);
    });
    let of = |around: &Surroundings| {
        let made = plan(&facts, around);
        ["retention", "index", "replay_guard"].map(|name| {
            let task = made.task(name).unwrap().clone();
            (task.state, task.blockers.first().map(|b| crate::values::fixed(b.code.clone())))
        })
    };
    let room = Surroundings { free_bytes: Some(110), ..around() };
    assert_eq!(of(&room), [(State::WouldRun, None); 3]);
    let full = Surroundings { free_bytes: Some(109), ..around() };
    assert_eq!(of(&full)[1], (State::Blocked, Some("no_room")));
    assert_eq!(of(&around())[1], (State::Blocked, Some("no_room")), "free disk is unknown");
    let lacking = [Need::Delete, Need::Index, Need::Guard].map(|need| Lacking { need, lift: "GRANT".into() });
    let denied = Surroundings { lacking: lacking.to_vec(), ..room.clone() };
    assert_eq!(of(&denied), [(State::Blocked, Some("no_privilege")); 3]);
    let read_only = Surroundings { read_only: true, ..room };
    assert_eq!(of(&read_only), [(State::Blocked, Some("read_only")); 3]);
}

#[test]
fn retention_is_guarded_by_what_is_on_the_log() {
    let told = |set: bool, guard| {
        let made = plan(&with(|f| f.settings.replay_guard = set), &Surroundings { guard, ..around() });
        let notice = made.notices.iter().find(|n| n.code == "no_replay_guard").map(|n| n.text.clone());
        (made.task("replay_guard").unwrap().state, notice)
    };
    assert_eq!(told(true, Found::Right), (State::NothingToDo, None));
    for lost in [Found::Nothing, Found::Other] {
        let (state, notice) = told(true, lost);
        assert_eq!(state, State::WouldRun);
        assert!(notice.unwrap().contains("not on the log"));
    }
    assert!(told(false, Found::Right).1.unwrap().contains("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD"));
    let off = with(|f| (f.settings.retention_days, f.settings.replay_guard) = (0, true));
    assert!(plan(&off, &around()).notices.iter().all(|n| n.code != "no_replay_guard"));
}

#[test]
fn what_comes() {
    let facts = with(|f| {
        f.census = (0..50).map(|ago| TableDay { rows: 70, ..day("uploads", ago, 700) }).collect();
        f.census.extend((0..50).map(|ago| TableDay { rows: 7, ..day("audio_previews", ago, 70) }));
        f.settings.tables = [("audio_previews".into(), Keep::All)].into();
        f.readers = vec![reader("a", 40 * DAY), reader("b", 70 * DAY)];
    });
    let live = 50 * 770;
    let figures = Figures { ops_bytes: live, index_bytes: live / 2, ..around().figures };
    let made = forecast(&facts, &Surroundings { figures, free_bytes: Some(115_500), ..around() });
    assert_eq!((made.rows_per_day, made.bytes_per_day, made.unbounded_bytes_per_day), (77, 1_155, 105));
    assert_eq!(made.seconds_until_full, Some(100 * 86_400));
    // Thirty days of the one, all there is of the other, and their indexes.
    assert_eq!(made.settles_at_bytes, (30 * 700 + 50 * 70) * 3 / 2);
    let left: Vec<u64> = made.readers.iter().map(|r| r.seconds / 86_400).collect();
    assert_eq!(left, [20, 0]);
    let none = forecast(&with(|f| f.census.clear()), &around());
    assert_eq!((none.seconds_until_full, none.bytes_per_day), (None, 0));
}

/// A table of yesterday is not divided by the days of an older one, and what is
/// a thousand years off is not told.
#[test]
fn each_table_is_divided_by_its_own_days() {
    let mut young = day("audio_previews", 1, 700);
    young.rows = 21_000;
    let old = (1..30).map(|ago| day("uploads", ago, 70));
    let facts = with(|f| f.census = old.chain([young]).collect());
    let made = forecast(&facts, &Surroundings { free_bytes: Some(1 << 50), ..around() });
    assert_eq!((made.days, made.rows_per_day), (7, 21_001));
    assert_eq!(made.seconds_until_full, None);
}

/// Ninety days of a log that had 700 were cut off of it: its table and index
/// are as large as before, and empty for the most part.
#[test]
fn room_that_deletion_left_is_no_growth() {
    let facts = with(|f| f.census = (0..90).map(|ago| day("uploads", ago, 1_000)).collect());
    let figures = Figures { ops_bytes: 700_000, index_bytes: 91_000, dead_rows: 10, ..around().figures };
    let made = forecast(&facts, &Surroundings { figures, free_bytes: Some(1_200), ..around() });
    assert_eq!((made.bytes_per_day, made.settles_at_bytes), (1_130, 30 * 1_130));
    // A row has 1,000 bytes, and ten of them are dead.
    assert_eq!(made.reusable_bytes, 600_000);
    assert_eq!(made.seconds_until_full.map(|s| s / 86_400), Some(1 + 600));
    // An index that lost nothing while its table was rewritten.
    let figures = Figures { ops_bytes: 90_000, index_bytes: 91_000, ..around().figures };
    let made = forecast(&facts, &Surroundings { figures, ..around() });
    assert_eq!((made.bytes_per_day, made.reusable_bytes), (1_500, 0));
}

#[test]
fn metrics_are_bounded_and_say_what_bounds() {
    let metrics = Metrics::new().unwrap();
    let series = |metrics: &Metrics, name: &str| -> Vec<String> {
        let text = metrics.encode().unwrap();
        text.lines().filter(|l| l.starts_with(name)).map(str::to_owned).collect()
    };
    let slow = with(|f| f.peers = Some(vec![peer("slow", 40 * DAY)]));
    measure(&plan(&slow, &around()), &metrics);
    let decision = "opsward_retention_decision";
    assert_eq!(series(&metrics, decision), [format!("{decision}{{bound_by=\"peer\",reason=\"\"}} 1")]);
    let below = OpUlid::first_of_ms(NOW - 40 * DAY - 3_600_000).ms() / 1_000;
    let cut = "opsward_retention_cut_timestamp_seconds";
    assert_eq!(series(&metrics, cut), [format!("{cut} {below}")]);
    let halted = |facts: &Facts, around: Surroundings| {
        measure(&plan(facts, &around), &metrics);
        let reason = |l: String| l.split("reason=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let reasons: Vec<String> = series(&metrics, decision).into_iter().map(reason).collect();
        (reasons, series(&metrics, cut)[0].ends_with(" 0"))
    };
    let is = |reason: &str| (vec![reason.to_owned()], true);
    let now = around().now;
    assert_eq!(halted(&slow, Surroundings { paused_at: Some(now), ..around() }), is("paused"));
    let floor = with(|f| f.settings.min_free_disk = 10);
    assert_eq!(halted(&floor, Surroundings { free_bytes: Some(9), ..around() }), is("little_disk"));
    let off = with(|f| f.settings.retention_days = 0);
    assert_eq!(halted(&off, Surroundings { paused_at: Some(now), ..around() }), is("off"));
    let blocked = with(|f| {
        let stuck = |n: usize| decide::PeerFact { own: None, node: Vec::new(), ..peer(&format!("p{n}"), 0) };
        f.peers = Some((0..40).map(stuck).collect());
        f.readers = (0..40).map(|n| reader(&format!("p{n}"), DAY)).collect();
        f.settings.reader_hold = Duration::ZERO;
    });
    measure(&plan(&blocked, &around()), &metrics);
    let reason = "bound_by=\"\",reason=\"peer_without_cursor\"";
    assert_eq!(series(&metrics, decision), [format!("{decision}{{{reason}}} 1")]);
    assert_eq!(series(&metrics, cut), [format!("{cut} 0")]);
    assert_eq!(series(&metrics, "opsward_reader_gap_seconds").len(), 40);
}

#[test]
fn a_reclaim_is_planned_as_the_command_does_it() {
    const MB: u64 = 1 << 20;
    let log = |f: &mut Facts| f.census = vec![day("uploads", 50, 40 * MB), day("uploads", 1, 60 * MB)];
    let figures = Figures { ops_bytes: 100 * MB, ..around().figures };
    let room = Surroundings { figures, ..around() };
    let of = |facts: &Facts, around: &Surroundings| {
        let task = plan(facts, around).task("reclaim").unwrap().clone();
        let codes: Vec<_> = task.blockers.iter().map(|b| crate::values::fixed(b.code.clone())).collect();
        (task.state, codes, task.note.unwrap())
    };
    let (state, codes, note) = of(&with(log), &room);
    assert_eq!((state, codes.len()), (State::WouldRun, 0));
    assert_eq!(note, "`opsward reclaim` gives back about 40.0 MiB");
    // Nobody deletes it yet: the node will, and then there is something to give back.
    let off = |f: &mut Facts| {
        log(f);
        (f.settings.retention_days, f.replication) = (0, Replication::Chain);
        f.chain.has_blocks = true;
    };
    let (state, _, note) = of(&with(off), &room);
    assert_eq!(state, State::NothingToDo, "{note}");
    assert!(note.contains("about 40.0 MiB more once the node has deleted what is older than"), "{note}");
    let read_only = Surroundings { read_only: true, ..room.clone() };
    assert_eq!(of(&with(log), &read_only).1, ["read_only"]);
    let lacking = vec![Lacking { need: Need::Guard, lift: "GRANT".into() }];
    assert_eq!(of(&with(log), &Surroundings { lacking, ..room.clone() }).1, ["no_privilege"]);
    let unfinished = |at_work| {
        let reclaim = crate::values::Unfinished {
            mode: "in-place".into(),
            phase: "delete".into(),
            held: false,
            at_work,
            since: room.now,
        };
        let facts = with(|f| {
            log(f);
            f.reclaim = Some(reclaim);
        });
        let task = plan(&facts, &room).task("reclaim").unwrap().clone();
        (task.state, task.blockers[0].fix.contains("--resume"))
    };
    assert_eq!([unfinished(false), unfinished(true)], [(State::Blocked, true), (State::Blocked, false)]);
}

#[test]
fn what_halts_at_once_is_told_with_the_task() {
    let facts = with(|f| f.census = vec![day("uploads", 50, 1)]);
    let made = plan(&facts, &Surroundings { paused_at: Some(around().now), ..around() });
    let halts =
        |name: &str| made.task(name).unwrap().halts(&made).iter().map(|n| n.text.clone()).collect::<Vec<_>>();
    assert!(halts("retention")[0].contains("paused"));
    assert!(halts("index").is_empty());
}
