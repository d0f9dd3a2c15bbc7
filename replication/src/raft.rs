//! Raft as a plugin: several members, one order.
//!
//! [`Core`] is one member without the world around it; the reasons and rules are in `replication/docs/raft.md`.
//!
//!
//! Reading order: [`input`], [`frame`], [`core`] with `guards`, `log_view`, `terms`, `reads`, `proposals` and `stall`, [`replay`].
pub mod core;
pub mod frame;
mod guards;
pub mod input;
mod log_view;
mod planted;
mod proposals;
mod reads;
pub mod replay;
mod stall;
mod terms;

pub use self::core::{Core, CoreOptions, CoreStart, CoreStatus, PeerProgress};
pub use frame::{Body, Frame, Lane};
pub use input::{Input, Output, Proposal, Quarantine, Refusal, Role};
pub use log_view::{LOAD_BYTES, LogView};
pub use planted::Planted;
#[cfg(feature = "planted-bugs")]
pub use planted::PlantedBug;
pub use proposals::{OPEN_BYTES_MAX, OPEN_COUNT_MAX};
