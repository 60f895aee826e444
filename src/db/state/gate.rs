//! What the gate reads: peers with their cursors, samples of the node's rows,
//! own ops that lie ahead, blockers. All of it small, none of it a scan.

use crate::db::{Client, Doing, Params, Result, cursors, rows};
use crate::values::{Host, IgnoredRow, OWN_AHEAD_MS, OpUlid, TableDay, latest_plausible, unix_ms};
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A peer that counts, with all that is known of how far it was read.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct PeerRow {
    /// Who.
    pub host: Host,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last one of the set, where it no longer is.
    pub removed: Option<Timestamp>,
    /// Our cursor.
    pub own: Option<String>,
    /// What the node's row held when we last looked.
    pub node_seen: Option<String>,
    /// Since when it answers `[]` at one cursor.
    pub empty_since: Option<Timestamp>,
    /// Its clock less ours, in milliseconds, at the last page, and when that
    /// was; `None` where it told none, or is no longer pulled.
    pub clock: Option<(i64, Timestamp)>,
}

/// The peers that count: those of `set`, or else the active ones, and those
/// that vanished within 7 days (contract 4).
pub async fn peers(client: &Client, set: Option<&[Host]>, now: Timestamp) -> Result<Vec<PeerRow>> {
    let set: Option<Vec<&str>> = set.map(|hosts| hosts.iter().map(Host::as_str).collect());
    rows::all(client, PEERS, &[&now, &set], "read the peers that count").await
}

const PEERS: &str = "
    WITH counted AS (
        SELECT host, first_seen, last_seen, is_in FROM opsward.peers,
            LATERAL (SELECT CASE WHEN $2::text[] IS NULL THEN active ELSE host = ANY($2) END) s(is_in)
        WHERE is_in OR last_seen > $1::timestamptz - interval '7 days'
        UNION ALL
        SELECT DISTINCT host, $1, $1, true FROM unnest($2) AS s(host)
        WHERE NOT EXISTS (SELECT FROM opsward.peers p WHERE p.host = s.host))
    SELECT k.host, k.first_seen, c.last_ulid AS own, c.node_ulid AS node_seen, u.empty_since,
           CASE WHEN k.is_in AND u.clock_offset_ms IS NOT NULL AND u.last_ok_at IS NOT NULL
                THEN jsonb_build_array(u.clock_offset_ms, u.last_ok_at) END AS clock,
           CASE WHEN NOT k.is_in THEN k.last_seen END AS removed
    FROM counted k
    LEFT JOIN opsward.cursors c ON c.host = k.host
    LEFT JOIN opsward.pulls u ON u.host = k.host
    ORDER BY k.host";

/// Whether a set of peers was ever discovered.
pub async fn discovered(client: &Client) -> Result<bool> {
    Ok(client.query_opt(DISCOVERED, &[]).await.doing("read the set of peers")?.is_some())
}

const DISCOVERED: &str = "SELECT FROM opsward.peer_set WHERE source = 'discovered'";

/// What the node's rows hold that count, by host in comparable form, '' for
/// NULL; and its rows that do not.
pub async fn node_cursors(client: &Client) -> Result<(Vec<(Host, String)>, Vec<IgnoredRow>)> {
    let (mut current, mut ignored) = (Vec::new(), Vec::new());
    for row in client.query(NODE_CURSORS, &[]).await.doing("read the node's cursors")? {
        let (host, counts): (&str, &str) = (row.get(0), row.get(1));
        match host == counts {
            true => current.push((Host::normalise(host), row.get(2))),
            false => ignored.push(cursors::ignored(host, counts)),
        }
    }
    Ok((current, ignored))
}

