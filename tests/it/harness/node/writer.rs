//! The writes of a node's day, at a rate, over sessions that live long and
//! prepare once. Nothing is tried again; everything is accounted for.

use super::startup::{Json, said};
use crate::harness::Ops;
use opsward::values::OpUlid;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::{Client, Config, Error, Statement};
use tokio_util::sync::CancellationToken;

/// A page, as a sweep reads it.
const PAGE: &str = r#"SELECT * FROM "ops" WHERE ulid > $1 ORDER BY ulid LIMIT 100"#;
/// Ops in a transaction of several.
const SEVERAL: usize = 5;
/// Of so many updates one is of the data.
const REWRITTEN: u64 = 4;
/// Every so manieth op is too long to stand in its row.
const TOASTED: u64 = 16;

/// What to write.
#[derive(Clone, Debug)]
pub struct Load {
    /// Transactions a second, over all sessions.
    pub rate: u32,
    /// Sessions.
    pub sessions: u32,
    /// Transactions in a hundred that insert ULIDs of the past; others that
    /// insert do so at now.
    pub late: u64,
    /// How far back those of the past lie, at most.
    pub late_by: Duration,
    /// Transactions in a hundred that update `core_tx_status` and
    /// `core_tx_hash`, or the data of one in [`REWRITTEN`]; they insert where
    /// there are no such columns.
    pub updates: u64,
    /// Transactions in a hundred that delete.
    pub deletes: u64,
    /// Transactions in a hundred that read a page.
    pub reads: u64,
    /// Ops that were there before and may be updated and deleted too.
    pub old: Vec<OpUlid>,
}

impl Default for Load {
    /// Fifty a second over four sessions: a fifth late, a fifth updates, some
    /// deletes and reads.
    fn default() -> Self {
        let late_by = Duration::from_secs(365 * 86_400);
        Self { rate: 50, sessions: 4, late: 20, late_by, updates: 20, deletes: 5, reads: 5, old: Vec::new() }
    }
}

/// A load at work.
pub struct Writer {
    stop: CancellationToken,
    done: watch::Receiver<u64>,
    sessions: Vec<JoinHandle<Written>>,
}

/// What was written, as far as the server acknowledged it.
#[derive(Default, Debug)]
pub struct Written {
    /// What each op that was touched must be now.
    ops: BTreeMap<OpUlid, Op>,
    /// Whose last write ended without an answer.
    unknown: BTreeSet<OpUlid>,
    /// From the moment a transaction was due to its acknowledgement, sorted: a
    /// stall counts for every transaction that it kept waiting.
    latencies: Vec<Duration>,
    /// Errors by SQLSTATE (`lost` for a lost session), with the first words.
    pub errors: BTreeMap<String, (u64, String)>,
    /// Inserts that became no row, as when a trigger refuses them.
    pub refused: u64,
}

#[derive(Clone, PartialEq, Debug)]
enum Op {
    /// One of [`Load::old`], its content not known.
    Old(Chain),
    Present {
        data: Value,
        chain: Chain,
    },
    Absent,
}

