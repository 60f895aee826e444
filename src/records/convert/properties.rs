//! Whatever comes in: no panic, and what goes out reads back.

use super::text::push_json;
use super::time::Time;
use super::{convert, number, time_text};
use crate::records::{Kind, fit_for_jsonb, models};
use crate::values::Action;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Create), Just(Action::Update), Just(Action::Delete)]
}

/// JSON values, often of the shapes that columns have.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("2024-01-02T03:04:05.1Z")),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let key = prop_oneof![any::<String>(), "(String|valid|format|FILENAME|duration|bpm|key)"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Records with the keys of a model, each with a value of the right kind mostly.
fn records(table: usize) -> impl Strategy<Value = String> {
    let columns = models().iter().nth(table).unwrap().columns.clone();
    let one = columns.into_iter().map(|column| {
        let right = match column.kind {
            Kind::Text => any::<String>().prop_map(Value::from).boxed(),
            Kind::Integer => any::<i64>().prop_map(Value::from).boxed(),
            Kind::Unsigned => any::<u32>().prop_map(Value::from).boxed(),
            Kind::Float => any::<f64>().prop_map(Value::from).boxed(),
            Kind::Time => Just(json!("2024-01-02T03:04:05.1Z")).boxed(),
            _ => Just(Value::Null).boxed(),
        };
        (Just(column.json), prop_oneof![9 => right, 1 => values()])
    });
    prop::collection::vec(one.collect::<Vec<_>>(), 0..3).prop_map(|all| {
        let all = all.into_iter().map(|entries| Value::Object(entries.into_iter().collect()));
        Value::Array(all.collect()).to_string()
    })
}

/// Whatever `convert` answers is of the model's form.
fn check(table: usize, action: Action, data: &str) -> Result<(), TestCaseError> {
    let model = models().iter().nth(table).unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let Ok(rows) = convert(model, action, data, now) else {
        return Ok(());
    };
    prop_assert!(!rows.is_empty());
    for row in rows {
        let columns = if action == Action::Delete { 0 } else { model.columns.len() };
        prop_assert_eq!(row.values.len(), columns);
        prop_assert_eq!(row.key.len(), model.key.len());
        for (column, value) in model.columns.iter().zip(&row.values) {
            let Some(value) = value else { continue };
            prop_assert!(!value.contains('\0'));
            match column.kind {
                Kind::Integer | Kind::Unsigned => drop(value.parse::<i64>().unwrap()),
                Kind::Float => drop(value.parse::<f64>().unwrap()),
                Kind::Strings => drop(serde_json::from_str::<Vec<String>>(value).unwrap()),
                Kind::StringMap | Kind::Struct(_) => {
                    prop_assert!(serde_json::from_str::<Value>(value).unwrap().is_object());
                }
                _ => {}
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn arbitrary_text(table in 0..4_usize, action in actions(), data: String) {
        check(table, action, &data)?;
        let _ = fit_for_jsonb(&data);
    }

    #[test]
    fn text_of_json_characters(
        table in 0..4_usize,
        action in actions(),
        data in r#"[\[\]{}":,\\ua-fA-F0-9nul .eE+-]{0,60}"#,
    ) {
        check(table, action, &data)?;
        let _ = fit_for_jsonb(&data);
    }

    #[test]
    fn arbitrary_json(table in 0..4_usize, action in actions(), data in values()) {
        check(table, action, &data.to_string())?;
    }

    #[test]
    fn records_of_a_model(
        (table, data) in (0..4_usize).prop_flat_map(|t| (Just(t), records(t))),
        action in actions(),
    ) {
        check(table, action, &data)?;
    }

    /// An escape that serde_json can't turn into text is one that jsonb refuses.
    #[test]
    fn jsonb_takes_what_has_a_text(text in r#"(\\u(0000|0041|d83d|de00|DFFF)|\\\\|\\n|é|x){0,6}"#) {
        let literal = format!("\"{text}\"");
        let read = serde_json::from_str::<String>(&literal);
        let fit = read.is_ok_and(|text| !text.contains('\0'));
        prop_assert_eq!(fit_for_jsonb(&literal).is_ok(), fit, "{}", literal);
    }

    #[test]
    fn escaped_text_reads_back(text: String) {
        let mut out = String::new();
        push_json(&text, &mut out);
        prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        let raw = out.contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\n']);
        prop_assert!(!raw);
    }

    #[test]
    fn doubles_read_back(value in any::<f64>().prop_filter("JSON", |v| v.is_finite())) {
        let literal = number::json_text(value);
        let read = number::float(&literal).unwrap();
        prop_assert_eq!(read.to_bits(), value.to_bits());
        let text = number::numeric_text(value);
        prop_assert!(!text.contains(['e', 'E']));
        prop_assert_eq!(text.parse::<f64>().unwrap(), value);
    }

    #[test]
    fn times_as_jiff_reads_them(
        (year, month, day) in (1..=9998_i16, 1..=12_i8, 1..=31_i8),
        (hour, minute, second) in (0..=24_i8, 0..=60_i8, 0..=59_i8),
        fraction in prop_oneof![Just(String::new()), r"\.[0-9]{1,9}"],
        offset in prop_oneof![Just("Z".to_owned()), r"[+-](0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]"],
    ) {
        let literal = format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{offset}"
        );
        let jiff: Option<Timestamp> = literal.parse().ok();
        let ours = Time::parse(&literal).ok().map(Time::text);
        prop_assert_eq!(ours, jiff.map(time_text), "{}", literal);
    }

    /// The text of a time is the time.
    #[test]
    fn the_text_of_a_time(micros in -62_135_596_800_000_000..253_402_200_000_000_000_i64) {
        let at = Timestamp::from_microsecond(micros).unwrap();
        let text = time_text(at).replace(' ', "T") + ":00";
        prop_assert_eq!(text.parse::<Timestamp>().unwrap(), at);
    }

    #[test]
    fn any_literal_of_a_time(literal in r"[0-9TZ:.,+\- ]{0,40}|\PC{0,30}") {
        let _ = Time::parse(&literal).map(Time::text);
    }
}
