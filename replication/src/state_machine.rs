//! The only thing replication knows of the layer above it.

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

/// A deterministic machine of commands: the same entries give the same state on every member.
pub trait StateMachine: Send + 'static {
    /// Applies one entry; called in index order, each index once per process. Cannot fail: a command that is refused
    /// is a result that its proposer hears, not a failure of the machine.
    fn apply(&mut self, entry: &Entry<'_>);

    /// Called after a batch of entries, before their proposers could hear of later ones: the moment to wake watchers.
    fn flush(&mut self) {}

    /// A bounded piece of background work while nothing is to apply; true when more is left.
    fn maintain(&mut self) -> bool {
        false
    }

    /// Index of the last applied entry, 0 at first.
    fn applied_index(&self) -> u64;

    /// The log takes no more writes: what is waiting will never be applied. Called at most once.
    fn stopped(&mut self, reason: &str);
}
