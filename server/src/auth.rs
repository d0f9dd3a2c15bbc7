//! Who asks, and what they may: users, roles, permissions, passwords, tokens.
//!
//! **Reading order.** [`origin`]: who a command acts for; [`permissions`]: sets of keys as intervals; [`state`]: users and roles and what they
//! decide; [`check`]: what each request needs; [`password`]: hashes; [`token`]: from a user to a token and back, of two kinds: [`simple_token`], [`jwt`].
//! `docs/auth.md` tells the whole.
//!
//! **Contract.** [`state`] and [`check`] are values and functions of them: the state machine decides with them where a command is applied, and requests ask
//! a published copy of the same before. Passwords are hashed before a command exists, and tokens are kept beside the state, so neither is
//! in log, checkpoint, notice or error.
//!
//! **Does not know** storage, replication, gRPC.
pub mod check;
pub mod jwt;
pub mod origin;
pub mod password;
pub mod permissions;
pub mod simple_token;
pub mod state;
pub mod token;

pub use origin::{Credential, Origin};
pub use state::AuthState;
