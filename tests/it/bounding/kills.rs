//! Killed (-9) between any two statements of a run, before and after each
//! kind: what is gone has its traces, floors and history, and the next run
//! comes to the same end.

use super::*;
use crate::harness::cluster;
use crate::harness::wire::{Event, PerKind, Plan, Point, When, kill_points, trial};

/// A log that is cloned for every trial.
struct Origin {
    bench: Bench,
}

impl Origin {
    async fn new() -> Self {
        let bench = Bench::new().await.with(BATCH, "100");
        bench.log(450, 30).await;
        bench.run("CREATE TABLE before AS SELECT * FROM ops").await;
        let Bench { database, env, client } = bench;
        drop(client);
        // A template is cloned only while nobody is in it.
        let client = database.cluster().connect("postgres").await;
        let bench = Bench { database, client, env };
        let sessions =
            format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = '{}'", bench.database.name());
        bench.until(&sessions).await;
        Self { bench }
    }

    async fn clone(&self) -> String {
        let name = cluster::unique("k");
        self.bench.database.cluster().create_database(&name, self.bench.database.name()).await;
        name
    }

    async fn prune(&self, name: &str, plan: Plan) -> (Vec<Event>, Option<Event>, Option<i32>) {
        // The lease of one that was killed goes a moment after it.
        let start = |url| started(&self.bench.env, &["prune", "--wait", "--output", "json"], url);
        let trial = trial(self.bench.database.cluster(), name, plan, start).await;
        if trial.killed_at.is_none() && trial.ran.code != Some(0) {
            println!("it was not killed, and left {:?}", trial.ran);
        }
        (trial.events, trial.killed_at, trial.ran.code)
    }

    /// Kills at a point, looks, runs again, and says what is left.
    async fn killed_at(&self, point: &Point, when: When) -> Option<End> {
        let name = self.clone().await;
        let (_, at, code) = self.prune(&name, Plan::kill(point, when)).await;
        let client = self.bench.database.cluster().connect(&name).await;
        let wrong = inconsistent(&client).await;
        assert_eq!(wrong, Vec::<String>::new(), "{when:?} {point:?}");
        let (_, _, again) = self.prune(&name, Plan::Observe).await;
        assert_eq!(again, Some(0), "{when:?} {point:?}");
        assert_eq!(inconsistent(&client).await, Vec::<String>::new(), "{when:?} {point:?}, again");
        let end = End::of(&client).await;
        drop(client);
        self.bench.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
        match at {
            Some(_) => Some(end),
            // A kind that comes by time, like progress, may not come again.
            None => {
                assert_eq!(code, Some(0), "{point:?}");
                None
            }
        }
    }
}

/// What must be the same in the end, whatever happened on the way.
#[derive(PartialEq, Eq, Debug)]
struct End {
    ops: String,
    traces: String,
    floors: Vec<String>,
    rows: Vec<(String, i64)>,
    census: i64,
}

impl End {
    async fn of(client: &Client) -> Self {
        let text = async |sql: &str| -> String { client.query_one(sql, &[]).await.unwrap().get(0) };
        let rows = client
            .query("SELECT table_name, sum(rows)::bigint FROM opsward.history GROUP BY 1 ORDER BY 1", &[])
            .await
            .unwrap();
        let floors =
            client.query("SELECT table_name FROM opsward.floors WHERE floor IS NOT NULL ORDER BY 1", &[]);
        Self {
            ops: text("SELECT coalesce(md5(string_agg(ulid, ',' ORDER BY ulid)), '') FROM ops").await,
            traces: text("SELECT md5(string_agg(key || ulid, ',' ORDER BY key)) FROM opsward.traces").await,
            floors: floors.await.unwrap().iter().map(|r| r.get(0)).collect(),
            rows: rows.iter().map(|r| (r.get(0), r.get(1))).collect(),
            census: client
                .query_one("SELECT coalesce(sum(rows), 0)::bigint FROM opsward.census", &[])
                .await
                .unwrap()
                .get(0),
        }
    }
}

