//! The commands that the docs name, read from their pages. What belongs to somebody
//! else (docker, curl, SQL) is an example: a page says so once, in a comment:
//! `<!-- examples: docker curl -->`.

use std::path::{Path, PathBuf};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README and its neighbours, and every page of docs/.
pub fn pages() -> Vec<PathBuf> {
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

/// The words of a command without a prompt, settings before it, and the way into a container.
pub fn bare(line: &str) -> Vec<String> {
    let mut words = words(line);
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
    words
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_' || c == '…')
}

/// Whether a block's line is a command, and not output, SQL, JSON or a setting.
fn is_command(line: &str, examples: &[String]) -> bool {
    let words = words(line);
    let first = words.iter().find(|w| *w != "$" && *w != "sudo" && !w.contains('='));
    let first = first.map(String::as_str).unwrap_or_default();
    ["opsward", "bash", "python3", "cargo", "docker", "curl", "git", "cp", "psql", "systemctl", "apt", "dpkg"]
        .contains(&first)
        || examples.iter().any(|e| e == first)
}

/// A page, the commands that belong to somebody else, and every command of its blocks and
/// sentences. Those with alternatives and options in brackets are left out.
pub fn commands() -> Vec<(PathBuf, Vec<String>, Vec<String>)> {
    let of = |page: PathBuf| {
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let examples = text.split("<!-- examples:").nth(1).and_then(|rest| rest.split("-->").next());
        let examples: Vec<String> =
            examples.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        let typed = blocks(&text).into_iter().filter(|l| is_command(l, &examples));
        let said = spoken(&text).into_iter().filter(|c| !c.contains(['[', '|', '…', '(', '*']));
        let commands = typed.chain(said).collect();
        (page, examples, commands)
    };
    pages().into_iter().map(of).collect()
}
