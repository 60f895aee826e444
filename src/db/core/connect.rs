//! One way into the database: a pool of sessions that are all set up alike.

use crate::db::{Doing, Error, Kind, Result, lock_budget::Budget, session};
use crate::settings::{DbTarget, TlsMode};
use crate::tls::{self, Verify};
use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult, TimeoutType};
use deadpool_postgres::ClientWrapper;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio_postgres::CancelToken;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

/// A session from the pool.
pub type Client = Object<Manager>;
type Pool = managed::Pool<Manager>;

/// A session of the server, set up as all are.
pub struct Session {
    pub(super) wrapper: ClientWrapper,
    /// How a cancel is sent to the server.
    pub(super) tls: MakeRustlsConnect,
    /// Ends the connection without asking the server.
    pub(super) connection: AbortHandle,
    /// A cancel was sent lately: it may arrive when the next statement is under way.
    pub(super) is_cancelled: Arc<AtomicBool>,
}

impl Deref for Session {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.wrapper
    }
}

/// Makes the sessions of a pool.
pub struct Manager {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    shown: Arc<str>,
}

impl managed::Manager for Manager {
    type Type = Session;
    type Error = Error;

    #[allow(clippy::disallowed_methods, reason = "a connection lives as long as its session")]
    async fn create(&self) -> Result<Session> {
        let connected = self.config.connect(self.tls.clone()).await;
        let (client, connection) = connected.map_err(|e| connect_error(&self.shown, &e))?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to the database ended");
            }
        });
        let abort = connection.abort_handle();
        let wrapper = ClientWrapper::new(client, connection);
        session::check(&wrapper, &self.shown).await?;
        let is_cancelled = Arc::new(AtomicBool::new(false));
        Ok(Session { wrapper, tls: self.tls.clone(), connection: abort, is_cancelled })
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<Error> {
        match session.is_closed() {
            true => Err(RecycleError::message("closed")),
            false => Ok(()),
        }
    }
}

/// The databases a node may use, in the order they are looked for.
const KNOWN_DATABASES: [&str; 2] = ["openaudio", "audius_creator_node"];
/// How long a caller waits for a free connection.
const WAIT: Duration = Duration::from_secs(3);
/// The oldest server that has all that is used here.
const OLDEST_SERVER: u32 = 130_000;

/// The node's database: a pool of connections, each pinned to
/// `search_path = public, pg_temp` and bounded in time. Cloning is cheap.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
    tls: MakeRustlsConnect,
    shown: Arc<str>,
    locks: Budget,
}

