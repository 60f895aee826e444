//! A log as a node would have written it: seeded, so that a failure comes
//! back. Depends on nothing but `serde_json` and the crate's `OpUlid`, for
//! benches and the demo too.

use opsward::values::OpUlid;
use serde_json::{Value, json};

/// One op as it stands in the log; `data` is JSON text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MadeOp {
    /// Its key.
    pub ulid: OpUlid,
    /// The host that wrote it.
    pub host: String,
    /// `create`, `update` or `delete`.
    pub action: &'static str,
    /// One of the four replicated tables.
    pub table: &'static str,
    /// An array of whole records (of keys, for a delete).
    pub data: String,
}

impl MadeOp {
    /// As a sweep carries it.
    pub fn json(&self) -> String {
        format!(
            r#"{{"ulid":"{}","host":"{}","action":"{}","table":"{}","data":{},"transient":false}}"#,
            self.ulid, self.host, self.action, self.table, self.data
        )
    }
}

/// A page as a sweep carries it.
pub fn page(ops: &[MadeOp]) -> String {
    let ops: Vec<String> = ops.iter().map(MadeOp::json).collect();
    format!("[{}]", ops.join(","))
}

/// Makes ops, in the order of their ULIDs, without end.
#[derive(Clone, Debug)]
pub struct Ops {
    seed: u64,
    now_ms: u64,
    step_ms: u64,
    hosts: Vec<String>,
    uploads: Vec<Value>,
    analyses: Vec<Value>,
}

