//! Figures of the server, the database and the volume it lies on: from the
//! catalog and the statistics only, never by a scan of `ops`.

use crate::db::{Client, Doing, Error, Isolation, Result, begin, rows};
use crate::settings::DbTarget;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the catalog says of `ops` and of the server.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Figures {
    /// The server's version, as it says it.
    pub server_version: String,
    /// Bytes of the table `ops` with its TOAST, without indexes.
    pub ops_bytes: u64,
    /// Bytes of the indexes of `ops`.
    pub index_bytes: u64,
    /// Dead rows in `ops`, as the server estimates them.
    pub dead_rows: u64,
    /// The server's data directory, where the role may see it.
    pub data_directory: Option<String>,
}

/// Reads the figures of `ops` and of the server.
pub async fn figures(client: &Client) -> Result<Figures> {
    rows::one(client, FIGURES, &[], "read the size of ops").await
}

/// `pg_settings` leaves out what the role may not see; `current_setting` fails.
const FIGURES: &str = "
    SELECT split_part(current_setting('server_version'), ' ', 1) AS server_version,
           coalesce(pg_table_size(to_regclass('public.ops')), 0) AS ops_bytes,
           coalesce(pg_indexes_size(to_regclass('public.ops')), 0) AS index_bytes,
           coalesce(pg_stat_get_dead_tuples(to_regclass('public.ops')), 0) AS dead_rows,
           (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory";

/// The server's version, which waits for no lock.
pub async fn server_version(client: &Client) -> Result<String> {
    rows::one(client, VERSION, &[], "read the server's version").await
}

const VERSION: &str = "SELECT split_part(current_setting('server_version'), ' ', 1)";

/// The ten largest tables of the node with their TOAST and indexes, largest
/// first; `core_transactions` is the next that grows.
pub async fn largest(client: &Client) -> Result<Vec<RelationStatus>> {
    rows::all(client, LARGEST, &[], "read the sizes of the node's tables").await
}

/// One table of the node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RelationStatus {
    /// Its name.
    pub name: String,
    /// Bytes with TOAST and indexes.
    pub bytes: u64,
}

const LARGEST: &str = "
    SELECT relname::text AS name, bytes FROM (
        SELECT relname, coalesce(pg_total_relation_size(oid), 0) AS bytes FROM pg_class
        WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'm')) sizes
    ORDER BY bytes DESC, relname LIMIT 10";

/// Makes sure that the log can be read and that the server takes writes. Its error's
/// kind tells why not.
pub async fn ready(client: &mut Client) -> Result<()> {
    let tx = begin(client, Isolation::Snapshot).await?;
    tx.batch_execute(LOCK).await.doing("lock ops to look at it")?;
    tx.rollback().await.doing("look at ops")?;
    writable(client).await
}

/// As a page begins; it waits shorter than `/readyz` does.
const LOCK: &str = "SET LOCAL lock_timeout = '500ms'; LOCK TABLE public.ops IN ACCESS SHARE MODE";
const STANDBY: &str = "SELECT pg_is_in_recovery()";

/// Makes sure that the server takes writes.
pub async fn writable(client: &Client) -> Result<()> {
    let row = client.query_one(STANDBY, &[]).await.doing("ask whether this is a standby")?;
    match row.get(0) {
        true => Err(Error::ReadOnly("the server is a standby: it takes no writes".into())),
        false => Ok(()),
    }
}

/// Where what bulk work writes lies on the server's machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    /// The server's data directory, where the role may see it.
    pub data_directory: Option<String>,
    /// Tablespaces elsewhere: what lies in each, and its directory.
    pub tablespaces: Vec<(String, String)>,
}

/// A volume that is written to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// What lies on it, for people.
    pub what: String,
    /// Bytes free for a role that is no superuser.
    pub free: u64,
    /// Tables go there.
    pub is_data: bool,
    /// WAL goes there.
    pub is_wal: bool,
}

/// The volumes that are written to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Volumes {
    /// The database's first; each device once.
    pub known: Vec<Volume>,
    /// What lies where this process sees nothing, in words.
    pub unknown: Vec<String>,
}

impl Volumes {
    /// Free bytes of the fullest; `None` where nothing is known.
    pub fn least(&self) -> Option<u64> {
        self.known.iter().map(|volume| volume.free).min()
    }

