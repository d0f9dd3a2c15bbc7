//! What the log counts about itself. Nothing here knows how the numbers leave the process.
use hdrhistogram::Histogram;

/// Longest latency told apart; longer ones count as this. 60 s: the process gives up before.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Latencies of one stage, in microseconds.
#[derive(Clone)]
pub struct StageLatency {
    /// From 1 µs to 60 s at two digits.
    pub histogram: Histogram<u64>,
    /// Exact sum of what was recorded.
    pub sum_us: u64,
}

impl Default for StageLatency {
    fn default() -> Self {
        Self {
            histogram: Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).expect("constant bounds are valid"),
            sum_us: 0,
        }
    }
}

impl std::fmt::Debug for StageLatency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quantile = |quantile| self.histogram.value_at_quantile(quantile);
        let (count, p50, p99) = (self.histogram.len(), quantile(0.5), quantile(0.99));
        write!(f, "{count} times, p50 {p50} us, p99 {p99} us, max {} us", self.histogram.max())
    }
}

impl StageLatency {
    pub(super) fn record(&mut self, us: u64) {
        self.histogram.saturating_record(us.max(1));
        self.sum_us += us;
    }
}

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
