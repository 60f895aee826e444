//! Walks JSON text without building a tree: objects as entries whose values are
//! raw text, so that number literals keep their form and nothing recurses.

use super::code::{BAD_JSON, NOT_RECORDS, WRONG_TYPE};
use crate::values::RejectReason;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// What the walk over the records of an op meets.
pub(super) enum Event<'k, 'a> {
    /// One entry of the record being read, in order of appearance.
    Entry(&'k str, &'a str),
    /// The record being read has ended.
    End,
}

/// Walks an array of objects, which must not be empty.
pub(super) fn records<'a>(
    data: &'a str,
    into: &mut dyn FnMut(Event<'_, 'a>) -> Result<(), RejectReason>,
) -> Result<(), RejectReason> {
    let mut stop = None;
    let mut json = serde_json::Deserializer::from_str(data);
    let walked = json.deserialize_seq(Array { into, stop: &mut stop }).and_then(|()| json.end());
    walked.map_err(|error| stop.unwrap_or_else(|| not_records(&error)))
}

/// Walks one object.
pub(super) fn object<'a>(
    raw: &'a str,
    entry: &mut dyn FnMut(&str, &'a str) -> Result<(), RejectReason>,
) -> Result<(), RejectReason> {
    let mut stop = None;
    let mut json = serde_json::Deserializer::from_str(raw);
    let walked = json.deserialize_map(Object { entry, stop: &mut stop });
    walked.map_err(|_| stop.unwrap_or_else(|| wrong_type("an object", raw)))
}

/// The elements of one array.
pub(super) fn array(raw: &str) -> Result<Vec<&str>, RejectReason> {
    let items: Vec<&RawValue> = serde_json::from_str(raw).map_err(|_| wrong_type("an array", raw))?;
    Ok(items.into_iter().map(RawValue::get).collect())
}

/// The text of a string literal.
pub(super) fn string(raw: &str) -> Result<Cow<'_, str>, RejectReason> {
    let inner = string_literal(raw)?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner));
    }
    let text: String = serde_json::from_str(raw).map_err(|_| wrong_type("a string", raw))?;
    Ok(Cow::Owned(text))
}

/// What stands between the quotes of a string literal, escapes as they are.
pub(super) fn string_literal(raw: &str) -> Result<&str, RejectReason> {
    raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(|| wrong_type("a string", raw))
}

/// The literal of a number.
pub(super) fn number<'a>(raw: &'a str, wanted: &str) -> Result<&'a str, RejectReason> {
    match raw.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Ok(raw),
        _ => Err(wrong_type(wanted, raw)),
    }
}

/// A value of another type than wanted.
pub(super) fn wrong_type(wanted: &str, raw: &str) -> RejectReason {
    RejectReason::new(WRONG_TYPE, format!("{} is not {wanted}", excerpt(raw)))
}

/// The beginning of a value, for a person.
pub(super) fn excerpt(raw: &str) -> String {
    const SHOWN: usize = 60;
    match raw.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &raw[..end]),
        None => raw.to_owned(),
    }
}

fn not_records(error: &serde_json::Error) -> RejectReason {
    if error.is_data() {
        let detail = format!("data must be an array of objects, and not empty: {error}");
        RejectReason::new(NOT_RECORDS, detail)
    } else {
        RejectReason::new(BAD_JSON, format!("data is no JSON: {error}"))
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

type Entry<'f, 'a> = &'f mut dyn FnMut(&str, &'a str) -> Result<(), RejectReason>;

struct Object<'f, 'a> {
    entry: Entry<'f, 'a>,
    /// Why `entry` stopped the walk: serde's errors carry text only.
    stop: &'f mut Option<RejectReason>,
}

impl<'a> DeserializeSeed<'a> for Object<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Object<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            let value: &'a RawValue = map.next_value()?;
            if let Err(reason) = (self.entry)(&key, value.get()) {
                *self.stop = Some(reason);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

struct Array<'f, 'a> {
    into: &'f mut dyn FnMut(Event<'_, 'a>) -> Result<(), RejectReason>,
    stop: &'f mut Option<RejectReason>,
}

impl<'a> Visitor<'a> for Array<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut count = 0_usize;
        loop {
            let record =
                Object { entry: &mut |key, value| (self.into)(Event::Entry(key, value)), stop: self.stop };
            if seq.next_element_seed(record)?.is_none() {
                break;
            }
            count += 1;
            if let Err(reason) = (self.into)(Event::End) {
                *self.stop = Some(reason);
                return Err(A::Error::custom("refused"));
            }
        }
        if count == 0 {
            return Err(A::Error::invalid_length(0, &"one record at least"));
        }
        Ok(())
    }
}
