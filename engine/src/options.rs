//! Every option of the engine: its unit, default, allowed range and reason.
use crate::checkpoint::CheckpointOptions;
use crate::mvcc::StoreOptions;
use crate::wal::{SyncMethod, WalOptions};
use std::time::Duration;

/// Which device backend to use.
pub use crate::io::BackendChoice;

/// When a write is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DurabilityLevel {
    /// After it is durable; writes that arrive together share one sync. The only level at which the revision never
    /// goes back after a crash.
    #[default]
    Group,
    /// At once; the log is synced when this much time has passed since the first write that is not durable, or when
    /// [`UNSYNCED_BYTES_MAX`] have gathered. A crash loses at most that much, never the middle.
    Interval(Duration),
    /// At once; the log is synced by [`crate::Db::sync`], by closing, or when [`UNSYNCED_BYTES_MAX`] have gathered.
    Manual,
}

/// Writes that are answered before they are durable gather no more than this many bytes of log.
pub const UNSYNCED_BYTES_MAX: usize = 8 << 20;

/// Options of the log and its device.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Ring, syscalls, or the best that works.
    pub io_backend: BackendChoice,
    /// Size of a log segment, 64 KiB to 64 MiB. `None`: 16 MiB. A directory keeps the size it was made
    /// with.
    pub segment_bytes: Option<u64>,
    /// How a group is made durable. `None`: what was measured for this device, else the linked pair.
    pub wal_sync: Option<SyncMethod>,
    /// Whether the device is measured, in the background and once, where `wal_sync` is `None`.
    pub calibrate: bool,
    /// Groups in flight, 1 to 4.
    pub groups_in_flight_max: usize,
    /// So many bytes of the log are kept behind its end at least, over a restart too, though no checkpoint needs them: for members of a
    /// group that were away. 0, the default, for none. A start reads them.
    pub retain_bytes: u64,
    /// How long to wait for another process that has the directory open. A killed process holds its lock until its
    /// last write has landed, so a little patience is part of every restart.
    pub lock_wait: Duration,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            io_backend: BackendChoice::Auto,
            segment_bytes: None,
            wal_sync: None,
            calibrate: true,
            groups_in_flight_max: WalOptions::default().groups_in_flight_max,
            retain_bytes: 0,
            lock_wait: Duration::from_secs(30),
        }
    }
}

/// Options of an embedded database.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// When a write is answered.
    pub durability: DurabilityLevel,
    /// The log and its device.
    pub log: LogOptions,
    /// The memtables.
    pub store: StoreOptions,
    /// What is on disk beside the log, and its cache.
    pub checkpoint: CheckpointOptions,
    /// How many bytes a second the scrubber reads in the background ([`crate::scrub`]); 0, the default, for none: a library starts
    /// no work that it was not asked for. 4 MiB/s read 2.4 TB in a week.
    pub scrub_bytes_per_second: u64,
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets when a write is answered.
    pub fn durability(mut self, durability: DurabilityLevel) -> Self {
        self.durability = durability;
        self
    }

    /// Sets how long [`crate::Db::open`] waits for a directory that is in use.
    pub fn open_timeout(mut self, wait: Duration) -> Self {
        self.log.lock_wait = wait;
        self
    }

    /// Sets the size at which a memtable is frozen, in bytes.
    pub fn memtable_bytes(mut self, bytes: usize) -> Self {
        self.store.memtable_bytes = bytes;
        self
    }

    /// Sets the memory for pages and values that were read from disk, in bytes.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.checkpoint.shelf.cache_bytes = bytes;
        self
    }

    /// Sets how many bytes a second the scrubber reads; 0 for none.
    pub fn scrub_bytes_per_second(mut self, bytes: u64) -> Self {
        self.scrub_bytes_per_second = bytes;
        self
    }

    /// Sets the device backend.
    pub fn io_backend(mut self, choice: BackendChoice) -> Self {
        self.log.io_backend = choice;
        self
    }

    /// Sets whether the device is measured: once for each directory and device, for a second or so in the background of
    /// the first opening that lasts longer than [`crate::log::calibration::DELAY`].
    pub fn calibrate(mut self, calibrate: bool) -> Self {
        self.log.calibrate = calibrate;
        self
    }
}
