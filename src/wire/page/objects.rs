//! Whether a jsonb text is what a node can apply.

use memchr::{memchr_iter, memchr2};

/// Whether the text of a jsonb is a non-empty array of nothing but objects.
/// The server wrote it, so it is valid and in canonical spacing; nothing is
/// parsed.
pub fn is_array_of_objects(text: &[u8]) -> bool {
    let (Some(b"[{"), Some(b"}]")) = (text.get(..2), text.last_chunk::<2>()) else {
        return false;
    };
    surely_objects(text) || scan(text)
}

/// A quick test that may answer false for a good array. The first element is an object, so the
/// first element that is not one follows an object's `}, `. Where a key or another object follows
/// instead, the `}` ends an inner object, or is text in a string.
fn surely_objects(text: &[u8]) -> bool {
    memchr_iter(b'}', text).all(|at| match &text[at + 1..] {
        [b',', b' ', b'{', ..] => true,
        [b',', b' ', b'"', ..] => {
            let end = end_of_string(text, at + 4);
            end.is_some_and(|end| text.get(end + 1) == Some(&b':'))
        }
        [b',', b' ', ..] => false,
        _ => true,
    })
}

/// The exact test: walks element by element and skips strings.
fn scan(text: &[u8]) -> bool {
    let (mut at, mut depth) = (2, 1_usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => match end_of_string(text, at + 1) {
                Some(end) => at = end,
                None => return false,
            },
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 1 => depth -= 1,
            b'}' => match &text[at + 1..] {
                b"]" => return true,
                // The next element opens one character later.
                [b',', b' ', b'{', ..] => at += 3,
                _ => return false,
            },
            b']' => return false,
            _ => {}
        }
        at += 1;
    }
    false
}

/// Where the quote is that ends a string whose content begins at `from`.
fn end_of_string(text: &[u8], mut from: usize) -> Option<usize> {
    loop {
        let found = from + memchr2(b'"', b'\\', text.get(from..)?)?;
        if text[found] == b'"' {
            return Some(found);
        }
        from = found + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// As the server prints jsonb: `, ` and `: `.
    fn canonical(value: &Value) -> String {
        match value {
            Value::Array(items) => {
                let parts: Vec<String> = items.iter().map(canonical).collect();
                format!("[{}]", parts.join(", "))
            }
            Value::Object(fields) => {
                let parts: Vec<String> = fields
                    .iter()
                    .map(|(k, v)| format!("{}: {}", Value::from(k.as_str()), canonical(v)))
                    .collect();
                format!("{{{}}}", parts.join(", "))
            }
            other => other.to_string(),
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            r#"["\\{}\[\], :a-zé]{0,6}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((r#"["\\{}\[\],a]{0,3}"#, inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn by_hand() {
        for (text, yes) in [
            (r#"[{}]"#, true),
            (r#"[{}, {}]"#, true),
            (r#"[{"a": {"b": [1, {"c": null}]}}, {"d": "}, 5]"}]"#, true),
            (r#"[]"#, false),
            (r#"{}"#, false),
            (r#"null"#, false),
            (r#"[{}, null, {}]"#, false),
            (r#"[null, {}]"#, false),
            (r#"[{}, [], {}]"#, false),
            (r#"[[{}]]"#, false),
            (r#"[{}, "x", {}]"#, false),
            (r#""[{}]""#, false),
            (r#"[{"#, false),
            (r#""#, false),
        ] {
            assert_eq!(is_array_of_objects(text.as_bytes()), yes, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn as_a_parser_sees_it(items in prop::collection::vec(any_json(), 0..5)) {
            let is = !items.is_empty() && items.iter().all(Value::is_object);
            let text = canonical(&Value::from(items));
            if text.starts_with("[{") && text.ends_with("}]") {
                prop_assert_eq!(scan(text.as_bytes()), is, "scan {}", text);
            }
            prop_assert_eq!(is_array_of_objects(text.as_bytes()), is, "{}", text);
        }

        #[test]
        fn never_panics(text in r#"\[\{["\\{}\[\], a]{0,20}\}\]"#, any: Vec<u8>) {
            is_array_of_objects(text.as_bytes());
            is_array_of_objects(&any);
        }
    }
}
