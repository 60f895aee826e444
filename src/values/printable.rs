//! Makes text from outside safe to show on a terminal.

use std::borrow::Cow;

/// Text that is safe on a terminal: control characters, escape sequences and marks of writing
/// direction become `\uXXXX`. Line breaks and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_hidden(c) && !matches!(c, '\n' | '\t'))
}

/// As [`printable`], for what has to stay on one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_hidden)
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_bad(c) {
            // The escape of JSON, so that an envelope stays valid.
            true => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")))
            }
            false => out.push(c),
        }
    }
    out.into()
}

/// Control characters, marks of writing direction, and characters without width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_moves_the_cursor() {
        for (text, shown) in [
            ("\u{1b}[2Jx", "\\u001b[2Jx"),
            ("a\u{9b}b\u{7f}", "a\\u009bb\\u007f"),
            ("\u{202e}dlrow", "\\u202edlrow"),
            ("\r\u{8}", "\\u000d\\u0008"),
            ("\u{e0041}", "\\udb40\\udc41"),
            ("a\n\tb é😀", "a\n\tb é😀"),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert_eq!(one_line("a\nb"), "a\\u000ab");
    }
}
