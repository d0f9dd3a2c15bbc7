//! Raft as a plugin: several members, one order.
//!
//! [`Core`] is one member without the world around it; the reasons and rules are in `replication/docs/raft.md`.
//!
//! [`Raft`] is one with disk, threads and peers.
//!
//! Reading order: [`input`], [`frame`], [`core`] with `guards`, [`configuration`], `log_view`, `terms`, `reads`, `proposals` and `stall`, [`replay`]; then [`node`] with
//! `inbox`, `log_thread`, `alone`, `apply`, `open`, `force`, `positions` and `barrier`; [`state`]; `single`; [`survey`]; `simulated`.
mod alone;
mod apply;
mod barrier;
pub mod configuration;
pub mod core;
mod force;
pub mod frame;
mod guards;
mod inbox;
pub mod input;
mod log_thread;
mod log_view;
pub mod node;
mod open;
mod pace;
mod planted;
mod positions;
mod proposals;
mod reads;
pub mod replay;
#[cfg(feature = "sim")]
pub mod simulated;
mod single;
mod stall;
pub mod state;
pub mod survey;
mod terms;

pub use self::core::{Core, CoreOptions, CoreStart, CoreStatus, PeerProgress};
pub use force::ChangeCommand;
pub use frame::{Body, Frame, Lane};
pub use inbox::Inbox;
pub use input::{Input, Output, Proposal, Quarantine, Refusal, Role};
pub use log_thread::describe_role;
pub use log_view::{LOAD_BYTES, LogView};
pub(crate) use node::mark_as_group;
pub use node::{
    CACHE_BYTES_MAX, Carrier, GroupOptions, Raft, RaftEvent, RaftOptions, boot_nonce, is_of_group,
};
pub use planted::Planted;
#[cfg(feature = "planted-bugs")]
pub use planted::PlantedBug;
pub use proposals::{OPEN_BYTES_MAX, OPEN_COUNT_MAX};
pub use single::Single;
