//! A page of 10,000 rows against `COPY … TO STDOUT` of the same rows, in one
//! run and reported as a ratio; then 24 pages 8 at a time, with the peak
//! memory of a process that does nothing but serve. `cargo bench --bench serve`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a bench, not the daemon")]
#![allow(missing_docs, reason = "a bench, not the daemon")]

#[path = "../tests/it/harness/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests")]
mod cluster;
#[path = "../tests/it/harness/target.rs"]
mod target;

use cluster::{Cluster, Stop, TEMPLATE};
use futures_util::StreamExt;
use futures_util::future::join_all;
use opsward::clock::Clock;
use opsward::db::{Db, migrate};
use opsward::http::{Limits, serve};
use opsward::metrics::Metrics;
use opsward::serve::Serve;
use opsward::values::Host;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ROWS: usize = 260_000;
const PAGE: usize = 10_000;
const PAGES: usize = 24;
const AT_ONCE: usize = 8;
const ROUNDS: usize = 15;
/// A node took 1.44 s for the 24 pages where a COPY took 55 ms: with the goal
/// of 0.7 of its time, 24 pages may cost this share of 24 COPYs.
const GOAL_MANY: f64 = 0.7 * 1.44 / (24.0 * 0.055);

/// As the measured log: 62 % uploads, 20 hosts, four mirrors an upload.
const FILL: &str = r#"
    INSERT INTO ops
    SELECT '01HKFACTS0' || lpad(n::text, 16, '0'), h[1], 'update', t, jsonb_build_array(CASE t
        WHEN 'uploads' THEN jsonb_build_object(
            'id', md5(n::text), 'user_wallet', '{"String": "", "Valid": false}'::jsonb,
            'template', 'audio', 'orig_filename', md5(n::text) || '.wav',
            'orig_file_cid', 'baeaaaiqse' || md5(n::text) || md5((n + 1)::text),
            'selected_preview', '{"String": "", "Valid": false}'::jsonb,
            'probe', jsonb_build_object('format', jsonb_build_object('filename', md5(n::text),
                'format_name', 'wav', 'format_long_name', 'WAV / WAVE (Waveform Audio)',
                'duration', '3.715193', 'size', n::text, 'bit_rate', '1416497')),
            'mirrors', to_jsonb(h), 'transcoded_mirrors', to_jsonb(h), 'status', 'done',
            'placement_hosts', null, 'created_by', h[1], 'created_at', '2024-01-02T03:04:05.678901Z',
            'updated_at', '2024-01-02T03:04:05.678901Z', 'transcoded_by', h[2],
            'transcode_progress', 1, 'transcoded_at', '2024-01-02T03:04:05.678901Z',
            'results', jsonb_build_object('320', md5(n::text) || md5((n + 2)::text)),
            'audio_analysis_status', 'done', 'audio_analysis_error_count', 0,
            'audio_analyzed_by', h[3], 'audio_analyzed_at', '2024-01-02T03:04:05.678901Z',
            'audio_analysis_results', '{"bpm": 121.5, "key": "A minor"}'::jsonb)
        ELSE jsonb_build_object('LoggedAt', '2024-01-02T03:04:05.678901Z', 'Host', h[1],
            'StorageBackend', 'https:' || repeat('file', 60), 'DbUsed', n, 'MediorumDiskUsed', n * 1000,
            'MediorumDiskSize', 1099511627776, 'StorageExpectation', n * 10,
            'LastRepairSize', n, 'LastCleanupSize', 0)
        END)
    FROM generate_series(1, 260000) n,
    LATERAL (SELECT CASE WHEN n % 50 < 31 THEN 'uploads' WHEN n % 50 < 45 THEN
        'storage_and_db_sizes' WHEN n % 50 < 49 THEN 'qm_audio_analyses' ELSE 'audio_previews' END,
        ARRAY(SELECT 'https://creatornode' || 1 + (n * 7919 + k * 5) % 20 || '.example.co'
              FROM generate_series(1, 4) k)) x(t, h);
    CHECKPOINT"#;

/// A host that one upload in five names, and a text that all of them contain.
const ONE_IN_FIVE: &str = "https://creatornode7.example.co";
const ALL: &str = "https:";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    // `cargo test --benches` passes flags; there is nothing to test here.
    if args.iter().any(|a| a == "--test") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match args.iter().position(|a| a == "--serve") {
        Some(at) => runtime.block_on(server(&args[at + 1], &args[at + 2])),
        None => runtime.block_on(bench()),
    }
}

