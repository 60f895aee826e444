//! A line to PostgreSQL that reads what passes: it counts the statements that
//! are executed, and stops the world at a chosen one, so that a process can be
//! killed anywhere; or holds a chosen one back, so that anything can happen
//! before it.

mod plan;
mod protocol;

pub use plan::{Event, Matcher, PerKind, Plan, Point, Sessions, When, kill_points, kind};

use super::cluster::Cluster;
use super::daemon::{Ran, Start};
use protocol::{CANCEL, GSS, Prepared, SSL, Way, parameter, sqlstate, text};
use std::collections::VecDeque;
use std::io::Result;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks at the server's sessions: nothing else tells of their end.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A line that listens; what connects waits until it runs.
pub struct Wire {
    listener: TcpListener,
    upstream: SocketAddr,
}

/// A line at work; it ends with its connections when dropped.
pub struct Running {
    world: Arc<World>,
    address: SocketAddr,
    end: CancellationToken,
}

type OnStop = Box<dyn FnOnce(&Event) + Send>;

struct World {
    upstream: SocketAddr,
    plan: Plan,
    seen: Mutex<Seen>,
    on_stop: Mutex<Option<OnStop>>,
    stopped: watch::Sender<Option<Event>>,
    held: watch::Sender<Option<Event>>,
    /// What is held may go on.
    let_go: CancellationToken,
    /// Nothing passes any more.
    frozen: CancellationToken,
    /// The frozen connections may go.
    released: CancellationToken,
    cancels: AtomicU64,
}

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    connections: u64,
    /// Process ids of the server's sessions.
    sessions: Vec<i32>,
}

/// What a client sent that the server will answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Query(u64),
    Execute(u64),
    Sync,
}

/// A connection's state that both ways share.
#[derive(Default)]
struct Line {
    due: Mutex<VecDeque<Due>>,
    /// The execution after whose answer the world stops.
    marked: Mutex<Option<Event>>,
}

/// What passes the line, once looked at.
enum Verdict {
    Pass,
    /// The world stops after its answer.
    Mark(Event),
    /// The world stops here.
    Stop(Event),
    /// It has stopped already.
    Frozen,
    /// This one waits until it is let go.
    Hold(Event),
}

impl Wire {
    /// Listens on a free port of 127.0.0.1.
    pub async fn to(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self { listener, upstream: ([127, 0, 0, 1], cluster.port()).into() }
    }

    /// A URL of a database through the line, by the superuser, in the clear.
    pub fn url(&self, dbname: &str) -> String {
        let at = self.listener.local_addr().unwrap();
        format!("postgresql://postgres:postgres@{at}/{dbname}?sslmode=disable")
    }

    /// Starts to pass. `on_stop` runs when the world has stopped and before
    /// any socket is closed: the place to kill.
    pub fn run(self, plan: Plan, on_stop: impl FnOnce(&Event) + Send + 'static) -> Running {
        let address = self.listener.local_addr().unwrap();
        let world = Arc::new(World {
            upstream: self.upstream,
            plan,
            seen: Mutex::default(),
            on_stop: Mutex::new(Some(Box::new(on_stop))),
            stopped: watch::Sender::new(None),
            held: watch::Sender::new(None),
            let_go: CancellationToken::new(),
            frozen: CancellationToken::new(),
            released: CancellationToken::new(),
            cancels: AtomicU64::new(0),
        });
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(listen(
            self.listener,
            world.clone(),
            end.clone(),
        )));
        Running { world, address, end }
    }

    /// Starts to pass, and only observes.
    pub fn observe(self) -> Running {
        self.run(Plan::Observe, |_| {})
    }
}

impl Running {
    /// The driver's settings for a database through the line.
    pub fn config(&self, dbname: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.address.port()).user("postgres").password("postgres");
        config.dbname(dbname).ssl_mode(tokio_postgres::config::SslMode::Disable);
        config
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Waits until the statement has come that is to be held back.
    pub async fn held(&self) -> Event {
        let mut held = self.world.held.subscribe();
        held.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }

    /// Lets it go on its way.
    pub fn let_go(&self) {
        self.world.let_go.cancel();
    }

