//! `Host`: how self and peers are named and compared.

use std::fmt;

/// A node's URL, lower-cased, without trailing slashes. Self and peers are
/// compared in this form only, and read into it whatever the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(from = "String")]
pub struct Host(String);

impl Host {
    /// Reads a host from a URL of scheme http or https. `None` when it is no
    /// such URL, names no host, or carries a password, a query or a fragment.
    pub fn parse(text: &str) -> Option<Self> {
        let host = Self::normalise(text);
        let url = url::Url::parse(&host.0).ok()?;
        // The URL parser drops whitespace and control characters; our text would keep them, and
        // one host would have two names.
        let clean = !host.0.contains(|c: char| c.is_whitespace() || c.is_control());
        let plain = clean
            && matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|name| !name.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        plain.then_some(host)
    }

    /// The comparable form of any text. Rows of the node's `cursors` also hold names that are
    /// no URLs.
    pub fn normalise(text: &str) -> Self {
        Self(text.trim().to_lowercase().trim_end_matches('/').to_owned())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Host {
    fn from(text: String) -> Self {
        Self::normalise(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form() {
        for text in ["https://N1.example/", " https://n1.example// ", "HTTPS://N1.EXAMPLE"] {
            assert_eq!(Host::parse(text).unwrap().as_str(), "https://n1.example");
        }
        for text in [
            "",
            "n1.example",
            "ftp://a",
            "http://",
            "http://u:p@a",
            "http://a?b",
            "http://a#b",
            "http://a/ /",
            "http://a\tb",
            "http://a/\u{c}//",
        ] {
            assert!(Host::parse(text).is_none(), "{text}");
        }
    }
}
