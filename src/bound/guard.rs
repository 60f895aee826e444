//! The replay guard: the trigger on the log, put there and taken away.
