//! What a real node did with recorded ops, held against `convert`.

use super::{Row, convert, time_text};
use crate::records::{Kind, Model, models};
use crate::values::{Action, OpUlid, RejectReason, is_plausible};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap};

const CASES: &str = include_str!("../../../tests/fixtures/apply.jsonl");

#[derive(Deserialize)]
struct Case<'a> {
    name: String,
    expect: String,
    setup: Vec<Value>,
    #[serde(borrow)]
    op: Option<&'a RawValue>,
    op_b64: Option<String>,
    error: Option<String>,
    #[serde(default)]
    rows_after: Vec<BTreeMap<String, Value>>,
}

/// An op whose envelope is sound.
#[derive(Deserialize)]
struct Envelope {
    ulid: String,
    #[serde(default)]
    host: String,
    action: String,
    table: String,
    #[serde(default)]
    transient: Option<bool>,
    data: Option<Box<RawValue>>,
}

fn now() -> Timestamp {
    "2026-06-01T12:00:00.25Z".parse().unwrap()
}

/// The op of a case with its model and action, or nothing where its envelope is
/// refused before anyone looks at `data`.
fn sound(case: &Case<'_>) -> Option<(Envelope, &'static Model, Action)> {
    let bytes = match (&case.op, &case.op_b64) {
        (Some(op), _) => op.get().as_bytes().to_vec(),
        (None, coded) => base64(coded.as_ref()?),
    };
    let op: Envelope = serde_json::from_slice(&bytes).ok()?;
    let now_ms = u64::try_from(now().as_millisecond()).unwrap();
    let ulid = OpUlid::parse(&op.ulid).filter(|u| is_plausible(*u, now_ms));
    if ulid.is_none() || op.host.contains('\0') || op.transient == Some(true) {
        return None;
    }
    let (model, action) = (models().get(&op.table)?, Action::parse(&op.action)?);
    Some((op, model, action))
}

fn converted(op: &Envelope, model: &Model, action: Action) -> Result<Vec<Row>, RejectReason> {
    let data = op.data.as_ref().map_or("", |data| data.get());
    convert(model, action, data, now())
}

#[test]
fn every_case_as_the_node_did_it() {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    let mut failed = Vec::new();
    for line in CASES.lines() {
        let case: Case<'_> = serde_json::from_str(line).unwrap();
        let Some((op, model, action)) = sound(&case) else {
            let envelope = matches!(case.expect.as_str(), "reject" | "either" | "hold" | "skip" | "page");
            assert!(envelope, "{}: nothing to convert", case.name);
            *seen.entry("refused before").or_default() += 1;
            continue;
        };
        // a limit of an index, known to the database alone
        let index = case.error.as_ref().is_some_and(|e| e.contains("SQLSTATE 54000"));
        let verdict = match (case.expect.as_str(), converted(&op, model, action)) {
            ("reject", Err(_)) => Ok("refused"),
            ("reject", Ok(_)) if index => Ok("for the database to refuse"),
            ("reject", Ok(rows)) => Err(format!("not refused: {rows:?}")),
            ("either", Err(_)) => Ok("refused where either will do"),
            ("apply" | "either", Ok(rows)) => compare(&case, &op, model, &rows),
            (expect, outcome) => Err(format!("{expect}, but {outcome:?}")),
        };
        match verdict {
            Ok(what) => *seen.entry(what).or_default() += 1,
            Err(why) => failed.push(format!("{}: {why}", case.name)),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    println!("{seen:?}");
    // what a look at the file says, so that a comparison that compares nothing fails
    assert!(seen["the same rows"] > 90, "{seen:?}");
    assert!(seen["refused"] > 100, "{seen:?}");
}

/// Holds the rows against what the node left, where that can be seen without a
/// database: not where rows that were there before are kept or deleted.
fn compare(case: &Case<'_>, op: &Envelope, model: &Model, rows: &[Row]) -> Result<&'static str, String> {
    let fresh = case.setup.is_empty();
    let again = case.setup.iter().any(|s| s["ulid"] == op.ulid);
    if op.action == "delete" || again || (op.action == "create" && !fresh) {
        return Ok("not to be compared");
    }
    let mut left: HashMap<Vec<String>, &BTreeMap<String, Value>> = HashMap::new();
    for row in &case.rows_after {
        let part = |k: &usize| as_text(&row[&model.columns[*k].name], &model.columns[*k].kind);
        let key = model.key.iter().map(|k| part(k).unwrap()).collect();
        left.insert(key, row);
    }
    for (place, row) in rows.iter().enumerate() {
        if rows[..place].iter().any(|earlier| earlier.key == row.key) {
            continue; // a create keeps the first
        }
        let node = left.remove(&row.key).ok_or_else(|| format!("no row {:?}", row.key))?;
        if node.len() != model.columns.len() {
            return Err("another number of columns".into());
        }
        for (c, column) in model.columns.iter().enumerate() {
            let theirs = as_text(&node[&column.name], &column.kind);
            let now_there = theirs.as_deref() == Some("<now>");
            let conflict = now_there && !fresh && model.touched == Some(c);
            let same = match (&theirs, &row.values[c]) {
                _ if conflict => true,
                (_, Some(ours)) if now_there => *ours == time_text(now()),
                (theirs, ours) => theirs == ours,
            };
            if !same {
                return Err(format!("{}: {theirs:?} there, {:?} here", column.name, row.values[c]));
            }
        }
    }
    match (fresh, left.len()) {
        (true, more) if more > 0 => Err(format!("{more} rows more")),
        _ => Ok("the same rows"),
    }
}

/// A value of `rows_after` in the form of `Row::values`.
fn as_text(value: &Value, kind: &Kind) -> Option<String> {
    match (value, kind) {
        (Value::Null, _) => None,
        (Value::String(time), Kind::Time) => Some(time.replace('T', " ").replace("+00:00", "+00")),
        (Value::String(text), _) => Some(text.clone()),
        (Value::Number(number), Kind::Float) => Some(number.as_f64().unwrap().to_string()),
        (other, _) => Some(other.to_string()),
    }
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for b in text.bytes().filter(|b| *b != b'=') {
        let digit = DIGITS.iter().position(|d| *d == b).unwrap();
        bits = (bits << 6 | u32::try_from(digit).unwrap()) & 0xFFFF;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xFF) as u8);
        }
    }
    out
}
