//! Replication as a plugin: what puts commands into one order and hands them to a state machine.
//!
//! `Replicator` is what the server sees, [`StateMachine`] is all that is known of the server. [`Solo`] is the
//! implementation without Raft: append, durable, apply. [`raft`], a feature that is on by default, is for several members.
//!
//! **Does not know** what a command means: commands are bytes.
pub mod entry_format;
mod holders;
#[cfg(feature = "raft")]
pub mod raft;
pub mod replicator;
pub mod seed;
pub mod solo;
pub mod state_machine;
pub mod transport;

pub use replicator::{
    Answer, Answerer, Class, Genesis, MemberChange, PeerStatus, ProposeError, ReadBarrier, ReadError,
    Replicator, ReplicatorStatus, Reply, TransferError,
};
pub use solo::{Solo, SoloOptions};
pub use state_machine::{Announce, ChangeEntry, Entry, Rejection, StateMachine};
