//! Replication as a plugin: what puts commands into one order and hands them to a state machine.
//!
//! `Replicator` is what the server sees, [`StateMachine`] is all that is known of the server. [`Solo`] is the
//! implementation without Raft: append, durable, apply.
//!
//! **Does not know** what a command means: commands are bytes.
pub mod entry_format;
pub mod replicator;
pub mod solo;
pub mod state_machine;
pub mod transport;

pub use replicator::{Class, Genesis, ProposeError, ReadBarrier, ReadError, Replicator, ReplicatorStatus};
pub use solo::{Solo, SoloOptions};
pub use state_machine::{Announce, Entry, Rejection, StateMachine};