/// The columns for the chain, where they were set.
type Chain = Option<(&'static str, String)>;

struct Session {
    client: Client,
    insert: Statement,
    update: Option<Statement>,
    rewrite: Statement,
    delete: Statement,
    page: Statement,
    begin: Statement,
    commit: Statement,
    load: Load,
    made: Ops,
    written: Written,
}

impl Writer {
    /// Starts a load; its sessions have prepared their statements when it
    /// returns.
    pub async fn start(config: &Config, load: &Load, seed: u64) -> Self {
        let (stop, done) = (CancellationToken::new(), watch::Sender::new(0));
        let mut sessions = Vec::new();
        for n in 0..load.sessions {
            let mut own = load.clone();
            own.old = load.old.iter().skip(n as usize).step_by(load.sessions as usize).copied().collect();
            let session = Session::open(config, own, seed ^ u64::from(n) << 32).await;
            sessions.push(tokio::spawn(session.run(stop.clone(), done.clone())));
        }
        Self { stop, done: done.subscribe(), sessions }
    }

    /// Waits until so many more transactions were acknowledged or failed, or
    /// every session was lost.
    pub async fn more(&self, count: u64) {
        let until = *self.done.borrow() + count;
        let _ = self.done.clone().wait_for(|done| *done >= until).await;
    }

    /// Lets each session finish its transaction, and adds up.
    pub async fn stop(self) -> Written {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until every session was lost, and adds up.
    pub async fn ended(self) -> Written {
        let mut all = Written::default();
        for session in self.sessions {
            let one = session.await.unwrap();
            all.ops.extend(one.ops);
            all.unknown.extend(one.unknown);
            all.latencies.extend(one.latencies);
            all.refused += one.refused;
            for (state, (count, words)) in one.errors {
                all.errors.entry(state).or_insert((0, words)).0 += count;
            }
        }
        all.latencies.sort();
        all
    }
}

impl Written {
    /// Transactions that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.latencies.len()
    }

    /// The latency that so many of a hundred transactions stayed below; 100
    /// for the longest of all.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (percent / 100.0 * self.latencies.len() as f64).ceil() as usize;
        self.latencies.get(rank.clamp(1, self.latencies.len().max(1)) - 1).copied().unwrap_or_default()
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let [p50, p99, p999, max] = [50.0, 99.0, 99.9, 100.0].map(|p| self.percentile(p));
        let (count, unknown) = (self.acknowledged(), self.unknown.len());
        let (refused, errors) = (self.refused, &self.errors);
        format!(
            "{count} acknowledged, p50 {p50:.1?} p99 {p99:.1?} p99.9 {p999:.1?} max {max:.1?}, \
             {unknown} unknown, {refused} refused, errors {errors:?}"
        )
    }

    /// What the log lacks or has wrong of what was acknowledged; empty when
    /// all is well. Ops that `may_be_missing` need not be there.
    pub async fn verify(&self, client: &Client, may_be_missing: impl Fn(OpUlid) -> bool) -> Vec<String> {
        const SQL: &str = r#"SELECT o.ulid IS NOT NULL, coalesce(o.data = e.data::jsonb, e.data IS NULL),
                   e.status IS NULL OR (to_jsonb(o) ->> 'core_tx_status' IS NOT DISTINCT FROM e.status
                                        AND to_jsonb(o) ->> 'core_tx_hash' IS NOT DISTINCT FROM e.hash)
            FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
                 AS e(ulid, data, status, hash, n)
            LEFT JOIN public.ops o ON o.ulid = e.ulid
            ORDER BY e.n"#;
        let known: Vec<_> = self.ops.iter().filter(|(ulid, _)| !self.unknown.contains(ulid)).collect();
        let mut complaints = Vec::new();
        for part in known.chunks(1000) {
            let chain = |op: &Op| match op {
                Op::Old(chain) | Op::Present { chain, .. } => chain.clone(),
                Op::Absent => None,
            };
            let data = |op: &Op| match op {
                Op::Present { data, .. } => Some(data.to_string()),
                _ => None,
            };
            let ulids: Vec<&str> = part.iter().map(|(ulid, _)| ulid.as_str()).collect();
            let data: Vec<Option<String>> = part.iter().map(|(_, op)| data(op)).collect();
            let status: Vec<Option<&str>> = part.iter().map(|(_, op)| chain(op).map(|c| c.0)).collect();
            let hash: Vec<Option<String>> = part.iter().map(|(_, op)| chain(op).map(|c| c.1)).collect();
            let rows = client.query(SQL, &[&ulids, &data, &status, &hash]).await.unwrap();
            for ((ulid, op), row) in part.iter().zip(rows) {
                let (there, same, chained): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
                match op {
                    Op::Absent if there => complaints.push(format!("{ulid} was deleted and is there")),
                    Op::Absent => {}
                    _ if !there && may_be_missing(**ulid) => {}
                    _ if !there => complaints.push(format!("{ulid} is missing: {op:?}")),
                    _ if !same => complaints.push(format!("{ulid} has other data than {op:?}")),
                    _ if !chained => complaints.push(format!("{ulid} lacks its update: {op:?}")),
                    _ => {}
                }
            }
        }
        complaints
    }
}

