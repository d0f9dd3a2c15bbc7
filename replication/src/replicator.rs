//! What a server needs from replication, with or without Raft.
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Why a command was not taken over.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ProposeError {
    /// More is queued than the bounds allow; the caller answers overload and may try again.
    TooManyRequests,
    /// This member takes no part in its group: what it has is not what it said it had.
    Quarantined,
    /// This replicator does not do it.
    NotServed,
    /// The replicator is stopping or its log failed; holds the reason.
    Stopped(String),
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRequests => f.write_str("too many requests are queued"),
            Self::Quarantined => f.write_str("this member is quarantined"),
            Self::NotServed => f.write_str("this replicator does not do it"),
            Self::Stopped(reason) => write!(f, "stopped: {reason}"),
        }
    }
}

impl std::error::Error for ProposeError {}

/// Why a read barrier was not reached.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader was known in time.
    NoLeader,
    /// A leader was known, and did not answer in time.
    TimedOut,
    /// More wait than the bounds allow.
    TooManyRequests,
    /// The replicator is stopping.
    Stopped,
}

/// Resolves when the state machine holds everything that was acknowledged before the call: a read of its state is
/// then linearizable. For a single node it is ready at once and never behind a sync.
pub struct ReadBarrier(Inner);

enum Inner {
    Ready(Option<Result<u64, ReadError>>),
    Pending(Pin<Box<dyn Future<Output = Result<u64, ReadError>> + Send>>),
}

impl ReadBarrier {
    /// A barrier that is already decided; the value is the applied index.
    pub fn ready(result: Result<u64, ReadError>) -> Self {
        Self(Inner::Ready(Some(result)))
    }

    /// A barrier that another thread decides.
    pub fn pending(future: Pin<Box<dyn Future<Output = Result<u64, ReadError>> + Send>>) -> Self {
        Self(Inner::Pending(future))
    }
}

impl Future for ReadBarrier {
    type Output = Result<u64, ReadError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Ready(result) => Poll::Ready(result.take().expect("polled after it was ready")),
            Inner::Pending(future) => future.as_mut().poll(context),
        }
    }
}

/// What a replicator says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplicatorStatus {
    /// Current term.
    pub term: u64,
    /// The leader's member id, 0 if none is known.
    pub leader: u64,
    /// Last committed index.
    pub committed_index: u64,
    /// Last applied index.
    pub applied_index: u64,
    /// Commands queued and not yet applied.
    pub pending_count: u64,
    /// Last index of this member's log.
    pub last_index: u64,
    /// The term in which this member has proved to lead: it has applied everything that was acknowledged in earlier ones. None for who
    /// does not lead.
    pub proved_term: Option<u64>,
    /// How often a leader became known that was not known a moment before, since the start; as etcd counts, once for a single node.
    pub leader_changes_count: u64,
    /// Why this member takes no part in its group, if so.
    pub quarantine: Option<String>,
    /// Why nothing more can be written to the log, while that lasts.
    pub full: Option<String>,
}

/// How far another member is, as the leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// The member.
    pub id: u64,
    /// Last index known to be durable there.
    pub matched_index: u64,
    /// It was heard of within the last election timeout.
    pub is_active: bool,
    /// It needs entries that this member's log does not hold any more.
    pub needs_snapshot: bool,
}

/// See [`Replicator::ask_leader`].
pub type Answer = Pin<Box<dyn Future<Output = Option<Vec<u8>>> + Send>>;

/// Gives an answer to who asked; may be dropped instead.
pub type Reply = Box<dyn FnOnce(Vec<u8>) + Send>;

/// Answers questions of other members: called with the question and the way back, on a thread of the transport; must not block.
pub type Answerer = Box<dyn Fn(Vec<u8>, Reply) + Send + Sync>;

/// A change of the members of a group, one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// A new voter, or a learner that becomes one.
    AddVoter(u64),
    /// A new member without a vote.
    AddLearner(u64),
    /// A member that is none any more.
    Remove(u64),
}

/// Why leadership was not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TransferError {
    /// This member does not lead.
    NotLeader,
    /// The other one is no voter of the group.
    BadTransferee,
    /// It did not take over in time.
    TimedOut,
}

/// Which reserve a command may use when the device is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Everything that stores data.
    Ordinary,
    /// What frees space or keeps the cluster alive: deletions, lease revoke, compaction, alarms, membership. Twice as many of them may wait.
    Privileged,
}

