//! A puller of a test's own.

use crate::harness::peer::Peer;
use opsward::clock::Clock;
use opsward::db::Db;
use opsward::metrics::Metrics;
use opsward::pull::Puller;
use opsward::pull::client::http_client;
use opsward::values::Host;

/// The node that the tests pull for.
pub const OWN: &str = "http://self.example";

/// A puller with metrics of its own and the system's clock.
pub fn puller(db: &Db) -> Puller {
    puller_with(db, Clock::System, &Metrics::new().unwrap())
}

/// A puller with a clock and metrics of the test's.
pub fn puller_with(db: &Db, clock: Clock, metrics: &Metrics) -> Puller {
    let own = Host::parse(OWN).unwrap();
    let http = http_client(opsward::tls::Verify::Full).unwrap();
    Puller::new(db.clone(), own, http, clock, metrics.clone())
}

/// A peer as it is named.
pub fn host(peer: &Peer) -> Host {
    Host::parse(&peer.url()).unwrap()
}
