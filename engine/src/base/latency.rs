//! How long a stage takes, as a histogram. Nothing here knows how the numbers leave the process.
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
    pub(crate) fn record(&mut self, us: u64) {
        self.histogram.saturating_record(us.max(1));
        self.sum_us += us;
    }
}
