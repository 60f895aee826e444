//! A database per test, cloned from the template with the node's schema.

use super::cluster::{self, Cluster, Schema, TEMPLATE};
use opsward::db::Db;
use opsward::settings::DbTarget;

/// A node's database of one test's own. Dropped, best effort, when it is.
pub struct Database {
    cluster: &'static Cluster,
    name: String,
}

impl Database {
    /// Clones the template in the cluster that all tests share.
    pub async fn new() -> Self {
        Self::named(cluster::unique("t")).await
    }

    /// As [`Self::new`], with the schema of a generation.
    pub async fn of(schema: Schema) -> Self {
        if schema == Schema::A && Schema::of_run() == Schema::A {
            return Self::new().await;
        }
        let (cluster, name) = (Cluster::shared(), cluster::unique("t"));
        cluster.create_database(&name, "template0").await;
        let database = Self { cluster, name };
        cluster.psql(&database.name, schema.sql());
        database
    }

    /// As [`Self::new`], under a name of the caller's choice (one per run).
    pub async fn named(name: impl Into<String>) -> Self {
        Self::on(Cluster::shared(), name).await
    }

    /// In a cluster of the caller's choice.
    pub async fn on(cluster: &'static Cluster, name: impl Into<String>) -> Self {
        let name = name.into();
        cluster.create_database(&name, TEMPLATE).await;
        Self { cluster, name }
    }

    /// A copy of another database as it is; nobody may be in that one.
    pub async fn copy_of(cluster: &'static Cluster, template: &str) -> Self {
        let name = cluster::unique("copy");
        cluster.create_database(&name, template).await;
        Self { cluster, name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its server.
    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    /// Its URL, by the superuser, as `OPENAUDIO_DB_URL` takes it.
    pub fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// A session as the node would have it: the server's defaults, nothing
    /// of opsward's.
    pub async fn client(&self) -> tokio_postgres::Client {
        self.cluster.connect(&self.name).await
    }

    /// A session in a transaction whose snapshot is of now, until it ends it.
    pub async fn old_snapshot(&self) -> tokio_postgres::Client {
        let client = self.client().await;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
        client
    }

    /// opsward's own way into it: a pool of 8.
    pub async fn db(&self) -> Db {
        Db::open(&self.target(), "opsward test", 8).await.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// As [`Self::db`], with the schema `opsward` in place.
    pub async fn migrated(&self) -> Db {
        let db = self.db().await;
        let mut client = db.client().await.unwrap();
        opsward::db::migrate::migrate(&mut client).await.unwrap();
        drop(client);
        db
    }

    /// Where it is, as settings hold it.
    pub fn target(&self) -> DbTarget {
        target(self.cluster, &self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let config = self.cluster.config("postgres");
        let sql = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", self.name);
        // On a thread: a drop can't wait, and the test's runtime may be gone.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(async {
                    if let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
                        tokio::spawn(connection);
                        let _ = client.batch_execute(&sql).await;
                    }
                });
            }
        });
    }
}

/// A database of any cluster as settings hold it, by the superuser.
pub fn target(cluster: &Cluster, dbname: &str) -> DbTarget {
    super::target::local(cluster.port(), dbname)
}