    /// Free bytes where WAL goes: with the database, unless it is seen elsewhere.
    pub fn wal(&self) -> Option<u64> {
        self.known.iter().find(|volume| volume.is_wal).or(self.known.first()).map(|volume| volume.free)
    }

    /// Free bytes of the fullest that tables go to.
    pub fn data(&self) -> Option<u64> {
        self.known.iter().filter(|volume| volume.is_data).map(|volume| volume.free).min()
    }

    /// The volume that only WAL goes to.
    pub fn wal_alone(&self) -> Option<&Volume> {
        self.known.iter().find(|volume| volume.is_wal && !volume.is_data)
    }
}

/// Looks at the volumes that are written to. `set` is a directory on the database's volume.
pub fn volumes(set: Option<&Path>, target: &DbTarget, places: &Places) -> Volumes {
    let mut found = Found::default();
    let main = main_directory(set, target, places.data_directory.as_deref());
    if let Some(main) = &main {
        found.add("the database's volume".into(), main, Goes::Tables);
        let wal = main.join("pg_wal");
        let is_link = std::fs::symlink_metadata(&wal).is_ok_and(|about| about.is_symlink());
        if !found.add("the volume of pg_wal".into(), &wal, Goes::Wal) && is_link {
            found.volumes.unknown.push("pg_wal, which is a link to elsewhere".into());
        }
    }
    for (what, path) in &places.tablespaces {
        let name = format!("the volume of {path} ({what})");
        if main.is_none() || !found.add(name, Path::new(path), Goes::Tables) {
            found.volumes.unknown.push(format!("{what}, in the tablespace at {path}"));
        }
    }
    found.volumes
}

/// What goes to a volume.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    Tables,
    Wal,
}

#[derive(Default)]
struct Found {
    volumes: Volumes,
    devices: Vec<u64>,
}

impl Found {
    /// Adds the volume that a directory lies on, once; `false` where it is not seen here.
    fn add(&mut self, what: String, dir: &Path, goes: Goes) -> bool {
        let (Ok(space), Ok(about)) = (rustix::fs::statvfs(dir), std::fs::metadata(dir)) else { return false };
        let known = self.devices.iter().position(|device| *device == about.dev());
        let at = known.unwrap_or(self.devices.len());
        if known.is_none() {
            self.devices.push(about.dev());
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            self.volumes.known.push(Volume { what, free, is_data: false, is_wal: false });
        }
        self.volumes.known[at].is_data |= goes == Goes::Tables;
        self.volumes.known[at].is_wal |= goes == Goes::Wal;
        true
    }
}

/// Free bytes on the database's volume for a role that is no superuser, and
/// the directory that was asked.
pub fn free_disk(
    set: Option<&Path>,
    target: &DbTarget,
    data_directory: Option<&str>,
) -> Option<(u64, PathBuf)> {
    let dir = main_directory(set, target, data_directory)?;
    let volume = rustix::fs::statvfs(&dir).ok()?;
    Some((volume.f_bavail.saturating_mul(volume.f_frsize), dir))
}

/// The one that is set, else the server's data directory where it is on this
/// machine.
fn main_directory(set: Option<&Path>, target: &DbTarget, data_directory: Option<&str>) -> Option<PathBuf> {
    let seen = || {
        let dir = PathBuf::from(data_directory?);
        (is_local(target) && is_data_directory(&dir)).then_some(dir)
    };
    set.map(Path::to_owned).or_else(seen)
}

