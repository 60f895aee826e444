//! The real binary, with settings of the test's own, watched by what it says.

use super::cluster::free_port;
use super::http;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// When to give a hung process up. No test should ever get there.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at `/readyz`: nothing outside can be told of it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How the binary is to be started.
pub struct Start {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

/// A started binary. Killed when dropped, and when this process dies.
pub struct Daemon {
    pid: u32,
    public: SocketAddr,
    admin: SocketAddr,
    said: Arc<Said>,
}

struct Said {
    stderr: Mutex<Vec<String>>,
    stdout: Mutex<String>,
    /// Lines on stderr so far.
    lines: watch::Sender<usize>,
    exit: watch::Sender<Option<ExitStatus>>,
}

/// What a command left.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All it printed.
    pub stdout: String,
    /// All it logged.
    pub stderr: String,
}

impl Start {
    /// `opsward` with arguments and no settings at all. Only PATH is inherited.
    pub fn new(args: &[&str]) -> Self {
        Self { args: args.iter().map(|a| (*a).to_owned()).collect(), env: Vec::new() }
    }

    /// `opsward run` on a database, as a host, without peers.
    pub fn run(db_url: &str, host: &str) -> Self {
        Self::new(&["run"])
            .env("OPENAUDIO_DB_URL", db_url)
            .env("OPENAUDIO_NODE_ENDPOINT", host)
            .env("OPENAUDIO_MEDIORUM_PEERS", "none")
    }

    /// Sets a variable; the last one of a name holds.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Starts it on free ports of 127.0.0.1, unless told others.
    pub fn spawn(self) -> Daemon {
        let public = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        // setpriv ends the child when the thread that started it ends: that
        // is the one below, which lives as long as the child or this process.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_opsward")])
            .args(&self.args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("OPENAUDIO_MEDIORUM_SIDECAR_LISTEN", public.to_string())
            .env("OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN", admin.to_string())
            .envs(self.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let said = Arc::new(Said {
            stderr: Mutex::default(),
            stdout: Mutex::default(),
            lines: watch::Sender::new(0),
            exit: watch::Sender::new(None),
        });
        let (started, pid) = std::sync::mpsc::channel();
        let to = said.clone();
        std::thread::spawn(move || follow(command, &started, &to));
        Daemon { pid: pid.recv().unwrap(), public, admin, said }
    }

    /// Runs a command to its end: its exit code and envelope.
    pub async fn json(mut self) -> (i32, serde_json::Value) {
        self.args.extend(["--output".to_owned(), "json".to_owned()]);
        let ran = self.output().await;
        let value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        (ran.code.unwrap_or(-1), value)
    }

    /// Runs it to its end.
    pub async fn output(self) -> Ran {
        self.spawn().ran().await
    }
}

impl Daemon {
    /// The public listener: the sweep.
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// The operator's listener.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Everything it logged so far.
    pub fn log(&self) -> String {
        self.said.stderr.lock().unwrap().join("\n")
    }

    /// Waits for a line of its log, a past one too, and returns it.
    pub async fn line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let mut lines = self.said.lines.subscribe();
        let mut exit = self.said.exit.subscribe();
        let found = || {
            let log = self.said.stderr.lock().unwrap();
            log.iter().find(|line| wanted(line)).cloned()
        };
        let wait = async {
            loop {
                lines.mark_unchanged();
                if let Some(line) = found() {
                    return Some(line);
                }
                tokio::select! {
                    _ = lines.changed() => {}
                    _ = exit.wait_for(Option::is_some) => return found(),
                }
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Some(line)) => line,
            _ => panic!("it never said that; it said:\n{}", self.log()),
        }
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        self.status_of("/readyz", 200).await;
    }

    /// Waits until an admin path answers with a status.
    pub async fn status_of(&self, path: &str, status: u16) {
        let look = async {
            loop {
                let answer = http::try_request("GET", self.admin, path, &[]).await;
                if answer.is_ok_and(|a| a.status == status) {
                    return;
                }
                assert!(self.said.exit.borrow().is_none(), "it ended:\n{}", self.log());
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        if tokio::time::timeout(PATIENCE, look).await.is_err() {
            panic!("{path} never answered {status}:\n{}", self.log());
        }
    }

    /// Sends a signal, by name: `TERM`, `INT`, `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        if self.said.exit.borrow().is_none() {
            let pid = self.pid.to_string();
            let _ = Command::new("kill").args(["-s", name, &pid]).status();
        }
    }

    /// Waits for its end.
    pub async fn exit(&self) -> ExitStatus {
        let mut exit = self.said.exit.subscribe();
        let ended = exit.wait_for(Option::is_some);
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok(status) => status.unwrap().unwrap(),
            Err(_) => panic!("it does not end:\n{}", self.log()),
        }
    }

    /// Waits for its end and returns what it left.
    pub async fn ran(&self) -> Ran {
        let code = self.exit().await.code();
        Ran { code, stdout: self.said.stdout.lock().unwrap().clone(), stderr: self.log() }
    }

    /// Resident memory now, in bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid);
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find(|l| l.starts_with("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal("KILL");
    }
}

fn follow(mut command: Command, started: &std::sync::mpsc::Sender<u32>, said: &Said) {
    let mut child = command.spawn().expect("the binary");
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    started.send(child.id()).unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut text = String::new();
            let _ = stdout.expect("piped").read_to_string(&mut text);
            *said.stdout.lock().unwrap() = text;
        });
        for line in BufReader::new(stderr.expect("piped")).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            said.stderr.lock().unwrap().push(line);
            said.lines.send_modify(|n| *n += 1);
        }
    });
    let status = child.wait().unwrap_or(ExitStatus::from_raw(255 << 8));
    said.exit.send_replace(Some(status));
}
