//! The scrubber: reads everything that the newest checkpoint refers to, over and over, so slowly that nobody notices.
//!
//! **Why.** Damage of what nobody reads stays unknown until somebody needs it, and until then the copies it could be restored from grow
//! old.
//!
//! **Contract.** [`Scrubber::start`] runs a thread that reads past the cache at a rate in bytes a second, verifies as `verify` does, and
//! leaves what it finds in the quarantine ([`Store::quarantine`]); a lost leaf that can be made again is. A pass begins no sooner than
//! [`PASS_US_MIN`] after the one before. Dropping it ends the thread after the 256 KiB under way. [`scrub_once`] makes one pass at full speed on the
//! calling thread.
//!
//! **Where it goes on.** The position is kept in a small file (`scrub/bookmark.rs`), once a minute and at the end, so that a process which is restarted
//! more often than a pass takes reads everything all the same. Where there is none of use a start begins at a random segment.
//!
//! **Not covered**: the log, whose records are read by the next start, and which is short; agreement between trees and records, which
//! only `verify` checks.
mod bookmark;

use crate::base::clock::{Clock, MonotonicClock};
use crate::base::ids::SegmentId;
use crate::disk_state::ScrubPosition;
use crate::error::{Error, Result};
use crate::log::{PlaceRef, random_seed};
use crate::mvcc::Store;
use bookmark::Bookmark;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// From the start of one pass to the start of the next, at least: small data is not read all the time.
pub const PASS_US_MIN: u64 = 3600 * 1_000_000;
/// Rates that can be asked for, in bytes a second.
pub const RATE_RANGE: std::ops::RangeInclusive<u64> = 1..=1 << 40;
/// How often the position is written: what is read twice behind a kill is a minute's.
const MARK_US: u64 = 60 * 1_000_000;
/// What was not read in time is not caught up with, but for this much.
const BEHIND_US_MAX: u64 = 1_000_000;

/// How far a scrub is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubStats {
    /// Bytes read since the start, over all passes.
    pub bytes: u64,
    /// Passes that were ended.
    pub passes: u64,
    /// Places found damaged, over all passes: one that stays damaged counts in each.
    pub findings: u64,
    /// Microseconds since the last pass ended; none before the first.
    pub last_pass_age_us: Option<u64>,
}

/// When the next bytes may be read. Time goes in as a number, so that it can be tested without any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When what was read so far should have been read.
    due_us: u64,
    pass_started_us: u64,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64, now_us: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), due_us: now_us, pass_started_us: now_us }
    }

    /// Takes note of bytes that were read; how long to wait before the next.
    pub(crate) fn read(&mut self, bytes: u64, now_us: u64) -> u64 {
        let took = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second);
        self.due_us = self.due_us.max(now_us.saturating_sub(BEHIND_US_MAX));
        self.due_us = self.due_us.saturating_add(u64::try_from(took).unwrap_or(u64::MAX));
        self.due_us.saturating_sub(now_us)
    }

    /// The pass is over; how long to wait before the next.
    pub(crate) fn pass_ended(&mut self, now_us: u64) -> u64 {
        let next_us = self.pass_started_us.saturating_add(PASS_US_MIN).max(now_us);
        (self.pass_started_us, self.due_us) = (next_us, next_us);
        next_us - now_us
    }
}

/// One pass over everything, at full speed, on this thread. Damage is no error: it is counted here, and in [`Store::quarantine`].
pub fn scrub_once(store: &Store) -> ScrubStats {
    let mut stats = ScrubStats::default();
    let mut position = Some(ScrubPosition::START);
    while let Some(from) = position {
        let mut on_bytes = |bytes| {
            stats.bytes += bytes;
            ControlFlow::Continue(())
        };
        let (findings, next) = store.scrub(&from, &mut on_bytes);
        stats.findings += findings;
        position = next;
    }
    ScrubStats { passes: 1, last_pass_age_us: Some(0), ..stats }
}

/// See the module.
pub struct Scrubber {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: MonotonicClock,
}