/// Of several spellings of one host, the freshest plausible one counts.
const NODE_CURSORS: &str = "
    SELECT host, first_value(host) OVER spelled, coalesce(last_ulid, '') FROM public.cursors
    WINDOW spelled AS (
        PARTITION BY rtrim(lower(trim(host)), '/')
        ORDER BY last_ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' AND last_ulid COLLATE \"C\"
                     < opsward.ulid_at(now() + interval '24 hours') DESC NULLS LAST,
                 last_ulid COLLATE \"C\" DESC NULLS LAST, host <> rtrim(lower(trim(host)), '/'), host)
    ORDER BY host";

/// What the node's rows held in the last 30 minutes, and one look before: the
/// value of a look stood until some time before the next.
pub async fn samples(client: &Client, now: Timestamp) -> Result<Vec<(Host, String)>> {
    rows::all(client, SAMPLES, &[&now], "read what the node's cursors were").await
}

const SAMPLES: &str = "
    SELECT host, coalesce(ulid, '') FROM opsward.cursor_samples
    WHERE at >= coalesce((SELECT max(at) FROM opsward.cursor_samples
                          WHERE at BETWEEN $1::timestamptz - interval '1 hour' AND $1 - interval '30 minutes'),
                         $1 - interval '30 minutes')";

/// How often the node's rows are looked at: its sweeps are 10 minutes apart.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(180);

/// Looks at the node's rows of peers, and keeps what they hold for an hour.
pub async fn sample_cursors(client: &Client, now: Timestamp) -> Result<()> {
    rows::write(client, SAMPLE, &[&now], "keep what the node's cursors are").await
}

const SAMPLE: &str = "
    WITH gone AS (DELETE FROM opsward.cursor_samples WHERE at < $1::timestamptz - interval '1 hour')
    INSERT INTO opsward.cursor_samples (host, at, ulid)
    SELECT DISTINCT ON (p.host) p.host, $1, coalesce(c.last_ulid, '')
    FROM opsward.peers p JOIN public.cursors c ON rtrim(lower(trim(c.host)), '/') = p.host
    ORDER BY p.host, c.last_ulid ~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' AND c.last_ulid COLLATE \"C\"
                 < opsward.ulid_at($1 + interval '24 hours') DESC NULLS LAST,
             c.last_ulid COLLATE \"C\" DESC NULLS LAST
    ON CONFLICT DO NOTHING";

/// The newest plausible op of `own` over an hour ahead, if there is one; of
/// what lies ahead, the newest 10,000 ops are looked at.
pub async fn own_ahead(client: &Client, own: &Host, now: Timestamp) -> Result<Option<OpUlid>> {
    let now_ms = unix_ms(now);
    let (from, to) = (OpUlid::last_of_ms(now_ms.saturating_add(OWN_AHEAD_MS)), latest_plausible(now_ms));
    let params: Params<'_> = &[&from.as_str(), &to.as_str(), &own.as_str()];
    let found: Option<String> = rows::one(client, OWN_AHEAD, params, "look for own ops ahead of now").await?;
    Ok(found.as_deref().and_then(OpUlid::parse))
}

const OWN_AHEAD: &str = "
    SELECT max(ulid) FROM (
        SELECT ulid, host FROM public.ops WHERE ulid > $1::text AND ulid <= $2::text
        ORDER BY ulid DESC LIMIT 10000) ahead
    WHERE length(ulid) = 26 AND rtrim(lower(trim(host)), '/') = $3";

/// Whether the log was ever counted whole.
pub async fn counted_whole(client: &Client) -> Result<bool> {
    Ok(client.query_opt(WHOLE, &[]).await.doing("read how far the census is")?.is_some())
}

const WHOLE: &str = "SELECT FROM opsward.census_pass WHERE kind = 'full' AND last_finished_at IS NOT NULL";

/// Since when what stands in the way, by code and subject.
pub type Since = BTreeMap<(String, String), Timestamp>;

/// Since when each blocker stood at the last decision.
pub async fn blockers(client: &Client) -> Result<Since> {
    let rows: Vec<(String, String, _)> = rows::all(client, BLOCKERS, &[], "read the blockers").await?;
    Ok(rows.into_iter().map(|(code, subject, since)| ((code, subject), since)).collect())
}

const BLOCKERS: &str = "SELECT code, subject, since FROM opsward.blockers";

/// Notes what stands in the way now, all of it, each as its code, subject, text
/// and fix: what is new stands since `now`, what is gone is forgotten.
pub async fn note_blockers(client: &Client, found: &[[&str; 4]], now: Timestamp) -> Result<()> {
    let [codes, subjects, texts, fixes] =
        [0, 1, 2, 3].map(|n| found.iter().map(|of| of[n]).collect::<Vec<&str>>());
    rows::write(client, NOTE_BLOCKERS, &[&codes, &subjects, &texts, &fixes, &now], "note the blockers").await
}

const NOTE_BLOCKERS: &str = "
    WITH found AS (
        SELECT DISTINCT ON (code, subject) code, subject, text, fix
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS f(code, subject, text, fix)
        ORDER BY code, subject),
    gone AS (DELETE FROM opsward.blockers b
             WHERE NOT EXISTS (SELECT FROM found f WHERE f.code = b.code AND f.subject = b.subject))
    INSERT INTO opsward.blockers (code, subject, since, text, fix)
    SELECT code, subject, $5::timestamptz, text, fix FROM found
    ON CONFLICT (code, subject) DO UPDATE SET seen_at = now(), text = excluded.text, fix = excluded.fix";

/// The census without implausible rows.
pub async fn census(client: &Client) -> Result<Vec<TableDay>> {
    rows::all(client, CENSUS, &[], "read the census").await
}

const CENSUS: &str = "
    SELECT table_name AS table, day, rows, bytes, owed, nullif(oldest, '') AS oldest,
           nullif(newest, '') AS newest, estimated
    FROM opsward.census
    WHERE rows > 0 AND day > 'epoch' ORDER BY table_name, day";

/// When the census was last brought up to date: by a whole look, or by what
/// has been counted or sampled so far; `None` where there is none.
pub async fn census_at(client: &Client) -> Result<Option<Timestamp>> {
    rows::one(client, CENSUS_AT, &[], "read how old the census is").await
}

const CENSUS_AT: &str = "
    SELECT coalesce((SELECT max(last_finished_at) FROM opsward.census_pass),
                    (SELECT max(counted_at) FROM opsward.census))";
