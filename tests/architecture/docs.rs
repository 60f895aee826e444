//! Every command that the docs name can be typed: opsward's go through its own
//! command line, scripts and tests are looked for. What belongs to somebody
//! else (docker, curl, SQL) is an example: a page says so once, in a comment:
//! `<!-- examples: docker curl -->`.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README and its neighbours, and every page of docs/.
fn pages() -> Vec<PathBuf> {
    let mut pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|page| root().join(page)).to_vec();
    let mut dirs = vec![root().join("docs")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// The lines of a page's code blocks, lines that go on joined.
fn blocks(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let (mut fenced, mut goes_on, mut blank) = (false, false, true);
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let indented = line.starts_with("    ") && (blank || !lines.is_empty() && goes_on);
        if fenced || indented {
            let line = line.trim_end();
            match (goes_on, lines.last_mut()) {
                (true, Some(last)) => last.push_str(line.trim_start()),
                _ => lines.push(line.trim_start().to_owned()),
            }
            let last = lines.last_mut();
            goes_on = last.as_ref().is_some_and(|l| l.ends_with('\\'));
            if let (true, Some(last)) = (goes_on, last) {
                last.pop();
            }
            continue;
        }
        blank = line.trim().is_empty();
        goes_on = false;
    }
    lines
}

/// Code inside sentences that begins with `opsward `.
fn spoken(text: &str) -> Vec<String> {
    let code = text.split('`').skip(1).step_by(2);
    code.map(|c| c.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|c| c.starts_with("opsward "))
        .collect()
}

/// The words of a line up to a comment, a pipe or a redirection; quotes hold.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (Some(q), c) if q == c => quote = None,
            (None, '#' | '|' | '>' | '<' | ';') if !any || c != '#' => break,
            (None, c) if c.is_whitespace() => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (_, c) => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    words
}

/// What is wrong with a command of the docs.
fn complaint(line: &str, examples: &[&str]) -> Option<String> {
    let mut words = words(line);
    // A prompt, settings before a command, and the way into a container.
    while words
        .first()
        .is_some_and(|w| w == "$" || w == "sudo" || w.split_once('=').is_some_and(|(n, _)| is_name(n)))
    {
        words.remove(0);
    }
    if let Some(at) = words.iter().position(|w| w == "opsward")
        && words.first().is_some_and(|w| w == "docker")
        && words.iter().any(|w| w == "exec" || w == "run")
    {
        // `exec opsward opsward status`, `run --rm opsward uninstall`.
        let twice = words.get(at + 1).is_some_and(|w| w == "opsward");
        words.drain(..at + usize::from(twice));
    }
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
        word if examples.contains(&word) => None,
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

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_' || c == '…')
}

/// Whether a block's line is a command, and not output, SQL, JSON or a setting.
fn is_command(line: &str, examples: &[&str]) -> bool {
    let words = words(line);
    let first = words.iter().find(|w| *w != "$" && *w != "sudo" && !w.contains('='));
    let first = first.map(String::as_str).unwrap_or_default();
    ["opsward", "bash", "python3", "cargo", "docker", "curl", "git", "cp", "psql", "systemctl", "apt", "dpkg"]
        .contains(&first)
        || examples.contains(&first)
}

#[test]
fn every_command_of_the_docs_can_be_typed() {
    let mut complaints = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let examples = text.split("<!-- examples:").nth(1).and_then(|rest| rest.split("-->").next());
        let examples: Vec<&str> = examples.unwrap_or_default().split_whitespace().collect();
        let typed = blocks(&text).into_iter().filter(|l| is_command(l, &examples));
        // In sentences and tables, with alternatives and options in brackets left out.
        let said = spoken(&text).into_iter().filter(|c| !c.contains(['[', '|', '…', '(', '*']));
        for line in typed.chain(said) {
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
    assert_eq!(complaint("curl -f x", &["curl"]), None);
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
