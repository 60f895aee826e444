//! The models: which columns a table has and how JSON becomes each of them.

use super::names::Names;
use crate::values::Action;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::OnceLock;

const COMPILED_IN: &str = include_str!("../../config/models.toml");

/// How a JSON value becomes a column.
#[derive(Clone, Debug)]
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

/// An object of known fields, in the order in which they are written.
#[derive(Clone, Debug)]
pub struct Struct {
    /// The fields, in order.
    pub fields: Vec<Field>,
    pub(super) names: Names,
}

/// One field of a serialised object.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its JSON key.
    pub name: String,
    /// What it holds.
    pub kind: FieldKind,
    /// Whether it is left out when it is ''.
    pub omit_empty: bool,
}

/// What a field of a serialised object holds.
#[derive(Clone, Debug)]
pub enum FieldKind {
    /// A string.
    Text,
    /// A number.
    Float,
    /// An object.
    Struct(Struct),
}

/// One column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name in the relation.
    pub name: String,
    /// Its key in the JSON of an op.
    pub json: String,
    /// How JSON becomes the column.
    pub kind: Kind,
}

/// A replicated table.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name of the relation, in schema public, and of the table in an op.
    pub table: String,
    /// Its columns, in the order of the relation.
    pub columns: Vec<Column>,
    /// The places in `columns` of the primary key's columns, in its order.
    pub key: Vec<usize>,
    /// Whether nodes only ever add rows, under keys that are never used again.
    pub append_only: bool,
    /// The place of the column that an update sets to the time of writing.
    pub touched: Option<usize>,
    pub(super) names: Names,
    /// The same with the columns that only newer nodes have.
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
}

#[derive(Clone, Debug, Default)]
pub struct Models {
    by_table: HashMap<String, usize>,
    all: Vec<Model>,
}

impl Models {
    /// The model of a table, by its exact name.
    pub fn get(&self, table: &str) -> Option<&Model> {
        self.all.get(*self.by_table.get(table)?)
    }

    /// All models, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Model> {
        self.all.iter()
    }
}

impl<'a> IntoIterator for &'a Models {
    type Item = &'a Model;
    type IntoIter = std::slice::Iter<'a, Model>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The models that are compiled in, read once.
pub fn models() -> &'static Models {
    static MODELS: OnceLock<Models> = OnceLock::new();
    // that the compiled-in file is sound is held by a test below
    MODELS.get_or_init(|| parse(COMPILED_IN).unwrap_or_default())
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Vec<FileModel>,
    #[serde(default, rename = "struct")]
    structs: Vec<FileStruct>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    table: String,
    key: Vec<String>,
    touched: Option<String>,
    #[serde(default)]
    append_only: bool,
    columns: Vec<FileValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStruct {
    name: String,
    fields: Vec<FileValue>,
}

/// A column or a field.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileValue {
    name: String,
    json: Option<String>,
    kind: String,
    #[serde(rename = "struct")]
    of: Option<String>,
    #[serde(default)]
    omit_empty: bool,
    #[serde(default)]
    newer: bool,
}

type Structs = HashMap<String, Struct>;

fn parse(text: &str) -> Result<Models, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut structs = Structs::new();
    for one in file.structs {
        // only structs above it are known, so none can hold itself
        let built = build_struct(&one, &structs)?;
        if structs.insert(one.name.clone(), built).is_some() {
            return Err(format!("struct {} is there twice", one.name));
        }
    }
    let mut models = Models::default();
    for (place, one) in file.model.into_iter().enumerate() {
        let model = build_model(one, &structs)?;
        let table = model.table.clone();
        if models.by_table.insert(table.clone(), place).is_some() {
            return Err(format!("model {table} is there twice"));
        }
        models.all.push(model);
    }
    Ok(models)
}

fn build_struct(one: &FileStruct, structs: &Structs) -> Result<Struct, String> {
    let mut fields = Vec::with_capacity(one.fields.len());
    for field in &one.fields {
        let kind = match field.kind.as_str() {
            "text" => FieldKind::Text,
            "float" => FieldKind::Float,
            "struct" => FieldKind::Struct(named_struct(field, structs)?),
            other => return Err(format!("{}.{}: no kind {other}", one.name, field.name)),
        };
        fields.push(Field {
            name: field.json.as_ref().unwrap_or(&field.name).clone(),
            kind,
            omit_empty: field.omit_empty,
        });
    }
    let names = Names::new(fields.iter().map(|f| f.name.as_str()))
        .ok_or_else(|| format!("{}: two fields of one name", one.name))?;
    Ok(Struct { fields, names })
}