    /// Everything executed so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.world.seen.lock().unwrap().events.clone()
    }

    /// The execution at which the world stopped, if it has.
    pub fn stop_event(&self) -> Option<Event> {
        self.world.stopped.borrow().clone()
    }

    /// Waits until the world has stopped and the callback has run.
    pub async fn stopped(&self) -> Event {
        let mut stopped = self.world.stopped.subscribe();
        stopped.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }

    /// Requests to cancel a statement, passed on so far.
    pub fn cancels(&self) -> u64 {
        self.world.cancels.load(Ordering::SeqCst)
    }

    /// Ends sessions that were left hanging.
    pub fn release(&self) {
        self.world.released.cancel();
    }

    /// Waits until none of the server's sessions that came through the line
    /// is left: a statement runs to its end although its client is gone.
    pub async fn sessions_ended(&self, client: &tokio_postgres::Client) {
        let sessions = self.world.seen.lock().unwrap().sessions.clone();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
        while client.query_one(sql, &[&sessions]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// What a run of the binary through a line left.
pub struct Trial {
    /// How the binary ended, and what it said.
    pub ran: Ran,
    /// What it executed.
    pub events: Vec<Event>,
    /// Where it was killed; `None` when it never got there.
    pub killed_at: Option<Event>,
}

/// Runs the binary on a database through a line, kills it (-9) where the plan
/// stops, and waits for its end and for that of the server's sessions.
pub async fn trial(
    cluster: &Cluster,
    dbname: &str,
    plan: Plan,
    start: impl FnOnce(String) -> Start,
) -> Trial {
    let wire = Wire::to(cluster).await;
    let daemon = start(wire.url(dbname)).spawn();
    let pid = daemon.pid();
    let line = wire.run(plan, move |_| kill(pid));
    let ran = daemon.ran().await;
    line.release();
    line.sessions_ended(&cluster.connect("postgres").await).await;
    Trial { ran, events: line.events(), killed_at: line.stop_event() }
}

/// Ends a process at once: `kill -9`.
pub fn kill(pid: u32) {
    let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
}

impl World {
    /// Counts an execution and says what becomes of it.
    fn execution(&self, connection: u64, application: &str, sql: String, due: impl Fn(u64)) -> Verdict {
        let mut seen = self.seen.lock().unwrap();
        if self.frozen.is_cancelled() {
            return Verdict::Frozen;
        }
        let number = seen.events.len() as u64 + 1;
        let (kind, application) = (kind(&sql), application.to_owned());
        let event = Event { number, connection, application, sql, kind, answer: None };
        let hit = match &self.plan {
            Plan::Stop { at, when, .. } if at.is(&event, &seen.events) => Some(*when),
            Plan::Hold { at } if at.is(&event, &seen.events) => {
                seen.events.push(event.clone());
                due(number);
                return Verdict::Hold(event);
            }
            _ => None,
        };
        seen.events.push(event.clone());
        match hit {
            Some(When::Before) => {
                self.frozen.cancel();
                Verdict::Stop(event)
            }
            Some(When::After) => {
                due(number);
                Verdict::Mark(event)
            }
            None => {
                due(number);
                Verdict::Pass
            }
        }
    }

    fn answered(&self, number: u64, answer: String) {
        let mut seen = self.seen.lock().unwrap();
        seen.events[number as usize - 1].answer = Some(answer);
    }

    /// Stops everything, lets the callback kill, then lets go of the sockets.
    fn stop(&self, event: &Event) {
        self.frozen.cancel();
        let event = self.seen.lock().unwrap().events[event.number as usize - 1].clone();
        if let Some(on_stop) = self.on_stop.lock().unwrap().take() {
            on_stop(&event);
        }
        if matches!(self.plan, Plan::Stop { sessions: Sessions::Cut, .. }) {
            self.released.cancel();
        }
        self.stopped.send_replace(Some(event));
    }
}

async fn listen(listener: TcpListener, world: Arc<World>, end: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = world.frozen.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        if let Ok((client, _)) = accepted {
            let carried = carry(client, world.clone());
            tokio::spawn(end.clone().run_until_cancelled_owned(carried));
        }
    }
    // Whoever comes now is refused as soon as the sockets may go.
    world.released.cancelled().await;
}

async fn carry(client: TcpStream, world: Arc<World>) {
    let Ok(server) = TcpStream::connect(world.upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (mut up, mut down) = (Way::new(from_client, to_server), Way::new(from_server, to_client));
    let line = Line::default();
    let both = async {
        let Ok(Some((number, application))) = begin(&mut up, &mut down, &world).await else { return };
        let there = async {
            let _ = upward(&mut up, &world, &line, (number, &application)).await;
            up.end().await;
            // The server ends the connection, also when the client is gone.
            std::future::pending().await
        };
        tokio::select! {
            () = there => {}
            _ = downward(&mut down, &world, &line) => {}
        }
        // The server went away in the middle of the answer: that is one too.
        let marked = line.marked.lock().unwrap().take();
        if let Some(event) = marked {
            world.stop(&event);
        }
    };
    tokio::select! {
        biased;
        () = world.frozen.cancelled() => {}
        () = both => {}
    }
    if world.frozen.is_cancelled() {
        world.released.cancelled().await;
    }
}

/// The start of a connection: its number and `application_name`; `None` when
/// it was a request to cancel, and is over.
async fn begin(up: &mut Way, down: &mut Way, world: &World) -> Result<Option<(u64, String)>> {
    loop {
        let (code, packet) = up.start_up().await?;
        match code {
            SSL | GSS => down.write(b"N").await?,
            CANCEL => {
                world.cancels.fetch_add(1, Ordering::SeqCst);
                up.write(&packet).await?;
                // The server closes when it has taken note.
                down.all().await?;
                return Ok(None);
            }
            _ => {
                up.write(&packet).await?;
                let mut seen = world.seen.lock().unwrap();
                seen.connections += 1;
                let application = parameter(&packet, "application_name").unwrap_or_default();
                return Ok(Some((seen.connections, application)));
            }
        }
    }
}

async fn upward(up: &mut Way, world: &World, line: &Line, who: (u64, &str)) -> Result<()> {
    let mut prepared = Prepared::default();
    let mut marked = false;
    while let Some(message) = up.next(b"QPBEC").await? {
        let tag = message.tag;
        if marked && !matches!(tag, b'd' | b'c' | b'f' | b'S') {
            // Behind the marked one only what ends it passes.
            up.flush().await?;
            return std::future::pending().await;
        }
        if let Some(sql) = prepared.follow(&message) {
            let due = |n| {
                let due = if tag == b'Q' { Due::Query(n) } else { Due::Execute(n) };
                line.due.lock().unwrap().push_back(due);
            };
            match world.execution(who.0, who.1, sql, due) {
                Verdict::Pass => {}
                Verdict::Mark(event) => {
                    marked = true;
                    *line.marked.lock().unwrap() = Some(event);
                }
                Verdict::Stop(event) => {
                    up.flush().await?;
                    world.stop(&event);
                    return std::future::pending().await;
                }
                Verdict::Frozen => return std::future::pending().await,
                Verdict::Hold(event) => {
                    up.flush().await?;
                    world.held.send_replace(Some(event));
                    world.let_go.cancelled().await;
                }
            }
        }
        line.sent(tag);
        up.pass(message).await?;
    }
    Ok(())
}

async fn downward(down: &mut Way, world: &World, line: &Line) -> Result<()> {
    while let Some(message) = down.next(b"CEZK").await? {
        let (tag, head) = (message.tag, &message.head);
        if let (b'K', Some(pid)) = (tag, head.first_chunk::<4>()) {
            world.seen.lock().unwrap().sessions.push(i32::from_be_bytes(*pid));
        }
        let marked = line.marked.lock().unwrap().clone();
        // Asked before this answer takes its place in the queue.
        let marked = marked.filter(|event| line.has_turn(event.number));
        if let Some(number) = line.turn(tag) {
            let answer = match tag {
                b'C' => text(head, 0),
                b'E' => format!("ERROR {}", sqlstate(head)),
                b's' => "SUSPENDED".to_owned(),
                _ => String::new(),
            };
            world.answered(number, answer);
        }
        match marked {
            // Rows and streams may pass; that the statement is done does not.
            Some(event) if b"CIsEZ".contains(&tag) => {
                down.swallow(message).await?;
                if tag == b'Z' {
                    line.marked.lock().unwrap().take();
                    world.stop(&event);
                    return std::future::pending().await;
                }
            }
            _ => down.pass(message).await?,
        }
    }
    Ok(())
}

impl Line {
    /// Takes note of a message that ends a group.
    fn sent(&self, tag: u8) {
        let mut due = self.due.lock().unwrap();
        match tag {
            b'S' | b'F' => due.push_back(Due::Sync),
            // A Sync sent while the server takes COPY data goes unanswered.
            b'c' | b'f' => while due.pop_back_if(|d| *d == Due::Sync).is_some() {},
            _ => {}
        }
    }

    /// Whether the next answer is this execution's: all before it have theirs.
    fn has_turn(&self, number: u64) -> bool {
        let due = self.due.lock().unwrap();
        let place = due.iter().position(|d| matches!(d, Due::Query(n) | Due::Execute(n) if *n == number));
        place.is_none_or(|place| place == 0)
    }

    /// Takes note of an answer; the execution that it is the answer of.
    fn turn(&self, tag: u8) -> Option<u64> {
        let mut due = self.due.lock().unwrap();
        let first = due.front().copied();
        match (tag, first) {
            (b'C' | b'I' | b's' | b'E', Some(Due::Query(n))) => Some(n),
            (b'C' | b'I' | b's', Some(Due::Execute(n))) => {
                due.pop_front();
                Some(n)
            }
            (b'E', Some(Due::Execute(n))) => {
                // The server skips everything up to the Sync.
                while due.pop_front_if(|d| matches!(d, Due::Execute(_))).is_some() {}
                Some(n)
            }
            (b'Z', _) => {
                while matches!(due.pop_front(), Some(Due::Execute(_))) {}
                None
            }
            _ => None,
        }
    }
}
