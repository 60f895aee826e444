//! Every walk over the log meets each of its keys once, whatever the keys are:
//! ULIDs, and texts that the database's collation puts between them although
//! their bytes would put them elsewhere.

use crate::harness::{Database, Dice};
use crate::work;
use futures_util::FutureExt;
use opsward::clock::Clock;
use opsward::db::census_slice::{self, Reading, Window};
use opsward::db::clone;
use opsward::db::lease::Lease;
use opsward::db::prune::{self, Doomed, Locked, TableCut};
use opsward::db::{Db, copy, in_place, order, recent};
use opsward::reclaim::decide::{Checkpoint, Mode, Survivors};
use opsward::reclaim::{self, Action, Gate, Outcome, Request};
use opsward::settings::Policy;
use opsward::values::OpUlid;
use opsward::work::Work;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// 2024-01-01.
const START: u64 = 1_704_067_200_000;
const DAY: u64 = 86_400_000;
/// Keys of either kind.
const EACH: usize = 150;

impl Dice {
    fn ulid(&mut self) -> String {
        OpUlid::from_parts(START + self.roll(100 * DAY), u128::from(self.roll(1 << 40))).to_string()
    }

    /// No ULID; most sort among the ULIDs, wherever their bytes are.
    fn odd(&mut self) -> String {
        let ulid = self.ulid();
        match self.roll(9) {
            0..=2 => ulid.to_lowercase(),
            3 => ulid[..25].to_owned(),
            4 => format!("{ulid}0"),
            5 => format!("\u{20ac}{ulid}"),
            6 => ulid.replacen('0', "_", 1),
            7 => format!("{}-{}", &ulid[..8], &ulid[8..]),
            _ => format!("{}u{}", &ulid[..4], &ulid[5..]),
        }
    }
}

struct Bench {
    database: Database,
    db: Db,
    client: Client,
    keys: BTreeSet<String>,
}

impl Bench {
    async fn new(seed: u64) -> Self {
        let database = Database::new().await;
        let (db, client) = (database.migrated().await, database.client().await);
        let mut dice = Dice(seed);
        let mut keys = BTreeSet::from([String::new(), "zzz".to_owned()]);
        for _ in 0..EACH {
            keys.insert(dice.ulid());
            keys.insert(dice.odd());
        }
        let all: Vec<&String> = keys.iter().collect();
        // Of many ops of the same time some are of every table.
        let sql = r#"INSERT INTO ops SELECT k, 'http://h', 'update',
                (ARRAY['uploads', 'qm_audio_analyses', 'storage_and_db_sizes'])[1 + n % 3],
                jsonb_build_array(jsonb_build_object('id', (n % 40)::text, 'cid', (n % 40)::text)) FROM unnest($1::text[])
                WITH ORDINALITY AS u(k, n)"#;
        client.execute(sql, &[&all]).await.unwrap();
        client.batch_execute("CREATE TABLE before AS SELECT * FROM ops").await.unwrap();
        Self { database, db, client, keys }
    }

    async fn lease(&self) -> Lease {
        Lease::take(&self.db).await.unwrap().unwrap()
    }

