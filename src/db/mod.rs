//! All SQL, one file a relation: a named `const` right above the one function
//! that runs it. Nothing here decides, counts or logs.

mod connect;
mod error;
pub mod migrate;

pub use connect::{Client, Db};
pub use error::{Doing, Error, Result, describe};
