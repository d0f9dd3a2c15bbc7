//! A member's state for another one: held at the source, received beside what the receiver has, put in its place at a start.
//!
//! **Contract.** What is transferred is one checkpoint: the segments that its superblock refers to, and what the superblock says. The
//! source holds it ([`StateHolder`]) while its member goes on. The receiver stages it ([`Staging`]) in a directory that may be empty or
//! a running member's; nothing of what the directory is now is touched by that. Its member is then stopped, and the next start decides
//! ([`begin_install`]) and puts the state in place ([`continue_install`]) before it opens the directory. What comes out is a directory
//! with this state, an empty log, and the receiver's own member id.
//!
//! ```text
//! seg/incoming-NNNNNNNN.r.part   a segment that is being received
//! seg/incoming-NNNNNNNN.r, .k    one that is whole, verified and synced
//! incoming.ready                 all of them are there and durable; says what the state is
//! install                        the decision: from now on the directory is this state and nothing else
//! incoming.cleared               incoming.ready, when nothing of the old state is left
//! ```
//!
//! **States of a directory**: see `docs/transfer.md`, the table by those names.
//!
//! **Invariants.** N1: while `incoming.ready` or `incoming.cleared` is there, so is every segment that it lists, durable, under its staged
//! name or, behind `incoming.cleared`, under its own. N2: nothing of the old state is removed before `install` is durable. N3: while
//! `install` is there and one of the other two, no call opens the directory but those that go on with it.
//!
//! **Failure.** A crash or an error at any moment leaves the old state, or a decision that is carried out by calling
//! [`continue_install`] again. What arrives damaged is removed, by file, and can be asked for again.
//!
//! **Why not a directory of its own.** Files are moved by renames within one directory, which every file system does as one step; see
//! `docs/decisions/0006-a-received-state-is-installed-at-a-start.md`.
//!
//! **Does not know** who sends and how, keys, entries of the log, what the caller's notes say, or when a member should be replaced.
//!
//! Reading order: `manifest` (what is transferred), `held` (the source), `names` (files and how they are written), `staging` (receiving),
//! `install`.
mod held;
mod install;
mod manifest;
mod names;
mod staging;

pub use held::{HeldState, READ_BYTES_MAX, StateHolder};
pub(crate) use install::refuse_half_installed;
pub use install::{Ready, begin_install, continue_install, discard, finish_install, staged};
pub use manifest::{Manifest, SegmentEntry};
pub use names::NOTE_BYTES_MAX;
pub use staging::Staging;

use crate::error::Result;
use crate::io::dir_lock::SERVER_WAIT;
use crate::io::{BackendChoice, Files, Io};
use crate::log::Log;
use crate::superblock::{Quarantine, SharedSuperblock};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A data directory to receive a state into, locked while this or a clone of it lives.
#[derive(Clone)]
pub struct Place {
    place: crate::log::Place,
    /// Makes the salt of the new log.
    seed: u64,
    #[cfg(feature = "planted-bugs")]
    planted: Option<PlantedBug>,
}

impl Place {
    /// A directory that nobody has open, made if it is missing: of a member that has nothing yet, or of one that is about to start. Waits
    /// for who has it for at most `wait`, [`Self::WAIT`] by default.
    ///
    /// # Errors
    /// [`crate::Error::Locked`] if somebody has it open.
    pub fn in_directory(directory: &Path, io_backend: BackendChoice, wait: Duration) -> Result<Self> {
        let place = crate::log::Place::in_directory(directory, io_backend, wait, |_| {})?;
        Ok(Self::at(&place))
    }

    /// The directory of an open log, from any thread; large writes wait while the log's own are late.
    pub fn of(log: &Log) -> Self {
        Self::at(&log.place())
    }

    /// A directory that the caller has locked, and nobody has open; or a simulated disk, whose seed then makes the salts.
    pub fn at(place: &crate::log::Place) -> Self {
        Self::new(place.clone(), place.salt_seed())
    }

    /// The root of a simulated disk.
    #[cfg(feature = "sim")]
    pub fn on_simulated_disk(disk: &crate::io::sim_disk::SimDisk, seed: u64) -> Self {
        Self::new(crate::log::Place::on_simulated_disk(disk), seed)
    }

    fn new(place: crate::log::Place, seed: u64) -> Self {
        Self {
            place,
            seed,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// How long a server waits for the process before it.
    pub const WAIT: Duration = SERVER_WAIT;

    /// The directory, to be opened under the same lock by [`crate::log::PreparedLog::in_place`].
    pub fn directory(&self) -> &crate::log::Place {
        &self.place
    }

    /// Breaks what is done here.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn with_bug(self, bug: Option<PlantedBug>) -> Self {
        Self { planted: bug, ..self }
    }

    fn open_io(&self) -> Result<Box<dyn Io>> {
        self.place.open_io()
    }

    fn files(&self) -> Result<Arc<dyn Files>> {
        self.place.files()
    }
}

/// Keeps, durably, that the member at `place` may take no part for `reason`, not 0, until a state is installed that holds the entry at `last` (index, term): the
/// superblock of an installed state says nothing of it any more. `superblock` is that of the directory, which may be open.
///
/// # Errors
/// What the device reports; then whether it is kept is for the next open to find.
pub fn note_quarantine(
    place: &Place,
    superblock: &SharedSuperblock,
    reason: u32,
    (last_index, last_term): (u64, u64),
) -> Result<()> {
    let mut io = place.open_io()?;
    superblock.update(&mut *io, |superblock| {
        superblock.quarantine = Some(Quarantine { reason, last_index, last_term });
    })
}

/// Which bug is planted; the tests must find each one, see `tests/transfer_crash.rs`.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedBug {
    /// A received segment gets its name before it is synced (N1).
    RenameBeforeSync,
    /// `incoming.ready` is written before the names of the segments are durable (N1).
    ReadyBeforeNames,
    /// The old state is removed before the name `install` is durable (N2).
    ClearBeforeDecision,
    /// `incoming.cleared` is removed before the names of the segments are durable.
    PlacedBeforeNames,
    /// What is left of the old state is not told from what was put in place.
    NeverCleared,
    /// Pages are not verified before the state counts as whole.
    SkipPages,
}

/// True if `bug` is planted; constant false in a product build.
macro_rules! planted {
    ($place:expr, $bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let planted = $place.planted == Some($crate::transfer::PlantedBug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = {
            let _ = &$place;
            false
        };
        planted
    }};
}
use planted;
