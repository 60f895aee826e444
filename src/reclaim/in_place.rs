//! Mode in-place: the log is thinned where it is, and cut off at its end.

use super::decide::Phase;
use super::{Error, Result, Run};

/// A batch of a phase's work.
pub(super) async fn step(_run: &mut Run<'_>, phase: Phase) -> Result<()> {
    let why = format!("mode in-place cannot {} yet", phase.word());
    Err(Error::refused(why, "use --mode swap"))
}
