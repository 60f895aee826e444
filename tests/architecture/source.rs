//! Reads Rust just far enough: comments away, string literals apart, paths
//! of this crate resolved to where they lead.

use std::path::Path;

/// One file of `src/`, without its tests.
pub struct Source {
    /// Below `src/`: `db/connect.rs`.
    pub path: String,
    /// Lines without tests, comments and blanks included.
    pub lines: usize,
    /// The code; comments and the insides of strings blanked out.
    pub code: String,
    /// The insides of its string literals.
    pub strings: Vec<String>,
}

impl Source {
    /// Reads a file's text.
    pub fn new(path: &str, text: &str) -> Self {
        let text = without_tests(text);
        let (code, strings) = split(text);
        Self { path: path.to_owned(), lines: text.lines().count(), code, strings }
    }

    /// Its room: the first part of its path.
    pub fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Its file name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Paths within the crate that it names, from the crate's root:
    /// `db::ops::Page` for `crate::db::ops::Page` and for `super::ops::Page`.
    pub fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (root, at) in words(&self.code) {
            // A path begins here, it does not go on: not the `super` of
            // `crate::super`, not `$crate` of another's macro.
            if at >= 2 && &self.code[at - 2..at] == "::" {
                continue;
            }
            let base = match root {
                "crate" => Vec::new(),
                "super" => self.module_parent(),
                _ => continue,
            };
            expand(&self.code[at + root.len()..], &base, &mut found);
        }
        found.retain(|p| !p.is_empty());
        found
    }

    /// Its functions with a body, and the lines that each takes.
    pub fn functions(&self) -> Vec<(&str, usize)> {
        let mut found = Vec::new();
        let mut words = words(&self.code);
        while let Some((word, at)) = words.next() {
            // `fn(` is a pointer's type.
            let is_named = word == "fn" && self.code[at..].starts_with("fn ");
            let Some((name, _)) = is_named.then(|| words.next()).flatten() else { continue };
            let (mut brackets, mut braces) = (0, 0);
            for (i, c) in self.code[at..].char_indices() {
                match c {
                    '(' | '[' => brackets += 1,
                    ')' | ']' => brackets -= 1,
                    '{' => braces += 1,
                    '}' => braces -= 1,
                    ';' if brackets == 0 && braces == 0 => break,
                    _ => {}
                }
                if c == '}' && braces == 0 {
                    found.push((name, self.code[at..at + i].matches('\n').count() + 1));
                    break;
                }
            }
        }
        found
    }

    fn module_parent(&self) -> Vec<String> {
        let trimmed = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let mut parts: Vec<String> = trimmed.split('/').map(str::to_owned).collect();
        parts.pop();
        parts
    }
}

/// Every file below a directory, tests of their own left out.
pub fn read_all(dir: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).expect("a directory") {
            let path = entry.expect("an entry").path();
            let is_test = path.file_stem().is_some_and(|s| s == "tests");
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !is_test {
                let text = std::fs::read_to_string(&path).expect("a text");
                let name = path.strip_prefix(dir).expect("below it");
                files.push(Source::new(&name.to_string_lossy(), &text));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Up to the module of tests, which ends the file by habit.
fn without_tests(text: &str) -> &str {
    let mut at = 0;
    while let Some(found) = text[at..].find("#[cfg(test)]") {
        let start = at + found;
        let rest = text[start + "#[cfg(test)]".len()..].trim_start();
        if rest.starts_with("mod ") {
            return &text[..start];
        }
        at = start + 1;
    }
    text
}

/// The words of code and where they begin.
pub fn words(code: &str) -> impl Iterator<Item = (&str, usize)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(move |c| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(move |word| (word, word.as_ptr() as usize - code.as_ptr() as usize))
}

/// Follows `::a::{b, c::d}` from a base.
fn expand(rest: &str, base: &[String], found: &mut Vec<String>) {
    let mut path = base.to_vec();
    let mut rest = rest;
    while let Some(after) = rest.trim_start().strip_prefix("::") {
        let after = after.trim_start();
        if let Some(group) = after.strip_prefix('{') {
            for item in items(group) {
                expand(&format!("::{}", item.trim()), &path, found);
            }
            return;
        }
        let end = after.find(|c: char| !(c.is_alphanumeric() || c == '_'));
        let (word, next) = after.split_at(end.unwrap_or(after.len()));
        match word {
            "super" => drop(path.pop()),
            "self" | "" => {}
            word => path.push(word.to_owned()),
        }
        rest = next;
    }
    found.push(path.join("::"));
}

/// The parts of a group, up to its closing brace.
fn items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Code with comments and strings blanked, and the strings.
fn split(text: &str) -> (String, Vec<String>) {
    let (mut code, mut strings) = (String::new(), Vec::new());
    let mut rest = text;
    let mut last = ' ';
    while let Some(c) = rest.chars().next() {
        let word_before = last.is_alphanumeric() || last == '_';
        let (taken, blank) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), true)
        } else if rest.starts_with("/*") {
            (block_comment(rest), true)
        } else if let (Some(hashes), false) = (raw_string(rest), word_before) {
            let end = format!("\"{}", "#".repeat(hashes));
            let open = rest.find('"').unwrap_or(0) + 1;
            let close = rest[open..].find(&end).unwrap_or(rest.len() - open);
            strings.push(rest[open..open + close].to_owned());
            ((open + close + end.len()).min(rest.len()), true)
        } else if c == '"' {
            let close = string_end(&rest[1..]);
            strings.push(rest[1..=close].to_owned());
            ((close + 2).min(rest.len()), true)
        } else if c == '\'' {
            (char_literal(rest), true)
        } else {
            (c.len_utf8(), false)
        };
        if blank {
            code.extend(rest[..taken].chars().map(|c| if c == '\n' { c } else { ' ' }));
        } else {
            code.push(c);
        }
        last = if blank { ' ' } else { c };
        rest = &rest[taken..];
    }
    (code, strings)
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// How many hashes, where a raw string begins.
fn raw_string(rest: &str) -> Option<usize> {
    let rest = rest.strip_prefix('b').unwrap_or(rest).strip_prefix('r')?;
    let hashes = rest.bytes().take_while(|b| *b == b'#').count();
    (rest.as_bytes().get(hashes) == Some(&b'"')).then_some(hashes)
}

fn string_end(inside: &str) -> usize {
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    inside.len()
}

/// The length of a character literal; 1 for a lifetime's quote.
fn char_literal(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            let close = chars.skip(1).find(|(_, c)| *c == '\'');
            close.map_or(1, |(at, _)| at + 1)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}