impl Session {
    async fn open(config: &Config, load: Load, seed: u64) -> Self {
        const CHAINED: &str = "SELECT count(*) = 2 FROM information_schema.columns
            WHERE table_schema = 'public' AND table_name = 'ops'
              AND column_name IN ('core_tx_status', 'core_tx_hash')";
        let client = crate::harness::cluster::connect(config).await;
        let chained: bool = client.query_one(CHAINED, &[]).await.unwrap().get(0);
        let prepare = async |sql| client.prepare(sql).await.unwrap();
        let insert = prepare(
            r#"INSERT INTO "ops" ("ulid","host","action","table","data") VALUES ($1,$2,$3,$4,$5) ON CONFLICT DO NOTHING"#,
        );
        let update = r#"UPDATE "ops" SET "core_tx_status" = $2, "core_tx_hash" = $3 WHERE "ulid" = $1"#;
        Self {
            insert: insert.await,
            update: if chained { Some(prepare(update).await) } else { None },
            rewrite: prepare(r#"UPDATE "ops" SET "data" = $2 WHERE "ulid" = $1"#).await,
            delete: prepare(r#"DELETE FROM "ops" WHERE "ops"."ulid" = $1"#).await,
            page: prepare(PAGE).await,
            begin: prepare("BEGIN").await,
            commit: prepare("COMMIT").await,
            written: Written {
                ops: load.old.iter().map(|ulid| (*ulid, Op::Old(None))).collect(),
                ..Written::default()
            },
            load,
            made: Ops::new(seed),
            client,
        }
    }

    async fn run(mut self, stop: CancellationToken, done: watch::Sender<u64>) -> Written {
        let every = Duration::from_secs(1) * self.load.sessions / self.load.rate.max(1);
        let mut due = tokio::time::interval_at(Instant::now() + every, every);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            let due = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                due = due.tick() => due,
            };
            let mut touched = Vec::new();
            let outcome = self.transaction(&mut touched).await;
            done.send_modify(|done| *done += 1);
            match outcome {
                Ok(()) => {
                    self.written.latencies.push(due.elapsed());
                    for (ulid, op) in touched {
                        self.written.ops.insert(ulid, op);
                    }
                }
                Err(error) => {
                    let state = error.code().map_or("lost", |c| c.code()).to_owned();
                    // Class 57P: the server ended the session.
                    let stale = state == "0A000";
                    let lost = state == "lost" || state.starts_with("57P");
                    self.written.errors.entry(state).or_insert((0, said(&error))).0 += 1;
                    if lost {
                        // Whether it was committed nobody knows.
                        self.written.unknown.extend(touched.iter().map(|(ulid, _)| *ulid));
                        break;
                    }
                    let _ = self.client.batch_execute("ROLLBACK").await;
                    // pgx forgets a statement whose plan went stale: the next
                    // use prepares it anew.
                    if stale && let Ok(page) = self.client.prepare(PAGE).await {
                        self.page = page;
                    }
                }
            }
        }
        self.written
    }

    /// One transaction of the mixture; what it made of which op goes into
    /// `touched` before it is sent.
    async fn transaction(&mut self, touched: &mut Vec<(OpUlid, Op)>) -> Result<(), Error> {
        let count = if self.made.below(4) == 0 { SEVERAL } else { 1 };
        let Load { late, updates, deletes, reads, .. } = self.load;
        let mut drawn = self.made.below(100);
        let mut is = |share: u64| {
            let hit = drawn < share;
            drawn = drawn.saturating_sub(share).max(if hit { u64::MAX / 2 } else { 0 });
            hit
        };
        let (reads, deletes, updates, late) = (is(reads), is(deletes), is(updates), is(late));
        if reads {
            let after = OpUlid::first_of_ms(self.moment(true));
            return self.client.query(&self.page, &[&after.as_str()]).await.map(|_| ());
        }
        // A single statement needs no transaction of its own.
        if count > 1 {
            self.client.execute(&self.begin, &[]).await?;
        }
        for _ in 0..count {
            let target = if deletes || updates { self.target(touched) } else { None };
            match (target, self.update.clone()) {
                (Some(ulid), _) if deletes => self.delete(ulid, touched).await?,
                (Some(ulid), Some(update)) => self.update(ulid, &update, touched).await?,
                _ => self.insert(late, touched).await?,
            }
        }
        if count > 1 {
            self.client.execute(&self.commit, &[]).await?;
        }
        Ok(())
    }

