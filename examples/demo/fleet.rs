//! Validators of the demo: a database each, and an opsward beside it.

use crate::cluster::{self, Cluster};
use crate::target;
use anyhow::{Context, Result, bail};
use opsward::clock::Clock;
use opsward::db::Db;
use opsward::pull::apply::{Fitting, apply};
use opsward::records::models;
use opsward::settings::DbTarget;
use opsward::values::{Op, OpUlid};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::sleep;

/// One validator: the node's database and the opsward beside it.
pub struct Validator {
    pub name: &'static str,
    pub url: String,
    pub admin: String,
    port: u16,
    admin_port: u16,
    db_url: String,
    target: DbTarget,
    log: PathBuf,
    process: Option<Child>,
}

/// Whether an opsward pulls its peers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pulling {
    On,
    Off,
}

/// What a validator holds and has done.
#[derive(Debug, Default)]
pub struct View {
    pub ops: i64,
    pub pages: i64,
    pub applied: i64,
    pub duplicates: i64,
    pub rejected: i64,
    pub gap_advances: i64,
    pub lag_seconds: i64,
}

impl Validator {
    /// Its database with the node's schema, and ports that are free.
    pub async fn new(cluster: &Cluster, name: &'static str, logs: &std::path::Path) -> Self {
        cluster.create_database(name, cluster::TEMPLATE).await;
        let (port, admin_port) = (cluster::free_port(), cluster::free_port());
        Self {
            name,
            url: format!("http://127.0.0.1:{port}"),
            admin: format!("http://127.0.0.1:{admin_port}"),
            port,
            admin_port,
            db_url: cluster.url(name),
            target: target::local(cluster.port(), name),
            log: logs.join(format!("{name}.log")),
            process: None,
        }
    }

    async fn db(&self) -> Result<Db> {
        let db = Db::open(&self.target, "demo", 2).await?;
        opsward::db::migrate::migrate(&mut db.client().await?).await?;
        Ok(db)
    }

    /// Writes ops and their records, as its node would.
    pub async fn write(&self, ops: &[Op]) -> Result<()> {
        let db = self.db().await?;
        let mut client = db.client().await?;
        let now = Clock::System.now();
        let fit = |op: &Op| {
            let model = models().get(&op.table).context("a table without a model")?;
            Fitting::new(op.clone(), model, now).map_err(|r| anyhow::anyhow!("{}: {}", r.code, r.detail))
        };
        let fitting: Vec<Fitting> = ops.iter().map(fit).collect::<Result<_>>()?;
        let outcome = apply(&mut client, &fitting, now).await?;
        if let Some(refused) = outcome.refused.first() {
            bail!("{}: {}", refused.code, refused.detail);
        }
        Ok(())
    }

    /// Cuts the old end of its log, as if it had been pruned; says how much.
    pub async fn cut(&self, below: OpUlid) -> Result<u64> {
        let client = self.db().await?.client().await?;
        Ok(client.execute("DELETE FROM public.ops WHERE ulid < $1", &[&below.as_str()]).await?)
    }

    /// Starts the opsward beside it.
    pub fn start(&mut self, peers: &[String], pulling: Pulling) -> Result<()> {
        let binary = std::env::current_exe()?
            .parent()
            .and_then(|examples| examples.parent())
            .context("no target directory")?
            .join("opsward");
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&binary)
            .arg("run")
            .env_clear()
            .env("OPENAUDIO_DB_URL", &self.db_url)
            .env("OPENAUDIO_NODE_ENDPOINT", &self.url)
            .env("OPENAUDIO_MEDIORUM_SIDECAR_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("OPENAUDIO_MEDIORUM_SIDECAR_ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin_port))
            .env("OPENAUDIO_MEDIORUM_PEERS", peers.join(","))
            .env("OPENAUDIO_MEDIORUM_SWEEP_INTERVAL", "10s")
            .env("OPENAUDIO_MEDIORUM_SWEEP_PEERS", (pulling == Pulling::On).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{}: build it first", binary.display()))?;
        self.process = Some(child);
        Ok(())
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        for _ in 0..200 {
            if let Some(status) = self.process.as_mut().and_then(|p| p.try_wait().transpose()).transpose()? {
                bail!("the opsward of {} ended with {status}: see {}", self.name, self.log.display());
            }
            if let Ok(answer) = reqwest::get(format!("{}/readyz", self.admin)).await
                && answer.status().is_success()
            {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        bail!("the opsward of {} did not get ready: see {}", self.name, self.log.display())
    }

    /// Asks the opsward beside it to stop, and waits.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }

    /// What it holds and has done.
    pub async fn view(&self) -> Result<View> {
        let client = self.db().await?.client().await?;
        let row = client.query_one(VIEW, &[]).await?;
        let cursor: Option<String> = row.get(6);
        let age =
            cursor.and_then(|c| OpUlid::parse(&c)).map(|u| Clock::System.now_ms().saturating_sub(u.ms()));
        Ok(View {
            ops: row.get(0),
            pages: row.get(1),
            applied: row.get(2),
            duplicates: row.get(3),
            rejected: row.get(4),
            gap_advances: row.get(5),
            lag_seconds: age.map_or(-1, |ms| (ms / 1000) as i64),
        })
    }

    /// A checksum of each record table, `updated_at` left out: it differs
    /// between any two nodes.
    pub async fn checksums(&self) -> Result<Vec<(&'static str, i64, String)>> {
        let client = self.db().await?.client().await?;
        let mut sums = Vec::new();
        for table in ["uploads", "qm_audio_analyses", "audio_previews", "storage_and_db_sizes"] {
            let sql = format!(
                "SELECT count(*), coalesce(md5(string_agg(r, '' ORDER BY r COLLATE \"C\")), '-')
                 FROM (SELECT (to_jsonb(t) - 'updated_at')::text AS r FROM public.{table} t) rows"
            );
            let row = client.query_one(&sql, &[]).await?;
            sums.push((table, row.get(0), row.get(1)));
        }
        Ok(sums)
    }
}

const VIEW: &str = "
    SELECT (SELECT count(*) FROM public.ops),
           coalesce(sum(pages), 0)::bigint, coalesce(sum(applied), 0)::bigint,
           coalesce(sum(duplicates), 0)::bigint, coalesce(sum(rejected), 0)::bigint,
           coalesce(sum(gap_advances), 0)::bigint,
           (SELECT min(last_ulid) FROM opsward.cursors)
    FROM opsward.pulls";

impl Drop for Validator {
    fn drop(&mut self) {
        self.stop();
    }
}