/// The state at index 1 that every member of a new group starts from, and who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// Identity of the cluster.
    pub cluster_id: u64,
    /// Identity of this member.
    pub member_id: u64,
    /// Ids of all voters, sorted; one for a single node.
    pub voters: Vec<u64>,
    /// The state machine's own part (member table and the like), handed to `StateMachine::restore`.
    pub state: Vec<u8>,
}

impl Genesis {
    /// What the handshake compares: XXH3-64 (seed 0) over cluster id, count of voters, voters, state. Not over the member's own id, so that it is
    /// the same on every member that was started with the same first members. It finds mistakes; it proves nothing.
    pub fn hash(&self) -> u64 {
        let mut bytes = self.cluster_id.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(self.voters.len() as u64).to_le_bytes());
        self.voters.iter().for_each(|voter| bytes.extend_from_slice(&voter.to_le_bytes()));
        bytes.extend_from_slice(&self.state);
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }
}

/// Puts commands into one durable order and applies them to the state machine it was started with.
///
/// A proposed command's result comes out of the state machine, which knows it by an id inside the command.
pub trait Replicator: Send + Sync {
    /// Takes over a command, or refuses at once. Never blocks.
    fn propose(&self, command: Vec<u8>, class: Class) -> Result<(), ProposeError>;

    /// See [`ReadBarrier`].
    fn read_barrier(&self) -> ReadBarrier;

    /// A snapshot of positions and roles.
    fn status(&self) -> ReplicatorStatus;

    /// Begins to hand leadership over to a voter, 0 for the best one; who leads then is seen in [`Self::status`].
    ///
    /// # Errors
    /// If this member does not lead, or the other is no voter. A single node always leads.
    fn transfer_leader(&self, to: u64) -> Result<(), TransferError> {
        let status = self.status();
        if to == 0 || to == status.leader { Ok(()) } else { Err(TransferError::BadTransferee) }
    }

    /// As [`Self::propose`], but only by this member as leader of `term`: never given to another leader, and rejected when the term is over.
    /// A single node leads always.
    ///
    /// # Errors
    /// Those of [`Self::propose`].
    fn propose_in_term(&self, command: Vec<u8>, class: Class, term: u64) -> Result<(), ProposeError> {
        let _ = term;
        self.propose(command, class)
    }

    /// Proposes a change of the members, with a command for the state machines; the result comes by the command's id. Only the leader takes it, and one
    /// at a time. The first change of a node that was alone blocks until what it has queued is applied, and so does whoever proposes meanwhile.
    ///
    /// # Errors
    /// Those of [`Self::propose`]; [`ProposeError::NotServed`] from a single node, whose build or directory knows no others.
    fn propose_change(&self, change: MemberChange, command: Vec<u8>) -> Result<(), ProposeError> {
        let _ = (change, command);
        Err(ProposeError::NotServed)
    }

    /// Asks the server of the leader something; resolves to its answer, or to nothing if no leader is known or nothing could be sent. An
    /// answer may never come: the caller has a time-out. A single node has nobody to ask.
    fn ask_leader(&self, question: Vec<u8>) -> Answer {
        let _ = question;
        Box::pin(std::future::ready(None))
    }

    /// The same of the server of `member`. Also while this member is quarantined: it is not the group's business.
    fn ask_member(&self, member: u64, question: Vec<u8>) -> Answer {
        let _ = (member, question);
        Box::pin(std::future::ready(None))
    }

    /// Sets who answers the questions of other members' servers; once.
    fn answer_with(&self, answerer: Answerer) {
        drop(answerer);
    }

    /// As leader: the others, by id.
    fn peers(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    /// Age in microseconds of the oldest write in flight, 0 if none: readable while the disk hangs.
    fn oldest_write_age_us(&self) -> u64;

    /// Stops: refuses new commands, finishes what is queued, closes the log. Blocks until that is done.
    fn shutdown(&self) -> Result<(), String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_genesis_is_the_same_on_all_its_members_and_differs_with_anything_else() {
        let genesis = Genesis { cluster_id: 1, member_id: 2, voters: vec![2, 3], state: b"state".to_vec() };
        assert_eq!(genesis.hash(), Genesis { member_id: 3, ..genesis.clone() }.hash());
        for other in [
            Genesis { cluster_id: 2, ..genesis.clone() },
            Genesis { voters: vec![2], ..genesis.clone() },
            Genesis { state: b"other".to_vec(), ..genesis.clone() },
        ] {
            assert_ne!(genesis.hash(), other.hash());
        }
        // It is compared across builds, so it is for ever.
        assert_eq!(genesis.hash(), 15_935_220_403_524_066_948);
    }
}
