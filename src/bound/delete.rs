//! Deleting ops in batches, under the lease, with floors, traces and history.