    async fn insert(&mut self, late: bool, touched: &mut Vec<(OpUlid, Op)>) -> Result<(), Error> {
        let moment = self.moment(late);
        let ulid = self.made.ulid_at(moment);
        let data = self.data(ulid);
        touched.push((ulid, Op::Present { data: data.clone(), chain: None }));
        let (key, host) = (ulid.as_str(), "http://writer.example");
        let values = [&key as _, &host as _, &"create" as _, &"qm_audio_analyses" as _, &Json(&data) as _];
        if self.client.execute(&self.insert, &values).await? == 0 {
            touched.pop();
            self.written.refused += 1;
        }
        Ok(())
    }

    fn data(&mut self, ulid: OpUlid) -> Value {
        let mut record = json!({"cid": format!("w-{ulid}"), "status": "done", "error": self.made.below(100)});
        if self.made.below(TOASTED) == 0 {
            let noise: Vec<String> =
                (0..400).map(|_| format!("{:016x}", self.made.below(u64::MAX))).collect();
            record["error"] = noise.concat().into();
        }
        json!([record])
    }

    async fn update(
        &mut self,
        ulid: OpUlid,
        update: &Statement,
        touched: &mut Vec<(OpUlid, Op)>,
    ) -> Result<(), Error> {
        let current = self.current(ulid, touched);
        if let Op::Present { chain, .. } = &current
            && self.made.below(REWRITTEN) == 0
        {
            let data = self.data(ulid);
            touched.push((ulid, Op::Present { data: data.clone(), chain: chain.clone() }));
            if self.client.execute(&self.rewrite, &[&ulid.as_str(), &Json(&data)]).await? == 0 {
                touched.pop();
            }
            return Ok(());
        }
        let status = if self.made.below(8) == 0 { "pending" } else { "confirmed" };
        let hash = format!("{:016x}", self.made.below(u64::MAX));
        let to = Some((status, hash.clone()));
        let op = match current {
            Op::Present { data, .. } => Op::Present { data, chain: to },
            _ => Op::Old(to),
        };
        touched.push((ulid, op));
        let count = self.client.execute(update, &[&ulid.as_str(), &status, &hash]).await?;
        if count == 0 {
            // Gone already: an old one that was pruned meanwhile, or a loss
            // that the insert's own entry tells of.
            touched.pop();
        }
        Ok(())
    }

    async fn delete(&mut self, ulid: OpUlid, touched: &mut Vec<(OpUlid, Op)>) -> Result<(), Error> {
        touched.push((ulid, Op::Absent));
        self.client.execute(&self.delete, &[&ulid.as_str()]).await.map(|_| ())
    }

    /// What an op is now, this transaction included.
    fn current(&self, ulid: OpUlid, touched: &[(OpUlid, Op)]) -> Op {
        let own = touched.iter().rev().find(|(touched, _)| *touched == ulid).map(|(_, op)| op);
        own.or(self.written.ops.get(&ulid)).cloned().unwrap_or(Op::Absent)
    }

    /// One of this session's ops that is there, if chance finds one.
    fn target(&mut self, touched: &[(OpUlid, Op)]) -> Option<OpUlid> {
        let (first, last) = (self.written.ops.keys().next()?.ms(), self.written.ops.keys().last()?.ms());
        let from = OpUlid::first_of_ms(first + self.made.below(last - first + 1));
        let (ulid, _) = self.written.ops.range(from..).find(|(_, op)| **op != Op::Absent)?;
        (self.current(*ulid, touched) != Op::Absent).then_some(*ulid)
    }

    fn moment(&mut self, late: bool) -> u64 {
        let back = if late { self.made.below(self.load.late_by.as_millis() as u64) } else { 0 };
        opsward::clock::Clock::System.now_ms() - back
    }
}