/// A remote server's path may exist here too, and be another's.
fn is_local(target: &DbTarget) -> bool {
    target.hosts.iter().all(|(host, _)| {
        host.starts_with('/')
            || host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// Closed to others than the server's user, it can still be told from nothing.
fn is_data_directory(dir: &Path) -> bool {
    match std::fs::metadata(dir.join("PG_VERSION")) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

/// What `doctor` asks of the server.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Fitness {
    /// The role that is logged in.
    pub role: String,
    /// The database's encoding.
    pub encoding: String,
    /// The database's collation.
    pub locale: String,
    /// Privileges that are missing, each as the GRANT that lifts it.
    #[serde(skip)]
    pub missing: Vec<String>,
    /// Schemas that hold a relation named `ops_1`.
    pub ops_1: Vec<String>,
    /// The server's clock.
    pub now: jiff::Timestamp,
}

/// Reads what `doctor` asks of the server; `tables` are the record tables.
pub async fn fitness(client: &Client, tables: &[&str]) -> Result<Fitness> {
    let missing = rows::all(client, MISSING, &[&tables], "look at the privileges").await?;
    Ok(Fitness { missing, ..rows::one(client, FITNESS, &[], "look at the database").await? })
}

const FITNESS: &str = "
    SELECT current_user::text AS role, pg_encoding_to_char(d.encoding)::text AS encoding,
           d.datcollate::text AS locale,
           ARRAY(SELECT relnamespace::regnamespace::text FROM pg_class
                 WHERE relname = 'ops_1' ORDER BY 1) AS ops_1,
           clock_timestamp() AS now
    FROM pg_database d WHERE d.datname = current_database()";

/// Opsward inserts ops and cursors, and writes whole records.
const MISSING: &str = "
    WITH needed(relation, privilege) AS (
        SELECT 'ops', p FROM unnest(ARRAY['SELECT', 'INSERT']) p
        UNION ALL SELECT 'cursors', p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) p
        UNION ALL SELECT t, p FROM unnest($1::text[]) t,
                                   unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p)
    SELECT format('GRANT %s ON public.%I TO %I', string_agg(privilege, ', '), relation, current_user)
    FROM needed
    WHERE NOT coalesce(has_table_privilege(to_regclass(format('public.%I', relation)), privilege), true)
    GROUP BY relation
    UNION ALL
    SELECT format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_user)
    WHERE to_regnamespace('opsward') IS NULL
      AND NOT has_database_privilege(current_database(), 'CREATE')";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TlsMode;
    use std::time::Duration;

    fn target(host: &str) -> DbTarget {
        DbTarget {
            hosts: vec![(host.into(), 5432)],
            user: "postgres".into(),
            password: None,
            dbname: None,
            tls: TlsMode::Disable,
            root_cert: None,
            client_cert: None,
            connect_timeout: Duration::from_secs(1),
            primary_only: false,
            params: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_remote_servers_path_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().to_str();
        assert_eq!(free_disk(None, &target("localhost"), text), None);
        std::fs::write(dir.path().join("PG_VERSION"), "15").unwrap();
        assert!(free_disk(None, &target("localhost"), text).is_some());
        assert!(free_disk(None, &target("127.0.0.1"), text).is_some());
        assert_eq!(free_disk(None, &target("db.example"), text), None);
        let set = free_disk(Some(dir.path()), &target("db.example"), None);
        assert!(set.is_some_and(|(bytes, _)| bytes > 0));
    }

    #[test]
    fn every_volume_that_is_written_to_is_known_or_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("PG_VERSION"), "15").unwrap();
        let data_directory = dir.path().to_str().map(str::to_owned);
        let of = |tablespaces: &[(&str, &str)]| {
            let tablespaces = tablespaces.iter().map(|(w, p)| ((*w).to_owned(), (*p).to_owned())).collect();
            volumes(
                None,
                &target("localhost"),
                &Places { data_directory: data_directory.clone(), tablespaces },
            )
        };
        let names = |v: &Volumes| v.known.iter().map(|v| v.what.clone()).collect::<Vec<_>>();
        assert_eq!(names(&of(&[])), ["the database's volume"]);
        assert!(of(&[]).unknown.is_empty());
        // Another file system, nothing of which is ever free.
        let full = of(&[("ops", "/proc")]);
        assert_eq!(names(&full), ["the database's volume", "the volume of /proc (ops)"]);
        assert_eq!((full.least(), full.wal() == full.least()), (Some(0), false));
        let nowhere = of(&[("the database", "/nowhere/at/all")]);
        assert_eq!(nowhere.unknown, ["the database, in the tablespace at /nowhere/at/all"]);
        std::os::unix::fs::symlink("/proc", dir.path().join("pg_wal")).unwrap();
        assert_eq!(of(&[]).wal(), Some(0));
        std::fs::remove_file(dir.path().join("pg_wal")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("pg_wal")).unwrap();
        assert_eq!(of(&[]).unknown, ["pg_wal, which is a link to elsewhere"]);
    }
}
