//! The changes of one memtable in revision order: what watchers and compaction walk.
//!
//! For every change its main revision and the offset of its node, 16 bytes, appended by the one writer and read from
//! any thread without a lock. It knows nothing of what an offset leads to.
//!
//! Layout: buckets that double in size (64, 128, ...), allocated when needed, so that nothing ever moves. An entry
//! counts once the published length covers it: the writer stores the entry, then the length (Release); a reader
//! loads the length (Acquire), then entries below it.
//!
//! Invariant H2: main revisions never decrease along the list.
use super::arena::Offset;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};

const FIRST_BUCKET_ENTRIES: usize = 64;
/// Enough for 2^32 events, more than an arena has room for nodes.
const BUCKETS: usize = 27;

#[derive(Default)]
struct Entry {
    main: AtomicI64,
    offset: AtomicU32,
}

/// See the module.
#[derive(Default)]
pub(super) struct EventRing {
    buckets: [OnceLock<Box<[Entry]>>; BUCKETS],
    len: AtomicUsize,
}

/// Bucket and position inside it.
fn place(index: usize) -> (usize, usize) {
    let scaled = index / FIRST_BUCKET_ENTRIES + 1;
    let bucket = scaled.ilog2() as usize;
    (bucket, index - FIRST_BUCKET_ENTRIES * ((1 << bucket) - 1))
}

impl EventRing {
    /// How many events are published.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.buckets.iter().filter_map(OnceLock::get).map(|bucket| size_of_val::<[Entry]>(bucket)).sum()
    }

    /// Appends; only the writer of the memtable calls it.
    pub(super) fn push(&self, main: i64, offset: Offset) {
        let index = self.len.load(Ordering::Relaxed);
        let (bucket, position) = place(index);
        let entries = self.buckets[bucket]
            .get_or_init(|| (0..FIRST_BUCKET_ENTRIES << bucket).map(|_| Entry::default()).collect());
        debug_assert!(index == 0 || self.main(index - 1) <= main, "H2: events are appended in order");
        entries[position].main.store(main, Ordering::Relaxed);
        entries[position].offset.store(offset, Ordering::Relaxed);
        self.len.store(index + 1, Ordering::Release);
    }

    /// # Panics
    /// If `index` is not below a length that this thread has seen.
    fn entry(&self, index: usize) -> &Entry {
        let (bucket, position) = place(index);
        &self.buckets[bucket].get().expect("H2: a published event has a bucket")[position]
    }

    /// Main revision of an event.
    pub(super) fn main(&self, index: usize) -> i64 {
        self.entry(index).main.load(Ordering::Relaxed)
    }

    /// Node of an event.
    pub(super) fn offset(&self, index: usize) -> Offset {
        self.entry(index).offset.load(Ordering::Relaxed)
    }

    /// Index of the first event whose main revision is at least `main`, or the length.
    pub(super) fn first_at_or_above(&self, main: i64) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.main(middle) < main {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_in_order_across_buckets() {
        let ring = EventRing::default();
        assert_eq!((ring.len(), ring.first_at_or_above(0), ring.allocated_bytes()), (0, 0, 0));
        for index in 0..1000_u32 {
            ring.push(i64::from(index / 3), index + 1);
        }
        assert_eq!(ring.len(), 1000);
        for index in 0..1000 {
            assert_eq!((ring.main(index), ring.offset(index) as usize), ((index / 3) as i64, index + 1));
        }
        assert_eq!(ring.first_at_or_above(-1), 0);
        assert_eq!(ring.first_at_or_above(100), 300);
        assert_eq!(ring.first_at_or_above(334), 1000);
    }

    #[test]
    fn every_index_has_its_own_place() {
        let mut expected = (0, 0);
        for index in 0..10_000 {
            assert_eq!(place(index), expected, "index {index}");
            expected.1 += 1;
            if expected.1 == FIRST_BUCKET_ENTRIES << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
    }
}
