//! What a task of a test's own is handed.

use crate::puller::OWN;
use opsward::clock::Clock;
use opsward::db::Db;
use opsward::metrics::Metrics;
use opsward::settings::{Settings, Source, load};
use opsward::values::Host;
use opsward::work::Work;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Work on a database, with the default settings but for what `change` sets, and
/// no floor under the free disk.
pub fn on(db: &Db, change: impl FnOnce(&mut Settings)) -> Work {
    let source = Source {
        flags: BTreeMap::new(),
        config: None,
        env: BTreeMap::new(),
        read: Box::new(|_| Err(std::io::ErrorKind::NotFound.into())),
    };
    let mut settings = load(&source).unwrap().settings;
    settings.bounding.min_free_disk = 0;
    change(&mut settings);
    Work {
        db: db.clone(),
        settings: Arc::new(settings),
        own: Host::parse(OWN).unwrap(),
        clock: Clock::System,
        metrics: Metrics::new().unwrap(),
        stop: CancellationToken::new(),
        tell: Arc::new(|_| {}),
    }
}
