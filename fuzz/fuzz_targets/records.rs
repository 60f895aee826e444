//! An op's data: rows of the model's shape or a reason, the same each time, and
//! never rows from what is no JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opsward::records::{convert, models};
use opsward::values::Action;

fuzz_target!(|input: (u8, &str)| {
    let (which, data) = input;
    let models: Vec<_> = models().iter().collect();
    let model = models[usize::from(which >> 2) % models.len()];
    let action = match which & 3 {
        0 => Action::Create,
        1 => Action::Delete,
        _ => Action::Update,
    };
    let now = jiff::Timestamp::from_second(1_795_392_000).unwrap_or_default();
    let rows = convert(model, action, data, now);
    assert_eq!(rows, convert(model, action, data, now));
    let Ok(rows) = rows else { return };
    assert!(!rows.is_empty());
    for row in &rows {
        let columns = if action == Action::Delete { 0 } else { model.columns.len() };
        assert_eq!(row.values.len(), columns);
        assert_eq!(row.key.len(), model.key.len());
        // PostgreSQL holds no zero byte.
        let texts = row.values.iter().flatten().chain(&row.key);
        assert!(texts.into_iter().all(|text| !text.contains('\0')));
    }
    let json: Result<Vec<serde_json::Map<String, serde_json::Value>>, _> =
        serde_json::from_str(data);
    // serde_json stops at 128 levels and at numbers beyond f64; nodes do not.
    if let Ok(json) = json {
        assert_eq!(json.len(), rows.len());
    }
});
