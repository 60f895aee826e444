//! `Slot`: the value of one column while its record is being read.

use super::super::json;
use super::super::model::Kind;
use super::number;
use super::number::NullableInteger;
use super::serialised::{self, FieldValue, Strings};
use super::text::Nullable;
use super::time::Time;
use crate::values::RejectReason;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// A column's value, decoded in place as Go decodes into a struct's field.
/// `None` is Go's nil.
pub(super) enum Slot {
    Text(String),
    Nullable(Nullable),
    Integer(i64),
    NullableInteger(NullableInteger),
    Unsigned(u64),
    Float(f64),
    Time(Time),
    Strings(Option<Strings>),
    Map(Option<BTreeMap<String, String>>),
    Struct(Option<Vec<FieldValue>>),
}

impl Slot {
    /// The zero value of a kind.
    pub(super) fn zero(kind: &Kind) -> Self {
        match kind {
            Kind::Text => Self::Text(String::new()),
            Kind::NullableText => Self::Nullable(Nullable::default()),
            Kind::Integer => Self::Integer(0),
            Kind::NullableInteger => Self::NullableInteger(NullableInteger::default()),
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
            Self::Nullable(value) => value.set(raw)?,
            Self::Integer(value) => *value = number::integer(raw)?,
            Self::NullableInteger(value) => value.set(raw)?,
            Self::Unsigned(value) => *value = number::unsigned(raw)?,
            Self::Float(value) => *value = number::float(raw)?,
            Self::Time(value) => *value = Time::parse(json::string_literal(raw)?)?,
            Self::Strings(value) => value.get_or_insert_default().set(raw)?,
            Self::Map(value) => serialised::set_map(value.get_or_insert_default(), raw)?,
            Self::Struct(value) => {
                if let Kind::Struct(shape) = kind {
                    let fields = value.get_or_insert_with(|| serialised::zero(shape));
                    serialised::set_struct(fields, shape, raw)?;
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
            Self::Nullable(value) => value.into_text(),
            Self::Integer(value) => Some(value.to_string()),
            Self::NullableInteger(value) => value.into_text(),
            Self::Unsigned(value) => Some(number::bigint(value)?),
            Self::Float(value) => Some(number::numeric_text(value)),
            Self::Time(value) => Some(value.text()),
            Self::Strings(value) => value.map(|list| list.into_json()),
            Self::Map(value) => value.map(|map| serialised::map_json(&map)),
            Self::Struct(value) => match (value, kind) {
                (Some(fields), Kind::Struct(shape)) => {
                    let mut out = String::new();
                    serialised::struct_json(&fields, shape, &mut out);
                    Some(out)
                }
                _ => None,
            },
        })
    }
}
