//! What a seed decides before anything happens: how many members, how large everything is, what may go wrong (swarm testing: each seed has some of the
//! faults, so that each meets what the others would hide).
//!
//! **Does not know** when what goes wrong.
use super::bug::Bug;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::io::fault_plan::Latency;
use sternpost_engine::options::LogOptions;

/// How long a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Length {
    /// Microseconds in which things go wrong.
    pub(crate) chaos_us: u64,
    /// Operations of clients at most.
    pub(crate) operations_max: u64,
}

impl Length {
    /// What a campaign runs: 60 seconds with those in which all is made well again.
    pub(crate) const FULL: Self = Self { chaos_us: 45_000_000, operations_max: 2_000 };
    /// What the tests of every day run.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the tests"))]
    pub(crate) const SHORT: Self = Self { chaos_us: 8_000_000, operations_max: 400 };
}

/// What may go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The power of one member fails.
    pub(crate) crashes: bool,
    /// The process of one member is killed, the machine runs on.
    pub(crate) kills: bool,
    /// The power of all fails at once.
    pub(crate) blackouts: bool,
    /// One member is cut off, both ways.
    pub(crate) partitions: bool,
    /// One direction of one link is cut.
    pub(crate) one_way: bool,
    /// All see one member alone.
    pub(crate) bridges: bool,
    /// Each sees its two neighbours alone.
    pub(crate) chains: bool,
    /// A process stands still and wakes up.
    pub(crate) freezes: bool,
    /// A clock jumps ahead.
    pub(crate) jumps: bool,
    /// An operation of a disk takes long.
    pub(crate) stalls: bool,
    /// A write or sync fails once.
    pub(crate) disk_errors: bool,
    /// A device is full for a while.
    pub(crate) full_disks: bool,
    /// A bit of a file at rest is wrong.
    pub(crate) rot: bool,
    /// Leadership is handed over.
    pub(crate) transfers: bool,
    /// Members come and go.
    pub(crate) changes: bool,
    /// Frames lost, doubled, late, and copies that come much later: in a thousand.
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) late: u64,
    pub(crate) late_copies: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) length: Length,
    /// Members at first, all of them voters.
    pub(crate) members_count: usize,
    pub(crate) clients_count: usize,
    pub(crate) keys_count: u64,
    pub(crate) faults: Faults,
    pub(crate) memtable_bytes: usize,
    pub(crate) log: LogOptions,
    /// Bytes that the log keeps behind its end.
    pub(crate) retain_bytes: u64,
    pub(crate) checkpoint: CheckpointOptions,
    pub(crate) latency: Latency,
    /// Bytes of values, at most.
    pub(crate) value_bytes_max: u64,
    /// Milliseconds between faults on average.
    pub(crate) fault_pause_us: u64,
    pub(crate) bug: Option<Bug>,
}

impl Plan {
    /// The plan of `seed`.
    pub(crate) fn new(seed: u64, length: Length, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed ^ 0x05ea_0ca1);
        let members_count = [1, 3, 3, 3, 3, 3, 5][rng.below(7) as usize];
        let mut one_of = |of: u64| rng.chance(1, of);
        let faults = Faults {
            crashes: one_of(2),
            kills: one_of(2),
            blackouts: one_of(3),
            partitions: one_of(2),
            one_way: one_of(3),
            bridges: one_of(3),
            chains: one_of(4),
            freezes: one_of(3),
            jumps: one_of(4),
            stalls: one_of(3),
            disk_errors: one_of(3),
            full_disks: one_of(4),
            rot: one_of(4),
            transfers: one_of(3),
            changes: one_of(3),
            loss: if one_of(2) { 30 } else { 0 },
            duplication: if one_of(2) { 50 } else { 0 },
            late: if one_of(2) { 20 } else { 0 },
            late_copies: if one_of(3) { 50 } else { 0 },
        };
        // Small, so that logs are recycled, checkpoints made and states needed within seconds.
        let log = LogOptions { segment_bytes: Some(64 << 10), calibrate: false, ..LogOptions::default() };
        let mut checkpoint = CheckpointOptions::default();
        checkpoint.shelf.page_bytes = [512, 4096][rng.below(2) as usize];
        checkpoint.shelf.segment_bytes = [16 << 10, 64 << 10][rng.below(2) as usize];
        checkpoint.shelf.cache_bytes = [0, 1 << 20][rng.below(2) as usize];
        checkpoint.wal_bytes_max = [64 << 10, 256 << 10][rng.below(2) as usize];
        checkpoint.rest_us = 500_000;
        checkpoint.rest_wal_bytes_max = 8 << 10;
        checkpoint.sweep_changes_max = [7, 1 << 18][rng.below(2) as usize];
        #[cfg(feature = "planted-bugs")]
        if let Some(Bug::Checkpoint(bug)) = bug {
            checkpoint.planted = Some(bug);
        }
        let slow = rng.below(4) == 0;
        let latency = Latency {
            write_us: if slow { (200, 4_000) } else { (20, 200) },
            sync_us: if slow { (500, 20_000) } else { (50, 500) },
            ..Latency::default()
        };
        Self {
            seed,
            length,
            members_count,
            clients_count: 2 + rng.below(6) as usize,
            keys_count: 2 + rng.below(8),
            faults,
            memtable_bytes: [4 << 10, 16 << 10, 1 << 20][rng.below(3) as usize],
            log,
            retain_bytes: [0, 64 << 10, 1 << 20][rng.below(3) as usize],
            checkpoint,
            latency,
            value_bytes_max: [32, 600, 4_000][rng.below(3) as usize],
            fault_pause_us: [300_000, 1_000_000, 3_000_000][rng.below(3) as usize],
            bug,
        }
    }
}
