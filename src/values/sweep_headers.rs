//! The headers of a sweep's answer: written by `serve`, read by `pull`.

use super::OpUlid;

/// Header names.
pub mod names {
    /// The version of the opsward that answered.
    pub const VERSION: &str = "x-opsward-version";
    /// The last row scanned, left-out rows included.
    pub const LAST_SCANNED: &str = "x-crud-sweep-last-scanned-ulid";
    /// `true` when a limit ended the page.
    pub const LIMITED: &str = "x-crud-sweep-limited";
    /// `true` when ops after the asked cursor are gone for good.
    pub const GAP: &str = "x-mediorum-retention-gap";
    /// The smallest ULID that is still there.
    pub const GAP_MIN: &str = "x-mediorum-available-min-ulid";
    /// `table=ulid,…`: every floor above the asked cursor.
    pub const TABLE_FLOORS: &str = "x-opsward-table-floors";
}

/// What a peer's answer said about its page, as text: nothing is believed yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SweepHeaders {
    /// A retention gap was signalled.
    pub gap: bool,
    /// The smallest ULID available, where it is an `OpUlid`.
    pub gap_min: Option<OpUlid>,
    /// The last row scanned, where it is an `OpUlid`.
    pub last_scanned: Option<OpUlid>,
    /// A limit ended the page.
    pub limited: bool,
    /// Tables and their floors; parts that are none are left out.
    pub table_floors: Vec<(String, OpUlid)>,
}

/// At most this many table floors are read from one answer.
const MAX_TABLE_FLOORS: usize = 64;
/// A table name longer than a Postgres identifier is none.
const MAX_TABLE_NAME: usize = 63;

impl SweepHeaders {
    /// Reads the headers through a look-up by lower-case name.
    pub fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        let is_true = |name| get(name).is_some_and(|v| v.trim().eq_ignore_ascii_case("true"));
        let ulid = |name| get(name).and_then(|v| OpUlid::parse(v.trim()));
        Self {
            gap: is_true(names::GAP),
            gap_min: ulid(names::GAP_MIN),
            last_scanned: ulid(names::LAST_SCANNED),
            limited: is_true(names::LIMITED),
            table_floors: get(names::TABLE_FLOORS).map(parse_floors).unwrap_or_default(),
        }
    }
}

fn parse_floors(text: &str) -> Vec<(String, OpUlid)> {
    text.split(',')
        .filter_map(|part| {
            let (table, floor) = part.trim().split_once('=')?;
            let named = !table.is_empty() && table.len() <= MAX_TABLE_NAME;
            named.then_some((table.to_owned(), OpUlid::parse(floor)?))
        })
        .take(MAX_TABLE_FLOORS)
        .collect()
}

/// The value of the table floors header; tables whose name does not fit into
/// it are left out.
pub fn format_table_floors(floors: &[(String, OpUlid)]) -> String {
    let fits = |table: &str| {
        !table.is_empty() && table.bytes().all(|b| b.is_ascii_graphic() && b != b',' && b != b'=')
    };
    let parts: Vec<String> =
        floors.iter().filter(|(t, _)| fits(t)).map(|(t, u)| format!("{t}={u}")).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn floors_survive_the_way() {
        let floors = vec![
            ("uploads".to_owned(), OpUlid::first_of_ms(1)),
            ("a=b".to_owned(), OpUlid::first_of_ms(2)),
            ("qm".to_owned(), OpUlid::first_of_ms(3)),
        ];
        let text = format_table_floors(&floors);
        assert_eq!(parse_floors(&text), [floors[0].clone(), floors[2].clone()]);
    }

    proptest! {
        #[test]
        fn never_panics(value: String) {
            let headers = SweepHeaders::read(|_| Some(value.as_str()));
            prop_assert!(headers.table_floors.len() <= MAX_TABLE_FLOORS);
        }
    }
}
