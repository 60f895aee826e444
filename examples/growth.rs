//! What retention does to the log's size: a writer writes day after day, once
//! into a log that nobody bounds and once into one that opsward keeps to a
//! window. Days are simulated by ULIDs of the past; batches, floors, traces and
//! the VACUUM after a run are those of the daemon.
//! `cargo run --example growth` prints the figures and draws `docs/growth.svg`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "an example, not the daemon")]
#![allow(missing_docs, reason = "an example, not the daemon")]

#[path = "../benches/bed/mod.rs"]
mod bed;
#[path = "demo/history.rs"]
#[allow(dead_code, reason = "shared with the demo")]
mod history;

use bed::cluster::{self, Cluster};
use bed::{TABLES, target};
use opsward::bound::delete::{self, Order, Report};
use opsward::clock::Clock;
use opsward::db::lease::Lease;
use opsward::db::prune::TableCut;
use opsward::db::{Db, migrate};
use opsward::values::OpUlid;
use opsward::work::{Pacer, Work};
use std::fmt::Write;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const DAYS: u64 = 60;
const WINDOW_DAYS: u64 = 10;
const OPS_A_DAY: usize = 2_500;
const DAY_MS: u64 = 86_400_000;
const PLOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/growth.svg");

/// Megabytes after a day: of `ops` unbounded, of `ops` bounded, both with their
/// indexes, and of the traces that the bounded one left.
struct Size {
    without: f64,
    with: f64,
    traces: f64,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let began = Instant::now();
    let cluster = tokio::task::spawn_blocking(Cluster::private).await.unwrap();
    for name in ["without", "with"] {
        cluster.create_database(name, cluster::TEMPLATE).await;
    }
    let db = Db::open(&target::local(cluster.port(), "with"), "growth", 4).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let (without, with) = (cluster.connect("without").await, cluster.connect("with").await);
    let work = bed::work(&db, |_| {});
    let mut lease = Lease::take(&db).await.unwrap().ok().unwrap();

    let hosts = (1..=4).map(|n| format!("https://node{n}.example")).collect();
    let mut writer = history::Writer::new(hosts, "growth", 7);
    let first = Clock::System.now_ms() - (DAYS + 1) * DAY_MS;
    let mut sizes: Vec<Size> = Vec::new();
    let (mut rows, mut longest) = (0, 0);
    for day in 0..DAYS {
        let from = first + day * DAY_MS;
        let copy = copy(&mut writer, from);
        cluster.psql("without", &copy);
        cluster.psql("with", &copy);
        let below = OpUlid::first_of_ms(from + DAY_MS - WINDOW_DAYS * DAY_MS);
        let report = retain(&work, &mut lease, day, below).await;
        rows += report.rows();
        longest = longest.max(report.longest_ms);
        let of_ops = "pg_total_relation_size('ops')";
        sizes.push(Size {
            without: megabytes(&without, of_ops).await,
            with: megabytes(&with, of_ops).await,
            traces: megabytes(&with, "pg_total_relation_size('opsward.traces')").await,
        });
    }
    println!("{OPS_A_DAY} ops a day, a window of {WINDOW_DAYS} days; MB of ops with its indexes");
    println!("{:>5} {:>10} {:>10} {:>8}", "day", "without", "with", "traces");
    for (day, size) in sizes.iter().enumerate().filter(|(day, _)| (day + 1) % 5 == 0) {
        println!("{:>5} {:>10.1} {:>10.1} {:>8.1}", day + 1, size.without, size.with, size.traces);
    }
    // The day after the window is full is the first with something to delete.
    let full = WINDOW_DAYS as usize + 1;
    let most = |of: &[Size]| of.iter().map(|size| size.with).fold(0.0, f64::max);
    println!(
        "bounded: {:.1} MB at most up to day {full}, {:.1} MB at most after it; {rows} rows deleted, longest \
         transaction {longest} ms; {:.0} s",
        most(&sizes[..full]),
        most(&sizes[full..]),
        began.elapsed().as_secs_f64()
    );
    std::fs::write(PLOT, plot(&sizes)).unwrap();
    println!("drawn in {PLOT}");
}

