//! What jsonb can't store although it is JSON: NUL and lone surrogates.

use super::code::NOT_STORABLE;
use crate::values::RejectReason;
use memchr::memchr;

/// Checks that jsonb can store all strings of a JSON text, keys included. Looks only at escapes:
/// in JSON a backslash occurs only in strings. Whether the text is JSON is checked by its parser.
///
/// # Errors
/// `not_storable`, for an escape that is NUL or half a surrogate pair.
pub fn fit_for_jsonb(text: &str) -> Result<(), RejectReason> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = memchr(b'\\', bytes.get(at..).unwrap_or_default()) {
        at += found;
        let Some(unit) = escaped_unit(bytes, at) else {
            // a short escape such as \\ or \n: its second byte is no start
            at += 2;
            continue;
        };
        match unit {
            0 => return Err(refused(at, "\\u0000, which Postgres text can't hold")),
            0xD800..=0xDBFF => {
                if !matches!(escaped_unit(bytes, at + 6), Some(0xDC00..=0xDFFF)) {
                    return Err(refused(at, "the first half of a surrogate pair alone"));
                }
                at += 12;
            }
            0xDC00..=0xDFFF => {
                return Err(refused(at, "the second half of a surrogate pair alone"));
            }
            _ => at += 6,
        }
    }
    Ok(())
}

/// The UTF-16 unit of a `\uXXXX` that begins at `at`.
fn escaped_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let [b'\\', b'u', digits @ ..] = bytes.get(at..at + 6)? else {
        return None;
    };
    digits.iter().try_fold(0, |unit, digit| {
        let value = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(value).ok()?)
    })
}

fn refused(at: usize, what: &str) -> RejectReason {
    RejectReason::new(NOT_STORABLE, format!("data holds {what}, at byte {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_by_jsonb() {
        for text in [
            r#"["\u0000"]"#,
            r#"["\\\u0000"]"#,
            r#"{"a\u0000":1}"#,
            r#"["\ud800"]"#,
            r#"["\uD800x"]"#,
            r#"["\ud800\n"]"#,
            r#"["\udc00"]"#,
            r#"["\ud800\ud800"]"#,
            r#"["\udc00\ud800"]"#,
            r#"["\ud83d\ude00\ude00"]"#,
        ] {
            assert_eq!(fit_for_jsonb(text).unwrap_err().code, NOT_STORABLE, "{text}");
        }
    }

    #[test]
    fn taken_by_jsonb() {
        for text in [
            "",
            "[]",
            r#"["\\u0000"]"#,
            r#"["\\\\u0000"]"#,
            r#"["\\ud800"]"#,
            r#"["\ud83d\ude00"]"#,
            r#"["\uD83D\uDE00\uFFFE\uffff\u0001"]"#,
            r#"["😀 é"]"#,
            // no JSON: the parser's business, and no reason to fall over
            r"\",
            r"\u",
            r"\u12",
            r"\ud83",
            r"é\",
        ] {
            assert!(fit_for_jsonb(text).is_ok(), "{text}");
        }
    }
}
