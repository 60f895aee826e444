//! Booleans, and how Go writes a string as JSON.

use super::super::json;
use crate::values::RejectReason;

pub(super) fn boolean(raw: &str) -> Result<bool, RejectReason> {
    match raw {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(json::wrong_type("true or false", other)),
    }
}

/// Appends a string as Go's encoding/json writes it by default: `<`, `>`, `&`,
/// U+2028 and U+2029 escaped too, control characters in their short forms where
/// there is one (\b and \f since Go 1.22).
pub(super) fn push_json(text: &str, out: &mut String) {
    out.reserve(text.len() + 2);
    out.push('"');
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (0, 0);
    while let Some(byte) = bytes.get(at) {
        // both separators are E2 80 A8 or A9; every other cut is at an ASCII byte
        let (length, escape) = match byte {
            b'"' => (1, "\\\""),
            b'\\' => (1, "\\\\"),
            b'\n' => (1, "\\n"),
            b'\r' => (1, "\\r"),
            b'\t' => (1, "\\t"),
            0x08 => (1, "\\b"),
            0x0c => (1, "\\f"),
            b'<' => (1, "\\u003c"),
            b'>' => (1, "\\u003e"),
            b'&' => (1, "\\u0026"),
            0..0x20 => (1, ""),
            0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => (3, "\\u2028"),
            0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => (3, "\\u2029"),
            _ => {
                at += 1;
                continue;
            }
        };
        out.push_str(&text[plain..at]);
        if escape.is_empty() {
            out.push_str(&format!("\\u{byte:04x}"));
        } else {
            out.push_str(escape);
        }
        at += length;
        plain = at;
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_go_does() {
        let written = |text: &str| {
            let mut out = String::new();
            push_json(text, &mut out);
            out
        };
        assert_eq!(written(""), r#""""#);
        assert_eq!(written("a\"\\/"), r#""a\"\\/""#);
        assert_eq!(written("<&>"), r#""\u003c\u0026\u003e""#);
        assert_eq!(written("\u{2028}\u{2029}"), r#""\u2028\u2029""#);
        assert_eq!(written("\n\r\t\u{8}\u{c}"), r#""\n\r\t\b\f""#);
        assert_eq!(written("\0\u{1}\u{1f}"), r#""\u0000\u0001\u001f""#);
        assert_eq!(written("\u{7f}é😀x"), "\"\u{7f}é😀x\"");
    }
}
