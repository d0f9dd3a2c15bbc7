//! Plain counters of one lane to and from one peer.
use std::sync::atomic::{AtomicU64, Ordering};

/// Bounds of round trips that are told apart: etcd's, 0.1 ms to 3.3 s.
pub const ROUND_TRIP_BOUNDS: usize = 16;

/// One of them; `slot` is below [`ROUND_TRIP_BOUNDS`].
pub fn round_trip_bound_us(slot: usize) -> u64 {
    100 << slot
}

fn round_trip_slot(us: u64) -> usize {
    (0..ROUND_TRIP_BOUNDS).position(|slot| us <= round_trip_bound_us(slot)).unwrap_or(ROUND_TRIP_BOUNDS)
}

/// Counters that threads add to; see [`LaneStats`] for what they mean.
#[derive(Default, Debug)]
pub(super) struct LaneCounters {
    pub(super) frames_sent: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) frames_received: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    pub(super) frames_dropped: AtomicU64,
    pub(super) bytes_dropped: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    pub(super) accepts: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) round_trips: AtomicU64,
    pub(super) round_trip_us_sum: AtomicU64,
    pub(super) round_trip_counts: [AtomicU64; ROUND_TRIP_BOUNDS + 1],
    pub(super) round_trip_us: AtomicU64,
    pub(super) round_trip_us_smoothed: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl LaneCounters {
    pub(super) fn dropped(&self, frames: u64, bytes: u64) {
        add(&self.frames_dropped, frames);
        add(&self.bytes_dropped, bytes);
    }

    /// Only the lane's thread calls it. Smoothed as TCP does it (RFC 6298: 7/8 of the old, 1/8 of the new).
    pub(super) fn round_trip(&self, us: u64) {
        // 0 means "not measured".
        let us = us.max(1);
        self.round_trip_us.store(us, Ordering::Relaxed);
        add(&self.round_trips, 1);
        add(&self.round_trip_us_sum, us);
        add(&self.round_trip_counts[round_trip_slot(us)], 1);
        let smoothed = match self.round_trip_us_smoothed.load(Ordering::Relaxed) {
            0 => us,
            before => (before * 7 + us) / 8,
        };
        self.round_trip_us_smoothed.store(smoothed.max(1), Ordering::Relaxed);
    }

    pub(super) fn read(&self, bytes_queued: u64, connected: bool) -> LaneStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LaneStats {
            connected,
            bytes_queued,
            frames_sent: get(&self.frames_sent),
            bytes_sent: get(&self.bytes_sent),
            frames_received: get(&self.frames_received),
            bytes_received: get(&self.bytes_received),
            frames_dropped: get(&self.frames_dropped),
            bytes_dropped: get(&self.bytes_dropped),
            connects: get(&self.connects),
            connect_failures: get(&self.connect_failures),
            accepts: get(&self.accepts),
            losses: get(&self.losses),
            round_trips: get(&self.round_trips),
            round_trip_us_sum: get(&self.round_trip_us_sum),
            round_trip_counts: std::array::from_fn(|slot| get(&self.round_trip_counts[slot])),
            round_trip_us: get(&self.round_trip_us),
            round_trip_us_smoothed: get(&self.round_trip_us_smoothed),
        }
    }
}

/// One lane to and from one peer, since the transport started. Frames of the transport's own (pings) do not count.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LaneStats {
    /// Frames can be sent at this moment.
    pub connected: bool,
    /// Waiting to be sent.
    pub bytes_queued: u64,
    /// Handed to the kernel as a whole.
    pub frames_sent: u64,
    /// Their bytes on the wire.
    pub bytes_sent: u64,
    /// Handed to the layer above.
    pub frames_received: u64,
    /// Their bytes on the wire.
    pub bytes_received: u64,
    /// Refused at the bound or without a connection, or lost with one before they were with the kernel.
    pub frames_dropped: u64,
    /// Their bytes on the wire.
    pub bytes_dropped: u64,
    /// Connections made to the peer.
    pub connects: u64,
    /// Attempts that failed or were refused.
    pub connect_failures: u64,
    /// Connections taken from the peer.
    pub accepts: u64,
    /// Connections in either direction that ended by themselves.
    pub losses: u64,
    /// Pings that were answered, one a second at most.
    pub round_trips: u64,
    /// Their sum.
    pub round_trip_us_sum: u64,
    /// How many took at most [`round_trip_bound_us`] and longer than the bound before; the last: longer than all.
    pub round_trip_counts: [u64; ROUND_TRIP_BOUNDS + 1],
    /// Newest round trip of a ping, measured from before it is written to after its answer is read; 0 before the first.
    pub round_trip_us: u64,
    /// The same, smoothed.
    pub round_trip_us_smoothed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_lie_at_or_below_their_bound() {
        let counters = LaneCounters::default();
        for us in [0, 1, 100, 101, 200, 3_276_800, 3_276_801, u64::MAX / 2] {
            counters.round_trip(us);
        }
        let stats = counters.read(0, true);
        assert_eq!(stats.round_trips, 8);
        assert_eq!(stats.round_trip_counts.iter().sum::<u64>(), 8);
        assert_eq!((stats.round_trip_counts[0], stats.round_trip_counts[1]), (3, 2));
        assert_eq!((stats.round_trip_counts[15], stats.round_trip_counts[16]), (1, 2));
    }
}
