//! The one clock. Whatever needs the time is handed one, so that a test can
//! move it.

use crate::values::unix_ms;
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A source of the time of day.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's.
    System,
    /// A test's: milliseconds since the Unix epoch, moved from outside.
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands until it is moved; milliseconds since the Unix epoch.
    pub fn fixed(ms: i64) -> Self {
        Self::Fixed(Arc::new(AtomicI64::new(ms)))
    }

    /// The time now.
    #[allow(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Fixed(ms) => {
                Timestamp::from_millisecond(ms.load(Ordering::Relaxed)).unwrap_or(Timestamp::MAX)
            }
        }
    }

    /// Milliseconds since the Unix epoch; 0 before it.
    pub fn now_ms(&self) -> u64 {
        unix_ms(self.now())
    }
}
