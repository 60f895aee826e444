//! What goes over the wire of a sweep: pages out (rows to JSON to gzip) and
//! bodies in (bytes to ops, bounded). Pure: bytes only.

pub mod body;
pub mod page;
