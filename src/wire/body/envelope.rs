//! Reads one element of a page: the op's envelope, not its records.

use super::scan::{BodyError, Element};
use crate::values::{Action, Data, Op, OpUlid, RejectReason, fold_key, is_plausible};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The table that every node skips.
const SKIPPED_TABLE: &str = "blobs";

const TOO_DEEP: (&str, &str) = ("nesting", "it is nested too deep");

/// What an element is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Envelope {
    /// An op of sound envelope.
    Op(Op),
    /// An op of a table that every node skips; its ULID where plausible.
    Skip(Option<OpUlid>),
    /// No op that can be applied.
    Refused {
        /// Its ULID, where it is a plausible one.
        ulid: Option<OpUlid>,
        /// Its table's name as received; may be empty.
        table: String,
        /// Why.
        reason: RejectReason,
    },
}

/// The fields, before they are judged. `Err` holds the name of one whose type
/// is wrong.
#[derive(Default)]
struct Fields<'a> {
    ulid: String,
    host: String,
    action: String,
    table: String,
    data: Option<&'a RawValue>,
    transient: bool,
    wrong: Option<&'static str>,
}

/// Reads an element's envelope at `now_ms`.
///
/// # Errors
/// The element is not JSON, so the whole page is not; a node refuses it too. Invalid UTF-8 inside
/// a string is no such error: a node replaces it.
pub fn read(element: &Element, now_ms: u64) -> Result<Envelope, BodyError> {
    let text = String::from_utf8_lossy(&element.bytes);
    // Only a replaced byte sequence makes the text an owned copy.
    let valid_utf8 = matches!(text, Cow::Borrowed(_));
    let text = Arc::new(text.into_owned());
    let Ok(fields) = serde_json::Deserializer::from_str(&text).deserialize_map(Fields::default()) else {
        serde_json::from_str::<&RawValue>(&text).map_err(|e| BodyError::NotJson(e.to_string()))?;
        let (code, detail) = match element.too_deep {
            true => TOO_DEEP,
            false => ("not_an_op", "an op is a JSON object"),
        };
        return Ok(Envelope::refused(None, String::new(), code, detail));
    };
    let ulid = OpUlid::parse(&fields.ulid).filter(|u| is_plausible(*u, now_ms));
    if element.too_deep {
        return Ok(Envelope::refused(ulid, fields.table, "nesting", "it is nested too deep"));
    }
    if fields.table == SKIPPED_TABLE {
        return Ok(Envelope::Skip(ulid));
    }
    Ok(match judge(&fields, ulid, valid_utf8) {
        Ok((mut op, at)) => {
            // `data` is a part of this very text.
            let from = at.as_ptr() as usize - text.as_ptr() as usize;
            op.data = Data::within(text.clone(), from..from + at.len());
            Envelope::Op(op)
        }
        Err(reason) => Envelope::Refused { ulid, table: fields.table, reason },
    })
}

impl Envelope {
    /// Its ULID, where it is a plausible one.
    pub fn ulid(&self) -> Option<OpUlid> {
        match self {
            Self::Op(op) => Some(op.ulid),
            Self::Skip(ulid) | Self::Refused { ulid, .. } => *ulid,
        }
    }

    fn refused(ulid: Option<OpUlid>, table: String, code: &'static str, detail: &str) -> Self {
        Self::Refused { ulid, table, reason: RejectReason::new(code, detail) }
    }
}

