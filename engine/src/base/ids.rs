//! Identifiers that must not be mistaken for one another: positions in the log, revisions, log groups, segments.
use std::fmt;

/// A position in the write-ahead log, in bytes: `segment sequence × segment_bytes + offset`.
///
/// Gaps are allowed (the rest of a segment behind its end-of-segment group). A record is durable when its
/// position is below the durable position of the log, which is the first byte *not* known to be durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which replication group a log record belongs to. Group 0 is the only one today.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GroupId(pub u32);

/// Number of a file under `seg/`, shared by all kinds of segment. Drawn from a counter; one that a checkpoint has referred
/// to is never used again. A segment is written once, sealed, and later unlinked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SegmentId(pub u32);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Identity of one change: `main` counts applied write transactions (the first write of a store is 2, as in
/// etcd), `sub` counts changes inside one transaction, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision {
    /// Number of the write transaction, 1 on an empty store.
    pub main: i64,
    /// Position of the change inside its transaction.
    pub sub: i64,
}

impl Revision {
    /// The revision `main.sub`.
    pub const fn new(main: i64, sub: i64) -> Self {
        Self { main, sub }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}
