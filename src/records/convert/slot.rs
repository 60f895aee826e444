//! `Slot`: the value of one column while its record is being read.

use super::super::json;
use super::super::model::{Kind, Struct};
use super::super::names::Names;
use super::number;
use super::serialised::{self, Strings};
use super::text::{boolean, push_json};
use super::time::Time;
use crate::values::RejectReason;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A column's value, decoded in place as Go decodes into a struct's field.
/// `None` is Go's nil.
pub(super) enum Slot {
    Text(String),
    Integer(i64),
    /// Go's `sql.NullString` and `sql.NullInt64`: the value, and whether it is valid.
    Nullable(Box<Slot>, bool),
    Unsigned(u64),
    Float(f64),
    Time(Time),
    Strings(Option<Strings>),
    Map(Option<BTreeMap<String, String>>),
    Struct(Option<Vec<Slot>>),
}

impl Slot {
    /// The zero value of a kind.
    pub(super) fn zero(kind: &Kind) -> Self {
        match kind {
            Kind::Text => Self::Text(String::new()),
            Kind::NullableText => Self::Nullable(Box::new(Self::zero(&Kind::Text)), false),
            Kind::Integer => Self::Integer(0),
            Kind::NullableInteger => Self::Nullable(Box::new(Self::zero(&Kind::Integer)), false),
            Kind::Unsigned => Self::Unsigned(0),
            Kind::Float => Self::Float(0.0),
            Kind::Time => Self::Time(Time::ZERO),
            Kind::Strings => Self::Strings(None),
            Kind::StringMap => Self::Map(None),
            Kind::Struct(_) => Self::Struct(None),
        }
    }

    /// Decodes a JSON value over what is there. null makes a list, a map or a
    /// pointer nil, and leaves everything else alone.
    pub(super) fn set(&mut self, kind: &Kind, raw: &str) -> Result<(), RejectReason> {
        if raw == "null" {
            match self {
                Self::Strings(value) => *value = None,
                Self::Map(value) => *value = None,
                Self::Struct(value) => *value = None,
                _ => {}
            }
            return Ok(());
        }
        match self {
            Self::Text(value) => *value = json::string(raw)?.into_owned(),
            Self::Integer(value) => *value = number::integer(raw)?,
            Self::Nullable(value, valid) => json::object(raw, &mut |key, part| {
                match nullable_names(kind).find(key) {
                    _ if part == "null" => {}
                    Some(0) => value.set(kind, part)?,
                    Some(_) => *valid = boolean(part)?,
                    None => {}
                }
                Ok(())
            })?,
            Self::Unsigned(value) => *value = number::unsigned(raw)?,
            Self::Float(value) => *value = number::float(raw)?,
            Self::Time(value) => *value = Time::parse(json::string_literal(raw)?)?,
            Self::Strings(value) => value.get_or_insert_default().set(raw)?,
            Self::Map(value) => serialised::set_map(value.get_or_insert_default(), raw)?,
            Self::Struct(value) => {
                if let Kind::Struct(shape) = kind {
                    set_struct(value.get_or_insert_with(|| zero(shape)), shape, raw)?;
                }
            }
        }
        Ok(())
    }

    /// Sets a time to `now` where it is Go's zero value.
    pub(super) fn touch(&mut self, now: Timestamp) {
        if let Self::Time(time) = self
            && time.is_zero()
        {
            *time = Time::from(now);
        }
    }

    /// The text that Postgres casts to the column's type.
    pub(super) fn into_text(self, kind: &Kind) -> Result<Option<String>, RejectReason> {
        Ok(match self {
            Self::Text(value) => Some(value),
            Self::Integer(value) => Some(value.to_string()),
            Self::Nullable(value, true) => value.into_text(kind)?,
            Self::Nullable(_, false) => None,
            Self::Unsigned(value) => Some(number::bigint(value)?),
            Self::Float(value) => Some(number::numeric_text(value)),
            Self::Time(value) => Some(value.text()),
            Self::Strings(value) => value.map(|list| list.into_json()),
            Self::Map(value) => value.map(|map| serialised::map_json(&map)),
            Self::Struct(value) => match (value, kind) {
                (Some(fields), Kind::Struct(shape)) => {
                    let mut out = String::new();
                    push_struct(&fields, shape, &mut out);
                    Some(out)
                }
                _ => None,
            },
        })
    }
}

/// The keys of a nullable value in JSON.
fn nullable_names(kind: &Kind) -> &'static Names {
    static NAMES: LazyLock<[Names; 2]> =
        LazyLock::new(|| ["String", "Int64"].map(|value| Names::new([value, "Valid"].into_iter())));
    &NAMES[usize::from(matches!(kind, Kind::NullableInteger))]
}

/// The fields of an empty object.
fn zero(shape: &Struct) -> Vec<Slot> {
    shape.fields.iter().map(|field| Slot::zero(&field.kind)).collect()
}

/// Decodes an object over the fields; unknown keys are ignored, null leaves a
/// field as it is. The depth is that of the model.
fn set_struct(fields: &mut [Slot], shape: &Struct, raw: &str) -> Result<(), RejectReason> {
    json::object(raw, &mut |key, value| match shape.names.find(key).filter(|_| value != "null") {
        Some(place) => fields[place].set(&shape.fields[place].kind, value),
        None => Ok(()),
    })
}

/// Appends the object, its fields in the order of the shape.
fn push_struct(fields: &[Slot], shape: &Struct, out: &mut String) {
    let mut separator = '{';
    for (value, field) in fields.iter().zip(&shape.fields) {
        if field.omit_empty && matches!(value, Slot::Text(text) if text.is_empty()) {
            continue;
        }
        out.push(std::mem::replace(&mut separator, ','));
        push_json(&field.json, out);
        out.push(':');
        match (value, &field.kind) {
            (Slot::Text(text), _) => push_json(text, out),
            (Slot::Float(float), _) => out.push_str(&number::json_text(*float)),
            (Slot::Struct(Some(inner)), Kind::Struct(shape)) => push_struct(inner, shape, out),
            // A struct inside of another is no pointer: it is there, empty.
            (_, Kind::Struct(shape)) => push_struct(&zero(shape), shape, out),
            _ => out.push_str("null"),
        }
    }
    out.push_str(if separator == '{' { "{}" } else { "}" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nullable_numbers_as_go_reads_them() {
        let read = |raw: &str| {
            let mut slot = Slot::zero(&Kind::NullableInteger);
            slot.set(&Kind::NullableInteger, raw).ok()?;
            slot.into_text(&Kind::NullableInteger).ok()
        };
        assert_eq!(read(r#"{"Int64":7,"Valid":true}"#), Some(Some("7".into())));
        assert_eq!(read(r#"{"int64":-7,"valid":true}"#), Some(Some("-7".into())));
        for null in ["{}", r#"{"Int64":7}"#, r#"{"Int64":7,"Valid":false}"#, r#"{"Int64":7,"Valid":null}"#] {
            assert_eq!(read(null), Some(None), "{null}");
        }
        let zero = read(r#"{"Valid":true}"#);
        assert_eq!(zero, Some(Some("0".into())));
        for bad in ["7", "\"7\"", "[]", r#"{"Int64":"7"}"#, r#"{"Int64":1.5}"#, r#"{"Valid":1}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