/// The op without its records, and their text.
fn judge<'a>(
    fields: &Fields<'a>,
    ulid: Option<OpUlid>,
    valid_utf8: bool,
) -> Result<(Op, &'a str), RejectReason> {
    if let Some(name) = fields.wrong {
        return Err(RejectReason::new("field_type", format!("the field {name} is of the wrong type")));
    }
    if !valid_utf8 {
        return Err(RejectReason::new("utf8", "it holds bytes that are no UTF-8"));
    }
    let Some(ulid) = ulid else {
        return Err(RejectReason::new(
            "ulid",
            format!("{:?} is no ULID of a time between 2023 and a day from now", shorten(&fields.ulid)),
        ));
    };
    let Some(action) = Action::parse(&fields.action) else {
        let shown = shorten(&fields.action);
        return Err(RejectReason::new("action", format!("{shown:?} is none of create, update, delete")));
    };
    if fields.transient {
        return Err(RejectReason::new("transient", "a sweep never carries a transient op"));
    }
    if fields.host.contains('\0') || fields.table.contains('\0') {
        return Err(RejectReason::new("nul", "Postgres keeps no NUL in a text"));
    }
    let Some(data) = fields.data else {
        return Err(RejectReason::new("data", "the field data is missing"));
    };
    let op = Op { ulid, host: fields.host.clone(), action, table: fields.table.clone(), data: "".into() };
    Ok((op, data.get()))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

impl<'a> Fields<'a> {
    /// Takes a field as a node's decoder does: names without regard to case,
    /// null leaves it as it is, the last one holds.
    fn take(&mut self, key: &str, value: &'a RawValue) {
        let folded: Cow<'_, str> = match key.is_ascii() {
            true => key.into(),
            false => fold_key(key).into(),
        };
        let key = folded.as_ref();
        if key.eq_ignore_ascii_case("data") {
            self.data = Some(value);
            return;
        }
        if key.eq_ignore_ascii_case("transient") {
            match serde_json::from_str::<Option<bool>>(value.get()) {
                Ok(flag) => self.transient = flag.unwrap_or(self.transient),
                Err(_) => self.wrong = Some("transient"),
            }
            return;
        }
        let texts = [
            ("ulid", &mut self.ulid),
            ("host", &mut self.host),
            ("action", &mut self.action),
            ("table", &mut self.table),
        ];
        for (name, field) in texts {
            if key.eq_ignore_ascii_case(name) {
                match serde_json::from_str::<Option<String>>(value.get()) {
                    Ok(Some(text)) => *field = text,
                    Ok(None) => {}
                    Err(_) => self.wrong = Some(name),
                }
            }
        }
    }
}

impl<'de> Visitor<'de> for Fields<'de> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an op")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let value: &RawValue = map.next_value()?;
            self.take(&key, value);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_790_000_000_000;

    fn element(bytes: &[u8]) -> Envelope {
        read(&Element { bytes: bytes.to_vec(), too_deep: false }, NOW).unwrap()
    }

    fn code(json: &str) -> &'static str {
        match element(json.as_bytes()) {
            Envelope::Op(_) => "op",
            Envelope::Skip(_) => "skip",
            Envelope::Refused { reason, .. } => reason.code,
        }
    }

    #[test]
    fn each_refusal() {
        let good = r#"{"ulid":"01HKFACTS00000000000000001","host":"h","action":"create","table":"uploads","data":[{"id":"u"}],"transient":false}"#;
        assert_eq!(code(good), "op");
        for (from, to, want) in [
            ("01HKFACTS00000000000000001", "01hkfacts00000000000000001", "ulid"),
            ("01HKFACTS00000000000000001", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "ulid"),
            ("\"create\"", "\"CREATE\"", "action"),
            ("\"create\"", "null", "action"),
            ("false", "true", "transient"),
            ("false", "null", "op"),
            ("false", "\"true\"", "field_type"),
            ("\"uploads\"", "5", "field_type"),
            ("\"uploads\"", "\"blobs\"", "skip"),
            ("\"h\"", "\"h\\u0000\"", "nul"),
            ("\"h\"", "\"\\ud800\"", "field_type"),
            ("\"data\"", "\"date\"", "data"),
            ("\"host\"", "\"HOST\"", "op"),
            ("\"ulid\"", "\"\u{17f}ulid\"", "ulid"),
            ("\"transient\":false", "\"tran\u{17f}ient\":true", "transient"),
            ("\"host\":\"h\"", "\"ho\u{17f}t\":5", "field_type"),
        ] {
            assert_eq!(code(&good.replace(from, to)), want, "{to}");
        }
        assert_eq!(code("5"), "not_an_op");
        assert_eq!(code("[]"), "not_an_op");
        let broken: Vec<u8> =
            good.replace("\"u\"", "\"\u{1}\"").bytes().map(|b| if b == 1 { 0xff } else { b }).collect();
        assert!(
            matches!(element(&broken), Envelope::Refused { ulid: Some(_), reason, .. } if reason.code == "utf8")
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = read(&Element { bytes, too_deep: false }, NOW);
        }
    }
}
