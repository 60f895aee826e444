//! What the gate reads: peers, cursors, samples, blockers.
