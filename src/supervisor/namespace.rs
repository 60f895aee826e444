//! An orphaned network namespace: the container whose network is shared was
//! recreated, and every interface but loopback is gone. Only a restart joins
//! the new one.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Where Linux lists the interfaces of this network namespace.
pub const PROC_NET_DEV: &str = "/proc/self/net/dev";

/// The interfaces that existed at start.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: PathBuf,
    at_start: BTreeSet<String>,
}

impl Namespace {
    /// Notes the interfaces now.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn note(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), at_start: interfaces(&std::fs::read_to_string(path)?) })
    }

    /// Whether every interface that existed at start is gone. False when there
    /// was none, or when the list cannot be read now.
    pub fn is_orphaned(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|text| is_orphaned(&self.at_start, &interfaces(&text)))
    }
}

/// The names of all interfaces but loopback in the text of `/proc/net/dev`.
fn interfaces(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .filter(|name| !name.is_empty() && name != "lo")
        .collect()
}

/// New interfaces don't count: Docker gives a recreated container new ones in
/// a new namespace, never in this one.
fn is_orphaned(at_start: &BTreeSet<String>, now: &BTreeSet<String>) -> bool {
    !at_start.is_empty() && at_start.is_disjoint(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const HEAD: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  124356     844    0    0    0     0          0         0   124356     844    0    0    0     0       0          0
";

    fn text(names: &[&str]) -> String {
        let lines = names.iter().map(|n| format!("  {n}: 1 2 3 4\n"));
        HEAD.to_owned() + &lines.collect::<String>()
    }

    #[test]
    fn orphaned_only_when_all_of_the_start_are_gone() {
        let set = |names: &[&str]| interfaces(&text(names));
        assert_eq!(set(&["eth0", "br-1:2"]).len(), 2);
        let cases: [(&[&str], &[&str], bool); 6] = [
            (&["eth0"], &["eth0"], false),
            (&["eth0"], &[], true),
            (&["eth0", "eth1"], &["eth1"], false),
            (&["eth0"], &["eth7"], true),
            (&[], &[], false),
            (&[], &["eth0"], false),
        ];
        for (start, now, expected) in cases {
            assert_eq!(is_orphaned(&set(start), &set(now)), expected, "{start:?} {now:?}");
        }
    }

    #[test]
    fn reads_the_file_each_time() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{}", text(&["eth0"])).unwrap();
        let namespace = Namespace::note(file.path()).unwrap();
        assert!(!namespace.is_orphaned());
        std::fs::write(file.path(), text(&[])).unwrap();
        assert!(namespace.is_orphaned());
        std::fs::remove_file(file.path()).unwrap();
        assert!(!namespace.is_orphaned(), "an unreadable list says nothing");
    }
}