#[derive(Default)]
struct State {
    stats: ScrubStats,
    /// When the last pass ended.
    passed_us: Option<u64>,
    closing: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long; breaks if it is time to end.
    fn wait(&self, us: u64) -> ControlFlow<()> {
        let open = |state: &mut State| !state.closing;
        let waited = self.changed.wait_timeout_while(self.state(), Duration::from_micros(us), open);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.closing { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Scrubber {
    /// Starts the thread, which reads at most so many bytes a second ([`RATE_RANGE`]). With a place, which is that of the store, its position is kept there.
    ///
    /// # Errors
    /// [`Error::Refused`] if the rate is out of range, or there is no thread.
    pub fn start(store: Store, bytes_per_second: u64, place: Option<PlaceRef>) -> Result<Self> {
        if !RATE_RANGE.contains(&bytes_per_second) {
            return Err(Error::Refused(format!("a scrub reads 1 to {} bytes a second", RATE_RANGE.end())));
        }
        let clock = MonotonicClock::default();
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), clock });
        let thread_shared = shared.clone();
        let thread = std::thread::Builder::new()
            .name("scrub".into())
            .spawn(move || scrub(&store, &thread_shared, bytes_per_second, place))
            .map_err(|error| Error::Refused(format!("cannot start the thread of the scrubber: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How far it is.
    pub fn stats(&self) -> ScrubStats {
        let state = self.shared.state();
        let age_us = |passed_us| self.shared.clock.now_us().saturating_sub(passed_us);
        ScrubStats { last_pass_age_us: state.passed_us.map(age_us), ..state.stats }
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread.
            let _ = thread.join();
        }
    }
}

/// Where a process begins.
fn first_position(store: &Store, mark: Option<&Bookmark>) -> ScrubPosition {
    let marked = mark.and_then(|mark| mark.read(store.database()));
    marked.unwrap_or_else(|| ScrubPosition::Records(SegmentId(store.random_segment(random_seed()))))
}

fn scrub(store: &Store, shared: &Shared, bytes_per_second: u64, place: Option<PlaceRef>) {
    let mut pace = Pace::new(bytes_per_second, shared.clock.now_us());
    let mut mark = place.map(Bookmark::new);
    let mut position = first_position(store, mark.as_ref());
    let mut marked_us = shared.clock.now_us();
    let mut keep = |position: &ScrubPosition| {
        if let Some(mark) = &mut mark {
            mark.write(store.database(), position);
        }
    };
    loop {
        let mut flow = ControlFlow::Continue(());
        let mut on_bytes = |bytes| {
            shared.state().stats.bytes += bytes;
            flow = shared.wait(pace.read(bytes, shared.clock.now_us()));
            flow
        };
        let (findings, next) = store.scrub(&position, &mut on_bytes);
        shared.state().stats.findings += findings;
        if flow.is_break() || shared.state().closing {
            // A slice that was broken off is read again.
            return keep(if flow.is_break() {
                &position
            } else {
                next.as_ref().unwrap_or(&ScrubPosition::START)
            });
        }
        position = match next {
            Some(next) => {
                let now_us = shared.clock.now_us();
                if now_us.saturating_sub(marked_us) >= MARK_US {
                    marked_us = now_us;
                    keep(&next);
                }
                next
            }
            None => {
                let now_us = shared.clock.now_us();
                keep(&ScrubPosition::START);
                {
                    let mut state = shared.state();
                    state.stats.passes += 1;
                    state.passed_us = Some(now_us);
                }
                if shared.wait(pace.pass_ended(now_us)).is_break() {
                    return;
                }
                ScrubPosition::START
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_any_pieces() {
        let mut now_us = 5_000;
        let mut pace = Pace::new(1 << 20, now_us);
        let mut bytes = 0;
        for piece in [1, 256 << 10, 4096, 3 << 20, 0, 777].into_iter().cycle().take(600) {
            bytes += piece;
            // Reading takes some of the time.
            now_us += 10;
            now_us += pace.read(piece, now_us);
        }
        let expected_us = bytes * 1_000_000 / (1 << 20);
        assert!((now_us - 5_000).abs_diff(expected_us) < expected_us / 100, "{now_us} {expected_us}");
    }

    #[test]
    fn what_was_not_read_in_time_is_not_caught_up_with() {
        let mut pace = Pace::new(1_000_000, 0);
        // A device that hung for a minute.
        let now_us = 60_000_000;
        assert_eq!(pace.read(500_000, now_us), 0, "a second may be caught up with");
        assert_eq!(pace.read(1_000_000, now_us), 500_000);
    }

    #[test]
    fn passes_begin_an_hour_apart_at_least() {
        let mut pace = Pace::new(1_000_000, 0);
        assert_eq!(pace.pass_ended(10), PASS_US_MIN - 10);
        let started_us = PASS_US_MIN;
        assert_eq!(
            pace.pass_ended(started_us + 2 * PASS_US_MIN),
            0,
            "one that took longer is followed at once"
        );
    }

    #[test]
    fn a_rate_out_of_range_is_refused() {
        let (store, _writer) = crate::mvcc::StoreWriter::new(Default::default());
        assert!(matches!(Scrubber::start(store, 0, None), Err(Error::Refused(_))));
    }

    /// A process that is restarted again and again, each time behind one slice, reads everything once before it reads anything twice.
    #[cfg(feature = "sim")]
    #[test]
    fn a_pass_goes_on_over_restarts() {
        use crate::checkpoint::CheckpointOptions;
        use crate::checkpoint::simulated::SimulatedCheckpoints;
        use crate::io::sim_disk::SimDisk;
        use crate::mvcc::{AnyLease, Put, StoreOptions, StoreWriter};
        let disk = SimDisk::new(1);
        let (store, mut writer) = StoreWriter::new(StoreOptions { memtable_bytes: 16 << 10 });
        let mut options = CheckpointOptions::default();
        options.shelf.segment_bytes = 64 << 10;
        let mut checkpoints = SimulatedCheckpoints::open(&disk, &mut writer, &options).expect("it opens");
        for number in 0..2_000 {
            let put =
                Put { key: format!("key {number}").into(), value: vec![7; 100].into(), ..Put::default() };
            writer.put(&put, &AnyLease).expect("a put");
            checkpoints.after_operation(&mut writer);
        }
        checkpoints.make(&mut writer, true).expect("a checkpoint");
        let slices_of = |mut next: Option<ScrubPosition>| {
            let mut slices = Vec::new();
            while let Some(position) = next {
                next = store.scrub(&position, &mut |_| ControlFlow::Continue(())).1;
                slices.push(position);
            }
            slices
        };
        let expected = slices_of(Some(ScrubPosition::START));
        assert!(expected.len() > 6, "{expected:?}");
        let bookmark = || Bookmark::new(crate::log::Place::on_simulated_disk(&disk).downgrade());
        let database = store.database();
        let mut found = Vec::new();
        bookmark().write(database, &ScrubPosition::START);
        for _ in 0..expected.len() {
            let mut mark = bookmark();
            let position = first_position(&store, Some(&mark));
            let next = store.scrub(&position, &mut |_| ControlFlow::Continue(())).1;
            mark.write(database, next.as_ref().unwrap_or(&ScrubPosition::START));
            found.push(position);
        }
        assert_eq!(found, expected);
        assert_eq!(bookmark().read(database), Some(ScrubPosition::START), "and then from the start");
    }
}
