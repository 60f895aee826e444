use super::*;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use tokio::sync::mpsc;

fn supervisor() -> Supervisor {
    Supervisor::new(Clock::fixed(1_790_000_000_000), Metrics::new().unwrap())
}

fn every(label: &'static str, secs: u64) -> Task {
    let interval = Duration::from_secs(secs);
    let first = Duration::from_secs(5).min(interval);
    Task::new(label, Schedule::Every { interval, first })
}

/// A task that says the moment of each run; the receiver counts them.
fn ticking(s: &Supervisor, task: Task) -> (Handle, mpsc::UnboundedReceiver<Instant>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let handle = s.start(task, move |_| {
        tx.send(Instant::now()).unwrap();
        async { Ok(Next::Scheduled) }
    });
    (handle, rx)
}

fn report(s: &Supervisor, name: &str) -> TaskReport {
    let all = s.reports().all();
    all.into_iter().find(|r| r.name == name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_neither_its_task_nor_another() {
    let s = supervisor();
    let (_other, mut ticks) = ticking(&s, every("other", 10));
    let runs = Arc::new(AtomicU32::new(0));
    let (tx, mut recovered) = mpsc::unbounded_channel();
    let counted = runs.clone();
    s.start(every("bad", 600), move |_| {
        let run = counted.fetch_add(1, SeqCst);
        // Once before the first await, once after it.
        assert!(run != 0, "boom 0");
        let tx = tx.clone();
        async move {
            tokio::task::yield_now().await;
            assert!(run != 1, "boom 1");
            tx.send(()).unwrap();
            Ok(Next::Scheduled)
        }
    });
    recovered.recv().await.unwrap();
    tokio::task::yield_now().await;
    let r = report(&s, "bad");
    assert_eq!((r.runs, r.failures, r.panics), (3, 2, 2));
    assert_eq!((r.failures_in_a_row, r.last_error), (0, None));
    let panics = s.metrics.task_panics.with_label_values(&["bad"]);
    assert_eq!(panics.get(), 2);
    for _ in 0..3 {
        ticks.recv().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_up_to_the_interval() {
    let s = supervisor();
    let (tx, mut rx) = mpsc::unbounded_channel();
    s.start(every("away", 60), move |_| {
        tx.send(Instant::now()).unwrap();
        async { anyhow::bail!("the database is away") }
    });
    let mut last = rx.recv().await.unwrap();
    let mut gaps = Vec::new();
    for _ in 0..12 {
        let now = rx.recv().await.unwrap();
        gaps.push((now - last).as_secs_f64());
        last = now;
    }
    assert!(gaps[0] >= 1.0 && gaps[0] <= 2.1, "{gaps:?}");
    assert!(gaps[5..].iter().all(|g| (30.0..=60.1).contains(g)), "{gaps:?}");
    tokio::task::yield_now().await;
    let r = report(&s, "away");
    assert_eq!(r.state, TaskState::BackingOff);
    assert_eq!(r.last_error.as_deref(), Some("the database is away"));
    assert!(r.next_run > r.last_end);
}

#[tokio::test(start_paused = true)]
async fn a_run_says_when_to_come_again_or_never() {
    let s = supervisor();
    let (tx, mut rx) = mpsc::unbounded_channel();
    let runs = AtomicU32::new(0);
    let handle = s.start(every("catching_up", 600), move |_| {
        tx.send(Instant::now()).unwrap();
        let next = match runs.fetch_add(1, SeqCst) {
            0 => Next::After(Duration::from_secs(2)),
            _ => Next::Done,
        };
        async move { Ok(next) }
    });
    let (first, second) = (rx.recv().await.unwrap(), rx.recv().await.unwrap());
    assert_eq!((second - first).as_secs(), 2);
    handle.ended.cancelled().await;
    assert_eq!(report(&s, "catching_up").state, TaskState::Ended);
    assert!(rx.recv().await.is_none(), "the task and its sender are gone");
}

#[tokio::test(start_paused = true)]
async fn a_forever_task_that_ends_is_restarted() {
    let s = supervisor();
    let (_handle, mut runs) = ticking(&s, Task::new("listener", Schedule::Forever));
    for _ in 0..3 {
        runs.recv().await.unwrap();
    }
    tokio::task::yield_now().await;
    assert_eq!(report(&s, "listener").failures, 3);
}

#[tokio::test(start_paused = true)]
async fn a_forever_task_that_runs_on_works_again() {
    let s = supervisor();
    let runs = AtomicU32::new(0);
    s.start(Task::new("presence", Schedule::Forever), move |stop| {
        let run = runs.fetch_add(1, SeqCst);
        async move {
            anyhow::ensure!(run > 0, "the database is away");
            stop.cancelled().await;
            Ok(Next::Done)
        }
    });
    sleep(Duration::from_secs(10)).await;
    assert_eq!(report(&s, "presence").failures_in_a_row, 1);
    sleep(SETTLED).await;
    let r = report(&s, "presence");
    assert_eq!((r.state, r.failures_in_a_row), (TaskState::Running, 0));
    assert_eq!((r.failures, r.last_error), (1, None));
}

#[tokio::test(start_paused = true)]
async fn one_task_is_stopped_alone_after_its_transaction() {
    let s = supervisor();
    let (_other, mut ticks) = ticking(&s, every("pull", 10));
    let committed = Arc::new(AtomicU32::new(0));
    let (tx, mut begun) = mpsc::unbounded_channel();
    let counted = committed.clone();
    let mut task = every("pull", 600);
    task.name = "pull https://b.example".into();
    let handle = s.start(task, move |stop| {
        let (tx, counted) = (tx.clone(), counted.clone());
        async move {
            tx.send(()).unwrap();
            stop.cancelled().await;
            sleep(Duration::from_secs(3)).await;
            counted.fetch_add(1, SeqCst);
            Ok(Next::Scheduled)
        }
    });
    begun.recv().await.unwrap();
    handle.stop().await;
    assert_eq!(committed.load(SeqCst), 1);
    assert!(s.reports().all().iter().all(|r| r.name == "pull"));
    ticks.recv().await.unwrap();
    ticks.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn stop_is_ordered_and_bounded() {
    let s = supervisor();
    let (tx, mut said) = mpsc::unbounded_channel();
    for (label, stage) in [("worker", Stage::Worker), ("listener", Stage::Listener)] {
        let tx = tx.clone();
        let mut task = Task::new(label, Schedule::Forever);
        task.stage = stage;
        s.start(task, move |stop| {
            let tx = tx.clone();
            async move {
                tx.send("up").unwrap();
                stop.cancelled().await;
                tx.send(label).unwrap();
                Ok(Next::Scheduled)
            }
        });
    }
    said.recv().await;
    said.recv().await;
    assert_eq!(s.stop(Duration::from_secs(25)).await, [""; 0]);
    let order = (said.recv().await, said.recv().await);
    assert_eq!(order, (Some("listener"), Some("worker")));

    let s = supervisor();
    s.start(Task::new("deaf", Schedule::Forever), |_| std::future::pending());
    tokio::task::yield_now().await;
    let began = Instant::now();
    assert_eq!(s.stop(Duration::from_secs(25)).await, ["deaf"]);
    assert_eq!(began.elapsed().as_secs(), 25);
}
