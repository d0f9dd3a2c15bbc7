//! The only thing replication knows of the layer above it.
use sternpost_engine::mvcc::StoreWriter;

/// One committed log entry: many commands in one order.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Position in the log; consecutive. Never a revision.
    pub index: u64,
    /// Term it was proposed in.
    pub term: u64,
    /// The commands, in order; empty in an entry that only the replication needs.
    pub commands: Vec<&'a [u8]>,
    /// True while the log is replayed at start: nobody waits for the result.
    pub replay: bool,
}

/// A committed entry that would change the members of the group.
#[derive(Clone, Copy, Debug)]
pub struct ChangeEntry<'a> {
    /// As in [`Entry`].
    pub index: u64,
    /// As in [`Entry`].
    pub term: u64,
    /// The command that travels with the change.
    pub command: &'a [u8],
    /// The change makes sense where it is: what the group consists of allows it.
    pub is_possible: bool,
    /// As in [`Entry`].
    pub replay: bool,
}

/// Why a command that was taken over did not get into the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// The device is full. Ordinary commands are refused first; privileged ones have a reserve.
    NoSpace,
    /// The log failed or is closing; holds the reason. Whether the command is durable is unknown.
    Stopped(String),
    /// No leader took it in time. It is not in the log.
    NoLeader,
    /// A change of the members was given to somebody who does not lead, or while another one was under way. It is not in the log.
    ChangeRefused,
    /// A leader was given it, and its fate was not known in time: it may still be applied.
    Unknown,
    /// More is under way than the bounds allow. It is not in the log.
    TooManyRequests,
}

/// See [`StateMachine::announcer`].
pub type Announce = Box<dyn Fn(&[u8]) + Send>;

/// A deterministic machine of commands: the same entries give the same state on every member.
pub trait StateMachine: Send + 'static {
    /// Applies one entry; called in index order, each index once per process. Cannot fail: a command that is refused
    /// is a result that its proposer hears, not a failure of the machine.
    fn apply(&mut self, entry: &Entry<'_>);

    /// Applies an entry that changes the members; counts as one of the entries that [`Self::apply`] gets, in the same order. Returns whether the
    /// change is made: the same on every member, and never if it is not possible. A machine of a group that never changes need not know
    /// any of it.
    fn apply_change(&mut self, entry: &ChangeEntry<'_>) -> bool {
        let ChangeEntry { index, term, replay, .. } = *entry;
        self.apply(&Entry { index, term, commands: Vec::new(), replay });
        entry.is_possible
    }

    /// Called after a batch of entries, before their proposers could hear of later ones: the moment to wake watchers.
    fn flush(&mut self) {}

    /// A bounded piece of background work while nothing is to apply; true when more is left.
    fn maintain(&mut self) -> bool {
        false
    }

    /// The engine's store that holds the state; a machine that has one gets checkpoints, and a log that does not grow for
    /// ever.
    fn storage(&mut self) -> Option<&mut StoreWriter> {
        None
    }

    /// The store was filled from a checkpoint, before the log is replayed: the moment to read what is kept in memory.
    fn attached(&mut self) {}

    /// What is to be called with a command some time before it is applied, on another thread: it may have things read that the
    /// command will need, and changes nothing. Asked for once, after [`Self::attached`], for the commands of the log that is replayed.
    fn announcer(&self) -> Option<Announce> {
        None
    }

    /// Takes over the state of a checkpoint at (`index`, `term`), before any entry is applied. The first one is the
    /// genesis: `state` is then what [`crate::Genesis::state`] was given.
    fn restore(&mut self, index: u64, term: u64, state: &[u8]);

    /// Index of the last applied entry (or restored checkpoint), 0 at first.
    fn applied_index(&self) -> u64;

    /// A command that was taken over will never be in the log; its proposer has to hear it. Called on the thread that
    /// applies. Nothing was changed.
    fn rejected(&mut self, command: &[u8], rejection: &Rejection);

    /// The same where only its id is at hand: see [`crate::raft::RaftOptions::command_id`]. A single node never calls it.
    fn given_up(&mut self, id: u64, rejection: &Rejection) {
        let _ = (id, rejection);
    }

    /// The log takes no more writes: every result that somebody still waits for is unknown. Called at most once.
    fn stopped(&mut self, reason: &str);
}
