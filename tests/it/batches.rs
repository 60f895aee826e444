//! Contract 4: applying a page in batches ends where applying its ops one by
//! one in order would, for any ops.

use crate::harness::{Database, Dice};
use opsward::db::Client;
use opsward::pull::apply::{Applied, Fitting, apply};
use opsward::records::models;
use opsward::values::{Action, Op, OpUlid};
use std::ops::Range;

impl Dice {
    /// A text that no index takes: long, and nothing to compress.
    fn long(&mut self) -> String {
        (0..6_000).map(|_| char::from(b'a' + self.roll(26) as u8)).collect()
    }

    fn record(&mut self, table: &str) -> String {
        let key = self.roll(4);
        match table {
            "uploads" => {
                let status = match self.roll(12) {
                    0 => self.long(),
                    n => format!("s{n}"),
                };
                let updated = *self.pick(&["2024-05-01T00:00:00Z", "0001-01-01T00:00:00Z"]);
                format!(
                    r#"{{"id":"u{key}","status":"{status}","updated_at":"{updated}","error_count":{}}}"#,
                    self.roll(9)
                )
            }
            "storage_and_db_sizes" => {
                format!(r#"{{"LoggedAt":"2024-05-01T00:00:00Z","Host":"h{key}","DbUsed":{}}}"#, self.roll(9))
            }
            _ => format!(r#"{{"cid":"p{key}","created_by":"{}"}}"#, self.roll(9)),
        }
    }

    fn op(&mut self) -> Op {
        let table = *self.pick(&["uploads", "uploads", "audio_previews", "storage_and_db_sizes"]);
        let action = *self.pick(&[Action::Create, Action::Update, Action::Update, Action::Delete]);
        let records: Vec<String> = (0..=self.roll(3)).map(|_| self.record(table)).collect();
        Op {
            // Some ULIDs come twice.
            ulid: OpUlid::from_parts(1_750_000_000_000, u128::from(self.roll(60))),
            host: "http://h".into(),
            action,
            table: table.into(),
            data: format!("[{}]", records.join(",")).into(),
        }
    }

    fn ops(&mut self, count: usize) -> Vec<Fitting> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let fit = |op: Op| {
            let model = models().get(&op.table).unwrap();
            Fitting::new(op, model, now).ok()
        };
        std::iter::repeat_with(|| self.op()).filter_map(fit).take(count).collect()
    }

    fn batches(&mut self, count: usize) -> Vec<Range<usize>> {
        let mut batches = Vec::new();
        let mut from = 0;
        while from < count {
            let to = (from + 1 + self.roll(30) as usize).min(count);
            batches.push(from..to);
            from = to;
        }
        batches
    }
}

async fn end_of(client: &mut Client, ops: &[Fitting], batches: &[Range<usize>]) -> (String, Applied) {
    client.batch_execute("TRUNCATE ops, uploads, audio_previews, storage_and_db_sizes").await.unwrap();
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut sum = Applied::default();
    for batch in batches {
        let outcome = apply(client, &ops[batch.clone()], now).await.unwrap();
        sum.applied += outcome.applied;
        sum.duplicates += outcome.duplicates;
        sum.refused.extend(outcome.refused);
    }
    let sql = "SELECT string_agg(r, E'\\n' ORDER BY r) FROM (
                   SELECT to_jsonb(t)::text r FROM ops t UNION ALL SELECT to_jsonb(t)::text FROM uploads t
                   UNION ALL SELECT to_jsonb(t)::text FROM audio_previews t
                   UNION ALL SELECT to_jsonb(t)::text FROM storage_and_db_sizes t) all_rows";
    let rows: Option<String> = client.query_one(sql, &[]).await.unwrap().get(0);
    // The order and the words of a refusal tell how batches were split.
    sum.refused.sort_by_key(|r| r.ulid);
    sum.refused.iter_mut().for_each(|r| r.detail.clear());
    (rows.unwrap_or_default(), sum)
}

#[tokio::test]
async fn batches_end_where_one_by_one_does() {
    let database = Database::new().await;
    let mut client = database.migrated().await.client().await.unwrap();
    let mut refused = 0;
    for seed in 1..=60u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let ops = dice.ops(60);
        let single: Vec<Range<usize>> = (0..ops.len()).map(|i| i..i + 1).collect();
        let (want_rows, want) = end_of(&mut client, &ops, &single).await;
        let (rows, got) = end_of(&mut client, &ops, &dice.batches(ops.len())).await;
        assert_eq!(rows, want_rows, "seed {seed}");
        assert_eq!(got, want, "seed {seed}");
        refused += got.refused.len();
    }
    assert!(refused > 20, "the database refused {refused} ops: too few to mean anything");
}
