//! Every metric, its name and its help. Labels are bounded by the registered
//! peers and by what is compiled in: at most 400 series at 40 peers.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Declares the struct, the constructor and the registration from one list.
macro_rules! metrics {
    ($($field:ident: $kind:ident $name:literal $([$($label:literal),+])? $help:literal;)+) => {
        /// All metrics of one process. Cloning shares them.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $kind,)+
        }

        impl Metrics {
            /// The name of every metric.
            pub const NAMES: &[&str] = &[$(concat!("opsward_", $name)),+];

            fn registered() -> prometheus::Result<Self> {
                let registry = Registry::new();
                $(let $field = $kind::make(concat!("opsward_", $name), $help, &[$($($label),+)?])?;
                registry.register(Box::new($field.clone()))?;)+
                Ok(Self { registry, $($field,)+ })
            }
        }
    };
}

metrics! {
    build_info: IntGaugeVec "build_info" ["version"] "Always 1; the version is a label.";
    database_up: IntGauge "database_up" "1 while the server answers and lets opsward in, whether or not the log can be read just now.";
    database_state: IntGaugeVec "database_state" ["state"] "Always 1: what the last look at the database found: up, or what is in the way: away, locked, slow, contended, denied, absent, read_only (a standby), pooler, disk_full, unfit or failed.";
    node_replication: IntGaugeVec "node_replication" ["by"] "1 for the way in which ops reach the node: peers, both or chain.";
    relation_bytes: IntGaugeVec "relation_bytes" ["relation"] "Bytes of the ten largest tables of the node, with their indexes.";
    pool_in_use: IntGauge "database_connections_in_use" "Pooled connections handed out now.";
    pool_size: IntGauge "database_connections_max" "The most pooled connections there may be.";

    sweeps_served: IntCounterVec "sweeps_served_total" ["outcome"] "Sweep requests answered, by outcome.";
    rows_served: IntCounter "sweep_rows_served_total" "Ops put into pages.";
    rows_left_out: IntCounterVec "sweep_rows_left_out_total" ["why"] "Rows scanned and left out of pages: gossip (uploads that do not name this host) or unappliable (no node can apply them).";
    bytes_served: IntCounter "sweep_bytes_served_total" "Bytes of pages built, as sent (compressed where asked).";
    serve_seconds: Histogram "sweep_build_seconds" "Time to read and build a page.";
    gap_signals_sent: IntCounter "gap_signals_sent_total" "Pages that told the asker of a retention gap.";
    responses_dropped: IntCounterVec "sweep_responses_dropped_total" ["why"] "Answers given up before the asker had read them: slow (memory budget) or deadline.";
    built_page_bytes: IntGauge "sweep_pages_held_bytes" "Bytes of built pages that wait for their askers.";
    reader_lag: IntGaugeVec "reader_lag_seconds" ["peer"] "How far behind now the lowest cursor of 24 h is that a registered peer asked with.";

    sweeps_pulled: IntCounterVec "sweeps_pulled_total" ["peer", "outcome"] "Pages pulled, by peer and outcome: ok, failed or held.";
    ops_applied: IntCounter "ops_applied_total" "Pulled ops that were new and are applied.";
    ops_duplicate: IntCounter "ops_duplicate_total" "Pulled ops that were already in the log.";
    ops_replayed: IntCounter "ops_replayed_total" "Pulled ops below a floor that do not act again: what they wrote is remembered by traces.";
    guard_refused: IntCounter "guard_refused_total" "Ops that the replay guard kept out of the node's own inserts.";
    guard_failed: IntCounter "guard_failed_total" "Ops that the replay guard let pass because it met an error.";
    guard_wanted: IntGauge "guard_wanted" "1 while the settings ask for the replay guard.";
    guard_in_place: IntGauge "guard_in_place" "1 while the replay guard is on the log.";
    foreign_prunes: IntCounter "foreign_prunes_total" "Times that somebody else was seen to have pruned the log.";
    ops_skipped: IntCounter "ops_skipped_total" "Pulled ops of table blobs, which every node skips.";
    ops_rejected: IntCounterVec "ops_rejected_total" ["code"] "Pulled ops that were refused and kept in rejected_ops, by reason.";
    reclaim_phase: IntGaugeVec "reclaim_phase" ["phase"] "1 for the phase that a reclaim is in.";
    reclaim_progress: Gauge "reclaim_progress_ratio" "How far the phase is that a reclaim is in; 0 when none is under way or its end is unknown.";
    reclaim_eta: IntGauge "reclaim_eta_seconds" "Seconds until a reclaim ends, at the rate of the last minutes; -1 where unknown.";
    reclaim_last_step: IntGaugeVec "reclaim_last_step_timestamp_seconds" ["mode", "phase", "held"] "When a reclaim that has not ended last did something; held is true while it waits for the operator's word to swap.";
    reclaims: IntCounterVec "reclaims_total" ["outcome"] "Reclaims that this process brought to an end: done, undone, or aborted by the operator.";
    reclaim_rows_copied: IntCounter "reclaim_rows_copied_total" "Ops that a reclaim copied into the new table.";
    reclaim_locked: Histogram "reclaim_lock_seconds" "Waiting for and holding the lock under which a reclaim swaps the tables.";
    peers_held: IntGauge "peers_held" "Peers whose next op is not understood here; their cursor stays before it.";
    gap_advances: IntCounter "gap_advances_total" "Cursors moved over a retention gap that a peer signalled.";
    table_gaps: IntCounterVec "table_gaps_total" ["table"] "Floors of a table above our cursor that a peer named.";
    cursors_healed: IntCounter "cursors_healed_total" "Implausible cursors of the node that were replaced.";
    cursors_reset: IntCounter "cursors_reset_total" "Own cursors dropped because the node's row was removed or emptied.";
    cursor_lag: IntGaugeVec "cursor_lag_seconds" ["peer"] "How far behind now the cursor for a peer is.";
    peers: IntGauge "peers" "Active peers, self left out.";
    discovery_failures: IntCounter "discovery_failures_total" "Failed look-ups of the registered peers.";

    rows_deleted: IntCounterVec "rows_deleted_total" ["task", "table"] "Ops deleted, by task and table.";
    bytes_deleted: IntCounterVec "bytes_deleted_total" ["task", "table"] "Bytes of ops deleted, without indexes, by task and table.";
    batch_seconds: Histogram "delete_batch_seconds" "Time of one transaction that deletes ops.";
    vacuums: IntCounterVec "vacuum_runs_total" ["outcome"] "VACUUMs of ops: done, yielded (a session waited behind it), stopped or denied (not the owner).";
    traces: IntGauge "traces" "Traces of deleted ops, as the history counted them.";
    floor: IntGaugeVec "floor_timestamp_seconds" ["table"] "The time of a table's floor: its ops below it were deleted.";
    retention_decision: IntGaugeVec "retention_decision" ["bound_by", "reason"] "Always 1: what bounds retention (age, peer, reader or size), or each reason why it deletes nothing.";
    retention_cut: IntGauge "retention_cut_timestamp_seconds" "The time below which retention deletes, of the table it reaches least far in; 0 when it deletes nothing.";
    reader_gap: IntGaugeVec "reader_gap_seconds" ["peer"] "Seconds until a registered peer that reads from here falls into a gap if it asks no more.";

    waits: CounterVec "waits_seconds_total" ["for"] "Seconds that bulk work waited, by what for: lock, snapshot (or what else keeps deleted rows), index (another session builds one), others (who waited behind a VACUUM or REINDEX) or turn (paused, or outside its window).";
    ops_bytes: IntGauge "ops_relation_bytes" "Bytes of the table ops on disk with its TOAST, without indexes.";
    ops_index_bytes: IntGauge "ops_index_bytes" "Bytes of the indexes of ops on disk.";
    ops_dead_rows: IntGauge "ops_dead_rows" "Dead rows in ops as the server estimates them.";
    free_disk: IntGauge "free_disk_bytes" "Free bytes on the database's volume; -1 where unknown.";
    free_disk_floor: IntGauge "free_disk_floor_bytes" "Free bytes below which bulk work that writes much stops.";

    census_rows: IntGaugeVec "census_rows" ["table"] "Ops in the log as last counted, by table; other is all tables without a model.";
    census_bytes: IntGaugeVec "census_bytes" ["table"] "Bytes of ops in the log as last counted, indexes left out, by table; other is all tables without a model.";
    owed_ops: IntGauge "owed_ops" "Ops in the log that are still owed to the chain, as last counted.";
    owed_oldest: IntGauge "owed_oldest_timestamp_seconds" "The day of the oldest op that is still owed to the chain; 0 where there is none.";
    owed_deleted: IntGauge "owed_deleted_timestamp_seconds" "When the node's own pruner deletes the first op that is still owed to the chain; 0 where it deletes none.";
    bulk_paused: IntGauge "bulk_work_paused" "1 while bulk work may not run: it is paused, or outside its maintenance window.";
    census_progress: Gauge "census_progress_ratio" "How far the pass over the log is that counts it; 1 when none is under way.";
    census_finished: IntGauge "census_last_finished_timestamp_seconds" "When the census was last brought up to date.";

    task_runs: IntCounterVec "task_runs_total" ["task"] "Runs of a task that ended, well or not.";
    task_failures: IntCounterVec "task_failures_total" ["task"] "Runs of a task that ended with an error.";
    task_panics: IntCounterVec "task_panics_total" ["task"] "Runs of a task that ended with a panic, caught.";
    task_last_success: IntGaugeVec "task_last_success_timestamp_seconds" ["task"] "When a task last ended well.";
}

