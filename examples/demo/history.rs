//! A log as validators write it: in proportions as measured, evenly over time.

use opsward::values::{Action, Op, OpUlid};
use serde_json::{Value, json};

/// Writes ops of a fleet, the same ones for the same seed.
pub struct Writer {
    hosts: Vec<String>,
    name: &'static str,
    state: u64,
    uploads: Vec<(String, u64)>,
    written: u64,
}

impl Writer {
    /// A writer for validators of these hosts; no two names share a record.
    pub fn new(hosts: Vec<String>, name: &'static str, seed: u64) -> Self {
        Self { hosts, name, state: seed | 1, uploads: Vec::new(), written: 0 }
    }

    /// `count` ops, evenly over a span of milliseconds.
    pub fn ops(&mut self, count: usize, from_ms: u64, to_ms: u64) -> Vec<Op> {
        let step = (to_ms - from_ms) / count.max(1) as u64;
        (0..count as u64).map(|i| self.op(from_ms + i * step)).collect()
    }

    fn next(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    fn op(&mut self, ms: u64) -> Op {
        self.written += 1;
        let which = self.next(self.hosts.len() as u64) as usize;
        let host = self.hosts[which].clone();
        let (action, table, record) = match self.next(100) {
            0..62 => self.upload(ms, &host),
            62..90 => (Action::Create, "storage_and_db_sizes", self.sizes(ms, &host)),
            90..98 => self.analysis(ms, &host),
            _ => (Action::Create, "audio_previews", self.preview(ms, &host)),
        };
        Op {
            ulid: OpUlid::from_parts(ms, u128::from(self.written)),
            host,
            action,
            table: table.into(),
            data: Value::Array(vec![record]).to_string().into(),
        }
    }

    fn upload(&mut self, ms: u64, host: &str) -> (Action, &'static str, Value) {
        let fresh = self.uploads.is_empty() || self.next(100) < 22;
        if fresh {
            self.uploads.push((format!("{}{:06}", self.name, self.written), ms));
        }
        // Updates are of recent records.
        let back = self.next(self.uploads.len().min(40) as u64) as usize;
        let pick = if fresh { 0 } else { back };
        let (id, created) = self.uploads[self.uploads.len() - 1 - pick].clone();
        let status = ["new", "busy", "retranscode_preview", "done"][self.next(4) as usize];
        let record = json!({
            "id": id, "user_wallet": {"String": "0x7d273271690538cf855e5b3002a0dd8c154bb060", "Valid": true},
            "template": "audio", "orig_filename": format!("track {id}.wav"), "orig_file_cid": format!("baeaaaiqse{id}"),
            "selected_preview": {"String": "", "Valid": false},
            "probe": {"format": {"filename": "a.wav", "format_name": "wav", "format_long_name": "WAV / WAVE",
                                 "duration": "184.2", "size": "32498234", "bit_rate": "1411200"}},
            "error": "", "error_count": 0, "mirrors": self.hosts, "transcoded_mirrors": self.hosts,
            "status": status, "placement_hosts": null, "created_by": host, "created_at": time(created),
            "updated_at": time(ms), "transcoded_by": host, "transcode_progress": self.next(101) as f64 / 100.0,
            "transcoded_at": time(ms), "results": {"320": format!("baeaaaiqsf{id}")},
            "audio_analysis_status": "done", "audio_analysis_error": "", "audio_analysis_error_count": 0,
            "audio_analyzed_by": host, "audio_analyzed_at": time(ms),
            "audio_analysis_results": {"bpm": 60.0 + self.next(1200) as f64 / 10.0, "key": "A minor"},
        });
        (if fresh { Action::Create } else { Action::Update }, "uploads", record)
    }

    fn sizes(&mut self, ms: u64, host: &str) -> Value {
        json!({
            "LoggedAt": time(ms), "Host": format!("{host}/{}", self.name), "StorageBackend": "file", "DbUsed": 90_000_000_000u64 + ms % 1000,
            "MediorumDiskUsed": 4_000_000_000_000u64, "MediorumDiskSize": 8_000_000_000_000u64,
            "StorageExpectation": 3_900_000_000_000u64, "LastRepairSize": 0, "LastCleanupSize": 0,
        })
    }

    fn analysis(&mut self, ms: u64, host: &str) -> (Action, &'static str, Value) {
        let which = self.next(2_000);
        let cid = format!("Qm{}{which:06}", self.name);
        let action = if self.next(3) == 0 { Action::Create } else { Action::Update };
        let record = json!({
            "cid": cid, "mirrors": self.hosts, "status": "done", "error_count": 0, "analyzed_by": host,
            "analyzed_at": time(ms), "results": {"bpm": 120.5, "key": "C major"},
        });
        (action, "qm_audio_analyses", record)
    }

    fn preview(&mut self, ms: u64, host: &str) -> Value {
        json!({
            "CID": format!("prev{}{:06}", self.name, self.written), "SourceCID": "baeaaaiqse", "PreviewStartSeconds": "30",
            "created_by": host, "created_at": time(ms),
        })
    }
}

fn time(ms: u64) -> String {
    jiff::Timestamp::from_millisecond(ms as i64).unwrap_or_default().to_string()
}

/// The ops of a real network, from their recording.
pub fn recorded(lines: &str) -> anyhow::Result<Vec<Op>> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        ulid: String,
        host: String,
        action: String,
        table: String,
        #[serde(borrow)]
        data: &'a serde_json::value::RawValue,
    }
    let read = |line: &str| -> anyhow::Result<Op> {
        let op: Line<'_> = serde_json::from_str(line)?;
        Ok(Op {
            ulid: OpUlid::parse(&op.ulid).ok_or_else(|| anyhow::anyhow!("{} is no ULID", op.ulid))?,
            host: op.host,
            action: Action::parse(&op.action).ok_or_else(|| anyhow::anyhow!("{}", op.action))?,
            table: op.table,
            data: op.data.get().into(),
        })
    };
    lines.lines().map(read).collect()
}
