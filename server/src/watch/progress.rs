//! When a stream's clock ticks.
//!
//! A stream has one clock. Its interval is that of the server plus up to a tenth, drawn once for each stream, so that streams that were opened
//! together (a client restarts) do not all ask at the same moment for ever. What a tick does is the hub's matter.
//!
//! **Source**: `GetProgressReportInterval` in `server/etcdserver/api/v3rpc/watch.go`, etcd 3.7.3.
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The interval of a stream's clock. The draw comes from the seed that the standard library gives every hash map: no decision of the
/// replicated state depends on it.
pub fn stream_interval(interval: Duration) -> Duration {
    let tenth_us = u64::try_from(interval.as_micros() / 10).unwrap_or(u64::MAX).max(1);
    interval + Duration::from_micros(RandomState::new().hash_one(0_u8) % tenth_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_spread_over_a_tenth() {
        let base = Duration::from_secs(5);
        let drawn: Vec<Duration> = (0..100).map(|_| stream_interval(base)).collect();
        assert!(drawn.iter().all(|interval| *interval >= base && *interval < base + base / 10));
        assert!(drawn.iter().any(|interval| *interval != drawn[0]));
    }
}
