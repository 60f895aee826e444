//! The models: which columns a table has and how JSON becomes each of them.

use super::names::Names;
use crate::values::Action;
use serde::Deserialize;
use std::sync::LazyLock;

const COMPILED_IN: &str = include_str!("../../config/models.toml");

/// How a JSON value becomes a column.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A string; '' when left out.
    Text,
    /// `{"String","Valid"}`; NULL unless valid.
    NullableText,
    /// A whole number of signed 64 bits.
    Integer,
    /// `{"Int64","Valid"}`; NULL unless valid.
    NullableInteger,
    /// A whole number from 0 that a bigint can hold.
    Unsigned,
    /// A number: the shortest decimal that reads back.
    Float,
    /// An RFC 3339 time, cut to microseconds.
    Time,
    /// An array of strings, stored as JSON text.
    Strings,
    /// An object of strings, stored as JSON text with sorted keys.
    StringMap,
    /// An object of known fields, stored as JSON text in their order.
    Struct(Struct),
}

impl Kind {
    /// The Postgres type of the column.
    pub fn pg_type(&self) -> &'static str {
        match self {
            Self::Text | Self::NullableText => "text",
            Self::Strings | Self::StringMap | Self::Struct(_) => "text",
            Self::Integer | Self::NullableInteger | Self::Unsigned => "bigint",
            Self::Float => "numeric",
            Self::Time => "timestamptz",
        }
    }
}

/// An object of known fields: texts, floats and such objects.
#[derive(Clone, Debug, Deserialize)]
pub struct Struct {
    /// In the order in which they are written.
    pub fields: Vec<Column>,
    #[serde(skip)]
    pub(super) names: Names,
}

/// One column of a table, or one field of a serialised object.
#[derive(Clone, Debug, Deserialize)]
pub struct Column {
    /// Its name in the relation.
    pub name: String,
    /// Its key in JSON.
    #[serde(default)]
    pub json: String,
    /// How JSON becomes the column.
    #[serde(flatten)]
    pub kind: Kind,
    /// It is part of the primary key.
    #[serde(default)]
    key: bool,
    /// An update sets it to the time of writing.
    #[serde(default)]
    touched: bool,
    /// Only newer nodes have it.
    #[serde(default)]
    newer: bool,
    /// It is left out of its object when it is ''.
    #[serde(default)]
    pub omit_empty: bool,
}

/// A replicated table.
#[derive(Clone, Debug, Deserialize)]
pub struct Model {
    /// The name of the relation, in schema public, and of the table in an op.
    pub table: String,
    /// Its columns, in the order of the relation.
    pub columns: Vec<Column>,
    /// The places in `columns` of the primary key's columns, in its order.
    #[serde(skip)]
    pub key: Vec<usize>,
    /// Whether nodes only ever add rows, under keys that are never used again.
    #[serde(default)]
    pub append_only: bool,
    /// The place of the column that an update sets to the time of writing.
    #[serde(skip)]
    pub touched: Option<usize>,
    #[serde(skip)]
    pub(super) names: Names,
    /// The same with the columns that only newer nodes have.
    #[serde(skip)]
    newer: Option<Box<Model>>,
}

/// What a node puts into one statement at most: an op of more records fails there.
const NODE_PARAMETERS: usize = 65_535;

impl Model {
    /// The model as a relation of these columns has it.
    ///
    /// # Errors
    /// How the relation differs from what any node makes.
    pub fn fitting(&self, columns: &[String]) -> Result<&Self, String> {
        let newer = self.newer.as_deref();
        let newest = newer.unwrap_or(self);
        let known = |name: &str| newest.columns.iter().any(|c| c.name == name);
        let more: Vec<&str> = columns.iter().map(String::as_str).filter(|c| !known(c)).collect();
        if !more.is_empty() {
            let table = &self.table;
            return Err(format!(
                "the relation {table} has columns that the model does not know: {}",
                more.join(", ")
            ));
        }
        let lacking = |model: &Self| -> Vec<String> {
            let names = model.columns.iter().map(|c| c.name.clone());
            names.filter(|name| !columns.contains(name)).collect()
        };
        if let Some(newer) = newer.filter(|newer| lacking(newer).is_empty()) {
            return Ok(newer);
        }
        let less = lacking(self);
        match less.is_empty() {
            true => Ok(self),
            false => {
                Err(format!("the relation {} lacks columns of the model: {}", self.table, less.join(", ")))
            }
        }
    }

    /// How many records a node can apply of one op.
    pub fn most_records(&self, action: Action) -> usize {
        let parameters = match action {
            Action::Create | Action::Update => self.columns.len(),
            Action::Delete => self.key.len(),
        };
        NODE_PARAMETERS / parameters
    }

