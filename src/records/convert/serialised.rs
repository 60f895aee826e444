//! Values that are stored as JSON text: lists and maps of strings.

use super::super::json;
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
