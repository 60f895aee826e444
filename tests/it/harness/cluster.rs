//! A PostgreSQL 15 of our own: locale and encoding as the node's container
//! has them, on a free port, gone when the process that made it is gone.
//!
//! Needs nothing of this crate, so that benches and the demo include it by
//! `#[path]`.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

/// Which generation of node made the schema (`tests/fixtures/README.md`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Schema {
    /// Ops come from peers.
    A,
    /// From peers and from the chain.
    B,
    /// From the chain alone.
    C,
}

impl Schema {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    /// That of this run: `OPSWARD_TEST_SCHEMA=b` or `c` has every test that
    /// names none run on it; the oldest where none is named.
    pub fn of_run() -> Self {
        match std::env::var("OPSWARD_TEST_SCHEMA").as_deref() {
            Ok("b") => Self::B,
            Ok("c") => Self::C,
            Ok("a") | Err(_) => Self::A,
            Ok(other) => panic!("OPSWARD_TEST_SCHEMA is {other:?}, and may be a, b or c"),
        }
    }

    pub fn sql(self) -> &'static str {
        match self {
            Self::A => include_str!("../../fixtures/node-schema.sql"),
            Self::B => include_str!("../../fixtures/node-schema-b.sql"),
            Self::C => include_str!("../../fixtures/node-schema-c.sql"),
        }
    }

    /// With a node that has read the chain up to now, where there is one.
    fn filled(self) -> String {
        match self {
            Self::A => self.sql().to_owned(),
            Self::B | Self::C => format!("{}\n{READ_UP_TO_NOW}", self.sql()),
        }
    }
}

const READ_UP_TO_NOW: &str = "INSERT INTO public.core_blocks (height, chain_id, hash, proposer, created_at)
        VALUES (1000, 'mainnet-1', '', '', now() AT TIME ZONE 'UTC');
    INSERT INTO public.cursors VALUES ('core_mediorum_blocks', '1000');";

/// The database with the node's schema that others are cloned from.
pub const TEMPLATE: &str = "node_template";
/// A role without any grant of its own, for tests of missing privileges.
pub const PLAIN_ROLE: &str = "plain";
/// The one role that has to say its password over TCP.
pub const PASSWORD_ROLE: &str = "guarded";
/// Its password; with characters that a URL has to escape.
pub const PASSWORD: &str = "p@ss/wörd %1";

/// Where distributions put the binaries of version 15; else the PATH.
const BIN_DIRS: [&str; 2] = ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin"];
/// The address of the server, over TCP.
const ADDRESS: &str = "127.0.0.1";
/// Another process may take a free port between the look and the start.
const PORT_TRIES: u32 = 5;

const CONF: &str = "
listen_addresses = '127.0.0.1'
max_connections = 200
fsync = off
synchronous_commit = off
full_page_writes = off
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%a@%d '
";

/// The guarded role says its password over TCP, everybody else is trusted.
const HBA: &str = "
local all all trust
host all guarded 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
local replication all trust
";

/// How a server is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Sessions are ended, data is flushed.
    Fast,
    /// As by a power cut; the next start recovers.
    Immediate,
}

/// A running server with its data in a directory of its own. Stopped and
/// removed when dropped, and when the process ends in whatever way.
pub struct Cluster {
    root: PathBuf,
    port: u16,
    /// Ends the server when its standard input ends: ours, held here.
    watchdog: Child,
}

