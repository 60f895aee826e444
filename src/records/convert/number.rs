//! Numbers: read from their literals, as Go's strconv does.

use super::super::code::OUT_OF_RANGE;
use super::super::json;
use crate::values::RejectReason;

/// A whole number of signed 64 bits; fractions and exponents are refused.
pub(super) fn integer(raw: &str) -> Result<i64, RejectReason> {
    whole(raw, "a whole number")
}

/// A whole number of unsigned 64 bits; a sign is refused, that of -0 too.
pub(super) fn unsigned(raw: &str) -> Result<u64, RejectReason> {
    whole(raw, "a whole number from 0")
}

/// An unsigned number, as the text of the bigint that it is stored in.
pub(super) fn bigint(value: u64) -> Result<String, RejectReason> {
    match i64::try_from(value) {
        Ok(value) => Ok(value.to_string()),
        Err(_) => Err(out_of_range(&value.to_string())),
    }
}

/// A double; one beyond the largest is refused.
pub(super) fn float(raw: &str) -> Result<f64, RejectReason> {
    let literal = json::number(raw, "a number")?;
    match literal.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(out_of_range(raw)),
        Err(_) => Err(json::wrong_type("a number", raw)),
    }
}

/// The shortest decimal that reads back, without exponent: a numeric's text.
pub(super) fn numeric_text(value: f64) -> String {
    // numeric knows no -0
    if value == 0.0 { "0".into() } else { value.to_string() }
}

/// A double as Go's encoding/json writes it: the shortest decimal that reads
/// back, with an exponent below 1e-6 and from 1e21 up.
pub(super) fn json_text(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 || (1e-6..1e21).contains(&size) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent}"),
        _ => text,
    }
}

fn whole<T: std::str::FromStr>(raw: &str, wanted: &str) -> Result<T, RejectReason> {
    let literal = json::number(raw, wanted)?;
    literal.parse().map_err(|_| {
        if literal.bytes().all(|b| b.is_ascii_digit()) {
            out_of_range(raw)
        } else {
            json::wrong_type(wanted, raw)
        }
    })
}

fn out_of_range(raw: &str) -> RejectReason {
    let detail = format!("{} is more than the column can hold", json::excerpt(raw));
    RejectReason::new(OUT_OF_RANGE, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_from_their_literals() {
        assert_eq!(integer("-9223372036854775808").unwrap(), i64::MIN);
        assert_eq!(integer("-0").unwrap(), 0);
        for bad in ["1.0", "1e2", "9223372036854775808", "-9223372036854775809", "\"1\"", "true", "[]"] {
            assert!(integer(bad).is_err(), "{bad}");
        }
        assert_eq!(unsigned("18446744073709551615").unwrap(), u64::MAX);
        for bad in ["-0", "-1", "18446744073709551616", "1E0"] {
            assert!(unsigned(bad).is_err(), "{bad}");
        }
        assert!(bigint(i64::MAX as u64).is_ok());
        assert_eq!(bigint(i64::MAX as u64 + 1).unwrap_err().code, OUT_OF_RANGE);
    }

    #[test]
    fn doubles() {
        assert_eq!(numeric_text(float("1e21").unwrap()), "1000000000000000000000");
        assert_eq!(numeric_text(float("1E-7").unwrap()), "0.0000001");
        assert_eq!(numeric_text(float("-0.0").unwrap()), "0");
        assert_eq!(numeric_text(float("100").unwrap()), "100");
        assert_eq!(numeric_text(float("1e-400").unwrap()), "0");
        assert_eq!(
            numeric_text(float("123456789012345678901234567890").unwrap()),
            "123456789012345680000000000000"
        );
        assert_eq!(float("1e400").unwrap_err().code, OUT_OF_RANGE);
        assert!(float("\"0.5\"").is_err());
    }

    #[test]
    fn doubles_as_go_writes_them() {
        for (literal, written) in [
            ("1e21", "1e+21"),
            ("-1.5e300", "-1.5e+300"),
            ("100000000000000000000", "100000000000000000000"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1e-7"),
            ("1.25e-10", "1.25e-10"),
            ("-0.0", "-0"),
            ("0", "0"),
            ("120.50", "120.5"),
            ("5e-324", "5e-324"),
        ] {
            assert_eq!(json_text(float(literal).unwrap()), written);
        }
    }
}
