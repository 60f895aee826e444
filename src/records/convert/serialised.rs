//! Values that are stored as JSON text: lists, maps and objects of known fields.

use super::super::json;
use super::super::model::{FieldKind, Struct};
use super::number;
use super::text::push_json;
use crate::values::RejectReason;
use std::collections::BTreeMap;

/// Go's `[]string` while it is decoded into: elements beyond `len` are what the
/// slice's array still holds, and come back when a later list is longer and has
/// null there.
#[derive(Default)]
pub(super) struct Strings {
    items: Vec<String>,
    len: usize,
}

impl Strings {
    pub(super) fn set(&mut self, raw: &str) -> Result<(), RejectReason> {
        let elements = json::array(raw)?;
        self.len = elements.len();
        if elements.is_empty() {
            // Go makes a new slice for an empty list
            self.items.clear();
        }
        for (place, element) in elements.into_iter().enumerate() {
            if place == self.items.len() {
                self.items.push(String::new());
            }
            if element != "null" {
                self.items[place] = json::string(element)?.into_owned();
            }
        }
        Ok(())
    }

    pub(super) fn into_json(self) -> String {
        let mut out = String::from("[");
        for (place, item) in self.items.iter().take(self.len).enumerate() {
            if place > 0 {
                out.push(',');
            }
            push_json(item, &mut out);
        }
        out.push(']');
        out
    }
}

/// Decodes an object of strings over the map; null is ''.
pub(super) fn set_map(map: &mut BTreeMap<String, String>, raw: &str) -> Result<(), RejectReason> {
    json::object(raw, &mut |key, value| {
        let text = match value {
            "null" => String::new(),
            text => json::string(text)?.into_owned(),
        };
        map.insert(key.to_owned(), text);
        Ok(())
    })
}

/// The map with its keys sorted by their bytes, as a BTreeMap's are.
pub(super) fn map_json(map: &BTreeMap<String, String>) -> String {
    let mut out = String::from("{");
    for (place, (key, value)) in map.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        push_json(key, &mut out);
        out.push(':');
        push_json(value, &mut out);
    }
    out.push('}');
    out
}

/// The value of one field of an object.
pub(super) enum FieldValue {
    Text(String),
    Float(f64),
    Struct(Vec<FieldValue>),
}

/// The fields of an empty object.
pub(super) fn zero(shape: &Struct) -> Vec<FieldValue> {
    let one = |kind: &FieldKind| match kind {
        FieldKind::Text => FieldValue::Text(String::new()),
        FieldKind::Float => FieldValue::Float(0.0),
        FieldKind::Struct(inner) => FieldValue::Struct(zero(inner)),
    };
    shape.fields.iter().map(|f| one(&f.kind)).collect()
}

/// Decodes an object over the fields; unknown keys are ignored, null leaves a
/// field as it is. The depth is that of the model.
pub(super) fn set_struct(fields: &mut [FieldValue], shape: &Struct, raw: &str) -> Result<(), RejectReason> {
    json::object(raw, &mut |key, value| {
        let Some(place) = shape.names.find(key).filter(|_| value != "null") else {
            return Ok(());
        };
        match (&mut fields[place], &shape.fields[place].kind) {
            (FieldValue::Text(text), _) => *text = json::string(value)?.into_owned(),
            (FieldValue::Float(float), _) => *float = number::float(value)?,
            (FieldValue::Struct(inner), FieldKind::Struct(shape)) => {
                set_struct(inner, shape, value)?;
            }
            (FieldValue::Struct(_), _) => {}
        }
        Ok(())
    })
}

/// Appends the object, its fields in the order of the shape.
pub(super) fn struct_json(fields: &[FieldValue], shape: &Struct, out: &mut String) {
    out.push('{');
    let mut first = true;
    for (value, field) in fields.iter().zip(&shape.fields) {
        if field.omit_empty && matches!(value, FieldValue::Text(text) if text.is_empty()) {
            continue;
        }
        if !std::mem::replace(&mut first, false) {
            out.push(',');
        }
        push_json(&field.name, out);
        out.push(':');
        match (value, &field.kind) {
            (FieldValue::Text(text), _) => push_json(text, out),
            (FieldValue::Float(float), _) => out.push_str(&number::json_text(*float)),
            (FieldValue::Struct(inner), FieldKind::Struct(shape)) => struct_json(inner, shape, out),
            (FieldValue::Struct(_), _) => out.push_str("null"),
        }
    }
    out.push('}');
}