impl Cluster {
    /// The one that all tests of this process share. Nobody stops it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::private)
    }

    /// One of the caller's own, to be stopped, killed and reconfigured.
    ///
    /// # Panics
    /// With what is missing, where PostgreSQL 15 or its locale is.
    pub fn private() -> Self {
        Self::private_in(&std::env::temp_dir())
    }

    /// The same with its data below a directory, on a volume of its own say.
    ///
    /// # Panics
    /// As [`Self::private`].
    pub fn private_in(base: &Path) -> Self {
        let root = make_root(base);
        // From here on a death of this process ends what was begun.
        let watchdog = watch(&root);
        init(&root);
        let mut cluster = Self { root, port: 0, watchdog };
        cluster.first_start();
        cluster.fill();
        cluster
    }

    /// The TCP port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.root
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The server's own log, as far as it got.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.root.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A URL of a database, by the superuser.
    pub fn url(&self, dbname: &str) -> String {
        let port = self.port;
        format!("postgresql://postgres:postgres@{ADDRESS}:{port}/{dbname}")
    }

    /// The driver's settings for a database, by the superuser.
    pub fn config(&self, dbname: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host(ADDRESS).port(self.port).user("postgres").password("postgres").dbname(dbname);
        config
    }

    /// A session as the superuser, with the server's defaults.
    ///
    /// # Panics
    /// When it does not come about.
    pub async fn connect(&self, dbname: &str) -> tokio_postgres::Client {
        connect(&self.config(dbname)).await
    }

    /// Makes a database from a template, by default the node's schema.
    ///
    /// # Panics
    /// With the server's words when it refuses.
    pub async fn create_database(&self, name: &str, template: &str) {
        // One at a time: each reads all of the template, and the server
        // refuses while another session is in it.
        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _one = ONE.lock().await;
        let admin = self.connect("postgres").await;
        let sql = format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\"");
        admin.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Adds lines to postgresql.conf; they hold from the next start on.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn configure(&self, lines: &str) {
        append(&self.data_dir().join("postgresql.conf"), lines);
    }

    /// Puts a line before all others in pg_hba.conf and has it read.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn hba_first(&self, line: &str) {
        let path = self.data_dir().join("pg_hba.conf");
        let old = std::fs::read_to_string(&path).expect("pg_hba.conf");
        std::fs::write(&path, format!("{line}\n{old}")).expect("pg_hba.conf");
        self.pg_ctl(&["reload"]);
    }

    /// Stops the server.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&self, how: Stop) {
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        };
        self.pg_ctl(&["stop", "-w", "-m", mode]);
    }

    /// Starts the server again, on the same port.
    ///
    /// # Panics
    /// With its log when it does not start.
    pub fn start(&self) {
        if let Err(words) = self.try_start() {
            panic!("PostgreSQL does not start: {words}\n{}", self.log());
        }
    }

    fn first_start(&mut self) {
        let mut words = String::new();
        for _ in 0..PORT_TRIES {
            self.port = free_port();
            match self.try_start() {
                Ok(()) => return,
                Err(w) => words = w,
            }
            if !self.log().contains("Address already in use") {
                break;
            }
        }
        panic!("PostgreSQL does not start: {words}\n{}", self.log());
    }

    fn try_start(&self) -> Result<(), String> {
        let log = self.root.join("log");
        let options = format!("-p {} -k {}", self.port, self.root.display());
        let data = self.data_dir();
        let mut command = server_command("pg_ctl");
        command.args(["start", "-w", "-t", "60", "-s", "-o", &options]);
        command.arg("-D").arg(data).arg("-l").arg(log);
        // Its own group: Ctrl-C at the terminal is the watchdog's matter.
        command.process_group(0);
        succeeded(&mut command, &self.root)
    }

    fn pg_ctl(&self, args: &[&str]) {
        let mut command = server_command("pg_ctl");
        command.args(args).arg("-s").arg("-D").arg(self.data_dir());
        if let Err(words) = succeeded(&mut command, &self.root) {
            panic!("pg_ctl {args:?}: {words}");
        }
    }

    fn fill(&self) {
        self.psql(
            "postgres",
            &format!(
                "ALTER ROLE postgres PASSWORD 'postgres';
                 CREATE ROLE {PLAIN_ROLE} LOGIN;
                 CREATE ROLE {PASSWORD_ROLE} LOGIN SUPERUSER PASSWORD '{PASSWORD}';
                 CREATE DATABASE {TEMPLATE} TEMPLATE template0;"
            ),
        );
        self.psql(TEMPLATE, &Schema::of_run().filled());
    }

    /// Runs SQL by psql: for what the driver can't do, `COPY` and scripts.
    ///
    /// # Panics
    /// With the server's words at the first error.
    pub fn psql(&self, dbname: &str, sql: &str) {
        let mut command = Command::new(binary("psql"));
        command
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-h"])
            .arg(&self.root)
            .args(["-p", &self.port.to_string(), "-U", "postgres", "-d", dbname])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("psql");
        let mut stdin = child.stdin.take().expect("psql's input");
        stdin.write_all(sql.as_bytes()).expect("psql's input");
        drop(stdin);
        let output = child.wait_with_output().expect("psql");
        assert!(output.status.success(), "psql: {}", words(&output));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// A session of the driver, its connection driven until it ends.
///
/// # Panics
/// When it does not come about.
pub async fn connect(config: &tokio_postgres::Config) -> tokio_postgres::Client {
    let (client, connection) =
        config.connect(tokio_postgres::NoTls).await.unwrap_or_else(|e| panic!("no session: {e:?}"));
    tokio::spawn(connection);
    client
}

/// A port of 127.0.0.1 that nobody listens on just now, and that was not given before: two who
/// ask, one after the other, are to listen at the same time.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind((ADDRESS, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        if GIVEN.lock().expect("nobody panics in it").insert(port) {
            return port;
        }
    }
}

