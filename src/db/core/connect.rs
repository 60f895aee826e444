//! One way into the database: a pool of sessions that are all set up alike.

use crate::db::error::{Doing, Error, Result};
use crate::db::session;
use crate::settings::{DbTarget, TlsMode};
use crate::tls::{self, Verify};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::CancelToken;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

/// A connection from the pool.
pub type Client = deadpool_postgres::Client;

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
            let pool = pool(&target, application_name, size, tls.clone())?;
            let db = Self { pool, tls, shown: target.shown().into() };
            match db.check().await {
                Ok(()) => return Ok(db),
                // Only "not here" lets the search go on.
                Err(Miss::NotHere(why)) => misses.push(why),
                Err(Miss::Fatal(error)) => return Err(error),
            }
        }
        Err(Error::Unfit(misses.join("; ")))
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
        session.cancel_query(self.tls.clone()).await.map_err(|e| self.connect_error(&e))
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

    async fn check(&self) -> std::result::Result<(), Miss> {
        let client = self.pool.get().await.map_err(|e| match e {
            PoolError::Backend(ref b) if b.code() == Some(&SqlState::UNDEFINED_DATABASE) => Miss::NotHere(
                format!("there is no database {}: name the node's in OPENAUDIO_DB_URL", self.shown),
            ),
            e => Miss::Fatal(self.pool_error(e)),
        })?;
        let row = client.query_one(CHECK, &[]).await.doing("look at ops").map_err(Miss::Fatal)?;
        let (version, has_ops, keyed): (i32, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if version.unsigned_abs() < OLDEST_SERVER {
            return Err(Miss::Fatal(Error::Unfit(format!(
                "the server at {} is PostgreSQL {}: opsward needs 13 or newer",
                self.shown,
                version / 10_000
            ))));
        }
        if !has_ops {
            return Err(Miss::NotHere(format!(
                "the database {} holds no table public.ops: name the node's database in OPENAUDIO_DB_URL, \
                 or start the node once so that it makes its tables",
                self.shown
            )));
        }
        if !keyed {
            return Err(Miss::Fatal(Error::Unfit(format!(
                "the table public.ops in {} has no primary key on (ulid): this is no log that a node made; \
                 restore the key with ALTER TABLE public.ops ADD PRIMARY KEY (ulid)",
                self.shown
            ))));
        }
        Ok(())
    }

    fn pool_error(&self, error: PoolError) -> Error {
        match error {
            PoolError::Backend(e) => self.connect_error(&e),
            PoolError::PostCreateHook(HookError::Message(words)) => Error::Unfit(words.into()),
            PoolError::Timeout(TimeoutType::Wait) => {
                Error::Away(format!("all connections to {} stayed busy for {} s", self.shown, WAIT.as_secs()))
            }
            PoolError::Timeout(_) => Error::Away(format!("{} did not answer in time", self.shown)),
            e => Error::Away(format!("{}: {e}", self.shown)),
        }
    }

    fn connect_error(&self, error: &tokio_postgres::Error) -> Error {
        let words = crate::db::error::describe(error);
        match error.code() {
            Some(c)
                if *c == SqlState::INVALID_PASSWORD
                    || *c == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
            {
                Error::Denied(format!(
                    "the server at {} refused the login: {words}; check user and password in OPENAUDIO_DB_URL",
                    self.shown
                ))
            }
            Some(c) if *c == SqlState::UNDEFINED_DATABASE => {
                Error::Denied(format!("{words}: name the node's database in OPENAUDIO_DB_URL"))
            }
            Some(c) if *c == SqlState::INSUFFICIENT_PRIVILEGE => Error::Denied(format!(
                "the server at {}: {words}; GRANT CONNECT ON DATABASE lifts it",
                self.shown
            )),
            None if is_tls(error) => Error::Denied(format!(
                "{}: {words}; see sslmode and sslrootcert in OPENAUDIO_DB_URL",
                self.shown
            )),
            _ if crate::db::error::is_away(error) => Error::Away(format!("{}: {words}", self.shown)),
            // A parameter that the server does not know, no password to give.
            _ => Error::Denied(format!("no session at {}: {words}; correct OPENAUDIO_DB_URL", self.shown)),
        }
    }
}

enum Miss {
    NotHere(String),
    Fatal(Error),
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

/// Whether TLS itself failed, not the line under it.
fn is_tls(error: &tokio_postgres::Error) -> bool {
    let cause = std::error::Error::source(error);
    let line = cause
        .and_then(|c| c.downcast_ref::<io::Error>())
        .is_some_and(|e| e.kind() != io::ErrorKind::InvalidData);
    error.to_string().contains("TLS") && !line
}

fn pool(target: &DbTarget, application_name: &str, size: usize, tls: MakeRustlsConnect) -> Result<Pool> {
    let server = target.shown();
    let manager = Manager::from_config(
        config(target, application_name),
        tls,
        ManagerConfig { recycling_method: RecyclingMethod::Fast },
    );
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(target.connect_timeout + Duration::from_secs(1)))
        .recycle_timeout(Some(WAIT))
        .post_create(Hook::async_fn(move |client, _| {
            let server = server.clone();
            Box::pin(async move {
                session::check(client, &server).await.map_err(|error| HookError::message(error.to_string()))
            })
        }))
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
