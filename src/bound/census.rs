//! How much of the log there is, by table and UTC day.
