//! Bodies in: the bytes of a peer's page, as they arrive, to ops. Bounded in
//! bytes, ops and nesting; never recursive; "not yet complete" is no error.
//!
//! `unzip` bounds what a compressed body may grow to, `scan` finds where each
//! element of the array ends, `envelope` reads one element.

mod envelope;
mod scan;
mod unzip;

pub use envelope::{Envelope, read as read_envelope};
pub use scan::{BodyError, Element, Limits, Scanner};
pub use unzip::Unzip;