/// A day's ops, as the text of a COPY.
fn copy(writer: &mut history::Writer, from: u64) -> String {
    let mut copy = String::from("COPY ops (ulid, host, action, \"table\", data) FROM STDIN;\n");
    for op in writer.ops(OPS_A_DAY, from, from + DAY_MS) {
        let data = op.data.replace('\\', "\\\\");
        writeln!(copy, "{}\t{}\t{}\t{}\t{data}", op.ulid, op.host, op.action.word(), op.table).unwrap();
    }
    copy + "\\.\n"
}

async fn retain(work: &Work, lease: &mut Lease, day: u64, below: OpUlid) -> Report {
    let mut pacer = Pacer::new(work, Some(100));
    let cut = |table: &&str| TableCut { table: (*table).into(), below, bound_by: "age".into() };
    let cuts = TABLES.iter().map(cut).collect();
    let order =
        Order { run: format!("day {day}"), task: "retention", cuts, active_since: None, expected: None };
    delete::run(work, lease, &mut pacer, &order, Duration::from_secs(600)).await.unwrap()
}

async fn megabytes(client: &Client, of: &str) -> f64 {
    let bytes: i64 = client.query_one(&format!("SELECT {of}"), &[]).await.unwrap().get(0);
    bytes as f64 / 1e6
}

fn plot(sizes: &[Size]) -> String {
    let (width, height, left, top) = (640.0, 280.0, 60.0, 30.0);
    let most = sizes.iter().map(|size| size.without).fold(1.0, f64::max);
    let x = |day: usize| left + width * day as f64 / sizes.len() as f64;
    let y = |mb: f64| top + height * (1.0 - mb / most);
    let line = |of: fn(&Size) -> f64, color: &str| {
        let points = sizes.iter().enumerate().map(|(i, size)| format!("{:.1},{:.1}", x(i + 1), y(of(size))));
        let points = points.collect::<Vec<_>>().join(" ");
        format!("<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" points=\"{points}\"/>\n")
    };
    let text = |x: f64, y: f64, color: &str, words: &str| {
        format!("<text x=\"{x:.0}\" y=\"{y:.0}\" fill=\"{color}\">{words}</text>\n")
    };
    let (bottom, last) = (top + height, sizes.len());
    let window = x(WINDOW_DAYS as usize);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 840 350\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"840\" height=\"350\" fill=\"white\"/>\n",
    );
    for mb in [0.0, most / 2.0, most] {
        let at = y(mb);
        write!(
            svg,
            "<path stroke=\"#ddd\" d=\"M{left} {at:.0}h{width}\"/>\n{}",
            text(8.0, at + 4.0, "#333", &format!("{mb:.0} MB"))
        )
        .unwrap();
    }
    writeln!(svg, "<path stroke=\"#999\" stroke-dasharray=\"4\" d=\"M{window:.0} {top}v{height}\"/>")
        .unwrap();
    svg += &text(window + 4.0, top + 12.0, "#666", &format!("window: {WINDOW_DAYS} days"));
    svg += &text(left, bottom + 24.0, "#333", "day 0");
    svg += &text(left + width - 40.0, bottom + 24.0, "#333", &format!("day {last}"));
    svg += &line(|size| size.without, "#c0392b");
    svg += &line(|size| size.with, "#2471a3");
    svg += &line(|size| size.traces, "#7d8a2e");
    if let Some(size) = sizes.last() {
        let at = left + width + 6.0;
        svg += &text(at, y(size.without) + 4.0, "#c0392b", "ops, unbounded");
        svg += &text(at, y(size.with) + 4.0, "#2471a3", "ops, retention");
        svg += &text(at, y(size.traces) + 4.0, "#7d8a2e", "its traces");
    }
    svg + "</svg>\n"
}