impl Db {
    /// Connects as `application_name` with at most `size` connections, finds
    /// the database that holds `ops`, and checks that it can be worked with.
    ///
    /// # Errors
    /// Away, denied, or unfit with a sentence on what to do.
    pub async fn open(target: &DbTarget, application_name: &str, size: usize) -> Result<Self> {
        let names: Vec<&str> = match &target.dbname {
            Some(name) => vec![name],
            None => KNOWN_DATABASES.to_vec(),
        };
        let mut misses = Vec::new();
        for name in names {
            let target = DbTarget { dbname: Some(name.to_owned()), ..target.clone() };
            let tls = MakeRustlsConnect::new(tls_config(&target)?);
            let shown: Arc<str> = target.shown().into();
            let manager =
                Manager { config: config(&target, application_name), tls: tls.clone(), shown: shown.clone() };
            let pool = pool(manager, size, target.connect_timeout)?;
            let db = Self { pool, tls, shown, locks: Budget::default() };
            match db.check().await {
                Ok(()) => return Ok(db),
                // Only "not here" lets the search go on.
                Err(Error::Absent(why)) => misses.push(why),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Absent(misses.join("; ")))
    }

    /// What is left of the time that the node's writers may be kept waiting.
    pub(in crate::db) fn locks(&self) -> &Budget {
        &self.locks
    }

    /// A connection, waited for at most 3 s.
    ///
    /// # Errors
    /// Away or denied; away too when all stayed busy.
    pub async fn client(&self) -> Result<Client> {
        self.pool.get().await.map_err(|e| self.pool_error(e))
    }

    /// Asks the server to cancel what a session is at; needs no session itself.
    ///
    /// # Errors
    /// Away or denied. That the server does it is not told.
    pub async fn cancel(&self, session: &CancelToken) -> Result<()> {
        session.cancel_query(self.tls.clone()).await.map_err(|e| connect_error(&self.shown, &e))
    }

    /// `host:port/database`, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Connections in use and the most there may be.
    pub fn in_use(&self) -> (usize, usize) {
        let status = self.pool.status();
        (status.size.saturating_sub(status.available), status.max_size)
    }

    async fn check(&self) -> Result<()> {
        let client = self.client().await?;
        let row = client.query_one(CHECK, &[]).await.doing("look at ops")?;
        let (version, has_ops, keyed): (i32, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if version.unsigned_abs() < OLDEST_SERVER {
            return Err(Error::Unfit(format!(
                "the server at {} is PostgreSQL {}: opsward needs 13 or newer",
                self.shown,
                version / 10_000
            )));
        }
        if !has_ops {
            return Err(Error::Absent(format!(
                "the database {} holds no table public.ops: name the node's database in OPENAUDIO_DB_URL, \
                 or start the node once so that it makes its tables",
                self.shown
            )));
        }
        if !keyed {
            return Err(Error::Unfit(format!(
                "the table public.ops in {} has no primary key on (ulid): this is no log that a node made; \
                 restore the key with ALTER TABLE public.ops ADD PRIMARY KEY (ulid)",
                self.shown
            )));
        }
        Ok(())
    }

    fn pool_error(&self, error: PoolError<Error>) -> Error {
        match error {
            PoolError::Backend(error) => error,
            PoolError::Timeout(TimeoutType::Wait) => {
                Error::Away(format!("all connections to {} stayed busy for {} s", self.shown, WAIT.as_secs()))
            }
            PoolError::Timeout(_) => Error::Away(format!("{} did not answer in time", self.shown)),
            e => Error::Away(format!("{}: {e}", self.shown)),
        }
    }
}

/// Why there is no session, by what to do about it.
fn connect_error(shown: &str, error: &tokio_postgres::Error) -> Error {
    let words = crate::db::error::describe(error);
    let kind = match error.code() {
        None if is_no_primary(error) => {
            return Error::ReadOnly(format!("{shown}: {words}: no host in OPENAUDIO_DB_URL is a primary"));
        }
        None if is_tls(error) => {
            return Error::Denied(format!(
                "{shown}: {words}; see sslmode and sslrootcert in OPENAUDIO_DB_URL"
            ));
        }
        // It knows start-up parameters by a list of its own; no server says this.
        Some(c) if *c == SqlState::PROTOCOL_VIOLATION && words.contains("startup parameter") => Kind::Pooler,
        _ => crate::db::error::kind(error),
    };
    match kind {
        Kind::Away => Error::Away(format!("{shown}: {words}")),
        Kind::Pooler => Error::Pooler(format!(
            "a pooler at {shown} refuses the start-up options that opsward relies on: {words}"
        )),
        Kind::Absent if error.code() == Some(&SqlState::UNDEFINED_DATABASE) => {
            Error::Absent(format!("there is no database {shown}: name the node's in OPENAUDIO_DB_URL"))
        }
        Kind::Denied if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Error::Denied(format!("the server at {shown}: {words}; GRANT CONNECT ON DATABASE lifts it"))
        }
        Kind::Denied => Error::Denied(format!(
            "the server at {shown} refused the login: {words}; check user and password in OPENAUDIO_DB_URL"
        )),
        // A parameter that the server does not know, no password to give.
        _ => Error::Denied(format!("no session at {shown}: {words}; correct OPENAUDIO_DB_URL")),
    }
}

/// Server version, whether `public.ops` is a table, whether its key is (ulid).
const CHECK: &str = "
    SELECT current_setting('server_version_num')::int,
           c.oid IS NOT NULL,
           EXISTS (SELECT FROM pg_index i
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                   WHERE i.indrelid = c.oid AND i.indisprimary AND i.indnkeyatts = 1
                     AND a.attname = 'ulid')
    FROM (SELECT 1) one
    LEFT JOIN pg_class c ON c.oid = to_regclass('public.ops') AND c.relkind IN ('r', 'p')";

/// Whether `target_session_attrs` asks for more than what was reached.
fn is_no_primary(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|c| c.downcast_ref::<io::Error>());
    cause.is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied && e.to_string().contains("writes"))
}

/// Whether TLS itself failed, not the line under it.
fn is_tls(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error);
    let line = cause
        .and_then(|c| c.downcast_ref::<io::Error>())
        .is_some_and(|e| e.kind() != io::ErrorKind::InvalidData);
    error.to_string().contains("TLS") && !line
}

fn pool(manager: Manager, size: usize, connect_timeout: Duration) -> Result<Pool> {
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT))
        // The facts are read within it, too.
        .create_timeout(Some(connect_timeout + Duration::from_secs(1)))
        .recycle_timeout(Some(WAIT))
        .build()
        .map_err(|e| Error::Unfit(e.to_string()))
}

fn config(target: &DbTarget, application_name: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    for (host, port) in &target.hosts {
        config.host(host).port(*port);
    }
    if let Some(password) = &target.password {
        config.password(password.reveal());
    }
    config
        .user(&target.user)
        .dbname(target.dbname.as_deref().unwrap_or_default())
        .application_name(application_name)
        .connect_timeout(target.connect_timeout)
        .keepalives_idle(Duration::from_secs(30))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3)
        // A server that no longer answers is noticed, not waited for.
        .tcp_user_timeout(Duration::from_secs(10))
        .ssl_mode(match target.tls {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        })
        .target_session_attrs(match target.primary_only {
            true => TargetSessionAttrs::ReadWrite,
            false => TargetSessionAttrs::Any,
        })
        .options(session::options(&target.params));
    config
}

fn tls_config(target: &DbTarget) -> Result<rustls::ClientConfig> {
    let verify = match target.tls {
        TlsMode::VerifyFull => Verify::Full,
        TlsMode::VerifyCa => Verify::Authority,
        // libpq: `require` with a root certificate verifies like verify-ca.
        TlsMode::Require if target.root_cert.is_some() => Verify::Authority,
        _ => Verify::Nothing,
    };
    let client = target.client_cert.as_ref().map(|(c, k)| (c.as_path(), k.as_path()));
    tls::client_config(verify, target.root_cert.as_deref(), client)
        .map_err(|why| Error::Unfit(format!("a certificate in OPENAUDIO_DB_URL: {why}")))
}
