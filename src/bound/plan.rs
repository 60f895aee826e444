//! What each task would do now, and what stands in the way.
