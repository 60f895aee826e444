//! `--fit`: the longest window whose survivors fit beside the log. The one that
//! is set where it does, else a shorter one in whole days, at last the shortest
//! that the gate lets go.

use super::{DAY_MS, Facts, OfTable, Space, survivors};
use crate::reclaim::decide::Survivors;
use crate::values::OpUlid;

/// A window, and what it comes to.
pub(super) struct Fitted {
    pub(super) survivors: Survivors,
    pub(super) tables: Vec<OfTable>,
    pub(super) space: Space,
    /// Where it begins; `None` for what is set.
    pub(super) from: Option<OpUlid>,
}

/// The longest window that fits; the shortest one where none does, and the one
/// that is set where it is not known what is free.
pub(super) fn longest(facts: &Facts<'_>) -> Fitted {
    let of = |from: Option<OpUlid>| {
        let survivors = survivors(facts, from);
        let tables = super::tables(facts, &survivors);
        let space = super::space::space(facts, &tables, &survivors);
        Fitted { survivors, tables, space, from }
    };
    let set = of(None);
    let (Some(shortest), Some(free), true) = (facts.gate.ceiling, facts.volumes.data(), facts.asked.fit)
    else {
        return set;
    };
    if set.space.swap_needs <= free {
        return set;
    }
    let mut days: Vec<u64> = facts.census.iter().map(|e| e.oldest.ms() / DAY_MS * DAY_MS).collect();
    days.sort_unstable();
    days.dedup();
    let shorter = days.into_iter().map(OpUlid::first_of_ms).filter(|from| *from < shortest);
    // Under a day that lies before the window that is set, that one stays.
    let shorter = shorter.map(|from| of(Some(from))).filter(|f| f.survivors != set.survivors);
    let mut shorter = shorter.chain([of(Some(shortest))]).peekable();
    while let Some(fitted) = shorter.next() {
        if fitted.space.swap_needs <= free || shorter.peek().is_none() {
            return fitted;
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::super::{Asked, Plan, plan};
    use super::*;
    use crate::db::census::Entry;
    use crate::db::preflight::Standing;
    use crate::db::stats::{Volume, Volumes};
    use crate::reclaim::Gate;
    use crate::reclaim::decide::Mode;
    use crate::settings::{Bounding, Keep, Policy};
    use std::collections::BTreeMap;

    const NOW: u64 = 20_454 * DAY_MS + DAY_MS / 2;
    const GIB: u64 = 1 << 30;

    /// Noon so many days ago.
    fn ago(days: u64) -> OpUlid {
        OpUlid::first_of_ms(NOW - days * DAY_MS)
    }

    /// A GiB of uploads and one of previews on every tenth of 100 days.
    fn census() -> Vec<Entry> {
        let of = |table: &str, days: u64| Entry {
            table: table.into(),
            day: jiff::civil::date(2026, 1, 1),
            rows: 1_000,
            bytes: GIB,
            owed: 0,
            oldest: ago(days),
            newest: ago(days),
            estimated: false,
            counted_at: jiff::Timestamp::UNIX_EPOCH,
        };
        (1..=10).flat_map(|n| [of("uploads", n * 10), of("audio_previews", n * 10)]).collect()
    }

    /// The plan with so many GiB free, of a window in days and the gate's hold.
    fn fitted(free: u64, days: u32, change: impl FnOnce(&mut Bounding, &mut Gate)) -> Plan {
        let mut settings = Bounding { retention_days: days, ..Bounding::default() };
        let all = ["uploads", "audio_previews"].map(|t| (t.to_owned(), ago(days.into())));
        let cuts = if days == 0 { BTreeMap::new() } else { all.into() };
        let mut gate = Gate { cuts, ceiling: Some(ago(7)), ..Gate::default() };
        change(&mut settings, &mut gate);
        let (census, standing) = (census(), Standing { owner: true, plain: true, ..Standing::default() });
        plan(&Facts {
            asked: Asked { mode: None, policy: Policy::Window, fit: true, set_logged: false, percent: 25 },
            settings: &settings,
            gate: &gate,
            census: &census,
            is_counted: true,
            horizons: &BTreeMap::new(),
            standing: &standing,
            fingerprint: "",
            volumes: &Volumes {
                known: vec![Volume {
                    what: "v".into(),
                    free: free * GIB + GIB / 2,
                    is_data: true,
                    is_wal: true,
                }],
                unknown: Vec::new(),
            },
            seen: &BTreeMap::new(),
            now_ms: NOW,
        })
    }

    fn kept(plan: &Plan) -> u64 {
        plan.tables.iter().map(|t| t.kept_rows).sum::<u64>() / 1_000
    }

    #[test]
    fn the_longest_one_is_taken() {
        let whole = fitted(20, 0, |_, _| {});
        assert_eq!((whole.fit_days, kept(&whole), whole.mode), (None, 20, Mode::Swap));
        // Traces of what goes need a little, too.
        for (free, days, kept_gib) in [(19, 90, 18), (18, 90, 18), (17, 80, 16), (3, 10, 2), (2, 10, 2)] {
            let plan = fitted(free, 0, |_, _| {});
            assert_eq!((plan.fit_days, kept(&plan)), (Some(days), kept_gib), "{free}");
            assert!(plan.obstacles.is_empty(), "{:?}", plan.obstacles);
        }
    }

    #[test]
    fn it_is_never_longer_than_what_is_set() {
        for free in [20, 8] {
            assert_eq!(fitted(free, 45, |_, _| {}).fit_days, None, "{free}");
        }
        let plan = fitted(7, 45, |_, _| {});
        assert_eq!((plan.fit_days, kept(&plan)), (Some(30), 6));
        assert!(plan.notes[0].contains("instead of the 45 that are set"), "{:?}", plan.notes);
    }

    #[test]
    fn where_none_fits_it_is_said_and_not_done_in_place() {
        // Two GiB are of the last seven days.
        let plan = fitted(1, 0, |_, gate| gate.ceiling = Some(ago(15)));
        assert_eq!((plan.mode, plan.fit_days), (Mode::Swap, Some(15)));
        let [space] = &plan.obstacles[..] else { panic!("{:?}", plan.obstacles) };
        assert!(space.code == "space" && space.text.contains("shortest window"), "{space:?}");
        assert!(space.fix.contains("--mode in-place"), "{space:?}");
    }

    #[test]
    fn tables_with_a_word_of_their_own_keep_theirs() {
        let plan = fitted(12, 0, |settings, gate| {
            settings.tables.insert("uploads".into(), Keep::Days(95));
            gate.cuts.insert("uploads".into(), ago(95));
        });
        assert_eq!(plan.survivors.cuts["uploads"], ago(95));
        assert_eq!((plan.fit_days, kept(&plan)), (Some(30), 9 + 3));
    }

    #[test]
    fn readers_are_held_as_by_a_window_that_is_set() {
        // Until 20 days longer than the window.
        let hold = |_: &mut Bounding, gate: &mut Gate| gate.held = Some((ago(99), 20 * DAY_MS));
        let plan = fitted(13, 0, hold);
        assert_eq!((plan.fit_days, kept(&plan)), (Some(40), 12));
        assert_eq!(plan.survivors.cuts["uploads"].ms() / DAY_MS, ago(60).ms() / DAY_MS);
    }

    /// In place, of all that is older than 7 days, with so many MiB free.
    fn in_place(mib: u64, change: impl FnOnce(&mut Standing, &mut Volumes, &mut Gate)) -> Plan {
        let settings = Bounding { min_free_disk: 8 << 20, ..Bounding::default() };
        let cuts = ["uploads", "audio_previews"].map(|t| (t.to_owned(), ago(7))).into();
        let mut gate = Gate { cuts, ceiling: Some(ago(7)), ..Gate::default() };
        let mut standing =
            Standing { owner: true, plain: true, table_bytes: 60 * GIB, ..Standing::default() };
        let known = vec![Volume { what: "v".into(), free: mib << 20, is_data: true, is_wal: true }];
        let mut volumes = Volumes { known, unknown: Vec::new() };
        change(&mut standing, &mut volumes, &mut gate);
        plan(&Facts {
            asked: Asked {
                mode: Some(Mode::InPlace),
                policy: Policy::Window,
                fit: false,
                set_logged: false,
                percent: 100,
            },
            settings: &settings,
            gate: &gate,
            census: &census(),
            is_counted: true,
            horizons: &BTreeMap::new(),
            standing: &standing,
            fingerprint: "",
            volumes: &volumes,
            seen: &BTreeMap::new(),
            now_ms: NOW,
        })
    }

    fn codes(found: &[crate::values::Finding]) -> Vec<&str> {
        found.iter().map(|o| &*o.code).collect()
    }

    #[test]
    fn what_may_not_fit_in_place_is_done_where_somebody_says_so() {
        let none: Vec<&str> = Vec::new();
        for (mib, obstacles, risks) in [
            (15, vec!["space"], none.clone()),
            (20, none.clone(), vec!["may_not_fit"]),
            (60, none.clone(), none),
        ] {
            let plan = in_place(mib, |_, _, _| {});
            assert_eq!(
                (codes(&plan.obstacles), codes(&plan.risks)),
                (obstacles, risks),
                "{mib} MiB: {:?}",
                plan.space
            );
        }
    }

    #[test]
    fn what_the_server_keeps_deleted_rows_for_is_in_the_way_of_moving_them() {
        let deferred = in_place(100, |standing, _, _| standing.kept_xids = 1_000);
        assert_eq!(codes(&deferred.obstacles), ["vacuum_deferred"]);
        let old = in_place(100, |standing, _, _| standing.old_snapshots = true);
        assert_eq!(codes(&old.obstacles), ["old_snapshot_threshold"]);
    }

    #[test]
    fn a_volume_that_is_not_seen_or_full_refuses() {
        let unknown =
            in_place(100, |_, volumes, _| volumes.unknown.push("ops, in the tablespace at /x".into()));
        assert_eq!(codes(&unknown.obstacles), ["volume_unknown"]);
        let wal = |free| Volume { what: "the volume of pg_wal".into(), free, is_data: false, is_wal: true };
        let full = in_place(100, |_, volumes, _| volumes.known.push(wal(15 << 20)));
        assert_eq!(codes(&full.obstacles), ["space"]);
        assert!(full.obstacles[0].text.contains("pg_wal"), "{:?}", full.obstacles);
        assert!(in_place(100, |_, volumes, _| volumes.known.push(wal(17 << 20))).obstacles.is_empty());
    }

    #[test]
    fn a_log_that_was_pruned_already_only_moves() {
        let plan = in_place(100, |_, _, gate| gate.cuts.clear());
        assert!(plan.moves_only() && plan.space.traces == 0, "{plan:?}");
        assert!(plan.notes.iter().any(|note| note.contains("in place is better")), "{:?}", plan.notes);
        assert!(plan.notes.iter().any(|note| note.contains("no trace to leave")), "{:?}", plan.notes);
    }
}
