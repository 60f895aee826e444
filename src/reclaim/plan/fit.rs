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
        let space = super::space(facts, &tables);
        Fitted { survivors, tables, space, from }
    };
    let set = of(None);
    let (Some(shortest), Some(free), true) = (facts.gate.ceiling, facts.free, facts.asked.fit) else {
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
            asked: Asked { mode: None, policy: Policy::Window, fit: true, percent: 25 },
            settings: &settings,
            gate: &gate,
            census: &census,
            horizons: &BTreeMap::new(),
            standing: &standing,
            fingerprint: "",
            free: Some(free * GIB + GIB / 2),
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
}
