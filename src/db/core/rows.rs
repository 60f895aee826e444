//! Rows read into types by serde: a struct by the names of its columns, a tuple by
//! their order, anything else from the first column. Reads that run for each batch
//! or page take their columns by position instead.

use crate::db::{Doing, Error, GenericClient, Params, Result};
use jiff::{Timestamp, civil::Date};
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::Value;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Row, ToStatement};

/// All rows.
pub async fn all<T: DeserializeOwned>(
    client: &impl GenericClient,
    sql: &(impl ?Sized + ToStatement + Sync),
    params: Params<'_>,
    doing: &'static str,
) -> Result<Vec<T>> {
    client.query(sql, params).await.doing(doing)?.iter().map(|row| read(row, doing)).collect()
}

/// The one row that there must be.
pub async fn one<T: DeserializeOwned>(
    client: &impl GenericClient,
    sql: &(impl ?Sized + ToStatement + Sync),
    params: Params<'_>,
    doing: &'static str,
) -> Result<T> {
    read(&client.query_one(sql, params).await.doing(doing)?, doing)
}

/// One row or none.
pub async fn maybe<T: DeserializeOwned>(
    client: &impl GenericClient,
    sql: &(impl ?Sized + ToStatement + Sync),
    params: Params<'_>,
    doing: &'static str,
) -> Result<Option<T>> {
    client.query_opt(sql, params).await.doing(doing)?.map(|row| read(&row, doing)).transpose()
}

/// Runs a statement that writes.
pub async fn write(
    client: &impl GenericClient,
    sql: &(impl ?Sized + ToStatement + Sync),
    params: Params<'_>,
    doing: &'static str,
) -> Result<()> {
    client.execute(sql, params).await.doing(doing).map(|_| ())
}

/// The rows of a statement that runs often: a session prepares it once.
pub async fn cached(
    client: &impl GenericClient,
    sql: &str,
    params: Params<'_>,
    doing: &'static str,
) -> Result<Vec<Row>> {
    client.query(&client.prepare_cached(sql).await.doing(doing)?, params).await.doing(doing)
}

/// The one row of a statement that runs often.
pub async fn cached_one(
    client: &impl GenericClient,
    sql: &str,
    params: Params<'_>,
    doing: &'static str,
) -> Result<Row> {
    client.query_one(&client.prepare_cached(sql).await.doing(doing)?, params).await.doing(doing)
}

/// Runs a statement that writes, and often.
pub async fn write_cached(
    client: &impl GenericClient,
    sql: &str,
    params: Params<'_>,
    doing: &'static str,
) -> Result<()> {
    write(client, &client.prepare_cached(sql).await.doing(doing)?, params, doing).await
}

fn read<T: DeserializeOwned>(row: &Row, doing: &str) -> Result<T> {
    T::deserialize(Columns(row))
        .map_err(|e| Error::Unfit(format!("{doing}: what was read does not fit: {e}")))
}

struct Columns<'a>(&'a Row);

impl Columns<'_> {
    fn cell(&self, at: usize) -> serde_json::Result<Value> {
        let cell = self.0.try_get::<_, Option<Cell>>(at).map_err(serde_json::Error::custom)?;
        Ok(cell.map_or(Value::Null, |cell| cell.0))
    }

    fn cells(&self) -> serde_json::Result<Vec<Value>> {
        (0..self.0.len()).map(|at| self.cell(at)).collect()
    }
}

impl<'de> Deserializer<'de> for Columns<'_> {
    type Error = serde_json::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> serde_json::Result<V::Value> {
        let names = self.0.columns().iter().map(|column| column.name());
        visitor.visit_map(MapDeserializer::new(names.zip(self.cells()?)))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> serde_json::Result<V::Value> {
        visitor.visit_seq(SeqDeserializer::new(self.cells()?.into_iter()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
        self.cell(0)?.deserialize_option(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> serde_json::Result<V::Value> {
        self.cell(0)?.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
        self.cell(0)?.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple_struct map identifier ignored_any
    }
}

/// A value of a column as JSON.
struct Cell(Value);

impl<'a> FromSql<'a> for Cell {
    fn from_sql(
        ty: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match *ty {
            Type::BOOL => bool::from_sql(ty, raw)?.into(),
            Type::INT2 => i16::from_sql(ty, raw)?.into(),
            Type::INT4 => i32::from_sql(ty, raw)?.into(),
            Type::INT8 => i64::from_sql(ty, raw)?.into(),
            Type::FLOAT8 => f64::from_sql(ty, raw)?.into(),
            Type::TIMESTAMPTZ => Timestamp::from_sql(ty, raw)?.to_string().into(),
            Type::DATE => Date::from_sql(ty, raw)?.to_string().into(),
            Type::JSONB => serde_json::from_slice(raw.get(1..).unwrap_or_default())?,
            Type::TEXT_ARRAY | Type::NAME_ARRAY => Vec::<String>::from_sql(ty, raw)?.into(),
            _ => String::from_sql(ty, raw)?.into(),
        }))
    }

    fn accepts(ty: &Type) -> bool {
        let read = [
            Type::BOOL,
            Type::INT2,
            Type::INT4,
            Type::INT8,
            Type::FLOAT8,
            Type::TIMESTAMPTZ,
            Type::DATE,
            Type::JSONB,
            Type::TEXT_ARRAY,
            Type::NAME_ARRAY,
        ];
        read.contains(ty) || <String as FromSql>::accepts(ty)
    }
}