/// What does not go together of the log, its floors, traces and history.
async fn inconsistent(client: &Client) -> Vec<String> {
    const GONE: &str =
        "(SELECT * FROM before b WHERE NOT EXISTS (SELECT FROM ops o WHERE o.ulid = b.ulid)) gone";
    let traces = format!(
        "SELECT opsward.trace_key(\"table\", r) AS key, max(ulid COLLATE \"C\") AS ulid
         FROM {GONE}, opsward.records(data) r
         WHERE \"table\" IN ('uploads', 'qm_audio_analyses', 'audio_previews') GROUP BY 1"
    );
    let rules = [
        (
            "history has not the rows that are gone",
            format!(
                "SELECT count(*) FROM (SELECT \"table\" t, count(*) n FROM {GONE} GROUP BY 1) g
                 FULL JOIN (SELECT table_name t, sum(rows) n FROM opsward.history GROUP BY 1) h USING (t)
                 WHERE g.n IS DISTINCT FROM h.n"
            ),
        ),
        (
            "a trace is missing",
            format!("SELECT count(*) FROM ({traces} EXCEPT SELECT key, ulid FROM opsward.traces) x"),
        ),
        (
            "a trace is of nothing",
            format!("SELECT count(*) FROM (SELECT key, ulid FROM opsward.traces EXCEPT {traces}) x"),
        ),
        (
            "a floor is not above what is gone",
            format!(
                "SELECT count(*) FROM (SELECT \"table\" t, max(ulid COLLATE \"C\") u FROM {GONE} GROUP BY 1) g
                 LEFT JOIN opsward.floors f ON f.table_name = g.t WHERE f.floor IS NULL OR f.floor <= g.u"
            ),
        ),
        (
            "the watermark passed a row",
            "SELECT count(*) FROM ops, opsward.watermark w WHERE ops.ulid < w.ulid".to_owned(),
        ),
    ];
    let exists = "SELECT to_regclass('opsward.history') IS NOT NULL";
    if !client.query_one(exists, &[]).await.unwrap().get::<_, bool>(0) {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for (words, sql) in rules {
        let n: i64 = client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0);
        if n > 0 {
            wrong.push(format!("{words}: {n}"));
        }
    }
    wrong
}

async fn trials(choose: impl Fn(&[Event]) -> Vec<(Point, When)>) {
    let origin = Origin::new().await;
    let name = origin.clone().await;
    let (events, _, code) = origin.prune(&name, Plan::Observe).await;
    assert_eq!(code, Some(0));
    let client = origin.bench.database.cluster().connect(&name).await;
    let undisturbed = End::of(&client).await;
    assert_eq!(undisturbed.rows.iter().map(|(_, n)| n).sum::<i64>(), 450);
    let points = choose(&events);
    let mut killed = 0;
    for (point, when) in &points {
        if let Some(end) = origin.killed_at(point, *when).await {
            killed += 1;
            assert_eq!(end, undisturbed, "{when:?} {point:?}");
        }
    }
    println!("killed at {killed} of {} points, of {} statements", points.len(), events.len());
    assert!(killed * 10 >= points.len() * 9, "{killed} of {}", points.len());
    drop(client);
    origin.bench.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
}

#[tokio::test]
async fn killed_at_what_matters_most() {
    trials(|events| {
        let deletes = |kind: &str| kind.contains("delete from public.ops");
        let points = kill_points(events, PerKind::FirstMiddleLast);
        let first = points.iter().position(|p| deletes(&p.kind)).expect("it deletes");
        // The statements of the first batches, and what comes right after.
        let kinds: Vec<&Point> = points[first.saturating_sub(3)..].iter().collect();
        let step = kinds.len().div_ceil(8).max(1);
        let mut chosen: Vec<(Point, When)> = kinds
            .iter()
            .step_by(step)
            .enumerate()
            .map(|(n, p)| ((*p).clone(), if n % 2 == 0 { When::After } else { When::Before }))
            .collect();
        let commit = points.iter().filter(|p| p.kind == "commit").nth(1).expect("it commits").clone();
        chosen.extend([(commit.clone(), When::Before), (commit, When::After)]);
        chosen
    })
    .await;
}

#[tokio::test]
#[ignore = "minutes: every kind of statement, before and after"]
async fn killed_anywhere() {
    trials(|events| {
        let points = kill_points(events, PerKind::FirstMiddleLast);
        points.into_iter().flat_map(|p| [(p.clone(), When::Before), (p, When::After)]).collect()
    })
    .await;
}
