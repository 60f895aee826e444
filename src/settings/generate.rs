//! Texts made from the table of settings: help, and by the tests config/opsward.toml and README's table.

use super::table::Entry;

/// An entry's help on the command line.
pub fn help(entry: &Entry) -> String {
    let default = match entry.default {
        Some(text) => format!("default {text}"),
        None => "not set by default".into(),
    };
    format!("{}: {} [{}; {default}]", sentence(entry.meaning), entry.allowed, variables(entry).join(", "))
}

fn variables(entry: &Entry) -> Vec<String> {
    let names = entry.env.iter().map(|name| (*name).to_owned());
    names.chain(entry.file_variable()).collect()
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Shape, Source, TABLE, load};
    use std::fmt::Write;
    use std::path::{Path, PathBuf};

    const BEGIN: &str = "<!-- settings -->\n";
    const END: &str = "<!-- /settings -->\n";

    /// The text of config/opsward.toml: every setting, its default commented out.
    fn toml() -> String {
        let mut text = String::from(
            "# opsward's settings, each with its default. Copy to /etc/opsward/opsward.toml or\n\
             # name the copy with --config; a flag or an environment variable goes before it.\n\
             # Written from the table of settings in the source; a test holds it.\n",
        );
        for entry in TABLE.iter() {
            let value = entry.default.unwrap_or(entry.example);
            let value = match entry.shape {
                Shape::Switch => value.to_owned(),
                _ => format!("{value:?}"),
            };
            let unset = if entry.default.is_none() { " Not set by default." } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n# {}.{unset}\n# Allowed: {}\n# Environment: {}\n#{} = {value}\n",
                sentence(entry.meaning),
                entry.allowed,
                variables(entry).join(", "),
                entry.key,
            );
        }
        text
    }

    /// README's table of settings.
    fn markdown() -> String {
        let mut text = String::from(
            "| environment | flag | file key | default | meaning | allowed |\n|---|---|---|---|---|---|\n",
        );
        for entry in TABLE.iter() {
            let default = entry.default.map_or("not set".into(), |text| format!("`{text}`"));
            let names: Vec<String> = variables(entry).iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(
                text,
                "| {} | `--{}` | `{}` | {default} | {} | {} |",
                names.join(", "),
                entry.flag(),
                entry.key,
                entry.meaning,
                entry.allowed,
            );
        }
        text
    }

    /// Compares a file of the repository with what it should be, or writes it.
    fn hold(file: &str, want: impl Fn(&str) -> String) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let have = std::fs::read_to_string(&path).unwrap_or_default();
        let want = want(&have);
        if Source::process().env.contains_key("OPSWARD_REGENERATE") {
            std::fs::write(&path, &want).unwrap();
            return;
        }
        let differs = have.lines().zip(want.lines()).position(|(have, want)| have != want);
        assert!(
            have == want,
            "{file} is not what the table of settings says, first at line {}; write it with \
             OPSWARD_REGENERATE=1 cargo test --lib settings::generate\nhave: {:?}\nwant: {:?}",
            differs.unwrap_or(have.lines().count().min(want.lines().count())) + 1,
            differs.and_then(|at| have.lines().nth(at)),
            differs.and_then(|at| want.lines().nth(at)),
        );
    }

    #[test]
    fn the_file_of_defaults_is_the_tables() {
        hold("config/opsward.toml", |_| toml());
    }

    #[test]
    fn the_readme_is_the_tables() {
        hold("README.md", |have| {
            let (before, rest) = have.split_once(BEGIN).expect("README has <!-- settings -->");
            let (_, after) = rest.split_once(END).expect("README has <!-- /settings -->");
            format!("{before}{BEGIN}{}{END}{after}", markdown())
        });
    }

    #[test]
    fn every_line_of_the_file_can_be_used() {
        let mut text = String::new();
        for line in toml().lines() {
            match line.strip_prefix('#') {
                Some(line) if !line.starts_with(' ') => text.push_str(line),
                _ => text.push_str(line),
            }
            text.push('\n');
        }
        let mut source = Source::process();
        source.env.clear();
        source.config = Some(PathBuf::from("all"));
        source.read = Box::new(move |_| Ok(text.clone()));
        let loaded = load(&source).unwrap();
        let file = crate::settings::Origin::File("all".into());
        assert!(loaded.origins.iter().all(|shown| shown.origin == file));
        assert_eq!(loaded.warnings, []);
    }

    #[test]
    fn names_are_used_once_and_texts_suit_their_places() {
        let mut names: Vec<String> = TABLE.iter().flat_map(variables).collect();
        names.extend(TABLE.iter().map(|entry| entry.key.to_owned()));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        for entry in TABLE.iter() {
            assert!(!entry.meaning.contains('|') && !entry.allowed.contains('|'));
            assert!(!entry.meaning.ends_with('.') && !entry.allowed.ends_with('.'));
            assert!(entry.default.is_some() || !entry.example.is_empty());
        }
    }
}
