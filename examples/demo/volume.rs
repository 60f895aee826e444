//! A validator whose volume is nearly full: what opsward would do, and the disk
//! given back, in both modes, while the node writes on.

use crate::cluster::{self, Cluster, Stop};
use crate::step;
use anyhow::{Context, Result, bail};
use opsward::clock::Clock;
use opsward::values::OpUlid;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const MEGABYTES: u32 = 560;
/// What is left free before opsward begins, for traces and WAL.
const LEFT: u64 = 64 << 20;
const DAY: u64 = 24 * 3_600_000;

/// A tmpfs, gone when this is; a plain directory where mounting is forbidden.
struct Volume {
    path: PathBuf,
    is_mounted: bool,
}

impl Volume {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("opsward-demo-volume-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        let size = format!("size={MEGABYTES}m,mode=1777");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        let is_mounted = mount.is_ok_and(|output| output.status.success());
        Ok(Self { path, is_mounted })
    }

    fn free(&self) -> Result<u64> {
        let volume = rustix::fs::statvfs(&self.path)?;
        Ok(volume.f_bavail * volume.f_frsize)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Shows it.
pub async fn show() -> Result<()> {
    step("A fourth validator, on a small volume that its log has nearly filled");
    let volume = Volume::new()?;
    if !volume.is_mounted {
        println!("   left out: mounting a small volume takes root");
        return Ok(());
    }
    let base = volume.path.clone();
    let cluster = tokio::task::spawn_blocking(move || {
        let cluster = Cluster::private_in(&base);
        cluster.configure("max_wal_size = '64MB'\nmin_wal_size = '32MB'");
        cluster.stop(Stop::Fast);
        cluster.start();
        cluster
    })
    .await?;
    let result = on(&cluster, &volume).await;
    drop(cluster);
    result
}

async fn on(cluster: &Cluster, volume: &Volume) -> Result<()> {
    cluster.create_database("full", cluster::TEMPLATE).await;
    let client = cluster.connect("full").await;
    let ops = fill(&client, volume).await?;
    println!("   {ops} ops of three years; {} of {MEGABYTES} MiB are free", mib(volume.free()?));
    let opsward = Opsward::new(cluster.url("full"), volume.path.clone(), "180");

    step("What opsward counts there, and what it would do: nothing is deleted by this");
    opsward.run(&["census", "--pace", "full"])?;
    opsward.run(&["plan"])?;

    step("The log is thinned and cut off in place, no copy needed; the node writes on");
    let writer = Writing::start(cluster.connect("full").await);
    opsward.run(&["reclaim", "--policy", "window", "--mode", "in-place", "--yes", "--pace", "full"])?;
    println!("   {} of {MEGABYTES} MiB are free now", mib(volume.free()?));

    step("Now there is room for a copy: compacted, verified, and swapped in; the node writes on");
    opsward.run(&["reclaim", "--policy", "compact", "--mode", "swap", "--yes", "--pace", "full"])?;
    println!("   {} of {MEGABYTES} MiB are free now", mib(volume.free()?));
    let written = writer.stop().await?;
    let found: i64 = client
        .query_one("SELECT count(*) FROM public.ops WHERE host = 'http://writer.example'", &[])
        .await?
        .get(0);
    println!("   {written} writes were acknowledged meanwhile, {found} of them are in the log");
    if found.unsigned_abs() != written {
        bail!("writes are missing");
    }
    opsward.run(&["history", "--limit", "5"])
}

pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Ops of three years until the volume is full but for a little.
async fn fill(client: &tokio_postgres::Client, volume: &Volume) -> Result<u64> {
    let mut writer = crate::history::Writer::new(vec!["http://full.example".into()], "full", 98);
    let now = Clock::System.now_ms();
    let (mut at, mut count, mut last) = (now - 1_095 * DAY, 0, (now, 0_u64));
    // How far time goes on with each part is learned from what a part takes.
    let first = volume.free()?;
    while volume.free()? > LEFT {
        let free = volume.free()?;
        let part: usize = if free > 60 << 20 { 4_000 } else { 400 };
        let used = first.saturating_sub(free).max(1);
        let share =
            if count == 0 { 0.02 } else { used as f64 / count as f64 * part as f64 / (first - LEFT) as f64 };
        let until = (at + (share * (1_093 * DAY) as f64) as u64).min(now - DAY);
        let ops = writer.ops(part, at, until.max(at + 1));
        let column = |of: fn(&opsward::values::Op) -> &str| ops.iter().map(of).collect::<Vec<&str>>();
        let sql = "INSERT INTO public.ops (ulid, host, action, \"table\", data)
                   SELECT u, h, a, t, d::jsonb FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                       AS o(u, h, a, t, d) ON CONFLICT DO NOTHING";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] = [
            &column(|o| o.ulid.as_str()),
            &column(|o| &o.host),
            &column(|o| o.action.word()),
            &column(|o| &o.table),
            &column(|o| &o.data),
        ];
        count += client.execute(sql, &params).await?;
        if free < 200 << 20 {
            client.batch_execute("CHECKPOINT").await?;
        }
        at = until;
        if last == (at, count) {
            break;
        }
        last = (at, count);
    }
    Ok(count)
}

/// The binary beside this program, on that database.
pub struct Opsward {
    url: String,
    volume: PathBuf,
    days: &'static str,
}

impl Opsward {
    /// On a database whose data is below a directory, with a window of days.
    pub fn new(url: String, volume: PathBuf, days: &'static str) -> Self {
        Self { url, volume, days }
    }

    pub fn run(&self, args: &[&str]) -> Result<()> {
        println!("   $ opsward {}", args.join(" "));
        let output = Command::new(binary()?)
            .args(args)
            .env("OPENAUDIO_DB_URL", &self.url)
            .env("OPENAUDIO_NODE_ENDPOINT", "http://full.example")
            .env("OPENAUDIO_MEDIORUM_PEERS", "none")
            .env("OPENAUDIO_MEDIORUM_OPS_RETENTION_DAYS", self.days)
            .env("OPENAUDIO_MEDIORUM_OPS_REPLAY_GUARD", "true")
            .env("OPENAUDIO_MEDIORUM_MIN_FREE_DISK", "16MiB")
            .env("OPENAUDIO_MEDIORUM_PGDATA_PATH", &self.volume)
            .env("OPENAUDIO_LOG_LEVEL", "warn")
            .output()
            .context("opsward cannot be run")?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            println!("     {line}");
        }
        if !output.status.success() {
            bail!("opsward {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().and_then(Path::parent).context("no directory of binaries")?;
    Ok(dir.join("opsward"))
}

/// The node, as far as its log is concerned: fifty inserts a second.
struct Writing {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Writing {
    fn start(client: tokio_postgres::Client) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            let insert = client
                .prepare(
                    "INSERT INTO public.ops (ulid, host, action, \"table\", data)
                     VALUES ($1, 'http://writer.example', 'create', 'uploads', $2::text::jsonb)",
                )
                .await?;
            while !stopped.load(Ordering::Relaxed) {
                let n = count.load(Ordering::Relaxed);
                let ulid = OpUlid::from_parts(Clock::System.now_ms(), n.into()).to_string();
                client.execute(&insert, &[&ulid, &format!(r#"[{{"id":"live-{n}"}}]"#)]).await?;
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        });
        Self { stop, written, task }
    }

    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.written.load(Ordering::Relaxed))
    }
}
