//! How Go's encoding/json compares the keys of an object.

/// A key as it is compared where none is exactly the same: ASCII letters in
/// lower case, and the two characters whose simple case folding is an ASCII
/// letter, U+017F (ſ) and U+212A (the Kelvin sign).
pub fn fold_key(key: &str) -> String {
    let one = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(one).collect()
}
