//! Floors, traces and the verdict on ops below a floor.
