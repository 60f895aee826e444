//! What is worth knowing of a plan: overrides in force, stalled peers, pauses.

use super::{Routed, Surroundings};
use crate::bound::decide::{self, Facts};
use crate::bound::node;
use crate::db::guard::Found;
use crate::values::{Notice, bytes};

pub(super) fn notices(facts: &Facts, around: &Surroundings) -> Vec<Notice> {
    let mut notices = decide::gate(facts).notices;
    notices.extend(decide::size_notice(facts));
    notices.extend(decide::window_notice(facts));
    notices.extend(node::notices(facts, &around.figures));
    let set = &facts.settings;
    let mut say = |code: &'static str, text: String| {
        notices.push(Notice { code: code.into(), text, ..Notice::default() })
    };
    let lacks = match (set.replay_guard, around.guard) {
        (true, Found::Right) => None,
        (true, _) => Some(
            "the replay guard is switched on and not on the log yet: `opsward run` puts it there, and so does \
             whatever deletes, before it does; until then",
        ),
        (false, _) => Some("retention without OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD:"),
    };
    let again = match facts.replication.has_peers() {
        true => "a peer that sends its log anew",
        false => "a block that is executed again",
    };
    if let Some(lacks) = lacks.filter(|_| set.retention_days > 0 || set.retention_bytes > 0) {
        say("no_replay_guard", format!("{lacks} {again} makes this node apply old ops over newer state"));
    }
    around_notices(facts, around, &mut say);
    notices
}

/// What there is to say of the surroundings: routing, pause, window, disk.
fn around_notices(facts: &Facts, around: &Surroundings, say: &mut impl FnMut(&'static str, String)) {
    let set = &facts.settings;
    match around.routed {
        Routed::Routed => {}
        _ if !facts.replication.has_peers() => {}
        Routed::NotRouted => say(
            "no_readers",
            format!(
                "what answers at {}/internal/crud/sweep is no opsward: until a proxy routes it here no peer \
                 reads from here, and readers' hold protects nobody (see `opsward doctor`)",
                facts.own
            ),
        ),
        Routed::NotKnown => say(
            "routing_unknown",
            format!(
                "whether a proxy routes {}/internal/crud/sweep here is not known: without that, readers' hold \
                 protects nobody (see `opsward doctor`)",
                facts.own
            ),
        ),
    }
    if let Some(at) = around.paused_at {
        say("paused", format!("bulk work is paused since {at:.0}: `opsward resume`"));
    }
    if let Some(window) = set.window.filter(|w| !w.contains(around.now.as_second())) {
        say("outside_window", format!("bulk work waits for OPENAUDIO_MEDIORUM_MAINTENANCE_WINDOW={window}"));
    }
    match around.free_bytes {
        Some(free) if free < set.min_free_disk => say(
            "little_disk",
            format!(
                "{} are free, OPENAUDIO_MEDIORUM_MIN_FREE_DISK asks for {}",
                bytes(free),
                bytes(set.min_free_disk)
            ),
        ),
        None => say(
            "free_disk_unknown",
            "free disk is unknown: OPENAUDIO_MEDIORUM_PGDATA_PATH names a directory of the database's volume"
                .into(),
        ),
        _ => {}
    }
}
