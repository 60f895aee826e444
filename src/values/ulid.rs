//! `OpUlid`: the key of an op, 26 characters whose text order is time order.

use std::fmt;

const LEN: usize = 26;
const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A table instead of a search, because every row of a page is checked.
fn is_crockford(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'H' | b'J' | b'K' | b'M' | b'N' | b'P'..=b'T' | b'V'..=b'Z')
}

/// The ULID of an op: 26 characters of upper-case Crockford base32, the first
/// at most `7`. Copied freely, compared bytewise, which for these characters
/// is the order of every collation a node uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpUlid([u8; LEN]);

impl OpUlid {
    /// Reads an `OpUlid` from its text; `None` for anything else. Judged by
    /// its bytes: the ulid crate's parser takes lower case and wraps overflow.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; LEN] = text.as_bytes().try_into().ok()?;
        let valid = bytes[0] <= b'7' && bytes.iter().all(is_crockford);
        valid.then_some(Self(bytes))
    }

    /// The lowest ULID of a millisecond since the Unix epoch.
    pub fn first_of_ms(ms: u64) -> Self {
        Self::from_parts(ms, 0)
    }

    /// The highest ULID of a millisecond since the Unix epoch.
    pub fn last_of_ms(ms: u64) -> Self {
        Self::from_parts(ms, u128::MAX)
    }

    /// A ULID of a time in milliseconds since the Unix epoch (48 bits are
    /// kept) and of randomness (80 bits are kept).
    pub fn from_parts(ms: u64, random: u128) -> Self {
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(ulid::Ulid::from_parts(ms, random).to_string().as_bytes());
        Self(bytes)
    }

    /// Its time in milliseconds since the Unix epoch.
    pub fn ms(&self) -> u64 {
        // 10 characters of 5 bits carry the 48 bits of time.
        self.0[..10].iter().fold(0, |ms, byte| {
            let digit = CROCKFORD.iter().position(|c| c == byte).unwrap_or(0);
            (ms << 5) | digit as u64
        })
    }

    /// Its text, 26 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for OpUlid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for OpUlid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for OpUlid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for OpUlid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no ULID of an op"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_upper_case_crockford_of_26() {
        assert!(OpUlid::parse("01HKFACTS00000000000000001").is_some());
        assert!(OpUlid::parse("7ZZZZZZZZZZZZZZZZZZZZZZZZZ").is_some());
        for bad in [
            "",
            "01hkfacts00000000000000001",
            "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "01HKFACTS0000000000000000",
            "01HKFACTS000000000000000011",
            "01HKFACTI00000000000000001",
            "01HKFACTL00000000000000001",
            "01HKFACTO00000000000000001",
            "01HKFACTU00000000000000001",
            "01HKFACTS0000000000000000\u{e9}",
        ] {
            assert!(OpUlid::parse(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_order_is_time_order(a in 0u64..(1 << 48), b in 0u64..(1 << 48), r: u128) {
            let (x, y) = (OpUlid::from_parts(a, r), OpUlid::first_of_ms(b));
            prop_assert_eq!(x.ms(), a);
            prop_assert_eq!(OpUlid::parse(x.as_str()), Some(x));
            if a != b {
                prop_assert_eq!(x < y, a < b);
            }
        }

        #[test]
        fn never_panics(text: String) {
            if let Some(ulid) = OpUlid::parse(&text) {
                prop_assert_eq!(ulid.as_str(), text);
            }
        }
    }
}