/// The model without the columns of newer nodes, and with them beside it.
fn build_model(mut one: FileModel, structs: &Structs) -> Result<Model, String> {
    let newer = match one.columns.iter().any(|c| c.newer) {
        true => Some(Box::new(build_variant(one.clone(), structs)?)),
        false => None,
    };
    one.columns.retain(|c| !c.newer);
    Ok(Model { newer, ..build_variant(one, structs)? })
}

fn build_variant(one: FileModel, structs: &Structs) -> Result<Model, String> {
    let table = one.table;
    let mut columns = Vec::with_capacity(one.columns.len());
    for column in one.columns {
        columns.push(Column {
            kind: column_kind(&column, structs).map_err(|e| format!("{table}: {e}"))?,
            json: column.json.unwrap_or_else(|| column.name.clone()),
            name: column.name,
        });
    }
    let place = |name: &String| {
        let found = columns.iter().position(|c| c.name == *name);
        found.ok_or_else(|| format!("{table}: no column {name}"))
    };
    let key = one.key.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let touched = one.touched.as_ref().map(place).transpose()?;
    let names = Names::new(columns.iter().map(|c| c.json.as_str()))
        .ok_or_else(|| format!("{table}: two columns of one JSON key"))?;

    if key.is_empty() || key.len() == columns.len() {
        return Err(format!("{table}: needs a key, and a column besides it"));
    }
    if !key.iter().all(|k| matches!(columns[*k].kind, Kind::Text | Kind::Time)) {
        return Err(format!("{table}: a key is a text or a time"));
    }
    if touched.is_some_and(|t| key.contains(&t) || !matches!(columns[t].kind, Kind::Time)) {
        return Err(format!("{table}: `touched` is a time outside the key"));
    }
    Ok(Model { table, columns, key, append_only: one.append_only, touched, names, newer: None })
}

fn column_kind(column: &FileValue, structs: &Structs) -> Result<Kind, String> {
    Ok(match column.kind.as_str() {
        "text" => Kind::Text,
        "nullable_text" => Kind::NullableText,
        "integer" => Kind::Integer,
        "nullable_integer" => Kind::NullableInteger,
        "unsigned" => Kind::Unsigned,
        "float" => Kind::Float,
        "time" => Kind::Time,
        "strings" => Kind::Strings,
        "string_map" => Kind::StringMap,
        "struct" => Kind::Struct(named_struct(column, structs)?),
        other => return Err(format!("{}: no kind {other}", column.name)),
    })
}

fn named_struct(value: &FileValue, structs: &Structs) -> Result<Struct, String> {
    let found = value.of.as_ref().and_then(|name| structs.get(name));
    found.cloned().ok_or_else(|| format!("{}: which struct, defined above?", value.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_file_is_sound() {
        parse(COMPILED_IN).unwrap();
        let tables: Vec<_> = models().iter().map(|m| m.table.as_str()).collect();
        assert_eq!(tables, ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"]);
        let uploads = models().get("uploads").unwrap();
        assert_eq!(uploads.columns[uploads.touched.unwrap()].name, "updated_at");
        assert!(models().get("Uploads").is_none());
        let only: Vec<_> = models().into_iter().filter(|m| m.append_only).collect();
        assert_eq!(only.len(), 1);
        assert_eq!(only[0].table, "storage_and_db_sizes");
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

    #[test]
    fn a_malformed_file_says_where() {
        let model = |rest: &str| parse(&format!("[[model]]\ntable = \"t\"\n{rest}")).unwrap_err();
        let two = r#"columns = [{name="a",kind="text"},{name="b",kind="text"}]"#;
        assert!(model(&format!("key=[\"c\"]\n{two}")).contains("no column c"));
        assert!(model(&format!("key=[]\n{two}")).contains("needs a key"));
        assert!(model(&format!("key=[\"a\",\"b\"]\n{two}")).contains("needs a key"));
        assert!(model(&format!("key=[\"a\"]\ntouched=\"b\"\n{two}")).contains("touched"));
        assert!(
            model(
                r#"columns=[{name="a",kind="blob"}]
            key=["a"]"#
            )
            .contains("no kind blob")
        );
        assert!(
            model(
                r#"columns=[{name="a",kind="struct",struct="x"}]
            key=["a"]"#
            )
            .contains("which struct")
        );
        assert!(
            model(
                r#"columns=[{name="a",kind="text"},{name="A",kind="text"}]
            key=["a"]"#
            )
            .contains("one JSON key")
        );
        assert!(
            model(
                r#"columns=[{name="a",kind="float"},{name="b",kind="text"}]
            key=["a"]"#
            )
            .contains("a key is")
        );
    }
}
