//! What the log counts about itself. Nothing here knows how the numbers leave the process.
use crate::base::latency::StageLatency;

/// Counters since the log was opened, and the state of its files.
#[derive(Clone, Debug, Default)]
pub struct WalStats {
    /// Records appended, repeats and ends of segments not counted.
    pub records_count: u64,
    /// Bytes of the bodies of those records.
    pub body_bytes: u64,
    /// Groups that became durable.
    pub groups_count: u64,
    /// Bytes of those groups, padding included: what went to the device for the log itself.
    pub group_bytes: u64,
    /// Idle groups among them.
    pub groups_idle_count: u64,
    /// Segments that were ended.
    pub rotations_count: u64,
    /// Segments filled with zeros from nothing.
    pub segments_filled_count: u64,
    /// Obsolete segments put back to use.
    pub segments_recycled_count: u64,
    /// Obsolete segments removed because there were enough spares.
    pub segments_removed_count: u64,
    /// Segments that hold the log now.
    pub segments_live_count: usize,
    /// Spares, the prepared next segment included.
    pub spares_count: usize,
    /// From the first look at a waiting group to its submission: waiting for a slot.
    pub queue_wait: StageLatency,
    /// From submission to the completed sync of one group.
    pub write_sync: StageLatency,
    /// From submission to acknowledgement, which waits for every group before.
    pub ack: StageLatency,
}
