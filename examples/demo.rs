//! Three validators on a private PostgreSQL, an opsward beside each: a history
//! is pulled, new records converge, and the old end of a log is cut so that a
//! peer meets a gap. Then a fourth on a volume that is nearly full: what opsward
//! would do there, and the disk given back in both modes. Last a node of today,
//! whose ops come by the chain and whose pruner gives no byte back. Run it by `deploy/demo.sh`; `--keep` leaves it running.
#![allow(missing_docs, reason = "a program to watch, not to call")]
#![allow(clippy::disallowed_methods, reason = "no part of the daemon: nothing to supervise")]

#[path = "../tests/it/harness/cluster.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::panic,
    clippy::unwrap_used,
    reason = "shared with the tests, which use all of it"
)]
mod cluster;
#[path = "demo/fleet.rs"]
mod fleet;
#[path = "demo/history.rs"]
mod history;
#[path = "../tests/it/harness/target.rs"]
mod target;
#[path = "demo/today.rs"]
mod today;
#[path = "demo/volume.rs"]
mod volume;

use anyhow::{Result, bail};
use cluster::Cluster;
use comfy_table::{CellAlignment, Table, presets};
use fleet::{Pulling, Validator};
use history::Writer;
use indicatif::{ProgressBar, ProgressStyle};
use opsward::clock::Clock;
use opsward::values::{Op, OpUlid};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

const HISTORY_OPS: usize = 50_000;
const NEW_OPS: usize = 4_000;
const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;
const RECORDED: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/network/m1.ops.jsonl"));

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let keep = std::env::args().any(|a| a == "--keep");
    let logs = std::env::temp_dir().join(format!("opsward-demo-{}", std::process::id()));
    let ended = tokio::select! {
        ended = show(keep, &logs) => ended,
        _ = tokio::signal::ctrl_c() => {
            println!("\nstopped by Ctrl-C");
            Ok(())
        }
    };
    // Servers and daemons ended with what held them.
    match ended {
        Ok(()) => {
            let _ = std::fs::remove_dir_all(&logs);
            println!("Everything is cleaned up.");
            std::process::ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("demo: {e:#}; the logs are in {}", logs.display());
            std::process::ExitCode::FAILURE
        }
    }
}

async fn show(keep: bool, logs: &Path) -> Result<()> {
    std::fs::create_dir_all(logs)?;
    println!("Logs of the three opswards, while it runs: {}", logs.display());
    step("A private PostgreSQL 15, en_US.UTF-8, with three validators' databases");
    let cluster = tokio::task::spawn_blocking(Cluster::private).await?;
    let mut v1 = Validator::new(&cluster, "validator1", logs).await;
    let mut v2 = Validator::new(&cluster, "validator2", logs).await;
    let mut v3 = Validator::new(&cluster, "validator3", logs).await;
    let hosts = vec![v1.url.clone(), v2.url.clone(), v3.url.clone()];
    let now = Clock::System.now_ms();
    let mut writer = Writer::new(hosts.clone(), "demo", 304);

    step("validator1 gets the ops of a real network's recording and 30 days of generated history");
    let recorded: Vec<Op> = name_all(history::recorded(RECORDED)?, &hosts);
    println!("   {} recorded ops", recorded.len());
    v1.write(&recorded).await?;
    load(&v1, &writer.ops(HISTORY_OPS, now - 30 * DAY, now - 130 * MINUTE)).await?;

    step("An opsward beside each; validator2 and validator3 start with empty logs");
    for v in [&mut v1, &mut v2, &mut v3] {
        let peers: Vec<String> = hosts.iter().filter(|h| **h != v.url).cloned().collect();
        v.start(&peers, Pulling::On)?;
    }
    for v in [&mut v1, &mut v2, &mut v3] {
        v.ready().await?;
    }
    converge(&[&v1, &v2, &v3]).await?;
    caught_up(&[&v1, &v2, &v3], now - 140 * MINUTE).await?;
    report(&[&v1, &v2, &v3]).await?;

    step("validator3 pulls no more, but writes on and serves; validator1 writes on, validator2 follows");
    v3.stop();
    v3.start(&hosts[..2], Pulling::Off)?;
    // Who meets a gap may read what came before it after what came later, so
    // only records that are written on one side of it are equal in the end.
    let mut fresh =
        Writer::new(hosts.clone(), "before", 3).ops(NEW_OPS / 2, now - 120 * MINUTE, now - 46 * MINUTE);
    fresh.extend(Writer::new(hosts.clone(), "after", 4).ops(
        NEW_OPS / 2,
        now - 44 * MINUTE,
        now - 5 * MINUTE,
    ));
    load(&v1, &fresh).await?;
    converge(&[&v1, &v2]).await?;
    let own = Writer::new(hosts.clone(), "own", 77).ops(200, now - 4 * MINUTE, now - 3 * MINUTE);
    load(&v3, &own).await?;
    caught_up(&[&v1, &v2], now - 5 * MINUTE).await?;

    step("The old end of validator1's log is cut: validator3 has not read up to there");
    let below = OpUlid::first_of_ms(now - 45 * MINUTE);
    println!("   {} ops below {below} are gone from validator1", v1.cut(below).await?);
    headers_of_a_gap(&v1, now).await?;

    step("validator3 pulls again: a gap from validator1, the missing ops from validator2");
    v3.stop();
    v3.start(&hosts[..2], Pulling::On)?;
    v3.ready().await?;
    converge(&[&v1, &v2, &v3]).await?;
    let live =
        Writer::new(hosts.clone(), "live", 5).ops(50, Clock::System.now_ms() - 50, Clock::System.now_ms());
    v2.write(&live).await?;
    println!("   50 records were written on validator2 just now");
    converge(&[&v1, &v2, &v3]).await?;
    report(&[&v1, &v2, &v3]).await?;
    verdict(&v3).await?;
    volume::show().await?;
    today::show(&cluster).await?;

    if keep {
        println!("\nLeft running until Ctrl-C:");
        for v in [&v1, &v2, &v3] {
            println!(
                "   {}  sweep {}/internal/crud/sweep?after=  status {}/  metrics {}/metrics",
                v.name, v.url, v.admin, v.admin
            );
        }
        println!("   database {}", cluster.url("validator1"));
        std::future::pending::<()>().await;
    }
    Ok(())
}

