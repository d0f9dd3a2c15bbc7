//! Bugs on purpose, for builds with the feature `planted-bugs`; in a product build [`Planted`] is empty and constant.
//!
//! The crash tests must find each one; see `tests/db_crash.rs`.
#[cfg(feature = "planted-bugs")]
use crate::io::{Backend, Completion, Io, IoBuffer, Operation, Token, Wait, Waker};

/// Which bug is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    not(feature = "planted-bugs"),
    expect(dead_code, unreachable_pub, reason = "test builds export it and have a use for all of them")
)]
pub enum PlantedBug {
    /// Segments are not synced.
    SkipSegmentSync,
    /// The names of new segments are not made durable.
    SkipDirectorySync,
    /// The superblock is written before the pages that it refers to.
    SuperblockFirst,
    /// Segments lose their names before the superblock that does without them is durable.
    UnlinkEarly,
    /// A checkpoint drops by the compact revision of the moment at which it begins, not by that of its cut (C2).
    YoungerCompaction,
    /// Recovery starts where the log was durable when the checkpoint began, behind the cut.
    ReplayBehindCut,
    /// A run is handed over before the log is durable up to the cut.
    HandOverEarly,
    /// The numbers of segments that were removed are used again.
    ReuseSegmentIds,
    /// What a record of the run replaced stays alive when that record itself is dead and never written.
    ForgetReplaced,
    /// Cleaning knows only the dead records of the checkpoint before, and the sums of the table stay the old ones.
    CleanByOldBits,
    /// Keys that lost their lease are not taken out of the system tree.
    KeepLeaseKeys,
    /// Tombstones below the compact revision die, and their keys stay in the tree.
    ForgetPurges,
    /// Dead records are dropped before the sweep has come by and seen what they replaced.
    DropUnswept,
    /// What is noted for a replay is one version more than there was.
    NoteOneMore,
    /// What was pending for a leaf is taken out of the pending tree, and does not get into the leaf.
    DropPushed,
    /// What was pending for a leaf goes before what the run has of the same key.
    OlderPushed,
    /// A change that is pending does not say that its leaf has the key already: the sums count it twice.
    CountTwice,
    /// Records name, in place of each station, the revision before it, which is a version of whatever key changed then.
    StationElsewhere,
    /// A key's stations are forgotten with every checkpoint that changes it.
    StationsForgotten,
    /// An invariant does not hold when everything of a checkpoint is written but the superblock: no wrong state, but the end of
    /// the thread.
    BrokenInvariant,
}

/// The bug of this database, if one is planted.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planted {
    #[cfg(feature = "planted-bugs")]
    bug: Option<PlantedBug>,
}

impl Planted {
    #[cfg(feature = "planted-bugs")]
    pub(super) fn new(bug: Option<PlantedBug>) -> Self {
        Self { bug }
    }

    /// True if this bug is planted.
    #[inline]
    #[cfg_attr(
        not(feature = "planted-bugs"),
        expect(clippy::unused_self, reason = "it has a bug to show in test builds")
    )]
    pub(crate) fn has(self, bug: PlantedBug) -> bool {
        #[cfg(feature = "planted-bugs")]
        let has = self.bug == Some(bug);
        #[cfg(not(feature = "planted-bugs"))]
        let has = {
            let _ = bug;
            false
        };
        has
    }
}

/// A device that leaves syncs out.
#[cfg(feature = "planted-bugs")]
pub(super) struct Device<'a> {
    io: &'a mut dyn Io,
    planted: Planted,
    /// The file opened last is the superblock.
    superblock: bool,
}

#[cfg(feature = "planted-bugs")]
impl<'a> Device<'a> {
    pub(super) fn new(io: &'a mut dyn Io, planted: Planted) -> Self {
        Self { io, planted, superblock: false }
    }
}

#[cfg(feature = "planted-bugs")]
impl Io for Device<'_> {
    fn submit(&mut self, token: Token, operation: Operation) {
        if let Operation::Open { path, .. } = &operation {
            self.superblock = path.as_os_str() == crate::superblock::FILE;
        }
        // Whoever asked looks at the success alone, so anything that succeeds may take the place of a sync.
        let operation = match operation {
            Operation::Sync { file } if !self.superblock && self.planted.has(PlantedBug::SkipSegmentSync) => {
                Operation::Length { file }
            }
            Operation::SyncDirectory { path } if self.planted.has(PlantedBug::SkipDirectorySync) => {
                Operation::List { path }
            }
            other => other,
        };
        self.io.submit(token, operation);
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        self.io.wait(wait, completions);
    }

    fn waker(&self) -> Waker {
        self.io.waker()
    }

    fn buffer(&mut self, bytes: usize) -> IoBuffer {
        self.io.buffer(bytes)
    }

    fn recycle(&mut self, buffer: IoBuffer) {
        self.io.recycle(buffer);
    }

    fn now_us(&self) -> u64 {
        self.io.now_us()
    }

    fn clock(&self) -> std::sync::Arc<dyn crate::base::clock::Clock> {
        self.io.clock()
    }

    fn backend(&self) -> Backend {
        self.io.backend()
    }

    fn is_stopped(&self) -> bool {
        self.io.is_stopped()
    }

    fn space(&self) -> Option<crate::io::DeviceSpace> {
        self.io.space()
    }

    fn in_flight_max(&self) -> usize {
        self.io.in_flight_max()
    }
}