impl Ops {
    /// Ops of three hosts from 2026-01-01 on, 90 ms apart on average: 11 a
    /// second, as a busy node writes.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            now_ms: 1_767_225_600_000,
            step_ms: 180,
            hosts: (1..=3).map(|n| format!("http://n{n}.example")).collect(),
            uploads: Vec::new(),
            analyses: Vec::new(),
        }
    }

    /// From a time on, in milliseconds since the Unix epoch.
    pub fn starting_at(mut self, ms: u64) -> Self {
        self.now_ms = ms;
        self
    }

    /// So many milliseconds apart, on average.
    pub fn every(mut self, ms: u64) -> Self {
        self.step_ms = (2 * ms).max(1);
        self
    }

    /// Written by these hosts.
    pub fn hosts(mut self, hosts: &[&str]) -> Self {
        self.hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        self
    }

    /// So many ops of a node's usual mixture.
    pub fn take(&mut self, count: usize) -> Vec<MadeOp> {
        (0..count).map(|_| self.any()).collect()
    }

    /// One op of a node's usual mixture: mostly uploads and their updates.
    pub fn any(&mut self) -> MadeOp {
        match self.below(100) {
            0..25 => self.upload(),
            25..60 if !self.uploads.is_empty() => self.upload_update(),
            60..63 if !self.uploads.is_empty() => self.upload_delete(),
            63..75 => self.analysis(),
            75..85 if !self.analyses.is_empty() => self.analysis_update(),
            85..90 => self.preview(),
            _ => self.sizes(),
        }
    }

    /// A new upload.
    pub fn upload(&mut self) -> MadeOp {
        let (host, cid) = (self.host(), self.cid());
        let id = self.ulid_at(self.now_ms).to_string();
        let at = time(self.now_ms);
        let mirrors = self.mirrors(&host);
        let size = self.below(90_000_000).to_string();
        let record = json!({
            "id": id, "user_wallet": {"String": "", "Valid": false}, "template": "audio",
            "orig_filename": format!("{}.wav", self.word()), "orig_file_cid": cid,
            "selected_preview": {"String": "", "Valid": false},
            "probe": {"format": {"filename": "beep & <tom>.wav", "format_name": "wav",
                "format_long_name": "WAV / WAVE (Waveform Audio)", "duration": "3.715193",
                "size": size, "bit_rate": "1416497"}},
            "mirrors": mirrors, "transcoded_mirrors": null, "status": "new",
            "placement_hosts": null, "created_by": host, "created_at": at, "updated_at": at,
            "transcoded_by": "", "transcode_progress": 0, "transcoded_at": ZERO_TIME,
            "results": {}, "audio_analysis_status": "", "audio_analysis_error_count": 0,
            "audio_analyzed_by": "", "audio_analyzed_at": ZERO_TIME,
            "audio_analysis_results": null,
        });
        self.uploads.push(record.clone());
        self.op(host, "create", "uploads", &record)
    }

    /// A step of an upload that exists: transcoded, or analysed.
    pub fn upload_update(&mut self) -> MadeOp {
        let (host, at, which) = (self.host(), time(self.now_ms), self.which(0));
        let (cid, progress) = (self.cid(), self.below(100) as f64 / 100.0);
        let bpm = self.below(1800) as f64 / 10.0;
        let done = self.below(2) == 0;
        let record = &mut self.uploads[which];
        record["updated_at"] = json!(at);
        record["transcoded_by"] = json!(host);
        record["transcode_progress"] = json!(progress);
        record["status"] = json!("busy");
        if done {
            record["status"] = json!("done");
            record["transcode_progress"] = json!(1);
            record["transcoded_at"] = json!(at);
            record["transcoded_mirrors"] = record["mirrors"].clone();
            record["results"] = json!({"320": cid, "320_preview|12.5": cid});
            record["audio_analysis_status"] = json!("done");
            record["audio_analysis_results"] = json!({"bpm": bpm, "key": "A minor"});
        }
        let record = record.clone();
        self.op(host, "update", "uploads", &record)
    }

    /// The end of an upload that exists.
    pub fn upload_delete(&mut self) -> MadeOp {
        let which = self.which(0);
        let record = self.uploads.swap_remove(which);
        let host = self.host();
        self.op(host, "delete", "uploads", &json!({"id": record["id"]}))
    }

    /// A new analysis of a legacy file.
    pub fn analysis(&mut self) -> MadeOp {
        let (host, cid) = (self.host(), self.cid());
        let record = json!({
            "cid": cid, "mirrors": self.mirrors(&host), "status": "error", "error": "no such file",
            "error_count": 1, "analyzed_by": host, "analyzed_at": time(self.now_ms),
            "results": null,
        });
        self.analyses.push(record.clone());
        self.op(host, "create", "qm_audio_analyses", &record)
    }

    /// An analysis that exists, done at last.
    pub fn analysis_update(&mut self) -> MadeOp {
        let (host, at, which) = (self.host(), time(self.now_ms), self.which(1));
        let bpm = self.below(1800) as f64 / 10.0;
        let record = &mut self.analyses[which];
        record["status"] = json!("done");
        record["error"] = json!("");
        record["analyzed_at"] = json!(at);
        record["results"] = json!({"bpm": bpm, "key": "E♭ <major>"});
        let record = record.clone();
        self.op(host, "update", "qm_audio_analyses", &record)
    }

    /// A new preview.
    pub fn preview(&mut self) -> MadeOp {
        let (host, cid, source) = (self.host(), self.cid(), self.cid());
        let record = json!({
            "cid": cid, "SourceCID": source, "PreviewStartSeconds": "12.5",
            "created_by": host, "created_at": time(self.now_ms),
        });
        self.op(host, "create", "audio_previews", &record)
    }

    /// A node's report of its sizes.
    pub fn sizes(&mut self) -> MadeOp {
        let host = self.host();
        let record = json!({
            "LoggedAt": time(self.now_ms), "Host": host, "StorageBackend": "file",
            "DbUsed": self.below(1 << 38), "MediorumDiskUsed": self.below(1 << 42),
            "MediorumDiskSize": 1u64 << 42, "StorageExpectation": self.below(1 << 40),
            "LastRepairSize": self.below(1 << 40), "LastCleanupSize": 0,
        });
        self.op(host, "create", "storage_and_db_sizes", &record)
    }

    /// Any op of one record, at the next moment.
    pub fn op(&mut self, host: String, action: &'static str, table: &'static str, record: &Value) -> MadeOp {
        self.now_ms += 1 + self.below(self.step_ms);
        MadeOp {
            ulid: self.ulid_at(self.now_ms),
            host,
            action,
            table,
            data: Value::Array(vec![record.clone()]).to_string(),
        }
    }

    /// A ULID of a time, its randomness from the seed.
    pub fn ulid_at(&mut self, ms: u64) -> OpUlid {
        let random = u128::from(self.next()) << 64 | u128::from(self.next());
        OpUlid::from_parts(ms, random)
    }

    /// A number below another, from the seed.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// splitmix64: small, and the same everywhere.
    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn which(&mut self, kind: u8) -> usize {
        let count = if kind == 0 { self.uploads.len() } else { self.analyses.len() };
        self.below(count as u64) as usize
    }

    fn host(&mut self) -> String {
        let which = self.below(self.hosts.len() as u64) as usize;
        self.hosts[which].clone()
    }

    /// The writer and, mostly, some others: the gossip rule looks for self
    /// among them.
    fn mirrors(&mut self, writer: &str) -> Vec<String> {
        let others = self.hosts.clone().into_iter().filter(|h| h != writer);
        let mut mirrors: Vec<String> = others.filter(|_| self.below(4) > 0).collect();
        mirrors.insert(0, writer.to_owned());
        mirrors
    }

    fn cid(&mut self) -> String {
        let tail: String = (0..50).map(|_| self.letter()).collect();
        format!("baeaaaiqse{tail}")
    }

    fn word(&mut self) -> String {
        (0..8).map(|_| self.letter()).collect()
    }

    fn letter(&mut self) -> char {
        const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        char::from(BASE32[self.below(32) as usize])
    }
}

const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

fn time(ms: u64) -> String {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(0));
    // Nanoseconds, as Go writes them: they are cut where they are stored.
    format!("{:.9}", at.unwrap_or_default())
}

/// Puts ops into a log, without their records.
pub async fn insert(client: &tokio_postgres::Client, ops: &[MadeOp]) {
    const SQL: &str = r#"INSERT INTO ops (ulid, host, action, "table", data)
        SELECT u, h, a, t, d::jsonb
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) x(u, h, a, t, d)"#;
    for part in ops.chunks(10_000) {
        let column = |of: fn(&MadeOp) -> &str| part.iter().map(of).collect::<Vec<_>>();
        let ulids = column(|op| op.ulid.as_str());
        let hosts = column(|op| &op.host);
        let actions = column(|op| op.action);
        let tables = column(|op| op.table);
        let data = column(|op| &op.data);
        client.execute(SQL, &[&ulids, &hosts, &actions, &tables, &data]).await.expect("ops are inserted");
    }
}
