//! One connection, as a handler and as its task see it.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handler's grip on the connection that its request came by.
#[derive(Clone, Debug)]
pub struct Conn {
    from: IpAddr,
    kill: CancellationToken,
    overdue: CancellationToken,
    tracker: TaskTracker,
}

impl Conn {
    pub(super) fn new(from: IpAddr, kill: CancellationToken, tracker: &TaskTracker) -> (Self, Ending) {
        let conn = Self { from, kill, overdue: CancellationToken::new(), tracker: tracker.clone() };
        (conn, Ending(watch::Sender::new(None)))
    }

    /// The address at its other end: a proxy's, where there is one.
    pub fn from(&self) -> IpAddr {
        self.from
    }

    /// Ends the connection at once, unsent bytes and all.
    pub fn kill(&self) {
        self.kill.cancel();
    }

    /// Whether a response's deadline ended it.
    pub fn is_overdue(&self) -> bool {
        self.overdue.is_cancelled()
    }

    /// Runs something beside the response, which does not wait for it. The
    /// listener's end does: bound it in time.
    pub fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work);
    }

    pub(super) async fn killed(&self) {
        self.kill.cancelled().await;
    }

    pub(super) fn set_overdue(&self) {
        self.overdue.cancel();
    }
}

/// When the response under way has to have ended.
pub(super) struct Ending(watch::Sender<Option<Instant>>);

impl Ending {
    /// Begins a response: it must end before the deadline, or the connection is closed.
    /// Dropping the guard lifts the deadline and marks the connection as idle: by then hyper has
    /// the whole response, and its small buffer is bounded by the time to read the next head.
    pub(super) fn begin(&self, within: Duration, asks: Arc<AtomicBool>) -> impl Send + 'static {
        let deadline = Instant::now().checked_add(within);
        self.0.send_replace(deadline);
        Lift(self.0.clone(), asks)
    }

    pub(super) fn lift(&self) {
        self.0.send_replace(None);
    }

    /// Returns once a deadline passed.
    pub(super) async fn overdue(&self) {
        let mut deadline = self.0.subscribe();
        loop {
            let at = *deadline.borrow_and_update();
            let changed = deadline.changed();
            match at {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => return,
                    _ = changed => {}
                },
                // The sender lives in `self`: there is always a next change.
                None => drop(changed.await),
            }
        }
    }
}

struct Lift(watch::Sender<Option<Instant>>, Arc<AtomicBool>);

impl Drop for Lift {
    fn drop(&mut self) {
        self.0.send_replace(None);
        self.1.store(false, Ordering::Relaxed);
    }
}
