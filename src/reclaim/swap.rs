//! Mode swap: what survives is copied beside the log, follows it, is compared
//! with it, and takes its place.

use super::decide::{Capture, Facts, Phase, Step};
use super::{Error, Result, Run};

/// What the catalog says now.
pub(super) async fn facts(_run: &mut Run<'_>) -> Result<Facts> {
    Ok(Facts { fingerprint: String::new(), capture: Capture::Absent, next: false, old: false })
}

/// A batch of a phase's work.
pub(super) async fn step(_run: &mut Run<'_>, phase: Phase) -> Result<()> {
    Err(Error::refused(format!("mode swap cannot {} yet", phase.word()), ""))
}

/// Removes what is left of an earlier start.
pub(super) async fn undo(_run: &mut Run<'_>, _step: &Step) -> Result<()> {
    Ok(())
}