/// A name no other database of this process has.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{prefix}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A directory of the user that runs the server. Short, in `/tmp` if need be:
/// a socket's path has at most 107 bytes.
fn make_root(base: &Path) -> PathBuf {
    let base = if base.as_os_str().len() > 60 { Path::new("/tmp") } else { base };
    let output = as_server(Path::new("mktemp"))
        .args(["-d", "-p"])
        .arg(base)
        .arg("opsward-pg-XXXXXX")
        .output()
        .expect("mktemp");
    assert!(output.status.success(), "no directory in {}: {}", base.display(), words(&output));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

fn init(root: &Path) {
    let data = root.join("data");
    let mut command = server_command("initdb");
    command
        .args(["-U", "postgres", "--locale=en_US.UTF-8", "-E", "UTF8"])
        .args(["-A", "trust", "--no-sync", "--no-instructions", "-D"])
        .arg(&data);
    if let Err(words) = succeeded(&mut command, root) {
        if words.contains("invalid locale") {
            panic!(
                "the locale en_US.UTF-8 is missing (bash tests/run.sh makes it, or as root: \
                 localedef -i en_US -f UTF-8 en_US.UTF-8): {words}"
            );
        }
        panic!("initdb: {words}");
    }
    append(&data.join("postgresql.conf"), CONF);
    std::fs::write(data.join("pg_hba.conf"), HBA).expect("pg_hba.conf");
}

/// A shell that outlives us and reads from us: whatever way this process
/// ends, its input ends too, and the server and its data go.
fn watch(root: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' HUP INT TERM
        read -r _
        "$1" stop -s -w -t 20 -m immediate -D "$2/data" || true
        rm -rf "$2""#;
    as_server(Path::new("sh"))
        .args(["-c", SCRIPT, "watchdog"])
        .arg(binary("pg_ctl"))
        .arg(root)
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell to watch the server")
}

fn append(path: &Path, lines: &str) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    writeln!(file, "{lines}").unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A binary of version 15, wherever it was installed, or of the server that
/// `OPSWARD_TEST_SERVER` names as a list of directories.
pub fn binary(name: &str) -> PathBuf {
    let named = std::env::var_os("OPSWARD_TEST_SERVER").unwrap_or_default();
    std::env::split_paths(&named)
        .chain(BIN_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

fn server_command(name: &str) -> Command {
    let mut command = as_server(&binary(name));
    command.current_dir("/");
    command
}

/// A command as the user that runs the server: PostgreSQL refuses root.
fn as_server(program: &Path) -> Command {
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !root {
        return Command::new(program);
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = ["postgres", "nobody"]
        .into_iter()
        .find(|user| users.lines().any(|l| l.starts_with(&format!("{user}:"))))
        .expect("as root, a user postgres is needed to run the server");
    let mut command = Command::new("runuser");
    command.args(["-u", user, "--"]).arg(program);
    command
}

/// Runs a command that says nothing when all is well. Its output goes to a
/// file: a server that it leaves behind would hold a pipe open.
fn succeeded(command: &mut Command, root: &Path) -> Result<(), String> {
    let path = root.join(unique("out"));
    let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
    let both = file.try_clone().map_err(|e| e.to_string())?;
    let status = command.stdin(Stdio::null()).stdout(both).stderr(file).status();
    let said = std::fs::read(&path).unwrap_or_default();
    let _ = std::fs::remove_file(&path);
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{status}: {}", String::from_utf8_lossy(&said))),
        Err(e) => Err(format!("{command:?}: {e} (bash tests/run.sh installs PostgreSQL 15)")),
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