    /// Finds the places that the columns name.
    fn indexed(mut self) -> Self {
        self.names = index(&mut self.columns);
        self.key = (0..self.columns.len()).filter(|place| self.columns[*place].key).collect();
        self.touched = self.columns.iter().position(|column| column.touched);
        self
    }
}

/// Gives every column its JSON key, and finds the columns by them.
fn index(columns: &mut [Column]) -> Names {
    for column in columns.iter_mut() {
        if column.json.is_empty() {
            column.json.clone_from(&column.name);
        }
        if let Kind::Struct(of) = &mut column.kind {
            of.names = index(&mut of.fields);
        }
    }
    Names::new(columns.iter().map(|column| column.json.as_str()))
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Models {
    model: Vec<Model>,
}

impl Models {
    /// The model of a table, by its exact name.
    pub fn get(&self, table: &str) -> Option<&Model> {
        self.model.iter().find(|model| model.table == table)
    }

    /// All models, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Model> {
        self.model.iter()
    }
}

/// The models that are compiled in, read once; tests below hold that the file is sound.
pub fn models() -> &'static Models {
    static MODELS: LazyLock<Models> = LazyLock::new(|| {
        let mut models: Models = toml::from_str(COMPILED_IN).unwrap_or_default();
        for model in &mut models.model {
            let newer = model.columns.iter().any(|column| column.newer);
            let newer = newer.then(|| Box::new(model.clone().indexed()));
            model.columns.retain(|column| !column.newer);
            *model = Model { newer, ..model.clone().indexed() };
        }
        models
    });
    &MODELS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_file_is_sound() {
        let tables: Vec<_> = models().iter().map(|m| m.table.as_str()).collect();
        assert_eq!(tables, ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"]);
        let uploads = models().get("uploads").unwrap();
        assert_eq!(uploads.columns[uploads.touched.unwrap()].name, "updated_at");
        assert!(models().get("Uploads").is_none());
        let only: Vec<_> = models().iter().filter(|m| m.append_only).collect();
        assert_eq!(only.len(), 1);
        assert_eq!(only[0].table, "storage_and_db_sizes");
        for model in models().iter().flat_map(|m| [Some(m), m.newer.as_deref()]).flatten() {
            let Model { table, columns, key, .. } = model;
            assert!(
                !key.is_empty() && key.len() < columns.len(),
                "{table} needs a key, and a column besides"
            );
            let is_key = |k: &usize| matches!(columns[*k].kind, Kind::Text | Kind::Time);
            assert!(key.iter().all(is_key), "{table}: a key is a text or a time");
            let touches = |t: usize| !key.contains(&t) && matches!(columns[t].kind, Kind::Time);
            assert!(model.touched.is_none_or(touches), "{table}: `touched` is a time outside the key");
            assert_eq!(model.names.len(), columns.len(), "{table}: two columns of one JSON key");
        }
    }

    /// Flattened types ignore what they do not know: a misspelt key of the file is found here.
    #[test]
    fn every_key_of_the_file_is_known() {
        fn check(value: &toml::Value, known: &[&str]) {
            for (key, value) in value.as_table().unwrap() {
                assert!(known.contains(&key.as_str()), "{key}");
                for one in value.as_array().into_iter().flatten().filter(|one| one.is_table()) {
                    check(one, &["name", "json", "kind", "fields", "key", "touched", "newer", "omit_empty"]);
                }
            }
        }
        let file: toml::Table = COMPILED_IN.parse().unwrap();
        assert_eq!(file.keys().collect::<Vec<_>>(), ["model"]);
        for model in file["model"].as_array().unwrap() {
            check(model, &["table", "append_only", "columns"]);
        }
    }

    #[test]
    fn a_model_fits_the_relation_of_each_generation() {
        let uploads = models().get("uploads").unwrap();
        let older: Vec<String> = uploads.columns.iter().map(|c| c.name.clone()).collect();
        assert_eq!(uploads.fitting(&older).unwrap().columns.len(), 26);
        let newer = [older.clone(), vec!["user_id".into()]].concat();
        let fitting = uploads.fitting(&newer).unwrap();
        assert_eq!(fitting.columns.last().unwrap().name, "user_id");
        let unknown = [newer, vec!["x".into()]].concat();
        assert!(uploads.fitting(&unknown).unwrap_err().contains("does not know: x"));
        assert!(uploads.fitting(&older[1..]).unwrap_err().contains("lacks columns of the model: id"));
        let most = [Action::Create, Action::Update, Action::Delete].map(|a| fitting.most_records(a));
        assert_eq!(most, [2_427, 2_427, 65_535]);
    }
}