fn step(text: &str) {
    println!("\n\u{25b6} {text}");
}

/// The recording names its own network's hosts; here they are these three, so
/// that the gossip rule forwards its uploads.
fn name_all(ops: Vec<Op>, hosts: &[String]) -> Vec<Op> {
    let rename = |text: &str| {
        let mut text = text.replace("http://127.0.0.1:1981", &hosts[0]);
        for port in 1982..1990 {
            text = text.replace(&format!("http://127.0.0.1:{port}"), &hosts[port % 3]);
        }
        text
    };
    let forwarded = |op: &Op| op.table != "uploads" || hosts.iter().all(|h| op.data.contains(h.as_str()));
    ops.into_iter()
        .map(|op| Op { host: rename(&op.host), data: rename(&op.data).into(), ..op })
        .filter(forwarded)
        .collect()
}

fn bar(total: u64, what: &str) -> ProgressBar {
    if !std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("   {msg} {wide_bar} {pos}/{len} {eta}");
    ProgressBar::new(total)
        .with_message(what.to_owned())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn load(v: &Validator, ops: &[Op]) -> Result<()> {
    let (began, bar) = (Instant::now(), bar(ops.len() as u64, "ops written"));
    for chunk in ops.chunks(2_000) {
        v.write(chunk).await?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    println!("   {} ops written in {:.1} s", ops.len(), began.elapsed().as_secs_f64());
    Ok(())
}

/// Waits until all hold the same records.
async fn converge(fleet: &[&Validator]) -> Result<()> {
    let began = Instant::now();
    let names = fleet.iter().map(|v| v.name).collect::<Vec<_>>().join(", ");
    let bar = bar(0, "ops in the shortest log");
    while began.elapsed() < Duration::from_secs(90) {
        let mut views = Vec::new();
        let mut sums = Vec::new();
        for v in fleet {
            views.push(v.view().await?.ops);
            sums.push(v.checksums().await?);
        }
        bar.set_length(views.iter().max().copied().unwrap_or(0) as u64);
        bar.set_position(views.iter().min().copied().unwrap_or(0) as u64);
        if sums.windows(2).all(|pair| pair[0] == pair[1]) {
            bar.finish_and_clear();
            println!("   {names} hold the same records after {:.1} s", began.elapsed().as_secs_f64());
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    bail!("{names} did not converge within 90 s")
}

/// Waits until all have read all their peers up to a time.
async fn caught_up(fleet: &[&Validator], ms: u64) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let age = (Clock::System.now_ms() - ms) / 1000;
        let mut all = true;
        for v in fleet {
            all &= (0..=age as i64).contains(&v.view().await?.lag_seconds);
        }
        if all {
            let names = fleet.iter().map(|v| v.name).collect::<Vec<_>>().join(", ");
            println!("   {names} have read their peers' logs");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    bail!("the peers' logs were not read within 60 s")
}

async fn headers_of_a_gap(v: &Validator, now: u64) -> Result<()> {
    let after = OpUlid::first_of_ms(now - 60 * MINUTE);
    let answer = reqwest::get(format!("{}/internal/crud/sweep?after={after}", v.url)).await?;
    println!("   GET /internal/crud/sweep?after={after} answers {} with", answer.status());
    for name in
        ["x-mediorum-retention-gap", "x-mediorum-available-min-ulid", "x-crud-sweep-last-scanned-ulid"]
    {
        let value = answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("-");
        println!("     {name}: {value}");
    }
    Ok(())
}

async fn report(fleet: &[&Validator]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "ops in log", "pages", "applied", "duplicates", "rejected", "gap advances", "lag"]);
    for v in fleet {
        let view = v.view().await?;
        let lag = if view.lag_seconds < 0 { "-".into() } else { format!("{} s", view.lag_seconds) };
        let cells = [view.ops, view.pages, view.applied, view.duplicates, view.rejected, view.gap_advances];
        let mut row = vec![v.name.to_owned()];
        row.extend(cells.iter().map(ToString::to_string));
        row.push(lag);
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");

    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["records", "validator1", "validator2", "validator3", "equal"]);
    let mut sums = Vec::new();
    for v in fleet {
        sums.push(v.checksums().await?);
    }
    for i in 0..sums[0].len() {
        let cell = |n: usize| format!("{} rows {}", sums[n][i].1, &sums[n][i].2[..sums[n][i].2.len().min(8)]);
        let equal = sums.iter().all(|s| s[i] == sums[0][i]);
        table.add_row([
            sums[0][i].0.into(),
            cell(0),
            cell(1),
            cell(2),
            if equal { "yes".into() } else { "NO".to_owned() },
        ]);
    }
    println!("{table}");
    Ok(())
}

async fn verdict(v3: &Validator) -> Result<()> {
    let view = v3.view().await?;
    if view.gap_advances == 0 {
        bail!("validator3 met no gap, though the log was cut before it");
    }
    println!(
        "\nThree validators hold the same records; validator3 came through {} gap(s), counted and logged.",
        view.gap_advances
    );
    Ok(())
}
