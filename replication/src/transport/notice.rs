//! What a person should hear of connections: each thing once, in one sentence.
use super::handshake::RefusalCode;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use sternpost_engine::base::checksum::crc32;

/// Something to log. Said once for each peer and reason, and again after a connection with that peer has stood in between.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A peer refused our connection, or what it answered is not meant for us.
    RefusedByPeer {
        /// Whom we asked for.
        peer: u64,
        /// Where.
        address: String,
        /// Why.
        code: RefusalCode,
        /// Who answered, as (cluster id, member id), where that was told.
        by: Option<(u64, u64)>,
    },
    /// We did not admit who answered when we connected: the other way round, which is another thing to conclude from.
    RefusedAnswer {
        /// Whom we asked for.
        peer: u64,
        /// Where.
        address: String,
        /// Why.
        code: RefusalCode,
    },
    /// We refused a connection.
    RefusedPeer {
        /// Who asked, as it says.
        from: u64,
        /// The cluster that it says it is in.
        cluster_id: u64,
        /// From where.
        address: SocketAddr,
        /// Why.
        code: RefusalCode,
    },
    /// Something connected that is no peer, or does not finish its greeting.
    Stranger {
        /// From where.
        address: SocketAddr,
        /// What is wrong.
        what: String,
    },
    /// A peer cannot be reached.
    Unreachable {
        /// Its id.
        peer: u64,
        /// Where it was tried.
        addresses: Vec<String>,
        /// The last error.
        error: String,
    },
    /// A connection broke in a way that only a bug, a foreign build or a damaged network explains.
    Broken {
        /// Whose.
        peer: u64,
        /// What was wrong.
        what: String,
    },
    /// A peer's timers differ more than twofold from ours: heartbeat and election timeout in milliseconds.
    TimersDiffer {
        /// Its id.
        peer: u64,
        /// Ours.
        ours: (u32, u32),
        /// The peer's.
        theirs: (u32, u32),
    },
    /// No connections can be taken at the moment; tried again.
    CannotAccept {
        /// Why.
        error: String,
    },
}

impl Notice {
    /// Whom it is about (0 for nobody known), and a number for what it says.
    fn key(&self) -> (u64, u32) {
        match self {
            Self::RefusedByPeer { peer, code, .. } => (*peer, 0x100 + u32::from(code.number())),
            Self::RefusedPeer { from, code, .. } => (*from, 0x200 + u32::from(code.number())),
            Self::RefusedAnswer { peer, code, .. } => (*peer, 0x300 + u32::from(code.number())),
            // Each text once: what strangers do has a handful of them.
            Self::Stranger { what, .. } => (0, crc32(what.as_bytes()) | STRANGERS),
            // Each reason once: behind a port that is not open yet there may be somebody who refuses us.
            Self::Unreachable { peer, error, .. } => (*peer, crc32(error.as_bytes()) >> 2 | UNREACHABLE),
            Self::Broken { peer, .. } => (*peer, 3),
            Self::TimersDiffer { peer, .. } => (*peer, TIMERS),
            Self::CannotAccept { .. } => (0, 5),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefusedByPeer { peer, address, code, by } => {
                write!(f, "the connection to member {peer:x} at {address} is refused: {code}")?;
                match by {
                    Some((cluster, member)) => {
                        write!(f, " (answered by member {member:x} of cluster {cluster:x})")
                    }
                    None => Ok(()),
                }
            }
            Self::RefusedAnswer { peer, address, code } => {
                write!(f, "member {peer:x}, which answers at {address}, is refused: {code}")
            }
            Self::RefusedPeer { from, cluster_id, address, code } => write!(
                f,
                "a connection of member {from:x} of cluster {cluster_id:x} from {address} is refused: {code}"
            ),
            Self::Stranger { address, what } => {
                write!(f, "a connection from {address} to the peer port is closed: {what}")
            }
            Self::Unreachable { peer, addresses, error } => {
                write!(f, "member {peer:x} cannot be reached at {}: {error}", addresses.join(", "))
            }
            Self::Broken { peer, what } => {
                write!(f, "a connection with member {peer:x} is closed and made again: {what}")
            }
            Self::TimersDiffer { peer, ours, theirs } => write!(
                f,
                "member {peer:x} runs with a heartbeat of {} ms and an election timeout of {} ms, this one with {} and {}: they \
                 should be alike",
                theirs.0, theirs.1, ours.0, ours.1
            ),
            Self::CannotAccept { error } => {
                write!(f, "connections of peers cannot be taken at the moment: {error}")
            }
        }
    }
}

const TIMERS: u32 = 4;
/// Set in the numbers of those who cannot be reached.
const UNREACHABLE: u32 = 1 << 30;
/// Set in the numbers of strangers.
const STRANGERS: u32 = 1 << 31;
/// At this many different notices the memory is emptied, and something may be said twice.
const SAID_MAX: usize = 1_024;

/// What was said already.
#[derive(Default)]
pub(super) struct Said(BTreeSet<(u64, u32)>);

impl Said {
    /// True if it is new, and from now on it is not.
    pub(super) fn is_new(&mut self, notice: &Notice) -> bool {
        if self.0.len() >= SAID_MAX {
            self.0.clear();
        }
        self.0.insert(notice.key())
    }

    /// A connection with `peer` stands: what goes wrong from now on is news. Its timers are not, they are as they were.
    pub(super) fn forget(&mut self, peer: u64) {
        self.0.retain(|(about, what)| *about != peer || *what == TIMERS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_said_once_and_again_after_a_connection() {
        let mut said = Said::default();
        let refused = |peer, code| Notice::RefusedByPeer { peer, address: "a:1".into(), code, by: None };
        let timers = Notice::TimersDiffer { peer: 1, ours: (30, 150), theirs: (100, 1_000) };
        assert!(said.is_new(&refused(1, RefusalCode::Genesis)));
        assert!(!said.is_new(&refused(1, RefusalCode::Genesis)));
        assert!(said.is_new(&refused(1, RefusalCode::Removed)));
        assert!(said.is_new(&refused(2, RefusalCode::Genesis)));
        assert!(said.is_new(&timers));
        said.forget(1);
        assert!(said.is_new(&refused(1, RefusalCode::Genesis)));
        assert!(!said.is_new(&refused(2, RefusalCode::Genesis)));
        assert!(!said.is_new(&timers));
    }

    #[test]
    fn notices_are_one_sentence() {
        let notice = Notice::RefusedByPeer {
            peer: 0xab,
            address: "10.0.0.1:2380".into(),
            code: RefusalCode::Cluster,
            by: Some((0xc, 0xd)),
        };
        assert_eq!(
            notice.to_string(),
            "the connection to member ab at 10.0.0.1:2380 is refused: it belongs to another cluster (answered by member d of cluster c)"
        );
    }
}
