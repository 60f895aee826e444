//! Contract 9: what the commands and the operator's port show.

pub mod admin;
pub mod advice;
pub mod ask;
pub mod database_state;
pub mod doctor;
mod envelope;
pub mod format;
pub mod gather;
pub mod page;
pub mod plan_text;
pub mod status;
pub mod status_text;
pub mod view;

pub use envelope::{Done, ExitCode, Failure, Frame, Outcome, OutputMode, exit, json, write_lines};
