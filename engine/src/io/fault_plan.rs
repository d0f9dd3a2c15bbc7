//! Which fault the simulated disk injects, at which operation. Feature `sim`.
//!
//! **Contract.** A plan is a list of [`Fault`]s. A fault names a kind of operation, optionally a part of the path,
//! and which of the operations that match it hits: the `nth` (from 0) and the `count - 1` after it. Operations are
//! counted when they are submitted, the sync inside a `Durability::Synced` write when that sync starts, and it counts
//! as a `Sync`. The first fault in the list that hits an operation decides; the others still count it.
//!
//! **Does not know** what a fault does to the content; that is [`super::sim_disk`]. What must come of each fault is
//! the table in `docs/fault_model.md`.
use crate::base::rng::Rng;
use std::path::Path;

/// The kinds of operation a fault can hit; one for each variant of [`super::Operation`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are those of the operations")]
pub enum OperationKind {
    Open,
    Close,
    Read,
    Write,
    Sync,
    SyncDirectory,
    Link,
    Rename,
    Unlink,
    List,
    CreateDirectory,
    Length,
    Allocate,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The operation fails with EIO. A failed write may have left none, some or all of its blocks (drawn from the
    /// seed); a failed sync behaves as [`Effect::SyncFailsKeeping`]; anything else changed nothing.
    Fail,
    /// The operation fails with ENOSPC and changes nothing.
    NoSpace,
    /// Write: acknowledged as usual, and never stored anywhere.
    LostWrite,
    /// Write: acknowledged as usual, stored in the same file at this offset (a multiple of 4 KiB) instead of its own.
    MisdirectedWrite {
        /// Where the bytes go, in bytes from the start of the file.
        offset: u64,
    },
    /// Read: succeeds with one bit of the buffer wrong; the file is as it was, so a second read is right.
    RottenRead {
        /// Index in the buffer, taken modulo its length.
        byte: usize,
        /// 0 to 7.
        bit: u8,
    },
    /// Sync: fails, and what it should have made durable never will be, although reads still show it and the next
    /// sync succeeds. This is what page caches did to databases that tried again (Rebello et al., "Can applications
    /// recover from fsync failures?", ATC 2020).
    SyncFailsLosing,
    /// Sync: fails, and what it should have made durable may still be made so by a later one.
    SyncFailsKeeping,
    /// The operation succeeds and takes this much longer, in microseconds.
    Stall(u64),
}

/// One fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The kind of operation that is hit.
    pub kind: OperationKind,
    /// Only operations whose path contains this; every path when empty.
    pub path_part: String,
    /// The first operation that is hit, counted from 0 among those that match.
    pub nth: u64,
    /// How many in a row are hit; `u64::MAX` for "from then on".
    pub count: u64,
    /// What happens to them.
    pub effect: Effect,
}

impl Fault {
    /// `effect` on the `nth` (from 0) operation of this kind, once, whatever the path.
    pub fn nth(kind: OperationKind, nth: u64, effect: Effect) -> Self {
        Self { kind, path_part: String::new(), nth, count: 1, effect }
    }

    /// The same fault, limited to paths that contain `part`.
    #[must_use]
    pub fn on(mut self, part: &str) -> Self {
        self.path_part = part.to_string();
        self
    }

    /// The same fault, on every operation from the `nth` on.
    #[must_use]
    pub fn sticky(mut self) -> Self {
        self.count = u64::MAX;
        self
    }
}

/// How long operations take, in microseconds of simulated time; drawn evenly from `min..=max`, and from the tenfold
/// in one of 32 cases, so that operations overtake one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Latency {
    /// Reads.
    pub read_us: (u64, u64),
    /// Writes, without their sync.
    pub write_us: (u64, u64),
    /// Syncs of files and directories.
    pub sync_us: (u64, u64),
    /// Everything else.
    pub control_us: (u64, u64),
}

impl Default for Latency {
    /// An NVMe drive of 2020, give or take.
    fn default() -> Self {
        Self { read_us: (50, 150), write_us: (20, 200), sync_us: (50, 500), control_us: (1, 20) }
    }
}

impl Latency {
    pub(crate) fn draw(range: (u64, u64), rng: &mut Rng) -> u64 {
        let (min, max) = range;
        let us = min + rng.below(max.saturating_sub(min) + 1);
        if rng.chance(1, 32) { us * 10 } else { us }
    }
}

/// Faults in order of precedence, and how often each has matched so far.
#[derive(Clone, Default, Debug)]
pub struct FaultPlan {
    faults: Vec<(Fault, u64)>,
}

impl FaultPlan {
    /// A plan of these faults.
    pub fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        Self { faults: faults.into_iter().map(|fault| (fault, 0)).collect() }
    }

    /// `count` faults, each one of `choices` moved to a random operation among the first `operations`.
    pub fn random(seed: u64, choices: &[Fault], count: usize, operations: u64) -> Self {
        let mut rng = Rng::new(seed);
        let bound = choices.len() as u64;
        Self::new((0..count).filter_map(|_| {
            let choice = choices.get(usize::try_from(rng.below(bound)).unwrap_or(0))?;
            Some(Fault { nth: rng.below(operations), ..choice.clone() })
        }))
    }

    /// Adds a fault behind the others; it counts from now on.
    pub fn add(&mut self, fault: Fault) {
        self.faults.push((fault, 0));
    }

    /// Counts one operation and says what goes wrong with it.
    pub(crate) fn decide(&mut self, kind: OperationKind, path: &Path) -> Option<Effect> {
        let mut effect = None;
        for (fault, seen) in &mut self.faults {
            if fault.kind != kind || !path.to_string_lossy().contains(&fault.path_part) {
                continue;
            }
            let hit = *seen >= fault.nth && *seen - fault.nth < fault.count;
            *seen += 1;
            if hit {
                effect = effect.or(Some(fault.effect));
            }
        }
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_the_nth_operation_that_matches_and_no_other() {
        let mut plan = FaultPlan::new([
            Fault::nth(OperationKind::Write, 1, Effect::LostWrite).on("wal/"),
            Fault::nth(OperationKind::Write, 3, Effect::Fail).sticky(),
        ]);
        let mut decide = |kind, path| plan.decide(kind, Path::new(path));
        assert_eq!(decide(OperationKind::Write, "super"), None);
        assert_eq!(decide(OperationKind::Write, "wal/1"), None);
        assert_eq!(decide(OperationKind::Sync, "wal/1"), None);
        assert_eq!(decide(OperationKind::Write, "wal/1"), Some(Effect::LostWrite));
        assert_eq!(decide(OperationKind::Write, "super"), Some(Effect::Fail));
        assert_eq!(decide(OperationKind::Write, "wal/1"), Some(Effect::Fail));
    }
}
