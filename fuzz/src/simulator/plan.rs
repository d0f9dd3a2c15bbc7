//! What a seed decides before anything happens: how many members, how large everything is, what may go wrong (swarm testing: each seed has some of the
//! faults, so that each meets what the others would hide).
//!
//! **Does not know** when what goes wrong.
use super::bug::Bug;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::io::fault_plan::Latency;
use sternpost_engine::options::LogOptions;
use sternpost_server::watch::OutboxLimits;

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) length: Length,
    pub(crate) bug: Option<Bug>,
    /// Faults of the plan that are left out, by name.
    pub(crate) without: Vec<String>,
    /// The run is made well again after so many microseconds, if that is sooner.
    pub(crate) until_us: Option<u64>,
}

impl Case {
    /// A seed as it is.
    pub(crate) fn new(seed: u64, length: Length) -> Self {
        Self { seed, length, bug: None, without: Vec::new(), until_us: None }
    }

    /// The same over a bug.
    pub(crate) fn over(self, bug: Bug) -> Self {
        Self { bug: Some(bug), ..self }
    }
}

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

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// What may go wrong, each so many times in a thousand of the chances it has; 0 for never.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub(crate) struct Faults {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        impl Faults {
            /// Those that may happen, by name.
            pub(crate) fn names(&self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(if self.$name > 0 { names.push(stringify!($name)); })*
                names
            }

            /// That one never happens; false if there is none of this name.
            pub(crate) fn leave_out(&mut self, name: &str) -> bool {
                match name {
                    $(stringify!($name) => self.$name = 0,)*
                    _ => return false,
                }
                true
            }
        }
    };
}

faults! {
    /// The power of one member fails.
    crashes
    /// The process of one member is killed, the machine runs on.
    kills
    /// The power of all fails at once.
    blackouts
    /// One member is cut off, both ways.
    partitions
    /// One direction of one link is cut.
    one_way
    /// All see one member alone.
    bridges
    /// Each sees its two neighbours alone.
    chains
    /// A process stands still and wakes up.
    freezes
    /// A leader stands still and is cut off at once: it wakes up deposed, and does not know.
    deposed
    /// A clock jumps ahead.
    jumps
    /// An operation of a disk takes long.
    stalls
    /// A write or sync fails once.
    disk_errors
    /// A device is full for a while.
    full_disks
    /// A bit of a file at rest is wrong, at one member alone.
    rot
    /// Leadership is handed over.
    transfers
    /// Members come and go.
    changes
    /// A leader that lives seems gone to others, to one or to all.
    alarms
    /// Frames are lost.
    loss
    /// Frames come twice.
    duplication
    /// Frames come late.
    late
    /// Copies of frames come much later.
    late_copies
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
    /// Members elect as soon as the leader's process is known to be gone.
    pub(crate) quick_elections: bool,
    /// Election timeouts follow what each member sees of network, disk and processor.
    pub(crate) is_adaptive: bool,
    /// What waits for a client of a watch.
    pub(crate) outbox: OutboxLimits,
    /// Bytes of values, at most.
    pub(crate) value_bytes_max: u64,
    /// Microseconds between faults on average.
    pub(crate) fault_pause_us: u64,
    /// Microseconds between two calls of a client on average.
    pub(crate) call_pause_us: u64,
    pub(crate) bug: Option<Bug>,
}

impl Plan {
    /// That of a case.
    pub(crate) fn new(case: &Case) -> Self {
        let Case { seed, length, bug, .. } = *case;
        let mut rng = Rng::new(seed ^ 0x05ea_0ca1);
        let members_count = [1, 3, 3, 3, 3, 3, 5][rng.below(7) as usize];
        let mut one_of = |of: u64| if rng.chance(1, of) { 1000 } else { 0 };
        let mut faults = Faults {
            crashes: one_of(2),
            kills: one_of(2),
            blackouts: one_of(3),
            partitions: one_of(2),
            one_way: one_of(3),
            bridges: one_of(3),
            chains: one_of(4),
            freezes: one_of(3),
            deposed: one_of(3),
            jumps: one_of(4),
            stalls: one_of(3),
            disk_errors: one_of(3),
            full_disks: one_of(4),
            rot: one_of(4),
            transfers: one_of(3),
            changes: one_of(3),
            alarms: 0,
            loss: one_of(2) * 30 / 1000,
            duplication: one_of(2) * 50 / 1000,
            late: one_of(2) * 20 / 1000,
            late_copies: one_of(3) * 50 / 1000,
        };
        // A generator of its own: everything else is what it was before there were quick elections.
        let quick_elections = Rng::new(seed ^ 0xab5e_17ce).chance(1, 3);
        if quick_elections {
            faults.alarms = 1000;
        }
        for name in &case.without {
            faults.leave_out(name);
        }
        // Of a generator of their own, too. Small, so that streams that nobody reads for a while are full.
        let mut sizes = Rng::new(seed ^ 0x0b0e_0e5a);
        let outbox = OutboxLimits {
            responses_max: [3, 12, 8_192][sizes.below(3) as usize],
            bytes_max: [1_000, 10_000, 8 << 20][sizes.below(3) as usize],
            total_bytes_max: [4_000, 256 << 20][sizes.below(2) as usize],
        };
        // Who rots must not become one of a majority.
        if members_count < 3 {
            faults.rot = 0;
        }
        if faults.rot > 0 {
            faults.changes = 0;
        }
        let call_us = length.chaos_us / length.operations_max;
        let chaos_us = length.chaos_us.min(case.until_us.unwrap_or(u64::MAX));
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
        let clients_count = 2 + rng.below(6) as usize;
        Self {
            seed,
            length: Length { chaos_us, ..length },
            members_count,
            clients_count,
            keys_count: 2 + rng.below(8),
            faults,
            memtable_bytes: [4 << 10, 16 << 10, 1 << 20][rng.below(3) as usize],
            log,
            retain_bytes: [0, 64 << 10, 1 << 20][rng.below(3) as usize],
            checkpoint,
            latency,
            quick_elections,
            is_adaptive: Rng::new(seed ^ 0x0ada_9717).chance(1, 3),
            outbox,
            value_bytes_max: [32, 600, 4_000][rng.below(3) as usize],
            // At least some faults in a short run too.
            fault_pause_us: [300_000, 1_000_000, 3_000_000][rng.below(3) as usize].min(length.chaos_us / 20),
            call_pause_us: call_us * clients_count as u64,
            bug,
        }
    }
}