impl Metrics {
    /// A fresh set, each at zero, and the outcomes that an alert counts shown
    /// from the start: a counter that appears at 1 has not risen.
    ///
    /// # Errors
    /// Two metrics of one name: a mistake in the list.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self::registered()?;
        for outcome in ["done", "yielded", "stopped", "denied"] {
            metrics.vacuums.with_label_values(&[outcome]);
        }
        for outcome in ["done", "undone", "aborted"] {
            metrics.reclaims.with_label_values(&[outcome]);
        }
        metrics.reclaim_eta.set(-1);
        metrics.free_disk.set(-1);
        Ok(metrics)
    }

    /// The text exposition of every metric, the process' own included.
    ///
    /// # Errors
    /// The encoder's; none is expected.
    pub fn encode(&self) -> prometheus::Result<String> {
        let mut families = self.registry.gather();
        families.extend(prometheus::process_collector::ProcessCollector::for_self().collect());
        TextEncoder::new().encode_to_string(&families)
    }
}

/// How each kind is made from a name, a help text and labels.
trait Make: Sized {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self>;
}

impl Make for IntCounter {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Make for CounterVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Make for IntGauge {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Make for Gauge {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Make for IntCounterVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Make for IntGaugeVec {
    fn make(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(Opts::new(name, help), labels)
    }
}

impl Make for Histogram {
    fn make(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
        let buckets = vec![0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0];
        Self::with_opts(HistogramOpts::new(name, help).buckets(buckets))
    }
}