async fn bench() {
    let cluster = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::private();
        cluster.configure("shared_buffers = '512MB'");
        cluster.stop(Stop::Fast);
        cluster.start();
        cluster
    })
    .await
    .unwrap();
    cluster.create_database("openaudio", TEMPLATE).await;
    let client = cluster.connect("openaudio").await;
    client.batch_execute(FILL).await.unwrap();
    client.batch_execute("VACUUM (ANALYZE) ops").await.unwrap();
    for (words, host) in [("every op named", ALL), ("one upload in five named", ONE_IN_FIVE)] {
        one_page(&cluster, words, host).await;
        for accept in ["", "Accept-Encoding: gzip\r\n"] {
            many_pages(&cluster, words, host, accept).await;
        }
    }
}

async fn one_page(cluster: &Cluster, words: &str, host: &str) {
    let client = cluster.connect("openaudio").await;
    let server = Server::start(cluster, host);
    let (mut copies, mut pages) = (Vec::new(), Vec::new());
    let (mut copied, mut served) = (0, 0);
    for round in 0..ROUNDS {
        let after = ulid(round * PAGE);
        let begun = Instant::now();
        copied = copy(&client, &after).await;
        copies.push(begun.elapsed());
        let begun = Instant::now();
        served = server.page(&after, "").await;
        pages.push(begun.elapsed());
    }
    let (copy, page) = (median(copies), median(pages));
    println!("{words}: COPY {copied} bytes in {copy:.1?}, page {served} bytes in {page:.1?}");
    println!("  ratio {:.2} (goal 1.15)", page.as_secs_f64() / copy.as_secs_f64());
}

async fn many_pages(cluster: &Cluster, words: &str, host: &str, accept: &str) {
    let client = cluster.connect("openaudio").await;
    let server = Server::start(cluster, host);
    let (mut times, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let begun = Instant::now();
        for page in 0..PAGES {
            copy(&client, &ulid(page * PAGE)).await;
        }
        copies.push(begun.elapsed());
        let (next, begun) = (AtomicUsize::new(0), Instant::now());
        join_all((0..AT_ONCE).map(|_| async {
            loop {
                let page = next.fetch_add(1, Ordering::Relaxed);
                if page >= PAGES {
                    return;
                }
                server.page(&ulid(page * PAGE), accept).await;
            }
        }))
        .await;
        times.push(begun.elapsed());
    }
    let (time, copies) = (median(times), median(copies));
    let gzip = if accept.is_empty() { "plain" } else { "gzip" };
    println!(
        "{words}, {gzip}: {PAGES} pages {AT_ONCE} at a time in {time:.2?}, {PAGES} COPYs in \
         {copies:.2?}: ratio {:.2} (goal {GOAL_MANY:.2}), peak {:.1} MiB (goal 64)",
        time.as_secs_f64() / copies.as_secs_f64(),
        server.peak_mib()
    );
}

async fn copy(client: &tokio_postgres::Client, after: &str) -> usize {
    let sql = format!(
        "COPY (SELECT ulid, host, action, \"table\", data FROM ops WHERE ulid > '{after}'
         ORDER BY ulid LIMIT {PAGE}) TO STDOUT"
    );
    let mut stream = std::pin::pin!(client.copy_out(&sql).await.unwrap());
    let mut bytes = 0;
    while let Some(chunk) = stream.next().await {
        bytes += chunk.unwrap().len();
    }
    bytes
}

/// A process that does nothing but serve.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(cluster: &Cluster, host: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--serve", &cluster.port().to_string(), host])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned() }
    }

    async fn page(&self, after: &str, accept: &str) -> usize {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!(
            "GET /internal/crud/sweep?after={after} HTTP/1.1\r\nHost: a\r\n{accept}\
             Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0);
        let mut length = None;
        loop {
            match stream.read(&mut buffer).await.unwrap() {
                0 => break,
                n => {
                    if length.is_none() {
                        length = Some(whole_length(&buffer[..n]));
                    }
                    bytes += n;
                }
            }
        }
        assert_eq!(Some(bytes), length, "a page that was cut off");
        bytes
    }

    fn peak_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Head and body of an answer that began with these bytes; it has to be a 200.
fn whole_length(begin: &[u8]) -> usize {
    let end = memchr::memmem::find(begin, b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&begin[..end]).to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let line = head.lines().find_map(|l| l.strip_prefix("content-length: "));
    end + line.unwrap().parse::<usize>().unwrap()
}

async fn server(port: &str, host: &str) {
    let target = target::local(port.parse().unwrap(), "openaudio");
    let db = Db::open(&target, "opsward bench", 8).await.unwrap();
    migrate::migrate(&mut db.client().await.unwrap()).await.unwrap();
    let (_peers, known) = watch::channel(None);
    let (own, metrics) = (Host::normalise(host), Metrics::new().unwrap());
    let handler = Serve::new(db, own, Clock::System, metrics, known).handler();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let ended = stop.clone();
    // The bench's end is the end of our input.
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        ended.cancel();
    });
    serve(listener, handler, Limits::default(), stop).await;
}

fn ulid(n: usize) -> String {
    assert!(n < ROWS);
    format!("01HKFACTS0{n:016}")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
