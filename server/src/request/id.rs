//! Ids of commands and leases: unique in a cluster without asking anybody.
//!
//! **Layout** of an id: low 16 bits of the member id · low 40 bits of the start time in milliseconds, then counted up, · 8
//! bits of counter. A member that restarts begins above what it used before as long as it drew fewer than 256,000 ids a
//! second; two members differ in the member part.
//!
//! **Source**: `pkg/idutil` of etcd; lease ids of etcd look like this and people know the shape.
use std::sync::atomic::{AtomicU64, Ordering};

const SEQUENCE_BITS: u32 = 48;

/// Draws ids.
pub struct IdSource {
    prefix: u64,
    sequence: AtomicU64,
}

impl IdSource {
    /// For one start of one member; `start_ms` is the wall clock.
    pub fn new(member_id: u64, start_ms: u64) -> Self {
        let prefix = member_id << SEQUENCE_BITS;
        Self { prefix, sequence: AtomicU64::new((start_ms & ((1 << 40) - 1)) << 8) }
    }

    /// The next id, never 0.
    pub fn next(&self) -> u64 {
        loop {
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) & ((1 << SEQUENCE_BITS) - 1);
            let id = self.prefix | sequence;
            if id != 0 {
                return id;
            }
        }
    }

    /// The next lease id: positive.
    pub fn next_lease(&self) -> i64 {
        loop {
            let lease = (self.next() & (u64::MAX >> 1)) as i64;
            if lease != 0 {
                return lease;
            }
        }
    }
}

/// Milliseconds of the wall clock, since 1970: what ids begin at, or have in them, so that none is given twice.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing else differs between two starts that know nothing of each other"
)]
pub fn wall_clock_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_between_members_and_starts_and_leases_are_positive() {
        let source = IdSource::new(u64::MAX, 1);
        let other_member = IdSource::new(1, 1);
        let later_start = IdSource::new(u64::MAX, 2);
        let id = source.next();
        assert_eq!(source.next(), id + 1);
        assert_ne!(id, other_member.next());
        assert!(later_start.next() > id + 200);
        assert!(source.next_lease() > 0);
        assert_ne!(IdSource::new(0, 0).next(), 0);
    }
}
