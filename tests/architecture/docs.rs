//! Every command that the docs name can be typed: opsward's go through its own
//! command line, scripts and tests are looked for. `tests/it/docs.rs` runs opsward's.

use super::commands::{bare, commands, pages, root};

/// What is wrong with a command of the docs.
fn complaint(line: &str, examples: &[String]) -> Option<String> {
    let words = bare(line);
    let exists = |path: &str| root().join(path).exists();
    match words.first().map(String::as_str)? {
        "opsward" => {
            let filled = words.iter().map(|word| placeholder(word));
            let parsed = opsward::cli::command().try_get_matches_from(filled);
            let error = parsed.err().filter(clap::Error::use_stderr)?;
            // `opsward reset` in a sentence is the command's name.
            let names = words.iter().all(|w| w.chars().all(|c| c.is_ascii_lowercase()));
            let is_named = names && error.kind() == clap::error::ErrorKind::MissingRequiredArgument;
            if is_named {
                return None;
            }
            Some(error.to_string().lines().next().unwrap_or_default().to_owned())
        }
        "bash" | "python3" => match words.get(1) {
            Some(script) if exists(script) => None,
            _ => Some("there is no such script".to_owned()),
        },
        "cargo" => {
            let named = words.iter().zip(words.iter().skip(1)).find_map(|(flag, name)| match flag.as_str() {
                "--bench" => Some(format!("benches/{name}.rs")),
                "--example" => Some(format!("examples/{name}.rs")),
                "--test" => Some(match exists(&format!("tests/{name}.rs")) {
                    true => format!("tests/{name}.rs"),
                    false => format!("tests/{name}/main.rs"),
                }),
                _ => None,
            });
            named.filter(|file| !exists(file)).map(|file| format!("there is no {file}"))
        }
        word if examples.iter().any(|e| e == word) => None,
        word => Some(format!("{word} is neither ours nor marked as an example")),
    }
}

/// What stands for a value in the docs, as a value.
fn placeholder(word: &str) -> &str {
    match word {
        "URL" => "https://node.example",
        "ID" => "1",
        "SHELL" => "bash",
        word => word,
    }
}

#[test]
fn every_command_of_the_docs_can_be_typed() {
    let mut complaints = Vec::new();
    let mut seen = 0;
    for (page, examples, commands) in commands() {
        for line in commands {
            seen += 1;
            if let Some(why) = complaint(&line, &examples) {
                complaints.push(format!("{}: {line}: {why}", page.display()));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(seen > 60, "only {seen} commands were found");
}

#[test]
fn commands_that_cannot_be_typed_are_found() {
    for line in [
        "opsward frobnicate",
        "opsward plan --no-such-flag",
        "bash tests/no-such.sh",
        "curl -f x",
        "cargo bench --bench no-such",
    ] {
        assert!(complaint(line, &[]).is_some(), "{line}");
    }
    for line in [
        "$ opsward status --output json   # as data",
        "docker compose exec opsward opsward plan",
        "docker compose run --rm opsward uninstall --yes",
        "OPENAUDIO_LOG_LEVEL=debug opsward sweep",
        "bash tests/run.sh --test it serve",
    ] {
        assert_eq!(complaint(line, &[]), None, "{line}");
    }
    assert_eq!(complaint("curl -f x", &["curl".to_owned()]), None);
}

/// A link to a page of ours leads somewhere.
#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let dir = page.parent().unwrap_or_else(|| panic!("{}", page.display()));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let outside = link.is_empty() || link.starts_with("http");
            assert!(outside || dir.join(link).exists(), "{}: {link}", page.display());
        }
    }
}

/// Each file that a page names in code is there. In the drawings of ARCHITECTURE a file
/// stands after the room that its heading names, or after a folder of `src/`.
#[test]
fn files_that_are_named_are_there() {
    let mut missing = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let mut room = "";
        for line in text.lines() {
            if let Some((_, named)) = line.split_once("** (`") {
                room = named.split('`').next().unwrap_or_default();
            }
            let drawn = page.ends_with("docs/ARCHITECTURE.md") && line.starts_with("    ");
            let named = match drawn {
                true => line.split([' ', ',', ':']).filter(|w| w.ends_with(".rs")).collect(),
                false => line.split('`').skip(1).step_by(2).filter(|w| is_path(w)).collect::<Vec<_>>(),
            };
            for path in named {
                let places = [path.to_owned(), format!("{room}/{path}"), format!("src/{path}")];
                if !places.iter().any(|place| root().join(place).exists()) {
                    missing.push(format!("{}: {path}", page.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// A path into this repository.
fn is_path(word: &str) -> bool {
    let ours = ["src/", "tests/", "deploy/", "docs/", "config/", "examples/", "benches/", "fuzz/"];
    ours.iter().any(|folder| word.starts_with(folder)) && !word.contains(['*', ' ', '…', '<'])
}