    async fn left(&self) -> BTreeSet<String> {
        let rows = self.client.query("SELECT ulid FROM ops", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// What a window or a compaction up to `below` may take.
    fn doomed(&self, below: OpUlid) -> usize {
        self.keys.iter().filter_map(|key| OpUlid::parse(key)).filter(|ulid| *ulid < below).count()
    }

    /// Met once each, all of them.
    fn met(&self, what: &str, met: Vec<String>) {
        let all: BTreeSet<String> = met.iter().cloned().collect();
        assert_eq!(met.len(), all.len(), "{what} met some twice: {met:?}");
        let missed: Vec<&String> = self.keys.difference(&all).collect();
        assert!(missed.is_empty(), "{what} missed {missed:?}");
    }
}

fn below() -> OpUlid {
    OpUlid::first_of_ms(START + 70 * DAY)
}

#[tokio::test]
async fn slices_and_ranges_cover_every_key_once() {
    for (seed, rows) in [(11, 2), (12, 3), (13, 7), (14, 50)] {
        let bench = Bench::new(seed).await;
        let mut lease = bench.lease().await;

        // The census.
        let reading = Reading::of_catalog(&*lease.client().unwrap()).await.unwrap();
        let window = Window::new(jiff::civil::date(2024, 1, 1), None, START + 20 * DAY);
        let (mut after, mut counted) = (String::new(), 0);
        loop {
            let range = census_slice::Range { after: &after, to: None, rows };
            let slice = census_slice::slice(lease.client().unwrap(), &reading, &window, range).await.unwrap();
            counted += slice.rows as usize;
            match slice.last.filter(|_| slice.rows == u64::from(rows)) {
                Some(last) => after = last,
                None => break,
            }
        }
        assert_eq!(counted, bench.keys.len(), "the census");

        // The copy and the comparison.
        let columns = clone::columns(&*lease.client().unwrap()).await.unwrap();
        let none = BTreeMap::new();
        let doomed = copy::Doomed { cuts: &none, listed: false, columns: &columns };
        let tx = lease.begin().await.unwrap();
        clone::make(&tx, false).await.unwrap().unwrap();
        let mut after = String::new();
        loop {
            let range = copy::range(&tx, &after, rows).await.unwrap();
            copy::copy(&tx, &doomed, &range).await.unwrap();
            match range.until {
                Some(until) => after = until,
                None => break,
            }
        }
        let copied = tx.query("SELECT ulid FROM opsward.ops_next", &[]).await.unwrap();
        bench.met("the copy", copied.iter().map(|row| row.get(0)).collect());
        let (mut after, mut differ) = (String::new(), Vec::new());
        loop {
            let range = copy::known_range(&tx, (&after, None), rows).await.unwrap();
            differ.extend(copy::verify(&tx, &doomed, &range).await.unwrap());
            match range.until {
                Some(until) => after = until,
                None => break,
            }
        }
        assert!(differ.is_empty(), "{differ:?}");

        // Compaction.
        let (mut before, mut walked) = (None::<String>, Vec::new());
        loop {
            let met = |op: &copy::WalkedOp| walked.push(op.ulid.clone());
            let (last, count) = copy::walk(
                &tx,
                (&columns, &std::collections::BTreeMap::new()),
                before.as_deref(),
                (rows, 1 << 20),
                met,
            )
            .await
            .unwrap();
            match last.filter(|last| count == u64::from(rows) && !last.is_empty()) {
                Some(last) => before = Some(last),
                None => break,
            }
        }
        bench.met("compaction", walked);

        // Rewriting, which begins above the key ''.
        let (mut after, mut seen) = (String::new(), 0);
        let movable = in_place::movable(&tx).await.unwrap();
        while let Some(last) = {
            let done = in_place::rewrite(&tx, &movable, &after, rows).await.unwrap();
            seen += done.scanned as usize;
            done.last
        } {
            after = last;
        }
        assert_eq!(seen + 1, bench.keys.len(), "rewriting");
        tx.rollback().await.unwrap();

        // The look for recent ops.
        let (to, mut after, mut seen) = (OpUlid::last_of_ms(START + 200 * DAY), String::new(), 0);
        loop {
            let tables = ["uploads"];
            let slice =
                recent::slice(&mut lease, &tables, &after, (to, START + 200 * DAY), rows).await.unwrap();
            seen += slice.rows as usize;
            match slice.last.filter(|_| slice.rows == u64::from(rows)) {
                Some(last) => after = last,
                None => break,
            }
        }
        let sql = "SELECT count(*) FROM ops WHERE ulid > '' AND ulid <= $1";
        let all: i64 = bench.client.query_one(sql, &[&to.as_str()]).await.unwrap().get(0);
        assert_eq!(seen as i64, all, "the look for recent ops");
    }
}

#[tokio::test]
async fn deleting_meets_every_ulid_below_the_cut_and_nothing_else() {
    for (seed, rows) in [(21, 1), (22, 3), (23, 40)] {
        let bench = Bench::new(seed).await;
        let mut lease = bench.lease().await;
        let run = prune::Run {
            id: "r".into(),
            task: "retention",
            began_at: Clock::System.now(),
            places: prune::Places::default(),
        };
        let cut = |table: &str| TableCut { table: table.into(), below: below(), bound_by: "age".into() };
        let cuts = ["uploads", "qm_audio_analyses", "storage_and_db_sizes"].map(cut);
        let mut from = String::new();
        loop {
            let range = prune::Range { from, until: below(), rows };
            let tx = lease.begin().await.unwrap();
            let batch = prune::batch(&tx, &run, &range, Doomed::Below(&cuts), Locked::Wait).await.unwrap();
            tx.commit().await.unwrap();
            match batch.next {
                Some(next) => from = next,
                None => break,
            }
        }
        check(&bench, bench.keys.len() - bench.doomed(below())).await;
    }
}

/// The rest is there, and nothing of it is a ULID below the cut.
async fn check(bench: &Bench, rows: usize) {
    let left = bench.left().await;
    let wrong: Vec<&String> =
        left.iter().filter(|key| OpUlid::parse(key).is_some_and(|ulid| ulid < below())).collect();
    assert!(wrong.is_empty(), "{} of them stayed, from {:?} on", wrong.len(), wrong.first());
    assert_eq!(left.len(), rows);
}

async fn reclaimed(bench: &Bench, mode: Mode, survivors: Survivors, batch: u32) {
    let work = begun(bench, mode, survivors, batch).await;
    let report = go_on(bench, &work).await.unwrap();
    assert_eq!(report.outcome, Outcome::Done);
}

async fn begun(bench: &Bench, mode: Mode, survivors: Survivors, batch: u32) -> Work {
    let work = work::on(&bench.db, |settings| {
        settings.db = bench.database.target();
        settings.bounding.batch_limit = batch;
    });
    let began_ms = Clock::System.now().as_millisecond();
    let begin = Checkpoint::begin("reclaim-test".into(), mode, Policy::Window, survivors);
    let at = Checkpoint { pace: Some(100), began_ms, ..begin };
    opsward::db::reclaim::save(&bench.db.client().await.unwrap(), &at.json()).await.unwrap();
    work
}

async fn go_on(bench: &Bench, work: &Work) -> Result<reclaim::Report, reclaim::Error> {
    let late = OpUlid::first_of_ms(Clock::System.now_ms() - DAY);
    let cuts =
        ["uploads", "qm_audio_analyses", "storage_and_db_sizes"].map(|table| (table.into(), late)).into();
    let gate = Gate { cuts, ceiling: Some(late), ..Gate::default() };
    let request =
        Request { action: Action::Resume, pace: Some(100), gate: gate.clone(), ..Request::default() };
    let ask = || std::future::ready(Ok(gate.clone())).boxed();
    let mut lease = loop {
        // The last session's may still be ending.
        match Lease::take(&bench.db).await.unwrap() {
            Ok(lease) => break lease,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    reclaim::run(work, &mut lease, &request, &ask).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reclaim_of_a_window_leaves_what_survives_in_both_modes() {
    for (mode, seed, batch) in [(Mode::InPlace, 31, 1), (Mode::InPlace, 32, 9), (Mode::Swap, 33, 9)] {
        let bench = Bench::new(seed).await;
        let tables = ["uploads", "qm_audio_analyses", "storage_and_db_sizes"];
        let cuts = tables.map(|table| (table.to_owned(), below())).into();
        reclaimed(&bench, mode, Survivors { cuts, ..Survivors::default() }, batch).await;
        check(&bench, bench.keys.len() - bench.doomed(below())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_modes_compact_to_the_same_log() {
    let mut left = Vec::new();
    for (mode, batch) in [(Mode::InPlace, 1), (Mode::InPlace, 17), (Mode::Swap, 17)] {
        let bench = Bench::new(41).await;
        let tables = ["uploads", "qm_audio_analyses"];
        let compact = tables.map(|table| (table.to_owned(), below())).into();
        reclaimed(&bench, mode, Survivors { compact, ..Survivors::default() }, batch).await;
        left.push(bench.left().await);
        assert!(left[0].len() < bench.keys.len(), "nothing was dropped");
    }
    assert_eq!(left[0], left[1], "other batches, another log");
    assert_eq!(left[0], left[2], "another mode, another log");
}

/// Stopped again and again, and with `ops` locked in between: what was judged
/// stays judged, and what goes is what goes without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_compaction_goes_on_where_it_was() {
    let mut left = Vec::new();
    for (mode, phase) in [(Mode::InPlace, "compact"), (Mode::Swap, "judge")] {
        let tables = ["uploads", "qm_audio_analyses"];
        let compact: BTreeMap<_, _> = tables.map(|table| (table.to_owned(), below())).into();
        let bench = Bench::new(42).await;
        reclaimed(&bench, mode, Survivors { compact: compact.clone(), ..Survivors::default() }, 17).await;
        left.push(bench.left().await);

        let bench = Bench::new(42).await;
        let work = begun(&bench, mode, Survivors { compact, ..Survivors::default() }, 17).await;
        let judged = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut runs = 0;
        let report = loop {
            let (stop, seen, told) =
                (CancellationToken::new(), judged.clone(), std::sync::atomic::AtomicU32::new(0));
            let cancel = stop.clone();
            let tell = move |progress: opsward::values::Progress| {
                if progress.phase == phase {
                    seen.lock().unwrap().push(progress.done);
                    // The third look: two parts are judged.
                    if told.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2 {
                        cancel.cancel();
                    }
                }
            };
            let work = Work { stop, tell: Arc::new(tell), ..work.clone() };
            runs += 1;
            match go_on(&bench, &work).await {
                Ok(report) => break report,
                Err(reclaim::Error::Halted(_)) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(report.outcome, Outcome::Done);
        let judged = judged.lock().unwrap().clone();
        assert!(judged.is_sorted(), "{judged:?}");
        assert!(mode == Mode::Swap || runs > 3, "{runs} runs: {judged:?}");
        left.push(bench.left().await);
    }
    assert!(left.iter().all(|of| *of == left[0]), "{:?}", left.iter().map(BTreeSet::len).collect::<Vec<_>>());
}

/// A lock on `ops` while a part is judged costs that part, not the pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_does_not_begin_a_pass_anew() {
    let bench = Bench::new(43).await;
    let compact = [("uploads".to_owned(), below())].into();
    let work = begun(&bench, Mode::InPlace, Survivors { compact, ..Survivors::default() }, 17).await;
    let (told, mut seen) = tokio::sync::watch::channel(opsward::values::Progress::default());
    let judged = Arc::new(std::sync::Mutex::new(Vec::new()));
    let all = judged.clone();
    let tell = move |progress: opsward::values::Progress| {
        if progress.phase == "compact" {
            all.lock().unwrap().push(progress.done);
        }
        drop(told.send_replace(progress));
    };
    let work = Work { tell: Arc::new(tell), ..work };
    let node = bench.database.client().await;
    let locked = async {
        seen.wait_for(|p| p.phase == "compact" && p.done > 20).await.unwrap();
        node.batch_execute("BEGIN; LOCK TABLE ops IN ACCESS EXCLUSIVE MODE").await.unwrap();
        seen.wait_for(|p| p.waiting.is_some()).await.unwrap();
        node.batch_execute("COMMIT").await.unwrap();
        std::future::pending::<()>().await;
    };
    let report = tokio::select! {
        report = go_on(&bench, &work) => report.unwrap(),
        () = locked => unreachable!(),
    };
    assert_eq!(report.outcome, Outcome::Done);
    let judged = judged.lock().unwrap().clone();
    assert!(judged.is_sorted() && judged.len() > 5, "{judged:?}");
}

/// The server says that a volume is full: the copy goes at once, and the log is
/// as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_that_fills_a_volume_is_undone_at_once() {
    let bench = Bench::new(51).await;
    let full = "CREATE FUNCTION full_volume() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END$$;
        CREATE TRIGGER full_volume BEFORE INSERT ON opsward.traces EXECUTE FUNCTION full_volume()";
    bench.client.batch_execute(full).await.unwrap();
    let cuts = [("uploads".to_owned(), below())].into();
    let work = begun(&bench, Mode::Swap, Survivors { cuts, ..Survivors::default() }, 17).await;
    let report = go_on(&bench, &work).await.unwrap();
    let Outcome::Aborted(why) = &report.outcome else { panic!("{report:?}") };
    assert!(why.contains("No space left"), "{why}");
    assert_eq!(bench.left().await, bench.keys);
    let left = "SELECT count(*) FROM pg_class WHERE relname IN ('ops_next', 'ops_old')
        OR relname = 'reclaim' AND EXISTS (SELECT FROM opsward.reclaim)";
    let left: i64 = bench.client.query_one(left, &[]).await.unwrap().get(0);
    assert_eq!(left, 0, "something is left of it");
}

/// A collation that counts, as people do: what walks over the log would miss
/// rows under it, and does not begin.
#[tokio::test]
async fn an_order_that_is_not_that_of_bytes_is_refused() {
    let bench = Bench::new(61).await;
    let client = bench.db.client().await.unwrap();
    assert_eq!(order::look(&client).await.unwrap(), None);
    let counting = "CREATE COLLATION counting (provider = icu, locale = 'en-u-kn-true');
        ALTER TABLE ops ALTER ulid TYPE text COLLATE counting";
    bench.client.batch_execute(counting).await.unwrap();
    let wrong = order::look(&client).await.unwrap().unwrap();
    assert!(wrong.text.contains("order of their bytes"), "{wrong:?}");
    let cuts = [("uploads".to_owned(), below())].into();
    let work = begun(&bench, Mode::InPlace, Survivors { cuts, ..Survivors::default() }, 17).await;
    let refused = go_on(&bench, &work).await.unwrap_err().to_string();
    assert!(refused.contains(&wrong.text), "{refused}");
    assert_eq!(bench.left().await, bench.keys);
    // The server was upgraded under the database.
    let older = "ALTER TABLE ops ALTER ulid TYPE text COLLATE \"default\";
        UPDATE pg_database SET datcollversion = '1.0' WHERE datname = current_database()";
    bench.client.batch_execute(older).await.unwrap();
    let wrong = order::look(&client).await.unwrap().unwrap();
    assert!(wrong.fix.contains("REFRESH COLLATION VERSION"), "{wrong:?}");
}
